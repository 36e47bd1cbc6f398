"""Makes the networks and properties of this folder from scikit-learn's packaged digits.

    python specs/make_specs.py [--out FOLDER]

Everything random is seeded and runs on one thread; weights are rounded to four decimals before
anything is derived from them. The radius of a property is a fixed share of the smallest radius at
which a gradient attack succeeds, so its verdict does not hang on the last digits of training. The
known verdicts live in expected.json (see fill_expected.py) and are copied into instances.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from architectures import ARCHITECTURES, CLASSES, Architecture, write
from attack import smallest_radius
from onnx_writer import OnnxWriter, rounded
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from vnnlib_writer import Property, text

HERE = Path(__file__).parent
SEED = 20260101
TRAINING_IMAGES = 1500
TIMEOUT_S = 60


def digits() -> tuple[Tensor, Tensor]:
    """All 1797 images [P, 64] in [0, 1] and their labels [P]."""
    data = load_digits()
    return torch.tensor(data.images.reshape(-1, 64) / 16.0, dtype=torch.float32), torch.tensor(data.target)


def train(architecture: Architecture, images: Tensor, labels: Tensor) -> nn.Module:
    """A trained module with rounded parameters; half of each batch is attacked with one gradient step."""
    torch.manual_seed(SEED)
    module = architecture.make()
    shape = architecture.input_shape[1:]
    optimizer = torch.optim.Adam(module.parameters(), lr=4e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, architecture.epochs)
    for _ in range(architecture.epochs):
        order = torch.randperm(len(images))
        for batch in order.split(50):
            x, y = images[batch].reshape(-1, *shape), labels[batch]
            x = torch.cat([_one_step_attack(module, x[::2], y[::2], 0.1), x[1::2]])
            loss = functional.cross_entropy(module(x), torch.cat([y[::2], y[1::2]]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    module.eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dtype == torch.float32:
                tensor.copy_(torch.from_numpy(rounded(tensor.numpy())))
    return module


def _one_step_attack(module: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(module(x), y), x)
    return (x + radius * gradient.sign()).clamp(0, 1).detach()


def ball(image: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The box of images within `radius` per pixel, cut to [0, 1]."""
    return np.clip(image - radius, 0, 1), np.clip(image + radius, 0, 1)


def other_class(label: int) -> list[list[tuple[dict[int, float], float]]]:
    """Clauses: some other class reaches the label's score."""
    return [[({label: 1.0, k: -1.0}, 0.0)] for k in range(CLASSES) if k != label]


def properties(architecture: Architecture, module: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Property]:
    """The properties of one network, over test images it classifies correctly."""
    with torch.no_grad():
        scores = module(images.reshape(-1, *architecture.input_shape[1:]))
    right = torch.nonzero(scores.argmax(dim=1) == labels).flatten()
    chosen = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(SEED))]
    name = architecture.name

    def radius(i: int, share: float, target: int | None = None) -> float:
        shape = architecture.input_shape[1:]
        found = smallest_radius(module, images[i].reshape(shape), int(labels[i]), target)
        return round(share * found, 3)

    def robust(kind: str, version: str, i: int, share: float) -> Property:
        r, label = radius(i, share), int(labels[i])
        comment = f"digit {label}: is any image within {r} per pixel classified otherwise?"
        image = images[i].numpy()
        box = ball(image, r)
        return Property(f"{name}_{kind}", version, comment, [box], other_class(label), image=image, label=label)

    def targeted(kind: str, version: str, i: int, share: float) -> Property:
        label = int(labels[i])
        target = int(scores[i].argsort(descending=True)[1])
        r = radius(i, share, target)
        comment = f"digit {label}: does any image within {r} per pixel score higher as {target}?"
        clause, image = [[({label: 1.0, target: -1.0}, 0.0)]], images[i].numpy()
        box = ball(image, r)
        return Property(f"{name}_{kind}", version, comment, [box], clause, strict=True, image=image, label=label)

    def with_rows(kind: str, version: str, i: int, share: float) -> Property:
        r, label, image = radius(i, share), int(labels[i]), images[i].numpy()
        total = float(image.sum())
        rows = [({k: 1.0 for k in range(64)}, total + 0.5), ({k: -1.0 for k in range(64)}, 0.5 - total)]
        # The change of the upper half must not exceed the change of the lower half by more than 0.25.
        upper, lower = image[:32].sum(), image[32:].sum()
        rows.append(({k: 1.0 if k < 32 else -1.0 for k in range(64)}, float(upper - lower) + 0.25))
        comment = f"digit {label}: images within {r} per pixel whose brightness stays within 0.5"
        return Property(f"{name}_{kind}", version, comment, [ball(image, r)], other_class(label), rows)

    i = [int(k) for k in chosen[:8]]
    yield robust("small", "1.0", i[0], 0.3 * architecture.reach)
    yield robust("medium", "2.0", i[1], 0.5 * architecture.reach)
    yield robust("large", "1.0", i[2], 1.5)
    yield targeted("targeted", "2.0", i[3], 0.5 * architecture.reach)
    yield targeted("targeted_large", "1.0", i[4], 1.5)
    yield with_rows("rows", "2.0", i[5], 0.6 * architecture.reach)
    if name == "fc":
        yield from _special(images, labels, i, radius)


def _special(images: Tensor, labels: Tensor, i: list[int], radius) -> Iterator[Property]:
    """Forms of properties that one network is enough to show."""
    image, label = images[i[6]].numpy(), int(labels[i[6]])
    r = radius(i[6], 0.5)
    brighter = np.clip(image + 0.1, 0, 1)
    yield Property(
        "fc_boxes", "1.0", f"digit {label}: two boxes of images, the second around a brighter copy",
        [ball(image, r), ball(brighter, r)], other_class(label),
    )  # fmt: skip
    yield Property(
        "fc_range", "2.0", f"digit {label}: can its score fall below -20?",
        [ball(image, r)], [[({label: 1.0}, -20.0)]],
    )  # fmt: skip
    two = [({label: 1.0, k: -1.0}, 0.0) for k in ((label + 1) % 10, (label + 2) % 10)]
    yield Property(
        "fc_conjunction", "2.0", f"digit {label}: can two given classes both reach its score?",
        [ball(image, radius(i[6], 1.2))], [two],
    )  # fmt: skip
    lower, upper = ball(image, r)
    lower[0], upper[0] = 0.75, 0.5
    yield Property(
        "fc_empty", "1.0", "no image: the first pixel's lower bound exceeds its upper bound",
        [(lower, upper)], other_class(label),
    )  # fmt: skip


def equivalence(first: str, second: str, image: np.ndarray, radius: float, tolerance: float) -> str:
    """A query over two networks: can one score differ by more than `tolerance` on the same image?"""
    lines = [
        "; two networks on the same image: can some score differ by more than the tolerance?",
        "(vnnlib-version <2.0>)",
        f"(declare-network {first}",
        "  (declare-input X float32 [1,64])",
        "  (declare-output Y float32 [1,10]))",
        f"(declare-network {second} (isomorphic-to {first})",
        "  (declare-input V float32 [1,64])",
        "  (declare-output W float32 [1,10]))",
    ]
    lower, upper = ball(image, radius)
    for k in range(64):
        lines += [f"(assert (>= X[0,{k}] {lower[k]:.6f}))", f"(assert (<= X[0,{k}] {upper[k]:.6f}))"]
        lines.append(f"(assert (== X[0,{k}] V[0,{k}]))")
    lines.append("(assert (or")
    for k in range(CLASSES):
        lines.append(f"(>= (- Y[0,{k}] W[0,{k}]) {tolerance:.6f})")
        lines.append(f"(>= (- W[0,{k}] Y[0,{k}]) {tolerance:.6f})")
    return "\n".join([*lines, "))"]) + "\n"


def save(architecture: Architecture, module: nn.Module, path: Path) -> None:
    """Write the module as ONNX."""
    out = OnnxWriter(architecture.name, architecture.input_shape, architecture.opset)
    write(architecture, module, out)
    out.save(path, CLASSES)


def save_coarse_copy(module: nn.Module, path: Path) -> None:
    """The fully connected network again with weights rounded to two decimals, for the two-network query."""
    architecture = ARCHITECTURES[0]
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(torch.round(tensor * 100) / 100)
    save(architecture, module, path)


def main() -> None:
    """Write networks, properties and the list of instances."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for folder in ("onnx", "vnnlib"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    test_images, test_labels = images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]
    instances: list[tuple[str, str]] = []
    originals: dict[str, dict] = {}
    for architecture in ARCHITECTURES:
        module = train(architecture, images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES])
        onnx_name = f"onnx/{architecture.name}.onnx"
        save(architecture, module, out / onnx_name)
        with torch.no_grad():
            scores = module(test_images.reshape(-1, *architecture.input_shape[1:]))
        accuracy = float((scores.argmax(dim=1) == test_labels).float().mean())
        size = sum(p.numel() for p in module.parameters())
        print(f"{architecture.name}: {size} parameters, test accuracy {accuracy:.3f}", flush=True)
        for prop in properties(architecture, module, test_images, test_labels):
            spec_name = f"vnnlib/{prop.name}.vnnlib"
            (out / spec_name).write_text(text(prop, architecture.input_shape))
            instances.append((onnx_name, spec_name))
            if prop.image is not None:
                originals[prop.name] = {"label": prop.label, "x": prop.image.tolist()}
            print(f"  {prop.name}: {prop.comment}", flush=True)
        if architecture.name == "fc":
            save_coarse_copy(module, out / "onnx/fc_coarse.onnx")
            for kind, tolerance in (("close", 1.5), ("apart", 0.05)):
                query = equivalence("f", "g", test_images[0].numpy(), 0.05, tolerance)
                (out / f"vnnlib/fc_{kind}.vnnlib").write_text(query)
                pair = '[("f", "onnx/fc.onnx"), ("g", "onnx/fc_coarse.onnx")]'
                instances.append((pair, f"vnnlib/fc_{kind}.vnnlib"))
    entries = [f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in originals.items()]
    (out / "originals.json").write_text("{\n" + ",\n".join(entries) + "\n}\n")
    write_instances(out, instances)


def write_instances(folder: Path, instances: list[tuple[str, str]]) -> None:
    """instances.csv with the verdicts that expected.json knows."""
    known_file = folder / "expected.json"
    known = json.loads(known_file.read_text()) if known_file.exists() else {}
    with open(folder / "instances.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["onnx", "vnnlib", "timeout", "expected"])
        for onnx_name, spec_name in instances:
            writer.writerow([onnx_name, spec_name, TIMEOUT_S, known.get(Path(spec_name).stem, "")])


if __name__ == "__main__":
    main()
