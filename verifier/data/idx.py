"""Reader of IDX files, the format of MNIST and its relatives; plain or gzip."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from verifier.data.dataset import Dataset
from verifier.errors import SpecError

_TYPES: dict[int, str | type] = {0x08: np.uint8, 0x09: np.int8, 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LARGEST = 1 << 33


def read_idx(path: str | Path) -> np.ndarray:
    """The array in one IDX file, native byte order.

    The announced size is compared with the content before anything of that size is allocated.

    Raises:
        SpecError: unreadable, bad magic number, or content that does not fit the header.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= 4:
                raise SpecError(f"{path}: not an IDX file: it begins with bytes {head.hex() or 'none'}")
            sizes = stream.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise SpecError(f"{path}: the IDX header ends early")
            shape = struct.unpack(f">{head[3]}I", sizes)
            dtype: np.dtype = np.dtype(_TYPES[head[2]])
            expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if expected > _LARGEST:
                raise SpecError(f"{path}: the IDX header announces {expected} bytes, more than the {_LARGEST} accepted")
            content = stream.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    if len(content) != expected:
        raise SpecError(f"{path}: the IDX header {shape} announces {expected} bytes, found {len(content)} or more")
    array = np.frombuffer(content, dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def load_idx(images: str | Path, labels: str | Path | None = None) -> Dataset:
    """Images [n, H, W] and their labels as a Dataset with ink in [0, 1].

    Args:
        labels: default: the images' path with "images-idx3" replaced by "labels-idx1".
    Raises:
        SpecError: no labels file, or arrays that are not images and labels.
    """
    images = Path(images)
    if labels is None:
        name = images.name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1")
        labels = images.with_name(name)
    if Path(labels) == images or not Path(labels).exists():
        raise SpecError(f"{images}: no labels file beside it (expected {Path(labels).name}); name it explicitly")
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or x.dtype != np.uint8 or y.ndim != 1:
        got = f"{x.shape} {x.dtype} and {y.shape}"
        raise SpecError(f"{images}: expected byte images [n, H, W] and labels [n], got {got}")
    classes = tuple(map(str, range(max(int(y.max(initial=0)) + 1, 2))))
    return Dataset(x[:, None].astype(np.float32) / 255.0, y, classes, "image", (0.0, 1.0), images.name.split(".")[0])
