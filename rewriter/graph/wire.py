"""Serialising a model piece by piece: the bytes of SerializeToString without ever holding them all.

Invariant: what no edit touches comes out as protobuf itself would write it, unknown fields included; tensors that an
edit changes are copies. (One initializer at a time is also four times faster than one large message.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import GraphProto, ModelProto, TensorProto

from rewriter.graph.files import each_tensor, tensors_of_graph
from rewriter.graph.tensors import is_external, stored_size

_Message = TypeVar("_Message", ModelProto, GraphProto)
_NODES_AT_ONCE: Final = 1024
_EXTERNAL: Final = b"\n\x08location"  # {key: "location"} as it is stored


class Sink(Protocol):
    """Where the bytes go; `rewind` forgets all of them and everything that edits had stored, `patch` overwrites."""

    size: int

    def write(self, data: bytes) -> None: ...
    def rewind(self) -> None: ...
    def patch(self, position: int, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Edits:
    """What to change on the way: `apply` edits a copy of each tensor that `wanted` picks.

    With `everywhere` false only external tensors are wanted, and nodes that hold none are not looked into.
    """

    wanted: Callable[[TensorProto], bool]
    apply: Callable[[TensorProto], None]
    everywhere: bool = False

    def inside(self, tensors: Iterator[TensorProto]) -> None:
        for tensor in tensors:
            if self.wanted(tensor):
                self.apply(tensor)

    def concern(self, data: bytes) -> bool:
        return self.everywhere or _EXTERNAL in data


def write_model(model: ModelProto, sink: Sink, edits: Edits) -> None:
    """Write `model` to `sink`; the length of the graph is put in afterwards, so no weight is serialised twice."""
    width = 0
    while True:
        length, used = _attempt(model, sink, edits, width)
        width = len(_varint(length))
        if width == used:
            return
        sink.rewind()  # the guess of how many digits the length has was wrong: once more, now that it is known


def _attempt(model: ModelProto, sink: Sink, edits: Edits, width: int) -> tuple[int, int]:
    before, after = _fields(model, 0, 7), _fields(model, 8, 1 << 30)
    sink.write(before.SerializeToString())
    if model.HasField("graph"):
        nodes = list(_nodes(model.graph, edits))
        small = _fields(model.graph, 2, 5).SerializeToString()
        tail = _edited(_fields(model.graph, 6, 1 << 30), tensors_of_graph, edits)
        tail += _unknown(UnknownFieldSet(model.graph))
        guess = sum(map(len, nodes)) + len(small) + len(tail) + sum(map(_guess, model.graph.initializer))
        width = width or len(_varint(guess))
        sink.write(_varint(7 << 3 | 2))
        at = sink.size
        sink.write(bytes(width))
        for piece in (*nodes, small):
            sink.write(piece)
        for tensor in model.graph.initializer:
            sink.write(_entry(5, _tensor(tensor, edits)))
        sink.write(tail)
        length = sink.size - at - width
        if len(_varint(length)) != width:
            return length, width
        sink.patch(at, _varint(length))
    else:
        length, width = 0, 1
    sink.write(_edited(after, each_tensor, edits))
    sink.write(_unknown(UnknownFieldSet(model)))
    return length, width


def _nodes(graph: GraphProto, edits: Edits) -> Iterator[bytes]:
    for start in range(0, len(graph.node), _NODES_AT_ONCE):
        shell = GraphProto()
        shell.node.extend(graph.node[start : start + _NODES_AT_ONCE])
        yield _edited(shell, tensors_of_graph, edits)


def _edited(shell: _Message, tensors: Callable[[_Message], Iterator[TensorProto]], edits: Edits) -> bytes:
    """The bytes of a copy, after its tensors were edited."""
    data = shell.SerializeToString()
    if edits.concern(data):
        edits.inside(tensors(shell))
        data = shell.SerializeToString()
    return data


def _tensor(tensor: TensorProto, edits: Edits) -> bytes:
    if not edits.wanted(tensor):
        return tensor.SerializeToString()
    copy = TensorProto()
    copy.CopyFrom(tensor)
    edits.apply(copy)
    return copy.SerializeToString()


def _guess(tensor: TensorProto) -> int:
    """About how long an initializer is, without touching its elements."""
    if is_external(tensor):
        return 160
    return stored_size(tensor) + len(tensor.name) + 24


def _fields(message: _Message, first: int, end: int) -> _Message:
    """A copy of the fields numbered from `first` up to, and not including, `end`."""
    shell = type(message)()
    for descriptor, value in cast("Any", message).ListFields():
        if not first <= descriptor.number < end:
            continue
        if isinstance(value, (int, float, str, bytes)):
            setattr(shell, descriptor.name, value)
        else:  # a message or a repeated field
            getattr(shell, descriptor.name).MergeFrom(value)
    return shell


def _entry(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _unknown(fields: Any) -> bytes:
    """Fields that this version of the format does not know, as they were."""
    out = bytearray()
    for entry in fields:
        out += _varint(entry.field_number << 3 | entry.wire_type)
        match entry.wire_type:
            case 0:
                out += _varint(entry.data)
            case 1:
                out += entry.data.to_bytes(8, "little")
            case 2:
                out += _varint(len(entry.data)) + entry.data
            case 3:
                out += _unknown(entry.data) + _varint(entry.field_number << 3 | 4)
            case _:
                out += entry.data.to_bytes(4, "little")
    return bytes(out)
