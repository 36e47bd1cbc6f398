"""The small classifiers that ship with the project, and the file format of trained ones."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from verifier.data import Dataset
from verifier.errors import NetworkError, ShapeError

_FORMAT = "verifier-classifier-1"


class LargestOverTokens(nn.Module):
    """Maximum over the token axis: [n, H, T] -> [n, H]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=-1)


@dataclass(frozen=True)
class Architecture:
    """A recipe for one classifier, enough to build it again.

    Attributes:
        name: a key of `BUILDERS`: "linear", "mlp", "cnn" (images) or "tokens" (sequences).
        shape: shape of one input row.
        classes: number of logits C.
        width: neurons of the hidden layers, channels of the first convolution.
        center, scale: inputs are normalised inside the network as (x - center) / scale,
            so that users and attacks stay in the data's own units; length 1 or F.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    width: int
    center: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)


class Classifier(nn.Sequential):
    """Layers in sequence, with the architecture they were built from."""

    def __init__(self, architecture: Architecture, layers: list[nn.Module]):
        super().__init__(*layers)
        self.architecture = architecture


class Normalise(nn.Module):
    """(x - center) / scale with constants of length 1 or F, F the last axis."""

    center: Tensor
    scale: Tensor

    def __init__(self, center: tuple[float, ...], scale: tuple[float, ...]):
        super().__init__()
        self.register_buffer("center", torch.tensor(center))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.scale


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _linear(a: Architecture) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(_size(a.shape), a.classes)]


def _mlp(a: Architecture) -> list[nn.Module]:
    hidden = [nn.Linear(_size(a.shape), a.width), nn.ReLU(), nn.Linear(a.width, a.width), nn.ReLU()]
    return [nn.Flatten(), *hidden, nn.Linear(a.width, a.classes)]


def _cnn(a: Architecture) -> list[nn.Module]:
    channels, height, width = a.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    return [
        nn.Conv2d(channels, a.width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(a.width, 2 * a.width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * a.width * rows * columns, 4 * a.width),
        nn.ReLU(),
        nn.Linear(4 * a.width, a.classes),
    ]


class TokensLast(nn.Module):
    """[n, T, E] -> [n, E, T], the layout of one-dimensional convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def _tokens(a: Architecture) -> list[nn.Module]:
    convolution = nn.Conv1d(a.shape[1], a.width, 3, padding=1)
    hidden = [nn.Linear(a.width, a.width), nn.ReLU()]
    return [TokensLast(), convolution, nn.ReLU(), LargestOverTokens(), *hidden, nn.Linear(a.width, a.classes)]


BUILDERS = {"linear": _linear, "mlp": _mlp, "cnn": _cnn, "tokens": _tokens}
_AXES = {"cnn": 3, "tokens": 2}


def build(architecture: Architecture, seed: int = 0) -> Classifier:
    """A freshly initialised network; the same seed gives the same weights.

    Raises:
        NetworkError: unknown architecture name.
        ShapeError: the architecture does not take rows of this shape.
    """
    if architecture.name not in BUILDERS:
        raise NetworkError(f"architecture: expected one of {', '.join(BUILDERS)}, got '{architecture.name}'")
    axes = _AXES.get(architecture.name, len(architecture.shape))
    if len(architecture.shape) != axes:
        raise ShapeError(f"architecture {architecture.name}: expected rows of {axes} axes, got {architecture.shape}")
    normalise = [Normalise(architecture.center, architecture.scale)]
    plain = architecture.center == (0.0,) and architecture.scale == (1.0,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(architecture, ([] if plain else normalise) + BUILDERS[architecture.name](architecture))


def architecture_for(name: str, data: Dataset, width: int) -> Architecture:
    """The architecture that takes this data set's rows; tables are standardised by their own moments."""
    center, scale = (0.0,), (1.0,)
    if data.kind == "tabular":
        spread = data.x.std(axis=0)
        center = tuple(data.x.mean(axis=0).tolist())
        scale = tuple((spread + (spread == 0)).tolist())
    return Architecture(name, data.shape, len(data.classes), width, center, scale)


def save_model(model: nn.Module, path: str | Path) -> Path:
    """Write architecture (as JSON text) and weights to one file that loads without running code.

    Raises:
        NetworkError: not one of our architectures; export such a model to ONNX instead.
    """
    if not isinstance(model, Classifier):
        raise NetworkError(f"{type(model).__name__} is none of {', '.join(BUILDERS)}; export it to ONNX to keep it")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    torch.save({"format": _FORMAT, "architecture": json.dumps(asdict(model.architecture)), "weights": weights}, path)
    return path


def load_model(path: str | Path) -> Classifier:
    """Read a file of `save_model`; nothing in it is executed (weights_only).

    Raises:
        NetworkError: missing, damaged, of another format, or with weights that do not fit or are not finite.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise NetworkError(f"{path}: not a classifier file of this project (format {_FORMAT})")
        fields = json.loads(content["architecture"])
        for key in ("shape", "center", "scale"):
            fields[key] = tuple(fields[key])
        model = build(Architecture(**fields))
        model.load_state_dict(content["weights"])
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NetworkError(f"{path}: cannot be read as a classifier file: {reason}") from error
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        raise NetworkError(f"{path}: the weights hold NaN or infinite values")
    return model.eval()
