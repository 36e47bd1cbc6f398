"""Activation splitting over torch: root bounds of one box of a group, and its DomainEngine."""

from __future__ import annotations

import time

import numpy as np
import torch

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.concretize import InputShape
from verifier.bounds.cone import cone_of
from verifier.bounds.crossed_domains import CrossedDomains
from verifier.bounds.domains import DomainEngine
from verifier.bounds.intermediate import optimise_intermediate
from verifier.bounds.torch_engine import TorchEngine
from verifier.run import Run
from verifier.spec.groups import Group

#: Share of the remaining time that optimising intermediate bounds may take.
INTERMEDIATE_SHARE = 0.15
#: Seconds of rows bounded together, between which a run may stop, and the fewest that are worth a pass.
PART_SECONDS, PART_ROWS = 2.0, 16


def root_domains(
    engine: TorchEngine, group: Group, index: int, run: Run
) -> tuple[DomainEngine | CrossedDomains, np.ndarray]:
    """Bounds of box `index` with default slopes, then better ones; the clauses they leave open."""
    lower, upper = engine.boxes(group.lower[index : index + 1], group.upper[index : index + 1])
    shape = None if group.inputs is None else InputShape.of(group.inputs, engine.device)
    clauses = PaddedClauses.of(group, index)
    count, wide = clauses.limits.shape
    rows = engine.tensor(clauses.rows)
    with run.stage("intermediate bounds"):
        wanted = cone_of(engine.network, rows.flatten(0, 1))
        found = engine.enclose(lower, upper, shape, wanted=wanted, rows=count * wide)

    def open_clauses(note: str) -> np.ndarray:
        margins = np.full((count, wide), -np.inf)
        done = 0
        while done < count and not (done and run.stopped()):
            part = slice(done, done + max(1, int(max(PART_ROWS, PART_SECONDS / engine.row_seconds)) // wide))
            value = engine.timed_rows(rows[part].flatten(0, 1), found, lower, upper, shape)
            margins[part] = value.double().cpu().numpy().reshape(-1, wide) - clauses.limits[part]
            done = min(part.stop, count)
        left = clauses.open(margins)
        run.bound_after = float(margins[:done].max(axis=1).min())
        run.say("bounds", f"{note}: {len(left)} of {count} clauses open, worst margin {run.bound_after:.6g}")
        return left

    begin = time.monotonic()
    left = open_clauses("default slopes")
    spent = time.monotonic() - begin
    run.bound_before = run.bound_after
    run.visited += 1
    if len(left) and run.remaining() > 3 * spent:
        with run.stage("intermediate slopes"):
            share = INTERMEDIATE_SHARE * min(run.remaining(), 300.0)
            stable = optimise_intermediate(engine, found, lower, upper, shape, run, share)
        left = open_clauses(f"{stable} more neurons stable")
    limits = torch.as_tensor(clauses.limits, device=engine.device)
    strict = torch.as_tensor(clauses.strict, device=engine.device)
    domains = DomainEngine(engine, found, lower, upper, rows, limits, strict, shape)
    return CrossedDomains(domains) if engine.network.shortcuts else domains, left
