"""Certified radii: how close the ends come, what reuse saves, one table of methods, smoothing speed.

    python benchmarks/radius.py --out FILE --samples 30                      # networks of specs/
    python benchmarks/radius.py --out FILE --instances FOLDER --samples 5    # centres of the boxes it lists
    python benchmarks/radius.py --out FILE --part smoothing

Times are processor seconds of one thread, so that other work on the machine does not count; wall
seconds stand beside them. What is kept of it stands, with its conditions, in benchmarks/results/radius.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from verifier.bounds.interval import propagate
from verifier.bounds.torch_engine import Enclosed, LazyPlanes
from verifier.certify.forms import radius_of_form
from verifier.certify.leaves import Ball
from verifier.certify.radius import CertifiedRadius, RadiusSettings, certified_radius
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier
from verifier.data import open_dataset
from verifier.outcome import Verdict
from verifier.spec.problem import Case, Problem
from verifier.tighten.methods import BoundSession, MethodSettings
from verifier.tighten.milp import MilpSettings, milp_bound

SPECS = Path(__file__).parent.parent / "specs"
TEST_PART = 1500
#: Parameters below which the radius that linear programs prove is looked for as well.
SMALL = 50_000
#: Seconds of one mixed-integer program.
MILP_S = 10.0
Sample = tuple[np.ndarray, int, Nearness]


class Clock:
    """Processor and wall seconds since it was made."""

    def __init__(self) -> None:
        self._begin = (time.process_time(), time.monotonic())

    def read(self) -> tuple[float, float]:
        """(processor seconds, wall seconds)."""
        return time.process_time() - self._begin[0], time.monotonic() - self._begin[1]


def digit_samples(classifier: Classifier, count: int, norm: float) -> list[Sample]:
    """Test digits that the network classifies rightly."""
    data = open_dataset("digits")
    near = Nearness(norm, (np.array(0.0), np.array(1.0)))
    found: list[Sample] = []
    for i in range(TEST_PART, len(data)):
        x = classifier.deployed(classifier.flat(data.x[i]))
        if classifier.classify(classifier.outputs(x)) == data.y[i]:
            found.append((x, int(data.y[i]), near))
        if len(found) == count:
            break
    return found


def centre_samples(folder: Path, count: int, norm: float) -> Iterator[tuple[str, Classifier, list[Sample]]]:
    """For every network of a list, the centres of its boxes, held to the class the network gives."""
    from verifier.spec.load import load_query

    boxes: dict[str, list[str]] = {}
    with open(folder / "instances.csv", newline="") as file:
        for line in csv.reader(file):
            if len(line) >= 2 and line[0] != "onnx":
                boxes.setdefault(line[0], []).append(line[1])
    for name, specs in boxes.items():
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
        if path is None:
            continue
        classifier = Classifier(path)
        samples: list[Sample] = []
        for spec in specs[:count]:
            file_path = next(p for p in (folder / spec, folder / f"{spec}.gz") if p.exists())
            box = load_query(file_path, classifier.graph).problem.cases[0].inputs
            x = classifier.deployed(0.5 * (box.lower + box.upper))
            samples.append((x, classifier.classify(classifier.outputs(x)), Nearness(norm)))
        yield name, classifier, samples


def ends(classifier: Classifier, samples: list[Sample], timeout_s: float) -> tuple[str, list[float], list[float]]:
    """One line of the table of ends, and both ends of every sample."""
    lower, upper, spent, wall, within = [], [], [], [], 0
    for x, label, near in samples:
        clock = Clock()
        found = certified_radius(classifier, x, label, nearness=near, settings=RadiusSettings(timeout_s=timeout_s))
        cpu, real = clock.read()
        spent.append(cpu)
        wall.append(real)
        lower.append(found.lower)
        upper.append(found.upper)
        within += found.gap_rel <= 0.05
    line = (
        f"{len(samples)} | {100 * within / len(samples):.0f} % | {np.mean(lower):.5f} | {np.mean(upper):.5f} | "
        f"{np.mean(spent):.2f} | {np.max(spent):.2f} | {np.mean(wall):.2f}"
    )
    return line, lower, upper


def plain_radius(classifier: Classifier, sample: Sample, method: str, upper: float) -> float:
    """Radius proved by one pass of a method, by bisection from the attacked radius down."""
    x, label, near = sample
    near = near.sized(len(x))
    rows = classifier.engine.tensor(classifier.rows(label).coeffs)

    def proved(radius: float) -> float:
        if method == "CROWN":
            ball = Ball(classifier.engine, near, x, radius)
            return ball.certified(ball.rows(rows)[1])
        inputs = near.input_set(x, radius)
        lower, upper_ends = classifier.engine.boxes(inputs.lower[None], inputs.upper[None])
        with torch.no_grad():
            box = propagate(classifier.engine.network, lower, upper_ends)
            if method == "IBP":
                names = classifier.engine.network.graph.outputs
                low = torch.cat([box.lower[n].flatten(1) for n in names], 1).double()
                high = torch.cat([box.upper[n].flatten(1) for n in names], 1).double()
                worst = rows.double().clamp(min=0) @ low[0] + rows.double().clamp(max=0) @ high[0]
                return radius if bool((worst > 1e-9).all()) else 0.0
            found = Enclosed(torch.zeros_like(lower), box, LazyPlanes(classifier.engine.network, box))
            _, form = classifier.engine.bound_rows(rows.unsqueeze(0), found, lower, upper_ends)
        return radius_of_form(classifier.engine, form, near, x, radius)

    best, low, high = 0.0, 0.0, upper
    for _ in range(12):
        middle = 0.5 * (low + high)
        value = proved(middle)
        best = max(best, value)
        low, high = (middle, high) if value >= middle else (max(low, value), middle)
    return best


def session_radius(classifier: Classifier, sample: Sample, method: str, low: float, high: float) -> float:
    """Radius between two that a named method of `verifier.tighten` proves, by bisection."""
    x, label, near = sample
    near = near.sized(len(x))
    for _ in range(8):
        middle = 0.5 * (low + high)
        problem = Problem((Case(near.input_set(x, middle), classifier.rows(label).clauses()),), classifier.classes)
        found = BoundSession(classifier.graph, problem, MethodSettings(timeout_s=20.0)).bound(method)
        low, high = (middle, high) if bool((found.margins > 0).all()) else (low, middle)
    return low


def milp_radius(classifier: Classifier, sample: Sample, low: float, high: float) -> tuple[float, bool]:
    """Radius between two that branch and bound over linear programs proves, by bisection to 1 %.

    Returns:
        The radius, and True where everything above it was refuted by a point rather than cut off.
    """
    x, label, near = sample
    near = near.sized(len(x))
    exact = True
    while high > 1.01 * low:
        middle = 0.5 * (low + high)
        problem = Problem((Case(near.input_set(x, middle), classifier.rows(label).clauses()),), classifier.classes)
        session = BoundSession(classifier.graph, problem, MethodSettings(timeout_s=MILP_S))
        coeffs = session.rows()[0][~(session.bound("lp").margins > 0)]
        state = session.state(0)
        bounded = state.alpha()
        found = milp_bound(
            state.graph, state.inputs, coeffs,
            intermediate=state.intermediate(bounded), rounding_error=state.rounding_error(bounded),
            settings=MilpSettings(time_limit_s=MILP_S, target=0.0, guide=None),
        )  # fmt: skip
        if bool((found.lower > 0).all()):
            low = middle
            continue
        high, exact = middle, bool((found.upper <= 0).any())
    return low, exact


def methods(classifier: Classifier, samples: list[Sample], timeout_s: float) -> dict[str, float]:
    """Geometric mean radius of every method, in the published order; LP and MILP on small networks only.

    The last entry is the number of samples whose MILP radius is exact.
    """
    found: dict[str, list[float]] = {}
    exact = 0
    small = classifier.graph.parameter_count < SMALL
    for x, label, near in samples:
        full = certified_radius(classifier, x, label, nearness=near, settings=RadiusSettings(timeout_s=timeout_s))
        settings = RadiusSettings(timeout_s=timeout_s, effort="slopes")
        slopes = certified_radius(classifier, x, label, nearness=near, settings=settings)
        sample = (x, label, near)
        for method in ("IBP", "CROWN-IBP"):
            found.setdefault(method, []).append(plain_radius(classifier, sample, method, full.upper))
        found.setdefault("Fast-Lin", []).append(session_radius(classifier, sample, "fast-lin", 0.0, full.upper))
        found.setdefault("CROWN", []).append(plain_radius(classifier, sample, "CROWN", full.upper))
        found.setdefault("alpha-CROWN", []).append(max(slopes.lower, found["CROWN"][-1]))
        if small:
            proved = found["alpha-CROWN"][-1]
            found.setdefault("LP", []).append(session_radius(classifier, sample, "lp", proved, full.upper))
            radius, finished = milp_radius(classifier, sample, found["LP"][-1], full.upper)
            found.setdefault("MILP", []).append(radius)
            exact += finished
        found.setdefault("branch and bound", []).append(max(full.lower, slopes.lower))
        found.setdefault("attack", []).append(full.upper)
    means = {name: float(np.exp(np.log(np.maximum(values, 1e-12)).mean())) for name, values in found.items()}
    return means | ({"MILP exact": exact} if small else {})


#: Where separate queries begin, and the seconds each may take.
SEPARATE_START, SEPARATE_S = 0.5, 60.0


@dataclass
class Separate:
    """A bisection by separate queries: both ends, processor seconds, queries asked, and whether one was cut off."""

    lower: float = 0.0
    upper: float = SEPARATE_START
    seconds: float = 0.0
    queries: int = 0
    cut_off: bool = False


def separate(classifier: Classifier, sample: Sample) -> Separate:
    """Bisect to the same gap by `verify`, which knows nothing of the queries before; the network is read once.

    A query that is cut off ends it, since whatever were assumed of its radius, the ends would not be proved.
    """
    from verifier.api import verify
    from verifier.settings import Settings
    from verifier.spec.problem import classification_problem
    from verifier.spec.query import query_of

    x, label, near = sample
    valid = None if near.valid is None else (0.0, 1.0)
    found, clock = Separate(), Clock()
    while (found.upper - found.lower) > 0.05 * found.upper and not found.cut_off:
        middle = 0.5 * found.upper if found.lower == 0 else math.sqrt(found.lower * found.upper)
        problem = classification_problem(x, middle, near.norm, label, classifier.classes, valid=valid)
        settings = Settings(timeout_s=SEPARATE_S, threads=1)
        verdict = verify(classifier.graph, query_of(classifier.graph, problem), settings).verdict
        if verdict is Verdict.UNSAT:
            found.lower = middle
        elif verdict is Verdict.SAT:
            found.upper = middle
        else:
            found.cut_off = True
        found.queries += 1
    found.seconds = clock.read()[0]
    return found


def reuse(classifier: Classifier, samples: list[Sample]) -> str:
    """One line: processor seconds of one search and of separate queries where both reach the gap, and of the others."""

    def search(sample: Sample) -> tuple[CertifiedRadius, float]:
        x, label, near = sample
        clock = Clock()
        found = certified_radius(classifier, x, label, nearness=near, settings=RadiusSettings(timeout_s=120))
        return found, clock.read()[0]

    search(samples[0]), separate(classifier, samples[0])  # what is loaded at first use counts for neither
    one, several, queries, ratios = 0.0, 0.0, 0, list[float]()
    others, left_open = 0.0, 0
    for sample in samples:
        found, spent = search(sample)
        bisected = separate(classifier, sample)
        assert bisected.lower <= found.upper and found.lower <= bisected.upper
        left_open += found.gap_rel > 0.05
        if bisected.cut_off or found.gap_rel > 0.05:
            others += spent
            continue
        one, several, queries = one + spent, several + bisected.seconds, queries + bisected.queries
        ratios.append(bisected.seconds / spent)
    typical = float(np.median(ratios)) if ratios else math.nan
    return (
        f"{len(samples)} | {len(ratios)} | {one:.2f} | {several:.2f} | {queries} | {several / max(one, 1e-9):.1f} | "
        f"{typical:.1f} | {len(samples) - len(ratios)} | {left_open} | {others:.2f}"
    )


def smoothing(samples: int) -> str:
    """Seconds for one smoothed certificate of the digit CNN."""
    from verifier.bounds.torch_engine import TorchEngine
    from verifier.certify.smoothing import Gaussian, Sampling, SmoothedClassifier
    from verifier.certify.victim import GraphScores

    classifier = Classifier(SPECS / "onnx" / "conv.onnx")
    module = GraphScores(TorchEngine(classifier.graph, dtype=torch.float32)).eval()
    smoothed = SmoothedClassifier(module, Gaussian(0.25), Sampling(100, samples, 0.001))
    x, _, _ = digit_samples(classifier, 1, 2.0)[0]
    clock = Clock()
    found = smoothed.certify(x.astype(np.float32))
    cpu, wall = clock.read()
    return f"{samples} | {cpu:.2f} | {wall:.2f} | {found.p_lower:.5f} | {found.radius:.4f}"


def sampled(
    cases: list[tuple[str, Classifier]], folders: list[Path], count: int
) -> Iterator[tuple[str, Classifier, list[Sample]]]:
    """Every network with its linf samples: digits for those of specs/, centres of boxes for those of folders."""
    for name, classifier in cases:
        yield name, classifier, digit_samples(classifier, count, math.inf)
    for folder in folders:
        yield from centre_samples(folder, count, math.inf)


def table(head: str, lines: list[str]) -> str:
    """A Markdown table."""
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *(f"| {line} |" for line in lines), ""])


def main() -> None:
    """Measure the parts asked for and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--part", choices=("ends", "methods", "reuse", "smoothing", "all"), default="all")
    parser.add_argument("--networks", nargs="*", default=["fc", "conv"], help="names in specs/onnx")
    parser.add_argument("--instances", type=Path, nargs="*", default=[], help="folders with an instances.csv")
    parser.add_argument("--norms", nargs="+", default=["inf", "2"])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--commit", default="", help="named in the results")
    parser.add_argument("--date", default="", help="named in the results")
    parser.add_argument("--out", type=Path, required=True, help="file to write; parts not asked for are not in it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = [
        "# Certified radii",
        "",
        f"2 cores, AMD EPYC, CPU only, one thread; {args.date}, commit {args.commit}. Times are processor seconds.",
        "",
    ]
    cases = [(name, Classifier(SPECS / "onnx" / f"{name}.onnx")) for name in args.networks]
    if args.part in ("ends", "all"):
        lines = []
        for norm in map(float, args.norms):
            for name, classifier in cases:
                samples = digit_samples(classifier, args.samples, norm)
                lines.append(f"{name} | l{norm:g} | {ends(classifier, samples, args.timeout)[0]}")
                print(lines[-1], flush=True)
            for folder in args.instances:
                for name, classifier, samples in centre_samples(folder, args.samples, norm):
                    lines.append(f"{name} | l{norm:g} | {ends(classifier, samples, args.timeout)[0]}")
                    print(lines[-1], flush=True)
        head = "network | norm | samples | within 5 % | mean lower | mean upper | mean s | most s | mean wall s"
        text += ["## Both ends", "", table(head, lines)]
    if args.part in ("methods", "all"):
        for name, classifier, samples in sampled(cases, args.instances, args.samples):
            found = methods(classifier, samples, args.timeout)
            print(name, len(samples), found, flush=True)
            lines = [f"{method} | {value:.5f}" for method, value in found.items()]
            text += [
                f"## Geometric mean linf radius, {name}, {len(samples)} samples",
                "",
                table("method | radius", lines),
            ]
    if args.part in ("reuse", "all"):
        lines = []
        for name, classifier, samples in sampled(cases, args.instances, args.samples):
            lines.append(f"{name} | {reuse(classifier, samples)}")
            print(lines[-1], flush=True)
        head = (
            "network | samples | both reach the gap | one search s | separate queries s | queries | separate / one | "
            "median of it | others | of them left open by the search | search of the others s"
        )
        text += ["## Work reused between radii", "", table(head, lines)]
    if args.part in ("smoothing", "all"):
        line = smoothing(100_000)
        print(line, flush=True)
        text += ["## Smoothing of a digit CNN", "", table("samples | s | wall s | p lower | radius", [line])]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
