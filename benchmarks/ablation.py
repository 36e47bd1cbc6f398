"""What each technique of the search is worth: every one off, one at a time, on the same instances.

    python benchmarks/ablation.py FOLDER [--timeout 20] [--sample 8]

FOLDER holds benchmarks as benchmarks/run.py takes them. One thread, one process, instances in the
same order for every variant. Printed for each benchmark and variant: instances solved; subdomains over
those that it and the whole search solve, beside the whole search's there; and seconds over all. A wrong
verdict ends the run with 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from verifier import api
from verifier.batch.instances import Instance, read_instances
from verifier.settings import Settings

BENCHMARKS = ("acasxu_2023", "mnist_fc", "oval21", "lsnc", "vit_2023", "safenlp")


def nothing(*_args: object, **_options: object) -> None:
    """Stands in for a step that is left out."""


def unclipped(bounds: object, rows: object, limits: object, proved: object, lower: object, upper: object) -> tuple:
    """`clip` that moves no end and excludes no clause."""
    return lower, upper, ~proved  # type: ignore[operator]


#: Technique -> what to put in place of what, dotted path -> replacement.
WITHOUT: dict[str, dict[str, object]] = {
    "nothing": {},
    "clipping": {"verifier.search.input_split.clip": unclipped},
    "last layer's sensitivity in the split score": {"verifier.search.input_split.SENSITIVITY_SHARE": 0.0},
    "forward forms alone where they pay": {"verifier.search.pace.Pace.compare": nothing},
    "products bounded jointly": {"verifier.bounds.torch_engine.pays": lambda *_: False},
    "balance of widths": {"verifier.search.input_split.BALANCE": 0.0},
    "look ahead to input splitting": {"verifier.search.strategy.MIDDLING_INPUTS": 0},
    "closer looks (cut-off bounds)": {"verifier.bounds.native_domains.NativeDomains.focus": nothing},
    "optimised intermediate bounds": {
        "verifier.bounds.native_domains.INTERMEDIATE_SHARE": 0.0,
        "verifier.bounds.intermediate.MOST_ITERATIONS": 0,
    },
    "branched intermediate bounds": {"verifier.bounds.native_domains.NativeDomains.refine": nothing},
    "own terms of long sums": {"verifier.bounds.native_domains.limit_sums": nothing},
    "weights that sum to one": {"verifier.bounds.backward.common_part": lambda a, _: 0.0 * a[..., :1]},
    "attention's bounds where a clause holds": {"verifier.bounds.crossed_domains.NEAR": -1.0},
    "shortcuts across attention": {"verifier.bounds.crossed_domains.OUTSIDE_SHARE": 2.0},
    "programs over all neurons": {"verifier.search.programs.MOST_NEURONS": 0},
    "ascents, linear programs in their place": {"verifier.tighten.feed.covers": lambda _: False},
    "stable neurons written out": {"verifier.tighten.feed.substituted": lambda model: model},
    "attacks inside the search": {"verifier.attack.falsify.Falsifier.again": nothing},
}


def together(*techniques: str) -> dict[str, object]:
    """Replacements of several techniques."""
    return {path: value for name in techniques for path, value in WITHOUT[name].items()}


WITHOUT["everything but CROWN and halving inputs"] = together(
    "clipping",
    "last layer's sensitivity in the split score",
    "forward forms alone where they pay",
    "products bounded jointly",
    "balance of widths",
    "attacks inside the search",
)
WITHOUT["everything but beta-CROWN"] = together(
    "look ahead to input splitting",
    "closer looks (cut-off bounds)",
    "optimised intermediate bounds",
    "branched intermediate bounds",
    "own terms of long sums",
    "weights that sum to one",
    "attention's bounds where a clause holds",
    "programs over all neurons",
    "attacks inside the search",
)


@dataclass(frozen=True)
class Outcome:
    """Of one instance under one variant."""

    verdict: str
    subdomains: int
    seconds: float

    @property
    def solved(self) -> bool:
        """Whether there is an answer."""
        return self.verdict in ("sat", "unsat")


@contextmanager
def replaced(parts: dict[str, object]) -> Iterator[None]:
    """Everything named is replaced until the end."""
    patches = [mock.patch(name, value) for name, value in parts.items()]
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


def decide(instance: Instance, timeout_s: float) -> Outcome:
    """One verdict."""
    begin = time.monotonic()
    report = api.verify(instance.network, instance.spec, Settings(timeout_s=timeout_s, threads=1))
    if {report.verdict.value, instance.expected} == {"sat", "unsat"}:
        raise SystemExit(f"{instance.vnnlib}: {report.verdict.value}, expected {instance.expected}")
    return Outcome(report.verdict.value, report.domains_visited, time.monotonic() - begin)


def line(name: str, variant: str, outcomes: list[Outcome], whole: list[Outcome]) -> str:
    """A line of the table; `whole`: the same instances with nothing left out."""
    both = [(own, best) for own, best in zip(outcomes, whole, strict=True) if own.solved and best.solved]
    counts = f"{sum(own.subdomains for own, _ in both)} | {sum(best.subdomains for _, best in both)}"
    solved, seconds = sum(o.solved for o in outcomes), sum(o.seconds for o in outcomes)
    return f"| {name} | {variant} | {solved} of {len(outcomes)} | {counts} | {seconds:.1f} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds an instance (default: 20)")
    parser.add_argument("--sample", type=int, default=8, help="every K-th instance (default: 8)")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="this benchmark (repeatable)")
    parser.add_argument("--without", action="append", choices=list(WITHOUT), help="this technique (repeatable)")
    args = parser.parse_args()
    print("| benchmark | without | solved | subdomains | with everything | seconds |\n|---|---|---:|---:|---:|---:|")
    for name in args.only or BENCHMARKS:
        instances = read_instances(str(args.folder / name / "instances.csv"))[:: args.sample]
        whole: list[Outcome] = []
        for variant in dict.fromkeys(["nothing", *(args.without or WITHOUT)]):
            with replaced(WITHOUT[variant]):
                outcomes = [decide(i, args.timeout) for i in instances]
            whole = whole or outcomes
            print(line(name, variant, outcomes, whole), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
