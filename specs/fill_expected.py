"""Fills expected.json: the verifier's verdicts, checked by means that share nothing with its proofs.

    python specs/fill_expected.py [--timeout S] [--workers N]

`sat` rests on a counterexample replayed in ONNX Runtime. `unsat` is compared with random images
and corners of the box in ONNX Runtime and, for the fully connected network, with an exact
mixed-integer program (exact.py); besides, radii of properties meant to hold are well below the
radius at which the gradient attack of attack.py succeeds. A contradiction stops the script.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from exact import MARGIN, ReluProgram, dense_layers
from make_specs import HERE, write_instances

from verifier.batch.instances import Instance, read_instances
from verifier.batch.pool import SweepSettings, sweep
from verifier.graph.load import load_network
from verifier.spec.load import load_query
from verifier.spec.query import Query

SAMPLES = 2000


def sampled_violation(query: Query, path: str, seed: int) -> bool:
    """True when a random image or corner of a box without input rows is unsafe in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    rng = np.random.default_rng(seed)
    for case in query.problem.cases:
        inputs = case.inputs
        if inputs.is_empty_box:
            continue
        t = rng.random((SAMPLES, inputs.size))
        t[::2] = np.round(t[::2])
        points = (inputs.lower + t * (inputs.upper - inputs.lower)).astype(np.float32)
        if inputs.row_coeffs is not None:
            points = points[(points @ inputs.row_coeffs.T <= inputs.row_limits).all(axis=1)]
        for x in points:
            (y,) = session.run(None, {model_input.name: x.reshape(model_input.shape)})
            for clause in case.clauses:
                if (clause.coeffs @ y.reshape(-1) < clause.limits - 1e-4).all():
                    return True
    return False


def exact_verdict(query: Query, path: Path) -> str:
    """`sat`, `unsat`, or `unknown` where the optimum is too close to the limit or the form is not covered."""
    layers = dense_layers(path)
    verdict = "unsat"
    for case in query.problem.cases:
        inputs = case.inputs
        if inputs.is_empty_box:
            continue
        program = ReluProgram(layers, inputs.lower, inputs.upper)
        if inputs.row_coeffs is not None and inputs.row_limits is not None:
            for row, limit in zip(inputs.row_coeffs, inputs.row_limits, strict=True):
                program.require(dict(enumerate(row)), float(limit))
        for clause in case.clauses:
            # A conjunction cannot hold when one of its rows cannot; the converse needs a single row.
            gaps = [
                program.minimum({k: c for k, c in enumerate(row) if c}) - limit
                for row, limit in zip(clause.coeffs, clause.limits, strict=True)
            ]
            if max(gaps) > MARGIN:
                continue
            if len(gaps) == 1 and gaps[0] < -MARGIN:
                return "sat"
            verdict = "unknown"
    return verdict


def check(instance: Instance, verdict: str) -> str:
    """How the verdict was checked, in words.

    Raises:
        RuntimeError: a check contradicts the verdict.
    """
    if isinstance(instance.network, dict):
        return "replayed" if verdict == "sat" else "not checked independently"
    query = load_query(instance.spec, load_network(instance.network))
    how = ["replayed"] if verdict == "sat" else ["sampled"]
    if verdict == "unsat" and sampled_violation(query, instance.network, seed=0):
        raise RuntimeError(f"{instance.spec}: unsat, but a sample is unsafe")
    if Path(instance.network).stem == "fc":
        exact = exact_verdict(query, Path(instance.network))
        if exact not in (verdict, "unknown"):
            raise RuntimeError(f"{instance.spec}: the verifier says {verdict}, the exact program {exact}")
        how.append(f"exact program: {exact}")
    return ", ".join(how)


def main() -> None:
    """Run, check, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    instances = read_instances(HERE / "instances.csv")
    by_spec = {instance.vnnlib: instance for instance in instances}
    known: dict[str, str] = {}
    for result in sweep(instances, SweepSettings(workers=args.workers, timeout_cap_s=args.timeout)):
        row = result.row
        if row.verdict in ("sat", "unsat"):
            known[Path(row.vnnlib).stem] = row.verdict
            print(f"{row.verdict:<6} {row.seconds:6.2f} s  {row.vnnlib}: {check(by_spec[row.vnnlib], row.verdict)}")
        else:
            print(f"{row.verdict:<6} {row.seconds:6.2f} s  {row.vnnlib}: {row.reason}")
    order = {Path(i.vnnlib).stem: known[Path(i.vnnlib).stem] for i in instances if Path(i.vnnlib).stem in known}
    (HERE / "expected.json").write_text(json.dumps(order, indent=1) + "\n")
    write_instances(HERE, [(i.onnx, i.vnnlib) for i in instances])


if __name__ == "__main__":
    main()
