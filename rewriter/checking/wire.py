"""What parent and child say to each other: length-prefixed JSON headers, each followed by the blobs it announces.

Invariant: nothing is evaluated or unpickled; a reader takes exactly the bytes that were announced. Models travel
through the pipe, so no file is ever written and none has to be removed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]

_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Blob:
    """A tensor on the wire. `read` gives its bytes when they are wanted; `elem_type` is ONNX's number for its type."""

    name: str
    elem_type: int
    dims: tuple[int, ...]
    size: int
    read: Callable[[], bytes | memoryview]


def dtype_of(elem_type: int) -> np.dtype[Any]:
    """The numpy type of an ONNX element type; bfloat16 and the small floats come from ml_dtypes."""
    return onnx.helper.tensor_dtype_to_np_dtype(elem_type)


def send_json(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive_json(stream: BinaryIO) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    return json.loads(_exactly(stream, length))


def send_blobs(stream: BinaryIO, blobs: Iterable[Blob]) -> None:
    """A header that lists the blobs, then their bytes one after the other."""
    blobs = list(blobs)
    send_json(stream, {"blobs": [[b.name, b.elem_type, list(b.dims), b.size] for b in blobs]})
    for blob in blobs:
        data = blob.read()
        if len(data) != blob.size:
            raise ValueError(f"{blob.name}: {len(data)} bytes where {blob.size} were announced")
        stream.write(data)
    stream.flush()


def receive_blobs(stream: BinaryIO) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name, elem_type, dims, size in receive_json(stream)["blobs"]:
        flat = np.frombuffer(_exactly(stream, size), dtype=dtype_of(elem_type))
        arrays[name] = flat.reshape(dims)
    return arrays


def send_bytes(stream: BinaryIO, data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive_bytes(stream: BinaryIO) -> bytearray:
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    return _exactly(stream, length)


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    """`size` bytes in one buffer that numpy can use without a copy; a stream that ends early is an error."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    at = 0
    while at < size:
        chunk = stream.read(min(_CHUNK, size - at))
        if not chunk:
            raise EOFError("the other side closed the pipe")
        view[at : at + len(chunk)] = chunk
        at += len(chunk)
    return buffer
