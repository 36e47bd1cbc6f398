"""Which technique when: falsify, bound the whole set, then split inputs or neurons."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from verifier.attack.falsify import Confirm, Falsifier
from verifier.bounds.engine import BoxEngine
from verifier.outcome import Soundness, StopReason, Verdict
from verifier.run import Run
from verifier.search.input_split import SplitResult, bisect, bound_set, split_inputs
from verifier.search.programs import fits
from verifier.settings import Settings
from verifier.spec.groups import Group, group_cases, trivially_unsafe
from verifier.spec.query import Query

#: Boxes with at most this many inputs of nonzero width are split on inputs first.
FEW_INPUTS = 12
#: Up to this many, whether splitting inputs would do is predicted from a few splits.
MIDDLING_INPUTS = 64
#: Share of the time left that this prediction may take.
LOOK_AHEAD_SHARE = 0.05
#: Where linear programs fit, splitting inputs is tried for so many times the predicted seconds, and at least so many.
PATIENCE, LEAST_TRIAL_S = 4.0, 1.0
#: Share of the time, and seconds, that looking for a counterexample may take before anything is proved.
FALSIFY_SHARE, FALSIFY_S = 0.15, 3.0
#: Loss to rounding, per reach of the box, above which the torch engine computes in float64; convolutions,
#: which are several times slower there, bear more.
ROUNDING_SHARE, CONV_ROUNDING_SHARE = 0.02, 0.25


@dataclass(frozen=True)
class Conclusion:
    """Verdict and why; `witness` is what `confirm` returned."""

    verdict: Verdict
    reason: StopReason
    witness: Any = None
    engine: str = ""
    detail: str = ""


def decide(
    query: Query,
    settings: Settings,
    run: Run,
    confirm: Confirm,
    *,
    attack_only: bool = False,
    prove_only: bool = False,
    engine: BoxEngine | None = None,
) -> Conclusion:
    """Answer a query within the run's deadline.

    Args:
        attack_only: do not prove. prove_only: no attack comes first; points where bounds are smallest are still tried.
        engine: one made before for the query's graph, whose soundness and threads then count; None: made here.
    """
    problem = query.problem
    for case in trivially_unsafe(problem):
        inputs = problem.cases[case].inputs
        found = confirm(case, 0.5 * (inputs.lower + inputs.upper))
        if found is not None:
            return Conclusion(Verdict.SAT, StopReason.COUNTEREXAMPLE, found)
    groups = group_cases(problem)
    if not groups:
        return Conclusion(Verdict.UNSAT, StopReason.EMPTY_INPUT)
    soundness = Soundness.REAL_ARITHMETIC if problem.exact_real else settings.soundness_level
    engine = engine or make_engine(query, groups, settings, soundness, run)
    rng = np.random.default_rng(settings.seed)
    falsifiers = [Falsifier(engine, group, confirm, rng) for group in groups]
    for k, falsifier in enumerate([] if prove_only else falsifiers):
        with run.stage("falsify"):
            found = _attack(falsifier, run, len(groups) - k, attack_only)
        if found is not None:
            return Conclusion(Verdict.SAT, StopReason.COUNTEREXAMPLE, found, engine.name)
    if attack_only:
        return replace(_stopped(run, "no counterexample found"), engine=engine.name)
    outcomes: list[Conclusion] = []
    for falsifier in falsifiers:
        outcomes.append(_prove(engine, falsifier, run, settings.effort))
        if outcomes[-1].verdict is Verdict.SAT:
            break
    return _combine(outcomes, engine.name)


def _attack(falsifier: Falsifier, run: Run, groups: int, attack_only: bool) -> object | None:
    """A first look for a counterexample of one of `groups` groups; all the time there is where nothing follows."""
    share = run.remaining() / groups
    if not attack_only:
        share = min(FALSIFY_SHARE * share, FALSIFY_S)
    brief = run.limited(share)
    found = falsifier.sample(brief, 200) or falsifier.pgd(brief, 32, 20, polish=attack_only)
    return _keep_attacking(falsifier, brief) if found is None and attack_only else found


def make_engine(query: Query, groups: list[Group], settings: Settings, soundness: Soundness, run: Run) -> BoxEngine:
    """The native engine where it covers the graph, else the torch engine."""
    if settings.engine != "torch" and settings.device == "cpu":
        native = _native_engine(query, settings, soundness, run)
        if native is not None:
            return native
    with run.stage("start torch"):
        import torch

        from verifier.bounds.torch_engine import TorchEngine

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        engine = TorchEngine(query.graph, device=settings.device, soundness=soundness, deadline=run.deadline)
        if engine.dtype is not torch.float32:
            return engine
        group = groups[0]
        share = engine.rounding_share(group.lower[0], group.upper[0], group.rows.coeffs[:16])
        if share > (CONV_ROUNDING_SHARE if engine.network.convolves else ROUNDING_SHARE):
            run.say("engine", f"float64, because rounding in float32 would take {share:.2g} of the bounds' reach")
            engine = TorchEngine(
                query.graph, device=settings.device, soundness=soundness, deadline=run.deadline, dtype=torch.float64
            )
        return engine


def _native_engine(query: Query, settings: Settings, soundness: Soundness, run: Run) -> BoxEngine | None:
    """The C++ engine, or None where it was not built or does not cover the graph."""
    if importlib.util.find_spec("verifier.bounds.native_engine") is None:
        return None
    from verifier.bounds.native_engine import NativeEngine, supports

    if not supports(query.graph):
        return None
    return NativeEngine(query.graph, threads=settings.threads, soundness=soundness, deadline=run.deadline)


def _prove(engine: BoxEngine, falsifier: Falsifier, run: Run, effort: str) -> Conclusion:
    """Split inputs where there are few, or where a look ahead says that it will do; else neurons."""
    group, before = falsifier.group, run.visited
    if effort == "slopes":
        return _without_search(_split_neurons(engine, group, run, falsifier, search=False))
    if effort == "bounds":
        with run.stage("bounds"):
            return _without_search(_concluded(bound_set(engine, group, falsifier, run), run, at_once=True))
    moving = int((group.upper > group.lower).any(axis=0).sum())
    if moving > FEW_INPUTS:
        most = 0.5 * run.horizon()
        expected = np.inf if moving > MIDDLING_INPUTS or len(group.lower) > 1 else _halving_seconds(engine, group, run)
        if not expected < most:
            return _split_neurons(engine, group, run, falsifier)
        trial = run.limited(min(most, max(LEAST_TRIAL_S, PATIENCE * expected)) if fits(engine.graph) else most)
        with run.stage("split inputs"):
            result = split_inputs(engine, group, falsifier, trial)
        run.visited += trial.visited
        if result.witness is None and result.open_count:
            run.say("inputs", f"{result.open_count} boxes open")
            return _split_neurons(engine, group, run, falsifier)
    else:
        with run.stage("split inputs"):
            result = split_inputs(engine, group, falsifier, run)
    return _concluded(result, run, at_once=run.visited - before <= len(group.lower))


def _concluded(result: SplitResult, run: Run, *, at_once: bool) -> Conclusion:
    """What a search over boxes came to; `at_once`: none was split."""
    if result.witness is not None:
        return Conclusion(Verdict.SAT, StopReason.COUNTEREXAMPLE, result.witness)
    if result.open_count == 0:
        return Conclusion(Verdict.UNSAT, StopReason.PROVED_BY_BOUNDS if at_once else StopReason.PROVED_BY_SEARCH)
    return _stopped(run, f"{result.open_count} boxes open")


def _without_search(conclusion: Conclusion) -> Conclusion:
    """The same, with the reason that fits where nothing was split."""
    if conclusion.verdict is Verdict.UNSAT:
        return replace(conclusion, reason=StopReason.PROVED_BY_BOUNDS)
    if conclusion.reason is StopReason.NO_PROGRESS:
        return replace(conclusion, reason=StopReason.NO_SEARCH)
    return conclusion


def _halving_seconds(engine: BoxEngine, group: Group, run: Run) -> float:
    """Seconds in which halving inputs will close one box, going by what the first splits gain."""
    lower, upper = group.lower, group.upper
    limits, needed = group.limits[:1], np.inf
    begin = time.monotonic()
    bounds = engine.bound_boxes(lower, upper, group.rows.coeffs)
    seconds = time.monotonic() - begin
    margin = float(group.rows.clause_margins(bounds.lower - limits).min())
    for depth in range(1, 4):
        if margin > 0:
            return 0.0
        if time.monotonic() - begin > LOOK_AHEAD_SHARE * run.remaining():
            break
        low, high, *_ = bisect(bounds, group, bounds.lower - limits, lower, upper)
        after = engine.bound_boxes(low, high, group.rows.coeffs)
        margins = group.rows.clause_margins(after.lower - limits).min(axis=1)
        worse = int(margins.argmin())
        gain = float(margins[worse]) - margin
        margin, bounds = float(margins[worse]), after.only(worse)
        lower, upper = low[worse : worse + 1], high[worse : worse + 1]
        needed = depth - margin / gain if gain > 0 else np.inf
    expected = 2.0 ** min(needed, 60.0) * seconds
    run.say("inputs", f"halving inputs about {needed:.1f} times would do: {expected:.2g} s")
    return expected


def _split_neurons(
    engine: BoxEngine, group: Group, run: Run, falsifier: Falsifier, *, search: bool = True
) -> Conclusion:
    from verifier.search.activation_split import split_activations

    if group.inputs is not None and not engine.splits_on(group.inputs):
        from verifier.bounds.torch_engine import TorchEngine

        with run.stage("start torch"):
            engine = TorchEngine(engine.graph, soundness=engine.soundness, deadline=run.deadline)
    for index in range(len(group.lower)):
        with run.stage("split neurons"):
            result = split_activations(engine, group, index, falsifier, run, search=search)
        if result.exhausted and not run.stopped():
            # The multipliers did not converge to the exact bound; smaller boxes always do.
            with run.stage("split inputs"):
                result = split_inputs(engine, group.only(index), falsifier.on(group.only(index)), run)
        if result.witness is not None:
            return Conclusion(Verdict.SAT, StopReason.COUNTEREXAMPLE, result.witness, engine.name)
        if result.open_count:
            return _stopped(run, f"{result.open_count} subdomains open")
    return Conclusion(Verdict.UNSAT, StopReason.PROVED_BY_SEARCH)


def _keep_attacking(falsifier: Falsifier, run: Run) -> object | None:
    """Attacks that bounds lead for half of the time, then more and longer ones; without a limit, five rounds."""
    found = falsifier.guided(run.limited(0.5 * run.remaining()))
    if found is not None:
        return found
    for round_index in range(1_000_000 if np.isfinite(run.deadline) else 5):
        found = falsifier.pgd(run, 64, 40 * (1 + round_index % 5))
        if found is not None or run.stopped():
            return found
    return None


def _stopped(run: Run, detail: str) -> Conclusion:
    if run.cancelled():
        return Conclusion(Verdict.UNKNOWN, StopReason.INTERRUPTED, detail=detail)
    if run.remaining() <= 0:
        return Conclusion(Verdict.TIMEOUT, StopReason.TIME_LIMIT, detail=detail)
    return Conclusion(Verdict.UNKNOWN, StopReason.NO_PROGRESS, detail=detail)


def _combine(outcomes: list[Conclusion], engine: str) -> Conclusion:
    """`sat` if any group is, `unsat` only if all are; else the first undecided one's reason."""
    chosen = next((o for o in outcomes if o.verdict is Verdict.SAT), None)
    chosen = chosen or next((o for o in outcomes if o.verdict is not Verdict.UNSAT), outcomes[-1])
    return Conclusion(chosen.verdict, chosen.reason, chosen.witness, chosen.engine or engine, chosen.detail)
