"""Reader of .npz archives: this project's own and anybody's with `x` and `y`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from verifier.data.dataset import Dataset
from verifier.errors import SpecError


def load_npz(path: str | Path) -> Dataset:
    """Read `x` [n, ...] and `y` [n]; `classes`, `kind`, `valid_lower`, `valid_upper`, `name` are optional.

    Without metadata: the kind follows from the number of axes (4 image, 3 sequence, 2 table),
    bytes are divided by 255 and floats keep their units with the observed range as valid range,
    except that images within [0, 1] get that range.

    Raises:
        SpecError: not a .npz archive, x or y missing, or object arrays (never unpickled).
    """
    path = Path(path)
    try:
        # Opened here, because np.load leaves a damaged archive's file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise SpecError(f"{path}: not a readable .npz archive of plain arrays: {error}") from error
    missing = [key for key in ("x", "y") if key not in arrays]
    if missing:
        raise SpecError(f"{path}: expected arrays 'x' and 'y', missing {missing}, found {sorted(arrays)}")
    x, y = arrays["x"], np.asarray(arrays["y"])
    if x.ndim not in (2, 3, 4):
        raise SpecError(f"{path}: x: expected [n, F], [n, T, E] or [n, C, H, W], got {x.shape}")
    x = x.astype(np.float32) / 255.0 if x.dtype == np.uint8 else x
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "iub":
        raise SpecError(f"{path}: expected numbers in x and integer labels in y, got {x.dtype} and {y.dtype}")
    kind = str(arrays.get("kind", {4: "image", 3: "sequence", 2: "tabular"}[x.ndim]))
    count = int(y.max()) + 1 if y.size else 0
    classes = tuple(arrays["classes"].tolist()) if "classes" in arrays else tuple(map(str, range(max(count, 2))))
    valid = _valid_range(arrays, x, kind)
    return Dataset(x, y, classes, kind, valid, str(arrays.get("name", path.stem)))


def _valid_range(arrays: dict, x: np.ndarray, kind: str):
    if "valid_lower" in arrays and "valid_upper" in arrays:
        return arrays["valid_lower"], arrays["valid_upper"]
    if kind == "image" and x.size and x.min() >= 0 and x.max() <= 1:
        return 0.0, 1.0
    if x.size == 0:
        return 0.0, 1.0
    return (x.min(0), x.max(0)) if kind == "tabular" else (x.min(), x.max())
