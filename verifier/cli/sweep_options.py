"""Options, checks and the run itself that `radius` and `certify` share."""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import sys
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.cli.parser import count, seconds
from verifier.cli.transform_options import image_transforms, transforms_in_words
from verifier.cli.weight_options import add_weight_arguments, moving_weights, weights_in_words
from verifier.errors import SpecError
from verifier.settings import EFFORTS

if TYPE_CHECKING:
    from verifier.certify.plan import Plan
    from verifier.certify.rows import Row
    from verifier.data import Dataset


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Data, threat, effort and output."""
    parser.add_argument("network", metavar="NET", help="an ONNX or .nnet file")
    data = parser.add_argument_group("data, in the network's own input units (nothing is normalised)")
    data.add_argument(
        "--data", required=True, metavar="SOURCE", help="a .npz, .csv, IDX or CIFAR .bin file, a folder, or digits"
    )
    data.add_argument("--label", default="-1", metavar="COLUMN", help="label column of a .csv (default: the last)")
    data.add_argument(
        "--samples", type=count, default=100, metavar="N", help="how many, drawn with --seed (default: 100)"
    )
    data.add_argument("--start", type=int, default=0, metavar="K", help="draw from row K on only (a test part)")
    data.add_argument(
        "--valid", metavar="LOW,HIGH", help="valid range of every feature; 'none' for no limit (default: the data's)"
    )
    threat = parser.add_argument_group("what may change")
    threat.add_argument("--norm", default="linf", help="linf (default), l2, l1, or l0 (number of features)")
    threat.add_argument(
        "--also", action="append", default=[], metavar="NORM=EPS",
        help="changes also stay within EPS in this norm, at every radius (repeatable): balls intersect",
    )  # fmt: skip
    threat.add_argument("--mask", metavar="LIST", help="only these flat features may move: 0,5,10-20")
    threat.add_argument("--feature-scale", metavar="LIST", help="'range' of each feature, or one unit a feature")
    threat.add_argument("--target", metavar="CLASS", help="only this class counts as a mistake")
    add_weight_arguments(parser)
    effort = parser.add_argument_group("effort")
    effort.add_argument("--timeout", type=seconds, default=30.0, metavar="S", help="seconds a sample (default: 30)")
    effort.add_argument("--effort", choices=EFFORTS, default="search", help="default: search")
    effort.add_argument("--workers", type=count, default=1, metavar="N", help="processes (default: 1)")
    effort.add_argument("--threads", type=count, default=1, metavar="N", help="CPU threads a process (default: 1)")
    effort.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    effort.add_argument("--soundness", choices=("float32", "real"), default="float32")
    effort.add_argument("--seed", type=int, default=0, metavar="N")
    smooth = parser.add_argument_group(
        "randomised smoothing: certifies the smoothed classifier, with a stated confidence"
    )
    smooth.add_argument("--method", choices=("proof", "smoothing"), default="proof")
    smooth.add_argument("--noise", choices=("gaussian", "laplace", "uniform", "ablation"), default="gaussian")
    smooth.add_argument(
        "--sigma", type=float, default=0.25, help="noise scale; features kept for ablation (default: 0.25)"
    )
    smooth.add_argument("--n", type=count, default=10_000, metavar="N", help="samples that estimate (default: 10000)")
    smooth.add_argument(
        "--n0", type=count, default=100, metavar="N", help="samples that guess the class (default: 100)"
    )
    smooth.add_argument(
        "--alpha", type=float, default=0.001, help="probability of a wrong certificate (default: 0.001)"
    )
    smooth.add_argument("--order", type=int, choices=(0, 1), default=0, help="1: use the vote's gradient as well")
    out = parser.add_argument_group("output")
    out.add_argument("--out", metavar="DIR", help="rows, report.html, report.json and the tables go here")
    out.add_argument("--resume", action="store_true", help="keep the rows already in --out and do the rest")
    out.add_argument("--plots", metavar="DIR", help="curves and histogram as PDF and PNG (needs matplotlib)")


def run_sweep(
    args: argparse.Namespace,
    command: str,
    radii: tuple[float, ...],
    gap_rel: float,
    steps: tuple[str, ...] = (),
) -> int:
    """Analyse the samples, keep every row, print and write the summary.

    Args:
        steps: image transformations instead of a norm, as given with --transform.
    """
    from verifier.certify.ledger import Ledger
    from verifier.certify.sweep import sweep
    from verifier.report.sweep_text import SampleProgress, print_summary

    if args.resume and args.out is None:
        raise SpecError("--resume: name the folder to go on with (--out DIR)")
    began = time.monotonic()
    data, plan, x = _prepare(args, radii, gap_rel, steps)
    indices = _chosen(data, args)
    setup = _setup(args, command, data, plan, indices)
    setup["data"]["channels_last"] = bool((x[:16] != data.x[:16].reshape(len(x[:16]), -1)).any())
    interrupted = False
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(args.out, setup, resume=args.resume)) if args.out else None
        rows: list[Row] = ledger.rows if ledger is not None else []
        known = {row.index for row in rows}
        left = [i for i in indices if int(i) not in known]
        progress = stack.enter_context(SampleProgress(len(left), sys.stderr))
        results = stack.enter_context(closing(sweep(plan, x, data.y, left, args.workers)))
        try:
            for row in results:
                if ledger is not None:
                    ledger.add(row)
                else:
                    rows.append(row)
                progress.add(row)
        except KeyboardInterrupt:
            interrupted = True
    rows = sorted(rows, key=lambda row: row.index)
    print_summary(rows, setup, sys.stdout)
    _write(args, setup, rows, x, data, time.monotonic() - began)
    if interrupted:
        kept = f"; {len(rows)} rows are kept, --resume goes on" if args.out else ""
        print(f"verifier: interrupted{kept}", file=sys.stderr)
        return 130
    return 0


def _write(
    args: argparse.Namespace, setup: dict[str, Any], rows: list[Row], x: Any, data: Dataset, spent: float
) -> None:
    from verifier.report.radius import facts, render

    if not rows or (args.out is None and args.plots is None):
        return
    found = facts(setup, rows, spent)
    if args.out is not None:
        from verifier.certify.ledger import write_json

        folder = Path(args.out)
        write_json(folder / "report.json", found)
        (folder / "report.html").write_text(render(found, rows, x), encoding="utf-8")
        print(f"report: {folder / 'report.html'}")
    if args.plots is not None:
        from verifier.report.plots import save_plots

        for path in save_plots(found, rows, Path(args.plots)):
            print(f"plot: {path}")


def _prepare(
    args: argparse.Namespace, radii: tuple[float, ...], gap_rel: float, steps: tuple[str, ...]
) -> tuple[Dataset, Plan, Any]:
    """The data, the plan and the samples as flat inputs, everything checked against the network."""
    from verifier.certify.placing import arrange
    from verifier.certify.plan import Plan, Smoothing
    from verifier.certify.radius import RadiusSettings
    from verifier.certify.threat import Nearness, parse_norm
    from verifier.data import open_dataset
    from verifier.graph.load import load_network

    graph = load_network(args.network)
    data = open_dataset(args.data, label=args.label)
    if len(data) == 0:
        raise SpecError(f"--data: {args.data} holds no rows")
    x = arrange(data.x, [graph[name].shape for name in graph.inputs])
    classes = max(2, graph.output_size)
    if int(data.y.max()) >= classes:
        raise SpecError(
            f"--data: labels go up to {int(data.y.max())}, but the network has {graph.output_size} outputs, "
            f"classes 0 to {classes - 1}; give data with the network's own classes"
        )
    transforms = image_transforms(args, steps, data, graph) if steps else None
    weights = moving_weights(args)
    nearness = Nearness(
        parse_norm(args.norm),
        _valid(args, data, graph),
        _mask(args.mask, x.shape[1]),
        _scale(args, x),
        _also(args.also),
    ).sized(x.shape[1])
    smoothing = Smoothing(args.noise, args.sigma, args.n, args.n0, args.alpha, args.order)
    if args.method == "smoothing":
        _smoothing_alone(args)
    plan = Plan(
        network=args.network, nearness=nearness,
        settings=RadiusSettings(gap_rel, args.timeout, args.effort, seed=args.seed, radii=radii),
        soundness=args.soundness, device=args.device, threads=args.threads,
        smoothing=smoothing if args.method == "smoothing" else None,
        target=None if args.target is None else data.label(args.target), transforms=transforms,
        weights=weights,
    )  # fmt: skip
    return data, plan, x


def _smoothing_alone(args: argparse.Namespace) -> None:
    for option in ("also", "mask", "feature_scale", "target"):
        if getattr(args, option) not in (None, []):
            raise SpecError(
                f"--{option.replace('_', '-')}: a smoothed certificate covers every direction; use --method proof"
            )


def _valid(args: argparse.Namespace, data: Dataset, graph: Any) -> Any:
    from verifier.certify.placing import arrange

    if args.valid == "none":
        return None
    if args.valid is not None:
        low, high = _numbers(args.valid, "--valid", 2)
        return low, high
    import numpy as np

    shapes = [graph[name].shape for name in graph.inputs]
    return tuple(arrange(np.broadcast_to(end, data.shape)[None], shapes)[0] for end in data.valid)


def _mask(text: str | None, size: int) -> Any:
    """bool [N_in] from 0,5,10-20."""
    import numpy as np

    if text is None:
        return None
    mask = np.zeros(size, dtype=bool)
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (not last or last.isdigit()) and int(last or first) < size):
            raise SpecError(f"--mask: expected features in 0..{size - 1} such as 0,5,10-20, got '{part}'")
        mask[int(first) : int(last or first) + 1] = True
    return mask


def _also(texts: list[str]) -> tuple[tuple[float, float], ...]:
    """(p, eps) from "linf=0.1"."""
    from verifier.certify.threat import parse_norm

    found = []
    for text in texts:
        name, _, eps = text.partition("=")
        try:
            found.append((parse_norm(name), float(eps)))
        except ValueError:
            raise SpecError(f"--also: expected NORM=EPS such as linf=0.1, got '{text}'") from None
    return tuple(found)


def _scale(args: argparse.Namespace, x: Any) -> Any:
    import numpy as np

    if args.feature_scale is None:
        return None
    if args.feature_scale == "range":
        width = (x.max(axis=0) - x.min(axis=0)).astype(np.float64)
        return np.where(width > 0, width, 1.0)
    return np.array(_numbers(args.feature_scale, "--feature-scale", x.shape[1]))


def _numbers(text: str, option: str, expected: int) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != expected or not all(math.isfinite(v) for v in found):
        raise SpecError(f"{option}: expected {expected} numbers separated by commas, got '{text}'")
    return found


def check_start(start: int, rows: int) -> None:
    """SpecError unless `--start` is one of the data's rows."""
    if not 0 <= start < rows:
        raise SpecError(f"--start: expected a row in 0..{rows - 1}, got {start}")


def _chosen(data: Dataset, args: argparse.Namespace) -> list[int]:
    """Rows to analyse: drawn without replacement, then in the data's order."""
    import numpy as np

    check_start(args.start, len(data))
    order = args.start + np.random.default_rng(args.seed).permutation(len(data) - args.start)
    return sorted(order[: args.samples].tolist())


def _setup(args: argparse.Namespace, command: str, data: Dataset, plan: Plan, indices: list[int]) -> dict[str, Any]:
    """What was asked and of what, for run.json and the report; "question" decides whether rows may be kept."""
    from verifier import __version__
    from verifier.certify.model_card import model_card
    from verifier.certify.threat import norm_name
    from verifier.report.html import machine

    near, transforms, weights = plan.nearness, plan.transforms, plan.weights
    arrays = [a for a in (*(near.valid or ()), near.mask, near.scale) if a is not None]
    digest = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]
    card = model_card(plan.network)
    question = {
        "command": command, "network_sha256": card["sha256"], "data": data.fingerprint(),
        "norm": args.norm if transforms is None else "parameter box",
        "transforms": None if transforms is None else
        {"steps": [*transforms.steps], "valid": [*transforms.valid], "any_order": transforms.any_order},
        "weights": None if weights is None else {"only": [*weights.only], "relative": weights.relative},
        "also": [[norm_name(p), eps] for p, eps in near.also],
        "threat": digest, "target": plan.target, "radii": list(plan.settings.radii), "gap_rel": plan.settings.gap_rel,
        "timeout_s": plan.settings.timeout_s, "effort": plan.settings.effort, "seed": plan.settings.seed,
        "soundness": plan.soundness,
        "smoothing": None if plan.smoothing is None else vars(plan.smoothing),
        "samples": args.samples, "start": args.start,
    }  # fmt: skip
    return {
        "question": question,
        "model": card,
        "data": {
            "name": data.name, "source": str(args.data), "rows": len(data), "shape": list(data.shape),
            "kind": data.kind, "classes": list(data.classes), "samples": len(indices),
        },
        "threat": _threat_in_words(plan, args.norm),
        "version": __version__,
        "machine": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "reproduce": shlex.join(["verifier", *sys.argv[1:]]),
    }  # fmt: skip


def _threat_in_words(plan: Plan, norm: str) -> str:
    if plan.transforms is not None:
        return transforms_in_words(plan.transforms)
    return plan.nearness.words() if plan.weights is None else weights_in_words(plan.weights, norm)
