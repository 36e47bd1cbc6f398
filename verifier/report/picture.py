"""Small pictures for web pages: arrays to PNG data URIs, without any plotting library."""

from __future__ import annotations

import base64
import math
import struct
import zlib

import numpy as np

#: Ends of the difference scale, orange to blue through white: distinct for colour-blind eyes and in grey.
_LESS = np.array([179.0, 88.0, 6.0])
_MORE = np.array([33.0, 82.0, 166.0])


def image_shape(size: int) -> tuple[int, int, int] | None:
    """(channels, height, width) when `size` numbers look like a square grey or colour image of 4x4 or more."""
    for channels in (1, 3):
        side = math.isqrt(size // channels)
        if side >= 4 and channels * side * side == size:
            return channels, side, side
    return None


def intensity_png(values: np.ndarray, shape: tuple[int, int, int], low: float, high: float) -> str:
    """A picture of `values`: `low` is black, `high` white; values outside are clipped.

    Args:
        values: flat, channels first, [C * H * W].
        shape: (C, H, W), C of 1 or 3.
    """
    span = high - low if high > low else 1.0
    pixels = np.clip((np.asarray(values, dtype=np.float64).reshape(shape) - low) / span, 0, 1)
    grey = np.round(255 * pixels).astype(np.uint8)
    return _png(np.repeat(grey, 3, axis=0) if shape[0] == 1 else grey)


def difference_png(values: np.ndarray, shape: tuple[int, int, int], reach: float) -> str:
    """A picture of signed changes: white is none, orange is -reach, blue is +reach; channels are averaged."""
    change = np.asarray(values, dtype=np.float64).reshape(shape).mean(axis=0)
    t = np.clip(change / reach if reach > 0 else 0 * change, -1, 1)[None]
    end = np.where(t < 0, _LESS[:, None, None], _MORE[:, None, None])
    return _png(np.round(255 + (end - 255) * np.abs(t)).astype(np.uint8))


def _png(pixels: np.ndarray) -> str:
    """RGB bytes [3, H, W] as a data URI."""
    _, height, width = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # a leading 0: the row is not filtered
    rows[:, 1:] = pixels.transpose(1, 2, 0).reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
