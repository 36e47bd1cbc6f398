"""The writers behind specs/: what is written means what was asked, and is the same every time."""

import numpy as np
import onnxruntime
import pytest
import torch

from verifier.graph.load import load_network
from verifier.spec.load import load_query


@pytest.mark.parametrize("name", ["fc", "gelu", "batchnorm", "avgpool", "residual", "attention"])
def test_written_networks_compute_what_torch_computes(tmp_path, name):
    from architectures import ARCHITECTURES
    from make_specs import save
    from onnx_writer import rounded

    architecture = next(a for a in ARCHITECTURES if a.name == name)
    torch.manual_seed(1)
    module = architecture.make().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dtype == torch.float32:
                tensor.copy_(torch.from_numpy(rounded(tensor.numpy())))
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    save(architecture, module, first)
    save(architecture, module, second)
    assert first.read_bytes() == second.read_bytes()
    x = np.random.default_rng(2).random(architecture.input_shape, dtype=np.float32)
    (y,) = onnxruntime.InferenceSession(first).run(None, {"input": x})
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert y == pytest.approx(expected, abs=2e-4)  # sqrt(2) and the like are rounded to four decimals


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_written_properties_mean_what_was_asked(tmp_path, version):
    from make_specs import HERE
    from vnnlib_writer import Property, text

    lower, upper = np.full(64, 0.25), np.full(64, 0.5)
    clauses = [[({3: 1.0, 5: -1.0}, 0.0), ({1: 2.0}, -0.125)], [({0: 1.0, 9: 1.0}, 4.0)]]
    rows = [({0: 1.0, 7: -0.5}, 0.75)]
    prop = Property("p", version, "a comment", [(lower, upper)], clauses, rows, strict=True)
    path = tmp_path / "p.vnnlib"
    path.write_text(text(prop, (1, 64)))
    problem = load_query(path, load_network(HERE / "onnx" / "fc.onnx")).problem
    (case,) = problem.cases
    assert np.array_equal(case.inputs.lower, lower) and np.array_equal(case.inputs.upper, upper)
    row = np.zeros(64)
    row[[0, 7]] = 1.0, -0.5
    assert normalised(case.inputs.row_coeffs, case.inputs.row_limits) == {(*row, 0.75)}
    first, second = sorted(case.clauses, key=lambda clause: -len(clause.limits))
    assert first.strict.all() and second.strict.all() and second.limits == pytest.approx([4.0])
    comparison, weighted = np.zeros(10), np.zeros(10)
    comparison[[3, 5]] = 1.0, -1.0
    weighted[1] = 1.0
    assert normalised(first.coeffs, first.limits) == {(*comparison, 0.0), (*weighted, -0.0625)}


def normalised(coeffs, limits):
    """Rows with their limits, scaled so that the largest coefficient has magnitude 1: a reader may rescale."""
    rows = np.column_stack([coeffs, limits])
    return {tuple(row) for row in rows / np.abs(coeffs).max(axis=1, keepdims=True)}


def test_several_boxes_become_several_cases(tmp_path):
    from make_specs import HERE, other_class
    from vnnlib_writer import Property, text

    boxes = [(np.zeros(64), np.full(64, 0.25)), (np.full(64, 0.5), np.ones(64))]
    path = tmp_path / "p.vnnlib"
    path.write_text(text(Property("p", "1.0", "two", boxes, other_class(4)), (1, 64)))
    cases = load_query(path, load_network(HERE / "onnx" / "fc.onnx")).problem.cases
    assert sorted(float(case.inputs.lower[0]) for case in cases) == [0.0, 0.5]
    assert all(len(case.clauses) == 9 for case in cases)
