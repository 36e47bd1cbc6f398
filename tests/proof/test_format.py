"""Proof files: what is written comes back, anything else is refused with a reason."""

import io
import json
import zipfile

import numpy as np
import pytest

from tests.proof.nets import leaf, proof_of
from verifier.errors import VerifierError
from verifier.outcome import Soundness
from verifier.proof.format import NeuronRows, Proof, ProofError, read, save
from verifier.proof.growth import Growing, grown


def a_proof():
    root = Growing()
    left, _ = root.split_input(1, 0.25)
    above, below = left.split_neuron(7)
    for node, slopes in ((above, [1, 2]), (below, [250, 255])):
        node.slopes, node.multipliers = np.array(slopes, np.uint8), np.array([0.5], np.float32)
    number = np.array([5, 5], np.int32), np.array([1, -1], np.int8), np.array([3], np.int32)
    rows = NeuronRows(0, *number, np.array([[9], [8]], np.uint8))
    trees = grown(root, 0, np.arange(2), np.array([3, 7])), leaf()
    return Proof(("ab",), "cd", Soundness.REAL_ARITHMETIC, trees, (rows,))


def test_what_is_written_comes_back(tmp_path):
    proof = a_proof()
    save(proof, tmp_path / "p")
    again = read(tmp_path / "p")
    assert (again.networks, again.spec, again.soundness) == (proof.networks, proof.spec, proof.soundness)
    assert again.leaf_count == proof.leaf_count == 4 and len(again.trees) == 2 and len(again.rows) == 1
    for one, other in zip((*proof.trees, *proof.rows), (*again.trees, *again.rows), strict=True):
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(other, name)), name
            assert np.asarray(value).dtype == np.asarray(getattr(other, name)).dtype, name
    assert not list(tmp_path.glob("*.partial"))


def test_a_proof_without_trees_comes_back(tmp_path):
    save(proof_of(), tmp_path / "p")
    assert read(tmp_path / "p").trees == ()


@pytest.mark.parametrize("content", [b"", b"unsat\n", b"PK\x03\x04 cut short", b"\x93NUMPY"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(ProofError, match="expected a proof"):
        read(tmp_path / "p")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.98])
def test_files_cut_short_are_refused(tmp_path, cut):
    save(a_proof(), tmp_path / "p")
    whole = (tmp_path / "p").read_bytes()
    (tmp_path / "p").write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(VerifierError, match="expected a proof"):
        read(tmp_path / "p")


def rewritten(path, change):
    """The file with its arrays changed."""
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files}
    header = json.loads(arrays["header"].tobytes())
    change(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


CHANGES = {
    "version": lambda h, a: h.update(proof=99),
    "no header entry": lambda h, a: h.pop("networks"),
    "no array": lambda h, a: a.pop("trees.kind"),
    "another type": lambda h, a: a.update({"trees.kind": a["trees.kind"].astype(np.int64)}),
    "two axes": lambda h, a: a.update({"trees.at": a["trees.at"][:, None]}),
    "too long": lambda h, a: a.update({"trees.at": np.append(a["trees.at"], 0.0)}),
    "negative shape": lambda h, a: h["trees"]["slopes"].__setitem__(0, [-2, -2]),
    "one axis too many": lambda h, a: h["trees"]["leaf"].__setitem__(0, [3, 1]),
    "no such soundness": lambda h, a: h.update(soundness="GOSPEL"),
    "fewer cases": lambda h, a: h["trees"].update(cases="x"),
    "a list for a header": lambda h, a: h.update(trees=[1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_refused(tmp_path, change):
    save(a_proof(), tmp_path / "p")
    rewritten(tmp_path / "p", CHANGES[change])
    with pytest.raises(ProofError, match="expected a proof"):
        read(tmp_path / "p")


def test_objects_are_never_unpickled(tmp_path):
    with open(tmp_path / "p", "wb") as file:
        np.savez(file, header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ProofError, match="expected a proof"):
        read(tmp_path / "p")


def test_other_archives_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "p").write_bytes(buffer.getvalue())
    with pytest.raises(ProofError, match="expected a proof"):
        read(tmp_path / "p")
