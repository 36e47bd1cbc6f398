"""Data sets that come with scikit-learn or are generated here: nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from verifier.data.dataset import Dataset
from verifier.data.sentences import sentences
from verifier.errors import SpecError


def digits() -> Dataset:
    """1,797 handwritten digits, 1x8x8, ink from 0 to 1 (the original counts 0..16 over 16)."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return Dataset(raw.images[:, None] / 16.0, raw.target, tuple("0123456789"), "image", (0.0, 1.0), "digits")


def _table(name: str, raw) -> Dataset:
    x = np.asarray(raw.data, dtype=np.float32)
    return Dataset(x, raw.target, tuple(raw.target_names), "tabular", (x.min(0), x.max(0)), name)


def breast_cancer() -> Dataset:
    """569 rows of 30 measurements, two classes, raw units; valid range is the observed one."""
    from sklearn.datasets import load_breast_cancer

    return _table("breast_cancer", load_breast_cancer())


def wine() -> Dataset:
    """178 rows of 13 measurements, three classes, raw units."""
    from sklearn.datasets import load_wine

    return _table("wine", load_wine())


def iris() -> Dataset:
    """150 rows of 4 measurements, three classes, raw units."""
    from sklearn.datasets import load_iris

    return _table("iris", load_iris())


def moons(rows: int = 600, noise: float = 0.15, seed: int = 0) -> Dataset:
    """Two interleaved half circles in the plane, two classes."""
    from sklearn.datasets import make_moons

    x, y = make_moons(rows, noise=noise, random_state=seed)
    return Dataset(x, y, ("upper", "lower"), "tabular", (x.min(0), x.max(0)), "moons")


def photographs(size: int = 16, stride: int = 16) -> Dataset:
    """Square colour cuts [3, size, size] of scikit-learn's two photographs, one class each; needs Pillow."""
    from sklearn.datasets import load_sample_images

    x, y = [], []
    for label, image in enumerate(load_sample_images().images):
        planes = image.transpose(2, 0, 1).astype(np.float32) / 255.0
        for top in range(0, planes.shape[1] - size + 1, stride):
            for left in range(0, planes.shape[2] - size + 1, stride):
                x.append(planes[:, top : top + size, left : left + size])
                y.append(label)
    return Dataset(np.stack(x), np.array(y), ("temple", "flower"), "image", (0.0, 1.0), "photographs")


PACKAGED: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "wine": wine,
    "iris": iris,
    "moons": moons,
    "photographs": photographs,
    "sentences": sentences,
}


def packaged(name: str) -> Dataset:
    """One of `PACKAGED` by name.

    Raises:
        SpecError: unknown name; lists the known ones.
    """
    if name not in PACKAGED:
        raise SpecError(f"no packaged data set '{name}'; there are {', '.join(PACKAGED)}")
    return PACKAGED[name]()
