"""The library's front door: a network and a question in, a Report out."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verifier.errors import NetworkError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness, StopReason, Verdict
from verifier.report.model import Event, Report, Witness
from verifier.run import Progress, Run
from verifier.search.strategy import Conclusion, decide
from verifier.settings import Settings
from verifier.spec.query import Query
from verifier.spec.replay import Replay, ReplayResult
from verifier.spec.representable import snap_to_valid
from verifier.spec.witness import write_witness

if TYPE_CHECKING:
    from verifier.proof.check import Checked
    from verifier.proof.format import Proof

#: A file, a Graph, a torch.nn.Module or a torch.export program (typed Any: torch stays optional here).
Network = str | os.PathLike[str] | Graph | Any
Networks = Network | Mapping[str, Network]


def verify(
    networks: Networks,
    spec: str | os.PathLike[str] | Query,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Report:
    """Decide whether some input of the specification's set has unsafe outputs.

    Args:
        networks: an ONNX or .nnet file, a Graph, a torch.nn.Module or a torch.export program; by declared
            name where the specification has several. A module alone does not say its input shape: it
            goes with a Query made from `verifier.graph.torch.importer.load_module(module, shape)`,
            or pass that Graph itself. Counterexamples of a module are replayed on its graph.
        spec: a VNN-LIB file, or a Query (`verifier.spec.query.query_of` makes one from a Problem).
        settings: see Settings; None for the defaults.
        progress: called with (subdomains visited, subdomains open, worst margin).
        cancel: asked often; True stops the analysis with what is known.
    Returns:
        A Report; `sat` only with a witness that was replayed in ONNX Runtime.
    Raises:
        VerifierError: bad input of any kind.
    """
    return _analyse(networks, spec, settings or Settings(), progress, cancel, attack_only=False)


def falsify(
    networks: Networks,
    spec: str | os.PathLike[str] | Query,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Report:
    """Search for a counterexample only; the verdict is `sat`, `unknown` or `timeout`. See `verify`."""
    return _analyse(networks, spec, settings or Settings(), progress, cancel, attack_only=True)


def prove(
    networks: Networks,
    spec: str | os.PathLike[str] | Query,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Proof:
    """Find a proof that no input is unsafe, which `check` can verify; see `verifier.proof`.

    Every leaf of it was checked while it grew. Arguments are those of `verify`.

    Raises:
        NotProved: none was found in the time given, or at all.
        VerifierError: bad input of any kind, or a network or input set that proofs do not cover.
    """
    from verifier.proof.format import NeuronRows, Proof, Tree
    from verifier.proof.write import parts

    settings = settings or Settings()
    run = Run.within(settings.timeout_s, cancel, progress)
    query, _ = load(networks, spec)
    soundness = Soundness.REAL_ARITHMETIC if query.problem.exact_real else settings.soundness_level
    found = list(parts(query, settings, soundness, run))
    return Proof(
        *_digests(networks, spec),
        soundness,
        tuple(p for p in found if isinstance(p, Tree)),
        tuple(p for p in found if isinstance(p, NeuronRows)),
    )


def check(
    proof: Proof | str | os.PathLike[str],
    networks: Networks,
    spec: str | os.PathLike[str] | Query,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Check a proof, or a file of one, with none of the code that found it.

    Args:
        progress: called with (leaves checked, leaves in all).
    Returns:
        What was checked; the proof holds, at its own level of soundness.
    Raises:
        Rejected: it does not prove this property of these networks; says why and where.
        VerifierError: bad input of any kind.
    """
    from verifier.proof.check import check as check_proof
    from verifier.proof.format import Proof, read
    from verifier.proof.tree import Rejected

    proof = proof if isinstance(proof, Proof) else read(proof)
    query, _ = load(networks, spec)
    for what, of_proof, of_file in zip(
        ("networks", "specification"), (proof.networks, proof.spec), _digests(networks, spec), strict=True
    ):
        if of_proof != of_file:
            raise Rejected(f"the proof is about other {what}: their SHA-256 is {of_proof}, the given files' {of_file}")
    return check_proof(query, proof, progress)


def _digests(networks: Networks, spec: str | os.PathLike[str] | Query) -> tuple[tuple[str, ...], str]:
    """SHA-256 of the networks' files, by name, and of the specification's; "" for what is no file."""
    from verifier.proof.format import digest

    named = [networks[k] for k in sorted(networks)] if isinstance(networks, Mapping) else [networks]
    files = [digest(n) if isinstance(n, (str, os.PathLike)) else "" for n in named]
    return tuple(files), "" if isinstance(spec, Query) else digest(spec)


def load(networks: Networks, spec: str | os.PathLike[str] | Query) -> tuple[Query, Any]:
    """The query, and the models to replay on (paths, or the Graph itself)."""
    from verifier.spec.load import hidden_tensors, load_query

    single = not isinstance(networks, Mapping)
    named: dict[str, Any] = dict(networks) if isinstance(networks, Mapping) else {"f": networks}
    hidden = {} if isinstance(spec, Query) else hidden_tensors(os.fspath(spec))
    if single:
        hidden = {"f": next(iter(hidden.values()), ())}
    known = spec.networks if isinstance(spec, Query) else {}
    graphs = {k: _read(v, hidden.get(k, ()), known.get(k)) for k, v in named.items()}
    # Only ONNX files can be replayed as deployed; other sources are evaluated as the graph.
    models = {k: os.fspath(v) if _is_onnx(v) else graphs[k] for k, v in named.items()}
    given = next(iter(graphs.values())) if single else graphs
    query = spec if isinstance(spec, Query) else load_query(Path(spec), given)
    return query, next(iter(models.values())) if single else models


def _read(source: Network, hidden: tuple[str, ...], known: Graph | None) -> Graph:
    """The graph of one network; `known`, the graph a Query was made from, has a module's input shapes."""
    if isinstance(source, Graph):
        return source
    if isinstance(source, (str, os.PathLike)):
        from verifier.graph.load import load_network

        return load_network(os.fspath(source), hidden=hidden)
    if type(source).__module__.startswith("torch.export") or hasattr(source, "named_parameters"):
        from verifier.graph.torch.importer import load_module, load_program

        if not hasattr(source, "training"):
            return load_program(source)
        return load_module(source, *([known[name].shape for name in known.inputs] if known is not None else []))
    raise NetworkError(f"expected a file, a Graph or a torch module, got {type(source).__name__}")


def _is_onnx(source: Network) -> bool:
    return isinstance(source, (str, os.PathLike)) and ".onnx" in Path(source).name


def _analyse(
    networks: Networks,
    spec: str | os.PathLike[str] | Query,
    settings: Settings,
    progress: Progress | None,
    cancel: Callable[[], bool] | None,
    attack_only: bool,
) -> Report:
    run = Run.within(settings.timeout_s, cancel, progress)
    with run.stage("load"):
        query, models = load(networks, spec)
    confirm = _Confirmer(query, models)
    graph, cases = query.graph, query.problem.cases
    run.say("load", f"{len(graph.nodes)} nodes, {graph.input_size} inputs, {len(cases)} cases")
    conclusion = decide(query, settings, run, confirm, attack_only=attack_only)
    return _report(query, settings, run, conclusion, "" if isinstance(spec, Query) else os.fspath(spec))


class _Confirmer:
    """Replays candidates; the ONNX Runtime session is made at the first one."""

    def __init__(self, query: Query, models: object):
        self._query, self._models = query, models
        self._replay: Replay | None = None
        self.failed = 0

    def __call__(self, case: int, point: np.ndarray) -> tuple[np.ndarray, ReplayResult] | None:
        inputs = self._query.problem.cases[case].inputs
        x = snap_to_valid(inputs, point, self._query.graph.dtype)
        if self._replay is None:
            self._replay = Replay(self._models, self._query)  # type: ignore[arg-type]
        result = self._replay.check(self._query, x, case=case)
        if result.valid:
            return x, result
        self.failed += 1
        return None


def _report(query: Query, settings: Settings, run: Run, conclusion: Conclusion, spec: str) -> Report:
    witness, detail = None, conclusion.detail
    if conclusion.witness is not None:
        x, replayed = conclusion.witness
        witness = Witness(x, replayed.y, write_witness(query, x, replayed.y, replayed.hidden))
        detail = detail or replayed.message
    soundness = settings.soundness_level
    if query.problem.exact_real and conclusion.verdict is Verdict.UNSAT:
        soundness = Soundness.REAL_ARITHMETIC
    graph = query.graph
    return Report(
        verdict=conclusion.verdict,
        soundness=soundness,
        reason=conclusion.reason,
        reason_detail=detail,
        witness=witness,
        device=settings.device,
        engine=conclusion.engine,
        bound_before=run.bound_before,
        bound_after=run.bound_after,
        domains_visited=run.visited,
        domains_open=run.open,
        seconds=run.seconds,
        total_seconds=time.monotonic() - run.started,
        peak_memory_bytes=peak_memory_bytes(),
        timeline=tuple(Event(*e) for e in run.events),
        network={
            "file": graph.source,
            "nodes": len(graph.nodes),
            "parameters": graph.parameter_count,
            "inputs": graph.input_size,
            "outputs": graph.output_size,
        },
        spec=spec,
        notes=query.problem.notes,
    )


def peak_memory_bytes() -> int:
    """Peak resident size of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


__all__ = ["Soundness", "StopReason", "Verdict", "falsify", "load", "verify"]
