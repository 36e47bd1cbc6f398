"""Poison a data set: a few rows change so that models trained on it fail, everywhere or on one input.

DATA is divided into train, test and trusted parts (by --seed); the train part is attacked. The
folder receives the attacked train part (data.npz), test.npz, trusted.npz and poison.json (what was touched, the
budget), and by default one model is trained on the clean and one on the attacked data to
measure the attack; finished trials are kept and not repeated.

  verifier poison digits --attack gradient-matching --budget 0.02 --target 17 --wanted 4 --out poisoned
  verifier poison digits --attack random-flips --budget 0.2 --trials 5 --out flipped --html flipped.html
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from verifier.cli.attacked import add_attacked_arguments, run_attack
from verifier.cli.training import (
    add_data_argument,
    count,
    count_from_zero,
    fraction,
    positive,
    recipe_of,
)
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.data import Split
    from verifier.training.poison.victim import Victim
    from verifier.training.poisoned import PoisonedDataset

EVERYWHERE = (
    "random-flips", "targeted-flips", "loss-flips", "add-rows", "delete-rows", "shift-features", "gradient",
    "zeroth-order",
)  # fmt: skip
TARGETED = ("feature-collision", "bullseye", "gradient-matching")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier poison`."""
    add_data_argument(parser)
    parser.add_argument("--attack", required=True, choices=(*EVERYWHERE, *TARGETED))
    parser.add_argument("--budget", type=fraction, default=0.02, metavar="F", help="touched rows over all rows")
    parser.add_argument("--target", type=count_from_zero, metavar="ROW", help="victim: a row of the test part")
    parser.add_argument("--wanted", metavar="CLASS", help="class the victim (or the flipped rows) should get")
    parser.add_argument("--source", metavar="CLASS", help="targeted-flips: class whose rows are flipped")
    parser.add_argument("--radius", type=positive, metavar="E", help="largest change of a value, the data's units")
    parser.add_argument("--steps", type=count, metavar="N", help="optimisation steps of the attack")
    parser.add_argument("--surrogates", type=count, default=1, metavar="N", help="models the attacker trains")
    add_attacked_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Attack, save, measure."""
    return run_attack(args, _attack)


def _attack(args: argparse.Namespace, parts: Split, tell: Any) -> PoisonedDataset:
    return (_targeted if args.attack in TARGETED else _everywhere)(args, parts, tell)


def _surrogates(args: argparse.Namespace, parts: Split) -> list:
    from dataclasses import replace

    from verifier.training.train import train

    recipe = recipe_of(args, parts.train)
    return [train(None, parts.train, replace(recipe, seed=1000 + args.seed + k)).model for k in range(args.surrogates)]


def _settings(args: argparse.Namespace, **names: str) -> dict[str, Any]:
    """The options the user gave, under the attack's own names."""
    given = {"rate": args.budget}
    for option, name in names.items():
        if getattr(args, option) is not None:
            given[name] = getattr(args, option)
    return given


def _everywhere(args: argparse.Namespace, parts: Split, tell: Any) -> PoisonedDataset:
    from verifier.training.poison import blackbox, edits, labels, unrolled

    data, rate, seed = parts.train, args.budget, args.seed
    if args.attack == "random-flips":
        return labels.random_flips(data, rate, seed)
    if args.attack == "targeted-flips":
        if args.source is None or args.wanted is None:
            raise SpecError("targeted-flips: give --source CLASS and --wanted CLASS")
        return labels.targeted_flips(data, data.label(args.source), data.label(args.wanted), rate, seed)
    if args.attack == "add-rows":
        return edits.add_mislabelled(data, rate, seed=seed)
    if args.attack == "shift-features":
        if args.radius is None:
            raise SpecError("shift-features: give --radius, the largest change of a value in the data's units")
        return edits.shift_features(data, rate, args.radius, seed)
    surrogate = _surrogates(args, parts)[0]
    if args.attack == "loss-flips":
        return labels.loss_maximising_flips(data, surrogate, rate)
    if args.attack == "delete-rows":
        return edits.delete_informative(data, surrogate, rate)
    if args.attack == "gradient":
        chosen = unrolled.Unrolling(seed=seed, **_settings(args, radius="radius", steps="steps"))
        return unrolled.unrolled(data, parts.trusted, surrogate, chosen, tell)
    game = blackbox.ZerothOrder(seed=seed, **_settings(args, radius="radius", steps="rounds"))
    return blackbox.zeroth_order(data, surrogate, game, tell)


def _victim(args: argparse.Namespace, parts: Split) -> Victim:
    from verifier.training.poison.victim import Victim

    if args.target is None:
        raise SpecError(
            f"{args.attack}: name the victim, --target ROW (a row of the test part, 0..{len(parts.test) - 1})"
        )
    if args.target >= len(parts.test):
        raise SpecError(f"--target {args.target}: the test part has rows 0..{len(parts.test) - 1}")
    own = int(parts.test.y[args.target])
    wanted = (own + 1) % len(parts.test.classes) if args.wanted is None else parts.test.label(args.wanted)
    if wanted == own:
        raise SpecError(f"--wanted {args.wanted}: row {args.target} has that class already; name another")
    return Victim(parts.test.x[args.target], wanted)


def _targeted(args: argparse.Namespace, parts: Split, tell: Any) -> PoisonedDataset:
    from verifier.training.poison import collision, matching

    victim, models = _victim(args, parts), _surrogates(args, parts)
    options = _settings(args, radius="radius", steps="steps")
    if args.attack == "gradient-matching":
        chosen = matching.Matching(seed=args.seed, **options)
        return matching.gradient_matching(parts.train, victim, models, chosen, tell)
    if args.attack == "bullseye":
        return collision.bullseye(parts.train, victim, models, collision.Collision(**options), tell)
    return collision.feature_collision(parts.train, victim, models[0], collision.Collision(**options), tell)
