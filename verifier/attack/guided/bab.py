"""Gradient descent that branch and bound leads to where the network may still be fooled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.gradient.apgd import APGD
from verifier.attack.gradient.pgd import PGD
from verifier.attack.guided.seeds import seeds
from verifier.attack.guided.victim_graph import Classes, flat, graph_of
from verifier.attack.losses import difference, margin
from verifier.attack.task import Task
from verifier.bounds.engine import BoxEngine
from verifier.errors import SpecError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.run import Run


@dataclass(frozen=True)
class BaB(Attack):
    """Auto-PGD from random starts, then, for each sample that withstood it, PGD from the minimisers of the bounds
    of the most promising open subdomains, round after round.

    A sample whose every subdomain is closed is proved robust, and given up. Bounds cost no queries.

    Args:
        steps: gradient steps from each start.
        restarts: random starts tried first.
        starts: minimisers a round; half as many subdomains are split.
        rounds: rounds a sample.
        seconds: most time a sample may take; where it does not suffice the result depends on the machine.
    Source: Zhang et al. 2022, "A Branch and Bound Framework for Stronger Adversarial Attacks of ReLU
    Networks" (ICML), with the bounds' minimisers as starts.
    """

    steps: int = 20
    restarts: int = 1
    starts: int = 32
    rounds: int = 30
    seconds: float = 20.0

    norms: ClassVar[tuple[float, ...]] = (float("inf"),)

    def run(self, task: Task) -> None:
        space = task.space
        if space.threat is None or space.threat.is_semantic:
            raise SpecError(f"{self.name}: bounds are over inputs; expected an lp threat, not a semantic one")
        APGD(steps=self.steps, restarts=self.restarts).run(task)
        index = task.open_index()
        if len(index):
            graph = graph_of(task.model, tuple(space.clean.shape[1:]))
            engine, classes = _engine(graph), Classes.of(task.model, graph.output_size)
            for sample in index.split(1):
                self._search(task, sample, engine, classes)

    def _search(self, task: Task, sample: Tensor, engine: BoxEngine, classes: Classes) -> None:
        """Attack one sample, int64 [1]."""
        space = task.space
        lower, upper = (space.decode(end[sample], sample) for end in (space.ball_lower, space.ball_upper))
        unit = space.decode(torch.ones_like(space.start[sample]), sample)
        aim = None if task.target is None else int(task.target[sample])
        group, reached = classes.goal(flat(lower), flat(upper), int(task.label[sample]), aim)
        pgd = PGD(steps=self.steps, loss=difference if aim is None else margin)
        found = seeds(engine, group, Run.within(self.seconds, None), self.starts)
        for points, clause in islice(found, self.rounds):
            rows = task.rows(sample.repeat(len(points)))
            work = torch.as_tensor(points).to(unit).reshape(-1, *unit.shape[1:]) / unit
            target = None if aim is not None else torch.as_tensor(reached[clause], device=sample.device)
            pgd.ascend(rows, rows.project(work), target)
            if bool(task.found[sample]):
                return


def _engine(graph: Graph) -> BoxEngine:
    """The native engine where it covers the graph, else the torch engine; for real arithmetic, nothing is proved."""
    from verifier.bounds.native_engine import NativeEngine, supports

    if supports(graph):
        return NativeEngine(graph, threads=torch.get_num_threads(), soundness=Soundness.REAL_ARITHMETIC)
    from verifier.bounds.torch_engine import TorchEngine

    return TorchEngine(graph, soundness=Soundness.REAL_ARITHMETIC)
