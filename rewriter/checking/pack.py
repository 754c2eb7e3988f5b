"""The parent's side of a model: a small protobuf without the large weights, and the weights as blobs to stream.

Invariant: what leaves here refers to no file. External tensors are read by us, from a regular file inside the model's
folder and within its bounds, because the engine given a location would open whatever a name leads to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from rewriter.checking.wire import Blob, dtype_of
from rewriter.errors import InputError

_INLINE_BELOW = 4096  # bytes; shapes and axes stay in the protobuf, where the engine's shape inference reads them
_LARGEST_PROTO = 2**31 - 1
_STREAMED = {  # element types whose bytes numpy reads as they are stored
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.INT32,
    TensorProto.INT64,
}


@dataclass(frozen=True, slots=True)
class Packed:
    proto: bytes
    weights: tuple[Blob, ...]


def pack(model: ModelProto, folder: Path | None, label: str) -> Packed:
    """`model` for the child; the argument is not changed. `label` names it in errors."""
    skeleton = ModelProto()
    for field, value in model.ListFields():
        if field.name not in ("graph", "metadata_props", "training_info"):
            _copy_field(skeleton, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name not in ("initializer", "value_info", "quantization_annotation", "metadata_props"):
            _copy_field(skeleton.graph, field.name, value)
    weights: list[Blob] = []
    for tensor in model.graph.initializer:
        blob = _blob(tensor, folder, label)
        kept = skeleton.graph.initializer.add()
        if blob.size >= _INLINE_BELOW and tensor.data_type in _STREAMED:
            kept.name, kept.data_type = tensor.name, tensor.data_type
            kept.dims.extend(tensor.dims)
            weights.append(blob)
        else:
            kept.CopyFrom(tensor)
    for tensor in tensors(skeleton):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = bytes(_blob(tensor, folder, label).read())
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    if skeleton.ByteSize() > _LARGEST_PROTO:
        raise InputError(f"{label}: more than 2 GB outside its initializers; store constants as initializers")
    return Packed(skeleton.SerializeToString(), tuple(weights))


def _copy_field(target: ModelProto | GraphProto, name: str, value: object) -> None:
    """One set field, whatever its kind: a message, a list of messages or a scalar."""
    if isinstance(value, (str, int, bytes)):
        setattr(target, name, value)
    elif isinstance(value, onnx.ModelProto | onnx.GraphProto):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor a model holds, in bodies of If, Loop and Scan and in functions too."""
    nodes: list[NodeProto] = [node for function in model.functions for node in function.node]
    graphs: list[GraphProto] = [model.graph]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from _held(attribute)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def _held(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _blob(tensor: TensorProto, folder: Path | None, label: str) -> Blob:
    """A tensor's bytes, wherever they are, with a length that agrees with its dims."""
    dims = tuple(tensor.dims)
    if tensor.data_type not in _STREAMED and tensor.data_location != TensorProto.EXTERNAL:
        return Blob(tensor.name, tensor.data_type, dims, 0, bytes)  # stays in the protobuf as it is
    count = 1
    for dim in dims:
        if dim < 0:
            raise InputError(f"{label}: tensor {tensor.name!r} has a negative dimension")
        count *= dim
    # Packed and text types: only the length written in the file says.
    size = count * dtype_of(tensor.data_type).itemsize if tensor.data_type in _STREAMED else -1
    if tensor.data_location == TensorProto.EXTERNAL:
        place = _place(tensor, folder, label, size)
        return Blob(tensor.name, tensor.data_type, dims, place[2], lambda: _read(*place, label, tensor.name))
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != size:
            raise InputError(f"{label}: tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes, its dims say {size}")
        return Blob(tensor.name, tensor.data_type, dims, size, lambda: tensor.raw_data)
    return Blob(tensor.name, tensor.data_type, dims, size, lambda: onnx.numpy_helper.to_array(tensor).tobytes())


def _place(tensor: TensorProto, folder: Path | None, label: str, size: int) -> tuple[Path, int, int]:
    """Path, offset and length of an external tensor, after the checks that need no file to be opened."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise InputError(f"{label}: tensor {tensor.name!r} lies in {location!r}, and the model's folder is not known")
    root = folder.resolve()
    if not location or "\0" in location:
        raise InputError(f"{label}: tensor {tensor.name!r} has no usable location")
    path = (root / location).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{label}: tensor {tensor.name!r} lies outside the model's folder ({location!r})")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(size)))
    except ValueError:
        raise InputError(f"{label}: tensor {tensor.name!r} has an unreadable offset or length") from None
    if offset < 0 or length < 0 or (size >= 0 and length != size):
        raise InputError(f"{label}: tensor {tensor.name!r} is {length} bytes at {offset}, its dims say {size}")
    return path, offset, length


def _read(path: Path, offset: int, length: int, label: str, name: str) -> bytes:
    """Bytes of a regular file; opened without blocking, so that a FIFO cannot hang us."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise InputError(f"{label}: tensor {name!r}: {error.strerror} ({path.name!r})") from error
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size < offset + length:
            raise InputError(f"{label}: tensor {name!r} reaches past the end of {path.name!r}")
        file.seek(offset)
        return file.read(length)
