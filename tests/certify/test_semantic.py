"""Certificates over transformation parameters: the graph is the attack's transformation, and proofs hold."""

import itertools
import math

import numpy as np
import pytest
import torch
from radius_nets import dense_network
from semantic_nets import SPECS, colour_network, samples, threat
from threads import one_thread  # noqa: F401

from verifier.attack.model import Model
from verifier.attack.onnx_victim import GraphModule
from verifier.attack.semantic.composite import Composite
from verifier.bounds.torch_engine import TorchEngine
from verifier.certify.placing import Placing
from verifier.certify.semantic.box import input_ends, parse_threat, pieces, scaled, whole
from verifier.certify.semantic.certificate import SemanticSettings, certify_transformations
from verifier.certify.semantic.compose import transformation_graph, transformed_network
from verifier.certify.semantic.rounding import pixel_error
from verifier.certify.victim import Classifier
from verifier.errors import ShapeError, SpecError
from verifier.graph.evaluate import evaluate
from verifier.outcome import Soundness, StopReason

GREY = [
    ("brightness=-0.1:0.1",),
    ("contrast=0.9:1.1",),
    ("rotation=-10:10",),
    ("translation=-0.2:0.2,-0.2:0.2",),
    ("spatial=-3:3,-0.1:0.1,-0.1:0.1",),
    ("brightness=-0.05:0.05", "contrast=0.95:1.05"),
    ("brightness=-0.05:0.05", "rotation=-3:3"),
    ("rotation=-3:3", "contrast=0.95:1.05", "translation=-0.05:0.05,0:0"),
    ("contrast=0.95:1.05", "pixels=0.002"),
]
COLOUR = [
    ("hue=-0.3:0.3",),
    ("saturation=0.8:1.2",),
    ("hue=-0.1:0.1", "saturation=0.9:1.1", "brightness=-0.02:0.02", "contrast=0.95:1.05"),
    ("saturation=0.9:1.1", "rotation=-2:2"),
]
ALL = [(texts, 1) for texts in GREY] + [(texts, 3) for texts in COLOUR]
IDS = ["+".join(t.split("=")[0] for t in texts) for texts, _ in ALL]


def values(box, count, seed):
    """Inputs of the composed network: corners where they are few, then random ones, float64 [n, P (+ N)]."""
    rng = np.random.default_rng(seed)
    lower, upper = box
    inner = lower + rng.random((count, lower.size)) * (upper - lower)
    corners = list(itertools.product(*zip(lower, upper, strict=True))) if lower.size <= 6 else [lower, upper]
    return np.concatenate([np.array(corners), inner])


def working(semantic, points, dtype=torch.float64):
    """The attacks' coordinates of parameters [n, P (+ N)]."""
    count = semantic.parameter_count
    ends = [np.array([v for s in semantic.transformations for v in getattr(s, e)]) for e in ("lower", "upper")]
    identity = np.array([v for s in semantic.transformations for v in s.identity])
    width = np.where(ends[1] > ends[0], ends[1] - ends[0], 1.0)
    parts = [(points[:, :count] - identity) / width, points[:, count:] / (semantic.pixel_eps or 1.0)]
    return torch.tensor(np.concatenate(parts, axis=1), dtype=dtype)


def transformed(semantic, image, points, dtype):
    """The attack's own torch transformation, [n, C, H, W]."""
    x = torch.tensor(image, dtype=dtype)[None].expand(len(points), -1, -1, -1)
    work = working(semantic, points, dtype)
    with torch.no_grad():
        return semantic.compose(x, work, semantic.order_matrix(work)).double().numpy()


def exact_ends(semantic, piece, pixels):
    """Inputs of the composed network without the widening that proofs add."""
    change = np.full(pixels if semantic.pixel_eps else 0, semantic.pixel_eps)
    return np.concatenate([piece.lower, -change]), np.concatenate([piece.upper, change])


@pytest.mark.parametrize(("texts", "channels"), ALL, ids=IDS)
@pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
def test_the_graph_is_the_attacks_transformation(texts, channels, shape):
    semantic = threat(*texts)
    image = np.random.default_rng(0).random((channels, *shape)).astype(np.float32)
    for piece in (whole(semantic), *pieces(semantic, image.shape)[:2]):
        points = values(exact_ends(semantic, piece, image.size), 100, 1)
        graph = transformation_graph(image, semantic, piece)
        ours = evaluate(graph, points, "float64").reshape(-1, *image.shape)
        assert np.abs(ours - transformed(semantic, image, points, torch.float64)).max() < 1e-13


@pytest.mark.parametrize(
    ("texts", "channels"), [a for a in ALL if len(a[0]) == 1], ids=[i for i in IDS if "+" not in i]
)
@pytest.mark.parametrize("shape", [(8, 8), (21, 5)])
def test_float32_programs_are_within_the_allowance(texts, channels, shape):
    semantic = threat(*texts)
    (step,) = semantic.transformations
    image = np.random.default_rng(3).random((channels, *shape)).astype(np.float32)
    points = values(exact_ends(semantic, whole(semantic), 0), 2000, 4).astype(np.float32).astype(np.float64)
    work = working(semantic, points, torch.float32)
    # What float32 working coordinates stand for, exactly enough.
    width = np.array([b - a if b > a else 1.0 for a, b in zip(step.lower, step.upper, strict=True)])
    meant = semantic.parameters(work)[step.name].double()
    x = torch.tensor(image)[None].expand(len(points), -1, -1, -1)
    off = (step.apply(x, meant.float()).double() - step.apply(x.double(), meant)).abs().max()
    assert 0 < float(off) <= pixel_error(step, image.shape, (0.0, 1.0), "float32")
    assert width.all()


@pytest.mark.parametrize(("texts", "channels"), ALL, ids=IDS)
def test_bounds_hold_every_float32_image(texts, channels):
    semantic = threat(*texts)
    image = samples(1, channels == 3)[0][0]
    for piece in pieces(semantic, image.shape)[:3]:
        graph = transformation_graph(image, semantic, piece)
        engine = TorchEngine(graph, soundness=Soundness.IEEE_FLOAT)
        lower, upper = (end[None] for end in input_ends(semantic, piece, image.size))
        box = engine.enclose(*engine.boxes(lower, upper)).box
        (name,) = graph.outputs
        images = transformed(semantic, image, values(exact_ends(semantic, piece, image.size), 300, 5), torch.float32)
        assert (images >= box.lower[name].double().numpy()).all()
        assert (images <= box.upper[name].double().numpy()).all()
        assert float((box.upper[name] - box.lower[name]).mean()) < 0.25, "the enclosure says something"


@pytest.mark.parametrize(("texts", "channels"), ALL, ids=IDS)
def test_certificates_hold_and_some_are_given(texts, channels):
    semantic = threat(*texts)
    networks = ["fc", "conv"] if channels == 1 else [None]
    certified = 0
    for name in networks:
        network = colour_network() if name is None else str(SPECS / f"{name}.onnx")
        classifier = Classifier(network)
        for image, label in samples(3, channels == 3):
            settings = SemanticSettings(timeout_s=8)
            found = certify_transformations(classifier, image, label, threat=semantic, settings=settings)
            assert found.lower < found.upper or found.reason is StopReason.MISCLASSIFIED
            if found.counterexample is not None:
                x = found.counterexample.x
                assert classifier.classify(classifier.outputs(x)) == found.counterexample.rival != label
                assert_inside(semantic, found.counterexample.parameters)
            if found.lower == 1:
                certified += 1
                assert_never_contradicted(classifier, semantic, image, label)
    assert certified > 0


def assert_inside(semantic, parameters):
    for step in semantic.transformations:
        for a, v, b in zip(step.lower, parameters[step.name], step.upper, strict=True):
            slack = 1e-6 * (abs(a) + abs(b))
            assert a - slack <= v <= b + slack


def assert_never_contradicted(classifier, semantic, image, label):
    points = values(exact_ends(semantic, whole(semantic), image.size), 300, 7)
    for x in transformed(semantic, image, points, torch.float32):
        assert classifier.classify(classifier.outputs(x.reshape(-1))) == label
    model = Model.from_torch(GraphModule(classifier.graph))
    result = Composite(rounds=2, restarts=3, schedule=False)(model, image[None], [label], semantic, seed=11)
    assert not bool(result.success[0])


def test_the_allowance_decides_where_rounding_could():
    """One pixel, brightness up to 0.25: the class changes at a limit a little above what is reached."""
    image = np.full((1, 1, 1), 0.5, np.float32)
    semantic = threat("brightness=0:0.25")
    allowed = pixel_error(semantic.transformations[0], (1, 1, 1), (0.0, 1.0), "float32")
    for beyond, proved in ((0.3 * allowed, False), (8 * allowed, True)):
        # A float64 network, so that its own rounding is nothing beside the allowance.
        layers = [(np.array([[0.0, 1.0]]), np.array([0.75 + beyond, 0.0]))]
        graph = dense_network(layers)
        limit = float(evaluate(graph, np.zeros((1, 1)))[0, 0])
        found = certify_transformations(graph, image, 0, threat=semantic, settings=SemanticSettings(timeout_s=2))
        assert limit > 0.75 and (found.lower == 1) is proved, found.reason


def test_shares_are_decided_in_order():
    image, label = samples(2)[1]
    wide = threat("translation=-1:1,-1:1")
    settings = SemanticSettings(shares=(1.0, 0.1), timeout_s=30)
    found = certify_transformations(str(SPECS / "fc.onnx"), image, label, threat=wide, settings=settings)
    assert (found.lower, found.upper) == (0.1, 1.0) and found.counterexample is not None
    again = certify_transformations(
        str(SPECS / "fc.onnx"), image, label, threat=scaled(wide, 0.1), settings=SemanticSettings(timeout_s=30)
    )
    assert again.lower == 1 and math.isinf(again.upper)


def test_every_order_is_certified_where_it_is_free():
    texts = ("brightness=-0.2:0.1", "contrast=0.8:1.5", "pixels=0.01")
    free = parse_threat(texts, (0.0, 1.0), free_order=True)
    image, label = samples(2)[1]
    points = values(exact_ends(free, whole(free), image.size), 50, 3)
    found = pieces(free, image.shape)
    assert sorted(piece.order for piece in found) == sorted(itertools.permutations(range(3)))
    images = []
    for piece in found:
        ours = evaluate(transformation_graph(image, free, piece), points).reshape(-1, *image.shape)
        x = torch.tensor(image, dtype=torch.float64)[None].expand(len(points), -1, -1, -1)
        order = torch.nn.functional.one_hot(torch.tensor(piece.order), 3).double().expand(len(points), 3, 3)
        theirs = free.compose(x, working(free, points), order).numpy()
        assert np.abs(ours - theirs).max() < 1e-13
        images.append(ours)
    assert np.abs(images[0] - images[-1]).max() > 0.01, "the order matters here"
    classifier = Classifier(str(SPECS / "fc.onnx"))
    mild = parse_threat(("brightness=-0.05:0.05", "contrast=0.95:1.05"), (0.0, 1.0), free_order=True)
    certified = certify_transformations(classifier, image, label, threat=mild, settings=SemanticSettings(timeout_s=20))
    assert certified.lower == 1 and certified.pieces == 2
    result = Composite(restarts=3)(Model.from_torch(GraphModule(classifier.graph)), image[None], [label], mild, seed=1)
    assert not bool(result.success[0])


def test_channels_may_come_last():
    image, _ = samples(2, colour=True)[1]
    semantic = threat("hue=-0.3:0.3", "translation=-0.2:0.2,0:0.3")
    points = values(exact_ends(semantic, whole(semantic), 0), 20, 2)
    first, last = (
        evaluate(transformed_network(colour_network(end), image, semantic, Placing((3, 8, 8), end)), points)
        for end in (False, True)
    )
    assert np.abs(first - last).max() < 1e-9


def test_misclassified_and_targets():
    image, label = samples(2)[1]
    network, semantic = str(SPECS / "fc.onnx"), threat("brightness=-0.05:0.05")
    wrong = certify_transformations(network, image, (label + 1) % 10, threat=semantic)
    assert wrong.reason is StopReason.MISCLASSIFIED and wrong.lower == wrong.upper == 0
    aimed = certify_transformations(network, image, label, threat=semantic, target=(label + 3) % 10)
    assert aimed.lower == 1


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("blur=0:1",), "expected one of hue"),
        (("brightness",), "expected 1 ranges"),
        (("brightness=0:x",), "expected 1 ranges"),
        (("brightness=0.1:0.2",), r"bounds around \[0.0\]"),
        (("translation=-1:1",), "expected 2 ranges"),
        (("contrast=1:1.1", "contrast=1:1.1"), "distinct"),
        (("pixels=0.1", "contrast=1:1.1"), "last"),
        (("pixels=-1",), "number above 0"),
        ((), "at least one"),
    ],
)
def test_mistakes_in_a_threat(texts, said):
    with pytest.raises(SpecError, match=said):
        threat(*texts)


def test_mistakes_in_a_question():
    network, (image, label) = str(SPECS / "fc.onnx"), samples(1)[0]
    with pytest.raises(ShapeError, match="3 channels"):
        certify_transformations(network, image, label, threat=threat("hue=-0.1:0.1"))
    with pytest.raises(ShapeError, match=r"\[C, H, W\]"):
        certify_transformations(network, image.reshape(-1), label, threat=threat("brightness=0:0.1"))
    with pytest.raises(ShapeError, match="64 features"):
        certify_transformations(network, image[:, :4], label, threat=threat("brightness=0:0.1"))
    with pytest.raises(SpecError, match="valid range"):
        certify_transformations(network, image + 1, label, threat=threat("brightness=0:0.1"))
    with pytest.raises(SpecError, match="shares"):
        SemanticSettings(shares=(2.0,))
    many = ("brightness=0:0.1", "contrast=1:1.1", "rotation=0:1", "translation=0:1,0:1", "pixels=0.1")
    with pytest.raises(SpecError, match="120 orders"):
        certify_transformations(network, image, label, threat=parse_threat(many, (0.0, 1.0), free_order=True))
    with pytest.raises(SpecError, match="pieces"):
        certify_transformations(network, image, label, threat=threat("spatial=-180:180,-4:4,-4:4"))
