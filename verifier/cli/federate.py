"""Simulate a federation under attack: clients train on their shards, a server aggregates, all seeded.

CONFIG is a TOML or JSON file. An interrupted run goes on where its --out folder ends.

  data = "digits"
  [federation]              # clients, sampled, rounds, concentration, server_rate, aggregator, seed
  clients = 100
  aggregator = "krum"       # fedavg krum multi-krum median trimmed-mean clipping foolsgold rfa
  [local]                   # architecture, width, epochs, batch_size, learning_rate
  epochs = 5
  [attack]                  # left out: an honest federation
  kind = "distributed"      # or "model-replacement"
  label = "3"
  clients = [0, 1, 2, 3]
  rounds = [20, 21, 22, 23] # left out: every round
  scale = 10.0              # also: rows, epochs, trigger = "file.npz" (default: a 3 x 3 patch)

  verifier federate attack.toml --out rounds --html rounds.html
"""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.cli.training import (
    add_common_arguments,
    out_folder,
    parts_of,
    print_table,
    progress,
    start,
    write_results,
)
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.data import Dataset
    from verifier.training.federated.attack import FederatedAttack
    from verifier.training.federated.simulate import Federation

_ATTACK_KEYS = ("kind", "label", "clients", "rounds", "scale", "rows", "epochs", "trigger")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier federate`."""
    parser.add_argument("config", metavar="CONFIG", help="a .toml or .json file, as above")
    parser.add_argument("--out", metavar="DIR", help="receives rounds.jsonl, checkpoint.pt and model.pt; resumes there")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate, print, write."""
    start(args)
    from verifier.training.architecture import save_model
    from verifier.training.federated.simulate import simulate

    config = read_config(args.config)
    parts = parts_of(str(config["data"]), args.seed)
    federation = federation_of(config, args.seed)
    attack = attack_of(config, parts.train, Path(args.config).parent)
    folder = out_folder(args.out) if args.out else None
    with progress(args, federation.aggregator) as tell:
        found = simulate(parts.train, parts.test, federation, attack, folder=folder, progress=tell)
    shown = [r for r in found.rounds if r["round"] % max(1, len(found.rounds) // 10) == 0 or r is found.rounds[-1]]
    columns = ("round", "accuracy") if attack is None else ("round", "accuracy", "attack success")
    table = [(r["round"], f"{r['accuracy']:.1%}", f"{r.get('success', 0):.1%}")[: len(columns)] for r in shown]
    print_table(columns, table)
    if folder is not None:
        print(f"final model written to {save_model(found.model, folder / 'model.pt')}")
    _page(args, found.rounds, federation, attack, (columns, table))
    return 0


def _page(args: argparse.Namespace, rounds: tuple, federation: Federation, attack: Any, table: tuple) -> None:
    from verifier.report.training_page import Curve, Section, picture_of

    lines = {"accuracy": [(r["round"], r["accuracy"]) for r in rounds]}
    pictures = []
    if attack is not None:
        lines["attack success"] = [(r["round"], r["success"]) for r in rounds]
        for client, bad in attack.clients.items():
            picture = picture_of(bad.trigger.mask, f"client {client}: its part of the trigger", (0.0, 1.0))
            pictures += [] if picture is None else [picture]
    curve = Curve(lines, "round", "on the test part")
    name = "no attack" if attack is None else attack.name
    summary = f"{federation.clients} clients, {federation.sampled} a round, {federation.aggregator}, {name}."
    section = Section("Round by round", (), table[0], table[1], pictures, curve)
    write_results(args, {"rounds": list(rounds)}, f"Federation {args.config}", summary, [section])


def read_config(path: str) -> dict[str, Any]:
    """The file's tables, checked for unknown names.

    Raises:
        SpecError: unreadable, no data named, or a name that means nothing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        config = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read as {'JSON' if path.endswith('.json') else 'TOML'}: {error}") from error
    if not isinstance(config, dict) or "data" not in config:
        raise SpecError(f'{path}: name the data set, as in data = "digits"')
    known = {"data": None, "federation": None, "local": None, "attack": None}
    _only(path, config, tuple(known))
    return config


def _only(where: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise SpecError(f"{where}: unknown {', '.join(unknown)}; there are {', '.join(known)}")


def federation_of(config: dict[str, Any], seed: int) -> Federation:
    """The federation a configuration asks for."""
    from verifier.training.federated.aggregate import aggregator
    from verifier.training.federated.simulate import LOCAL, Federation
    from verifier.training.train import Recipe

    outer, local = dict(config.get("federation", {})), dict(config.get("local", {}))
    _only("[federation]", outer, tuple(f.name for f in fields(Federation) if f.name != "local"))
    _only("[local]", local, tuple(f.name for f in fields(Recipe) if f.name != "seed"))
    for table, cls in ((outer, Federation), (local, Recipe)):
        _check_types(table, cls())
    found = replace(Federation(seed=seed, local=replace(LOCAL, **local)), **outer)
    aggregator(found.aggregator)
    if found.rounds < 1:
        raise SpecError(f"[federation] rounds: expected at least 1, got {found.rounds}")
    return found


def _check_types(table: dict[str, Any], defaults: object) -> None:
    for name, value in table.items():
        wanted = type(getattr(defaults, name))
        fits = isinstance(value, (int, float)) if wanted is float else isinstance(value, wanted)
        if not fits or isinstance(value, bool):
            raise SpecError(f"{name}: expected a {wanted.__name__}, got {value!r}")


def attack_of(config: dict[str, Any], data: Dataset, folder: Path) -> FederatedAttack | None:
    """The attack a configuration asks for, or None."""
    from verifier.training.backdoor.trigger import Patch, corner_patch, load_trigger
    from verifier.training.federated.attack import distributed_backdoor, model_replacement

    if "attack" not in config:
        return None
    table = dict(config["attack"])
    _only("[attack]", table, _ATTACK_KEYS)
    kinds = {"model-replacement": model_replacement, "distributed": distributed_backdoor}
    kind = table.pop("kind", "model-replacement")
    if kind not in kinds:
        raise SpecError(f"[attack] kind: expected one of {', '.join(kinds)}, got '{kind}'")
    if "label" not in table:
        raise SpecError('[attack]: name the class the trigger asks for, as in label = "3"')
    label = data.label(table.pop("label"))
    named = table.pop("trigger", None)
    trigger = corner_patch(data) if named is None else load_trigger(folder / str(named))
    if not isinstance(trigger, Patch):
        raise SpecError(f"[attack] trigger {named}: a federation needs a patch")
    for key in ("clients", "rounds"):
        if key in table:
            if not isinstance(table[key], list) or not all(type(v) is int for v in table[key]):
                raise SpecError(f"[attack] {key}: expected a list of whole numbers, got {table[key]!r}")
            table[key] = tuple(table[key])
    for key in ("scale", "rows", "epochs"):
        if key in table and (not isinstance(table[key], (int, float)) or not table[key] > 0):
            raise SpecError(f"[attack] {key}: expected a number > 0, got {table[key]!r}")
    return kinds[kind](trigger, label, **table)
