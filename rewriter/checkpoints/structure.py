"""A model as .safetensors and a small JSON of its structure: weights for whoever builds the net in code of their own.

Invariant: the two files hold the whole graph; every stored tensor is in the .safetensors under its own name with its
own bits, and the JSON says what reads it and, of new ones, what they were folded from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from rewriter.checkpoints.publishing import publish
from rewriter.errors import UsageError
from rewriter.graph.proto import value_type
from rewriter.graph.tensors import dtype_name, external_bytes, is_external, raw_bytes, shown
from rewriter.reporting.record import FoldRecord
from rewriter.version import __version__

FORMAT: Final = "fxrewrite structure"
VERSION: Final = 1
_CODES: Final[Mapping[str, tuple[str, int]]] = {  # the format's word for a type, and its bytes
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "int64": ("I64", 8),
    "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1), "uint16": ("U16", 2),
    "uint32": ("U32", 4), "uint64": ("U64", 8), "bool": ("BOOL", 1),
}  # fmt: skip
_ALIGN: Final = 8

Data = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor to be written; its bytes are read when it is its turn."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Data]


def structure_path(path: Path) -> Path:
    """net.safetensors -> net.json, beside it."""
    return path.with_suffix(".json")


def save(
    model: ModelProto, folder: Path | None, path: Path, folds: Sequence[FoldRecord] = (), *, force: bool = False
) -> Path:
    """Write both files. UsageError for a model that they cannot hold: bodies of If and Loop, sparse or text tensors."""
    tensors = [*model.graph.initializer]
    nodes = [_node(node, tensors) for node in model.graph.node]
    if model.functions or model.graph.sparse_initializer:
        raise UsageError(f"{shown(path)}: the model has functions or sparse tensors; write it as .onnx")
    structure = {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_value(info) for info in model.graph.input],
        "outputs": [_value(info) for info in model.graph.output],
        "nodes": nodes,
    }
    return write(path, structure, [_stored(tensor, folder) for tensor in tensors], folds, force=force)


def write(
    path: Path, structure: Mapping[str, Any], tensors: Sequence[Stored], folds: Sequence[FoldRecord], *, force: bool
) -> Path:
    """Write the weights and, beside them, what is said of the graph that reads them."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"fxrewrite {__version__}",
        **structure,
        "folds": {fold.tensor: [*fold.sources] for fold in folds},
    }
    text = json.dumps(document, indent=1, allow_nan=True) + "\n"
    publish({path: _weights(tensors, path), structure_path(path): [text.encode()]}, force=force)
    return path


def _stored(tensor: TensorProto, folder: Path | None) -> Stored:
    def read() -> Data:
        return external_bytes(tensor, folder) if is_external(tensor) else raw_bytes(tensor)

    return Stored(tensor.name, dtype_name(tensor.data_type), (*tensor.dims,), read)


def _weights(tensors: Sequence[Stored], path: Path) -> Iterator[Data]:
    """The bytes of a safetensors file, tensor by tensor, so that only one is in memory twice."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "made_by": f"fxrewrite {__version__}"}}
    sizes: list[int] = []
    position = 0
    # the widest elements first, so that every tensor begins at a multiple of its element size, as readers want it
    ordered = sorted(tensors, key=lambda tensor: -_width(tensor, path))
    for tensor in ordered:
        size = _width(tensor, path) * prod(tensor.shape)
        code, _ = _CODES[tensor.dtype]
        header[tensor.name] = {"dtype": code, "shape": [*tensor.shape], "data_offsets": [position, position + size]}
        position += size
        sizes.append(size)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    yield len(text).to_bytes(8, "little") + text
    for tensor, size in zip(ordered, sizes, strict=True):
        data = tensor.read()
        if len(data) != size:
            raise UsageError(f"{shown(tensor.name)} has {len(data)} bytes where {size} were expected")
        yield data


def _width(tensor: Stored, path: Path) -> int:
    if tensor.dtype not in _CODES:
        raise UsageError(
            f"{shown(path)}: safetensors has no type for {shown(tensor.name)} ({tensor.dtype}); write the model whole"
        )
    return _CODES[tensor.dtype][1]


def _value(info: Any) -> dict[str, Any]:
    dtype, shape = value_type(info)
    return {"name": info.name, "dtype": dtype, "shape": None if shape is None else [*shape]}


def _node(node: NodeProto, tensors: list[TensorProto]) -> dict[str, Any]:
    """A node as plain values; a tensor among its attributes joins the stored ones and is named here."""
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise UsageError(f"node {shown(node.name or node.op_type)} has a body; write the model as .onnx")
        value: Any = helper.get_attribute_value(attribute)
        attributes[attribute.name] = _plain(value, f"{node.output[0]}.{attribute.name}", tensors)
    return {
        "op": node.op_type,
        **({"domain": node.domain} if node.domain else {}),
        "name": node.name,
        "inputs": [*node.input],
        "outputs": [*node.output],
        "attributes": attributes,
    }


def _plain(value: Any, name: str, tensors: list[TensorProto]) -> Any:
    if isinstance(value, TensorProto):
        copy = TensorProto()
        copy.CopyFrom(value)
        copy.name = name
        tensors.append(copy)
        return {"tensor": name}
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, int | float):
        return value
    if hasattr(value, "__iter__"):
        return [_plain(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    raise UsageError(f"attribute {shown(name)} is of a kind that JSON has no form for; write the model as .onnx")
