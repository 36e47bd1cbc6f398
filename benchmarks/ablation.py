"""What each technique of the search is worth: every one off, one at a time, on the same instances.

    python benchmarks/ablation.py FOLDER [--timeout 20] [--sample 8]

FOLDER holds benchmarks as benchmarks/run.py takes them. One thread, one process, instances in the
same order for every variant. Printed for each benchmark and variant: instances solved, subdomains
over those that all of its variants solve, and seconds over all. A wrong verdict ends the run with 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from verifier import api
from verifier.batch.instances import Instance, read_instances
from verifier.settings import Settings

BENCHMARKS = ("acasxu_2023", "mnist_fc", "lsnc", "vit_2023")


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
    "branched intermediate bounds": {"verifier.search.activation_split.REFINEMENTS": 0},
    "own terms of long sums": {"verifier.bounds.native_domains.limit_sums": nothing},
    "weights that sum to one": {"verifier.bounds.backward.common_part": lambda a, _: 0.0 * a[..., :1]},
    "attention's bounds where a clause holds": {"verifier.bounds.crossed_domains.NEAR": -1.0},
    "shortcuts across attention": {"verifier.bounds.crossed_domains.OUTSIDE_SHARE": 2.0},
    "attacks inside the search": {"verifier.attack.falsify.Falsifier.again": nothing},
}


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


def table(name: str, found: dict[str, list[Outcome]]) -> list[str]:
    """Lines of one benchmark."""
    everywhere = [all(v[k].solved for v in found.values()) for k in range(len(found["nothing"]))]
    lines = []
    for variant, outcomes in found.items():
        subdomains = sum(o.subdomains for o, common in zip(outcomes, everywhere, strict=True) if common)
        solved, seconds = sum(o.solved for o in outcomes), sum(o.seconds for o in outcomes)
        lines.append(f"| {name} | {variant} | {solved} of {len(outcomes)} | {subdomains} | {seconds:.1f} |")
    return lines


def main(say: Callable[[str], object] = print) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds an instance (default: 20)")
    parser.add_argument("--sample", type=int, default=8, help="every K-th instance (default: 8)")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="this benchmark (repeatable)")
    args = parser.parse_args()
    say("| benchmark | without | solved | subdomains | seconds |\n|---|---|---:|---:|---:|")
    for name in args.only or BENCHMARKS:
        instances = read_instances(str(args.folder / name / "instances.csv"))[:: args.sample]
        found: dict[str, list[Outcome]] = {}
        for variant, parts in WITHOUT.items():
            with replaced(parts):
                found[variant] = [decide(i, args.timeout) for i in instances]
            print(f"{name}: {variant} done", file=sys.stderr, flush=True)
        say("\n".join(table(name, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
