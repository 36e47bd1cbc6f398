"""The protobuf wire format, as much of it as an ONNX file uses.

Reading the few message types directly keeps start-up short (the general library costs more
than verifying a small network) and leaves the weights where they are in the file's buffer.
Source: protobuf encoding guide; field numbers from onnx.proto.
"""

from __future__ import annotations

import struct

import numpy as np

from verifier.errors import NetworkError

Fields = dict[int, list]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(buffer) or shift > 63:
            raise NetworkError("the file ends in the middle of a number: truncated, or not an ONNX file")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def signed(value: int) -> int:
    """The int64 that an unsigned varint encodes."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def parse(buffer: memoryview) -> Fields:
    """Split one message into field number -> values in file order.

    Varints come as unsigned int, fixed-width and length-delimited fields as memoryview slices.

    Raises:
        NetworkError: the buffer is not a well-formed message.
    """
    fields: Fields = {}
    at, size = 0, len(buffer)
    while at < size:
        tag, at = _varint(buffer, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise NetworkError("not an ONNX file: a field is numbered 0")
        if kind == _VARINT:
            value, at = _varint(buffer, at)
            fields.setdefault(number, []).append(value)
            continue
        if kind == _BYTES:
            length, at = _varint(buffer, at)
        elif kind == _FIXED32:
            length = 4
        elif kind == _FIXED64:
            length = 8
        else:
            raise NetworkError(f"not an ONNX file: wire type {kind} is not in use")
        if at + length > size:
            raise NetworkError(
                f"a field of {length} bytes runs past the end of the file: truncated, or not an ONNX file"
            )
        fields.setdefault(number, []).append(buffer[at : at + length])
        at += length
    return fields


def text(fields: Fields, number: int, default: str = "") -> str:
    """The last value of a string field."""
    values = fields.get(number)
    if not values:
        return default
    try:
        return bytes(values[-1]).decode("utf-8")
    except (UnicodeDecodeError, TypeError) as error:
        raise NetworkError(f"not an ONNX file: field {number} should be text") from error


def texts(fields: Fields, number: int) -> list[str]:
    """Every value of a repeated string field."""
    return [text({number: [value]}, number) for value in fields.get(number, ())]


def messages(fields: Fields, number: int) -> list[Fields]:
    """Every value of a repeated message field, parsed."""
    values = fields.get(number, ())
    if any(isinstance(value, int) for value in values):
        raise NetworkError(f"not an ONNX file: field {number} should be a message")
    return [parse(value) for value in values]


def integer(fields: Fields, number: int, default: int = 0) -> int:
    """The last value of an integer field, as int64."""
    values = fields.get(number)
    if not values:
        return default
    if not isinstance(values[-1], int):
        raise NetworkError(f"not an ONNX file: field {number} should be an integer")
    return signed(values[-1])


def integers(fields: Fields, number: int) -> list[int]:
    """A repeated integer field, packed or not."""
    found: list[int] = []
    for value in fields.get(number, ()):
        if isinstance(value, int):
            found.append(signed(value))
            continue
        at = 0
        while at < len(value):
            item, at = _varint(value, at)
            found.append(signed(item))
    return found


def fixed(fields: Fields, number: int, dtype: str) -> np.ndarray:
    """A repeated float (`<f4`) or double (`<f8`) field, packed or not, [n]."""
    parts = fields.get(number, ())
    if any(isinstance(part, int) or len(part) % np.dtype(dtype).itemsize for part in parts):
        raise NetworkError(f"not an ONNX file: field {number} should hold {dtype} numbers")
    arrays = [np.frombuffer(part, dtype=dtype) for part in parts]
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def single(fields: Fields, number: int, default: float = 0.0) -> float:
    """The last value of a float field, as the float64 that equals it."""
    values = fields.get(number)
    if not values:
        return default
    if isinstance(values[-1], int) or len(values[-1]) != 4:
        raise NetworkError(f"not an ONNX file: field {number} should be a float")
    return float(struct.unpack("<f", values[-1])[0])
