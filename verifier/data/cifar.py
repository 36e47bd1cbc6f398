"""Reader of the binary version of CIFAR-10 and CIFAR-100 (not the pickled one)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from verifier.data.dataset import Dataset
from verifier.errors import SpecError

_PIXELS = 3 * 32 * 32
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def load_cifar(paths: str | Path | Sequence[str | Path]) -> Dataset:
    """Images [n, 3, 32, 32] in [0, 1] from .bin files, or from a folder's `data_batch_*.bin` or `train.bin`.

    A record is the label byte(s) and 3,072 pixel bytes; two label bytes mean CIFAR-100, whose
    fine label (the second) is used.

    Raises:
        SpecError: no files, or a length that is no whole number of records.
    """
    files = _files(Path(paths)) if isinstance(paths, (str, Path)) else [Path(p) for p in paths]
    if not files:
        raise SpecError(f"{paths}: no data_batch_*.bin or train.bin in this folder")
    x, y, classes = [], [], 10
    for file in files:
        try:
            raw = np.fromfile(file, dtype=np.uint8)
        except OSError as error:
            raise SpecError(f"{file}: cannot be read: {error}") from error
        labels = next((k for k in (1, 2) if raw.size and raw.size % (_PIXELS + k) == 0), 0)
        if not labels:
            raise SpecError(f"{file}: {raw.size} bytes is no whole number of CIFAR records of 3,073 or 3,074 bytes")
        records = raw.reshape(-1, _PIXELS + labels)
        x.append(records[:, labels:].reshape(-1, 3, 32, 32))
        y.append(records[:, labels - 1].astype(np.int64))
        classes = max(classes, 100 if labels == 2 else 10)
    names = tuple(CIFAR10_CLASSES) if classes == 10 else tuple(map(str, range(100)))
    return Dataset(np.concatenate(x).astype(np.float32) / 255.0, np.concatenate(y), names, "image", (0.0, 1.0), "cifar")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("data_batch_*.bin")) or sorted(path.glob("train.bin"))
    return [path]
