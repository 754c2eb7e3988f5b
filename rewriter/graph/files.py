"""Reading ONNX files: one read, one parse, and a message that helps when the file is something else.

Invariant: a `LoadedModel` was read from a regular file, holds everything the file holds (unknown fields too, so that
serialising it unchanged gives the same bytes) and no external data. `validate` makes the promises that later code
rests on: one producer per name, no undefined reads, no cycles, element counts that agree with what is stored.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final, cast

from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from rewriter.errors import InputError
from rewriter.graph.tensors import check_inline, check_range, external_of, is_external, open_external, shown

_LIMIT: Final = (1 << 31) - 1  # protobuf's, for one message
_SCANNED: Final = 32 << 20
_DEPTH: Final = 64  # of bodies; what protobuf reads is at most half as deep
_POSITIVE: Final = frozenset({"group", "strides", "dilations"})
_PLAIN: Final = frozenset(
    {AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING}
    | {AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS}
)
_TRACE: Final = "trace it first: fxrewrite trace CHECKPOINT --model pkg.mod:factory --input 1x3x640x640 -o MODEL.onnx"
_EXPORT: Final = "export the model to ONNX: torch.onnx.export(model, inputs, 'model.onnx')"
_SIGNATURES: Final[tuple[tuple[int, bytes, str, str], ...]] = (  # offset, bytes, what it looks like, remedy
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the real file: git lfs pull"),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "a torch checkpoint (old format)", _TRACE),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it: gunzip"),
    (0, b"\x89HDF", "an HDF5 (Keras) file", "convert it with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx"),
    (4, b"ORTM", "an ORT-format model", "give the .onnx file that it was made from"),
    (8, b'{"', "a safetensors file, weights without a graph", _TRACE),
)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A parsed file: the message, where it came from (`folder` is where external data is looked for) and its size.

    `external` are the data files that the file names, also those of tensors that a rewrite removed since.
    """

    proto: ModelProto
    path: Path | None
    folder: Path | None
    bytes: int
    external: frozenset[str] = field(default=frozenset())


def load(source: str | Path) -> LoadedModel:
    """The model in a file; external data stays on disk. InputError says what the file is when it is no ONNX model."""
    path = Path(source)
    data = _read(path)
    try:
        proto = ModelProto.FromString(data)
    except DecodeError as error:
        raise InputError(_explain(path, data[:65536], _damage(data))) from error
    _require(path, proto, data[:65536])
    external = frozenset[str]()
    # the entry {key: "location"}; scanning bytes is cheaper than visiting every node, until weights are most of them
    if len(data) > _SCANNED or b"\n\x08location" in data:
        external = frozenset(_locations(each_tensor(proto)))
    return LoadedModel(proto, path, path.parent, len(data), external)


def validate(model: LoadedModel) -> None:
    """Refuse what later code could not survive, naming the node; cheap enough for every run (100k nodes in 0.3 s)."""
    _check_graph(model.proto.graph, (), "")
    _check_functions(model.proto.functions)
    sizes: dict[str, int] = {}
    for tensor in each_tensor(model.proto):
        if not is_external(tensor):
            check_inline(tensor)
            continue
        where = external_of(tensor)
        if where.location not in sizes:
            fd, sizes[where.location] = open_external(model.folder, where.location)
            os.close(fd)
        check_range(where, sizes[where.location], tensor.name)


def _check_graph(graph: GraphProto, outer: tuple[Mapping[str, int], ...], where: str) -> set[str]:
    """Check a graph and the bodies inside; the names that it reads from outside are returned."""
    if len(outer) > _DEPTH:
        raise InputError(f"bodies nested more than {_DEPTH} deep{where[:200]}; export the model again")
    inputs = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    for names, what in ((inputs, "input"), (stored, "initializer")):
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise InputError(f"two {what}s{where} are called {shown(twice)}; rename one of them")
    outputs = [value.name for value in graph.output]
    return _check_scope(graph.node, [*inputs, *stored], outputs, outer, where)


def _check_scope(
    nodes: Sequence[NodeProto],
    given: Iterable[str],
    outputs: Iterable[str],
    outer: tuple[Mapping[str, int], ...],
    where: str,
) -> set[str]:
    """One producer per name, no read of nothing, no cycle; stored order does not matter. Returns the outside reads."""
    made = dict.fromkeys(given, -1)  # name -> index of the node that makes it
    late: list[tuple[int, str]] = []  # what a node reads and none before it made
    bodies: list[tuple[int, GraphProto]] = []
    for index, node in enumerate(nodes):
        for name in node.input:
            if name and name not in made:
                late.append((index, name))
        for name in node.output:
            if name in made and name:
                raise InputError(
                    f"{_who(node, index)}{where}: {shown(name)} is made twice; rename one of its producers"
                )
            made[name] = index
        if node.attribute:
            bodies += [(index, body) for body in _bodies_of(node, index)]
    made.pop("", None)
    captured = [
        (index, name)
        for index, body in bodies
        for name in _check_graph(body, (*outer, made), f" in a body of {_who(nodes[index], index)}")
    ]
    free: set[str] = set()
    for index, name in (*late, *captured):
        if name not in made:
            if not any(name in scope for scope in outer):
                who = f"{_who(nodes[index], index)}{where}"
                raise InputError(f"{who} reads {shown(name)}, which nothing makes; export the model again")
            free.add(name)
    if any(made.get(name, -1) >= index for index, name in (*late, *captured)):
        _check_cycles(nodes, made, captured, where)
    for name in outputs:
        if name not in made and not any(name in scope for scope in outer):
            raise InputError(f"output {shown(name)}{where} is made by nothing; export the model again")
    if any(not isinstance(name, str) for name in cast("Iterable[object]", made)):
        raise InputError(f"a name{where or ' in the graph'} is not UTF-8 text; export the model again")
    return free


def _check_cycles(
    nodes: Sequence[NodeProto], made: Mapping[str, int], captured: list[tuple[int, str]], where: str
) -> None:
    """Only for graphs that are not stored in order. The sorter of the standard library does not recurse."""
    needs: list[set[int]] = [{made[name] for name in node.input if made.get(name, -1) >= 0} for node in nodes]
    for index, name in captured:
        if made.get(name, -1) >= 0:
            needs[index].add(made[name])
    try:
        TopologicalSorter(dict(enumerate(needs))).prepare()
    except CycleError as error:
        loop = cast("list[int]", error.args[1])[1:]
        path = ", ".join(_who(nodes[index], index) for index in loop[:4]) + (", …" if len(loop) > 4 else "")
        raise InputError(
            f"a cycle of {len(loop)} nodes{where}: {path}; a graph must not read its own result"
        ) from error


def _bodies_of(node: NodeProto, index: int) -> list[GraphProto]:
    """The bodies that a node holds; a conv whose numbers would divide by zero is refused on the way."""
    bodies: list[GraphProto] = []
    for attribute in node.attribute:
        if attribute.type not in _PLAIN:
            bodies += [attribute.g] if attribute.HasField("g") else []
            bodies += attribute.graphs
        elif attribute.name in _POSITIVE and "Conv" in node.op_type:
            wrong = [v for v in (*attribute.ints, *([attribute.i] if attribute.type == attribute.INT else [])) if v < 1]
            if wrong:
                raise InputError(f"{_who(node, index)}: {attribute.name} is {wrong[0]}; it has to be at least 1")
    return bodies


def _check_functions(functions: Sequence[FunctionProto]) -> None:
    """Check each model-local function, and that none calls itself, directly or through others."""
    calls: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for function in functions:
        label = f" in function {shown(function.name)}"
        _check_scope(function.node, function.input, function.output, (), label)
        calls[function.domain, function.name] = {(node.domain, node.op_type) for node in _each_node(function.node)}
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        name = shown(error.args[1][0][1])
        raise InputError(f"function {name} calls itself, directly or through others; export the model again") from error


def _each_node(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for index, node in enumerate(nodes):
        yield node
        for body in _bodies_of(node, index):
            yield from _each_node(body.node)


def _who(node: NodeProto, index: int) -> str:
    return f"node {index} {shown(node.op_type)} {shown(node.name)}" if node.name else f"node {index} {node.op_type!r}"


def each_tensor(model: ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor stored anywhere in a model: initializers, attributes, bodies, functions, training graphs."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    for graph in graphs:
        yield from tensors_of_graph(graph)
    for function in model.functions:
        yield from tensors_of_function(function)


def tensors_of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    """The dense tensors of a graph and of the bodies inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from tensors_of_nodes(graph.node)


def tensors_of_function(function: FunctionProto) -> Iterator[TensorProto]:
    """The dense tensors in the nodes of a model-local function."""
    yield from tensors_of_nodes(function.node)
    yield from _tensors_of_attributes(function.attribute_proto)


def tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """The dense tensors in the attributes of nodes, and in the bodies that attributes hold."""
    for node in nodes:
        if node.attribute:
            yield from _tensors_of_attributes(node.attribute)


def _tensors_of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.type in _PLAIN:
            continue
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for tensor in (*sparse, *attribute.sparse_tensors):
            yield from (tensor.values, tensor.indices)
        if attribute.HasField("g"):
            yield from tensors_of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from tensors_of_graph(graph)


def _locations(tensors: Iterable[TensorProto]) -> Iterator[str]:
    for tensor in tensors:
        if is_external(tensor):
            entries: dict[str, object] = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location")
            if isinstance(location, str):
                yield location


def _read(path: Path) -> bytes:
    """The bytes of a regular file, opened so that a FIFO does not block and a device is never read."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    name = shown(path)
    try:
        fd = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise InputError(_cannot_open(path, error)) from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        if stat.S_ISDIR(info.st_mode):
            raise InputError(f"{name} is a directory; name the .onnx file in it")
        raise InputError(f"{name} is not a regular file (a pipe or a device); write the model to a file first")
    with open(fd, "rb", buffering=0) as file:
        if info.st_size == 0:
            raise InputError(f"{name} is empty; export or download the model again")
        if info.st_size > _LIMIT:
            raise InputError(_explain(path, file.read(65536), (
                f"{info.st_size / 1e9:.1f} GB, but protobuf stops at 2 GB",
                "save it with external data: onnx.save_model(model, path, save_as_external_data=True)",
            )))  # fmt: skip
        try:
            data = file.readall()
        except (OSError, MemoryError) as error:
            raise InputError(f"{name} cannot be read: {error or 'not enough memory'}") from error
    return data


def _cannot_open(path: Path, error: OSError | ValueError) -> str:
    name = shown(path)
    if not isinstance(error, OSError):
        return f"{name} is not a file name ({error})"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"{name} does not exist; check the path (the working directory is {shown(Path.cwd())})"
    if error.errno == errno.EISDIR or path.is_dir():
        return f"{name} is a directory; name the .onnx file in it"
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return f"{name} is not a regular file (a pipe or a device); write the model to a file first"
    return f"{name} cannot be read: {error.strerror}; check its permissions"


def _require(path: Path, proto: ModelProto, head: bytes) -> None:
    """What every ONNX model has; other files often parse, since protobuf skips what it does not know."""
    if not proto.HasField("graph"):
        raise InputError(_explain(path, head, ("a protobuf message without a graph", _EXPORT)))
    if proto.ir_version < 1:
        raise InputError(_explain(path, head, ("a model without an ir_version", _EXPORT)))
    if not proto.opset_import and proto.ir_version >= 3:
        raise InputError(_explain(path, head, ("a model without opset_import, cut off or damaged", _EXPORT)))
    if not proto.graph.node and not proto.graph.output:
        raise InputError(_explain(path, head, ("a model with an empty graph", _EXPORT)))


def _explain(path: Path, head: bytes, otherwise: tuple[str, str]) -> str:
    what, remedy = _looks_like(head) or otherwise
    return f"{shown(path)} is not a usable ONNX model: it looks like {what}; {remedy}"


def _looks_like(head: bytes) -> tuple[str, str] | None:
    """What a file that is no ONNX model is, by its first bytes; member names of a zip are read from there too."""
    if head[:4] == b"PK\x03\x04":
        if b"archive_format" in head or b"serialized_exported_program" in head or b"models/model.json" in head:
            return "a torch.export archive (.pt2)", "install fxrewrite[torch]; reading it can run code, so add --trust"
        if b"constants.pkl" in head or b"/code/" in head:
            return "a TorchScript archive", _EXPORT
        if b"data.pkl" in head:
            return "a torch checkpoint", _TRACE
        return "a zip archive", "unpack it and name the .onnx file in it"
    for offset, magic, what, remedy in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return what, remedy
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "a Python pickle, which can run code when it is opened", _TRACE
    text = head[:4096].lstrip()
    if text[:1] == b"{":
        return "JSON", "convert it: onnx.save_model(onnx.load_model(path, format='json'), 'model.onnx')"
    if text.startswith((b"<!", b"<html", b"<?xml")):
        return "a web page or XML, not the download itself", "download the file again from its raw address"
    if text.startswith((b"ir_version", b"graph {", b"producer_name", b"opset_import", b"# proto-file")):
        return "protobuf text", "convert it: onnx.save_model(onnx.load_model(path, format='textproto'), 'model.onnx')"
    if text[:1] == b"<" and b"ir_version" in text:
        return "ONNX text", "convert it: onnx.save_model(onnx.parser.parse_model(text), 'model.onnx')"
    return None


def _damage(data: bytes) -> tuple[str, str]:
    """Why a message did not parse: its top-level fields show whether bytes are missing at the end."""
    position, size = 0, len(data)
    while position < size:
        tag, position = _varint(data, position)
        kind = tag & 7
        if tag >> 3 not in range(1, 1000) or kind not in (0, 1, 2, 5):
            return "no model format we know", _EXPORT
        if kind == 2:
            length, position = _varint(data, position)
            position += length
        else:
            position = _varint(data, position)[1] if kind == 0 else position + (8 if kind == 1 else 4)
    if position > size:
        missing = position - size
        return f"an ONNX file that is cut off ({missing} bytes are missing)", "copy, download or export it again"
    return "damaged protobuf, or If, Loop and Scan bodies nested more than 30 deep", "export the model again"


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            return value, len(data) + 1
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, position
