"""The child's own copy of a model: a small protobuf, its large weights as numpy arrays, and cuts through it.

Invariant: a `Net` never refers to a file, and no function here changes one; each returns a new one that shares arrays.
Walks are by worklist: graphs are deep, recursion limits are not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, inliner

from rewriter.checking.pack import tensors
from rewriter.checking.wire import Array

STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Net:
    model: ModelProto
    weights: Mapping[str, Array]  # top-level initializers whose data is not in `model`

    @property
    def graph(self) -> GraphProto:
        return self.model.graph

    def stored(self) -> dict[str, Array]:
        """Every top-level initializer as an array, large or small."""
        small = {t.name: t for t in self.graph.initializer if t.name not in self.weights}
        return {**{name: onnx.numpy_helper.to_array(t) for name, t in small.items()}, **self.weights}

    def has_type(self, *elem_types: int) -> bool:
        """Whether any tensor or declared value has one of these element types."""
        declared = (v.type.tensor_type.elem_type for v in (*self.graph.input, *self.graph.output))
        held = (tensor.data_type for tensor in tensors(self.model))
        return any(kind in elem_types for kind in (*declared, *held))


def unpack(proto: bytes | bytearray, weights: Mapping[str, Array]) -> Net:
    """What `pack` sent, with local functions inlined and Constants made initializers: later steps see one form."""
    model = ModelProto()
    model.ParseFromString(bytes(proto))
    if model.functions:
        inlined: ModelProto = inliner.inline_local_functions(model)
        model = inlined
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if value is not None and value.name == "value" and node.domain in STANDARD:
            model.graph.initializer.add().CopyFrom(value.t)
            model.graph.initializer[-1].name = node.output[0]
        else:
            nodes.append(node)
    _replace(model.graph.node, nodes)
    return Net(model, weights)


def reads(node: NodeProto) -> Iterator[str]:
    """The values a node needs: its inputs, and the names its bodies read (a body's own names do no harm)."""
    yield from filter(None, node.input)
    bodies = [graph for a in node.attribute for graph in ((a.g, *a.graphs) if a.HasField("g") else a.graphs)]
    while bodies:
        body = bodies.pop()
        yield from (output.name for output in body.output)
        for inner in body.node:
            yield from filter(None, inner.input)
            bodies.extend(
                graph for a in inner.attribute for graph in ((a.g, *a.graphs) if a.HasField("g") else a.graphs)
            )


def input_names(graph: GraphProto) -> list[str]:
    """Inputs that have to be fed: those without a default."""
    defaults = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    return [value.name for value in graph.input if value.name not in defaults]


def value_names(graph: GraphProto) -> set[str]:
    """Names that can be asked for as an output."""
    made = {name for node in graph.node for name in node.output if name}
    return made | {value.name for value in graph.input} | {t.name for t in graph.initializer}


def extract(net: Net, outputs: Sequence[str], cut: Mapping[str, ValueInfoProto] | None = None) -> Net:
    """The part of `net` that computes `outputs`, reading the values in `cut` as inputs instead of computing them."""
    cut = cut or {}
    producer = {name: at for at, node in enumerate(net.graph.node) for name in node.output if name}
    wanted: set[str] = set()
    keep: set[int] = set()
    work = list(outputs)
    while work:
        name = work.pop()
        if name in wanted:
            continue
        wanted.add(name)
        at = producer.get(name)
        if at is not None and name not in cut and at not in keep:
            keep.add(at)
            work.extend(reads(net.graph.node[at]))
    model = ModelProto(ir_version=net.model.ir_version)
    model.opset_import.extend(net.model.opset_import)
    graph = model.graph
    graph.name = "checked"
    for at in sorted(keep):
        node = graph.node.add()
        node.CopyFrom(net.graph.node[at])
        # A node kept for its other output must not make a value that is fed.
        _replace(node.output, [f"{name}.unused" if name in cut else name for name in node.output])
    graph.initializer.extend(t for t in net.graph.initializer if t.name in wanted and t.name not in cut)
    graph.sparse_initializer.extend(s for s in net.graph.sparse_initializer if s.values.name in wanted)
    graph.input.extend(value for value in net.graph.input if value.name in wanted and value.name not in cut)
    graph.input.extend(cut[name] for name in cut if name in wanted)
    declared = {value.name: value for value in net.graph.output}
    # Types are inferred afresh, but for outputs of operators that inference does not know; shapes may be stale.
    for name in outputs:
        graph.output.add(name=name)
        if name in declared:
            graph.output[-1].type.CopyFrom(declared[name].type)
            graph.output[-1].type.tensor_type.ClearField("shape")
    held = {t.name for t in graph.initializer}
    return Net(model, {name: array for name, array in net.weights.items() if name in held})


def with_arrays(net: Net, arrays: Mapping[str, Array]) -> Net:
    """`net` with some of its initializers holding other values of the same type and shape."""
    model = ModelProto()
    model.CopyFrom(net.model)
    for tensor in model.graph.initializer:
        if tensor.name in arrays and tensor.name not in net.weights:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[name], name))
    return Net(model, {name: arrays.get(name, array) for name, array in net.weights.items()})


def whole(net: Net) -> ModelProto:
    """One protobuf with everything in it, for engines that take nothing else; under 2 GB only."""
    model = ModelProto()
    model.CopyFrom(net.model)
    for tensor in model.graph.initializer:
        if tensor.name in net.weights:
            tensor.raw_data = net.weights[tensor.name].tobytes()
    return model


def sorted_nodes(graph: GraphProto) -> list[NodeProto]:
    """Nodes after what they read, whatever their order in the file; nodes on a cycle are left out."""
    producer = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producer[name] for name in reads(node) if name in producer} - {at} for at, node in enumerate(graph.node)]
    readers: dict[int, list[int]] = {}
    for at, before in enumerate(needs):
        for other in before:
            readers.setdefault(other, []).append(at)
    missing = [len(before) for before in needs]
    ready = [at for at, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        at = ready.pop()
        order.append(at)
        for reader in readers.get(at, ()):
            missing[reader] -= 1
            if missing[reader] == 0:
                ready.append(reader)
    return [graph.node[at] for at in order]


def ancestors(graph: GraphProto, names: Iterable[str], stop: Collection[str]) -> set[str]:
    """`names` and everything they are computed from, not looking behind nodes whose op_type is in `stop`."""
    producer = {name: node for node in graph.node for name in node.output if name}
    seen: set[str] = set()
    work = list(names)
    while work:
        name = work.pop()
        if name in seen:
            continue
        seen.add(name)
        node = producer.get(name)
        if node is not None and node.op_type not in stop:
            work.extend(reads(node))
    return seen


def tensor_info(name: str, elem_type: int, rank: int) -> ValueInfoProto:
    """A declared value of known type and rank, and any size."""
    return onnx.helper.make_tensor_value_info(name, elem_type, [None] * rank)


def attribute(node: NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)


def ints(node: NodeProto, name: str) -> list[int]:
    found = attribute(node, name)
    return list(found.ints) if found is not None else []


def integer(node: NodeProto, name: str, default: int) -> int:
    found = attribute(node, name)
    return found.i if found is not None else default


def element_types(net: Net) -> dict[str, int]:
    """Element types as far as inference knows them; what it does not know is missing."""
    known = {t.name: t.data_type for t in net.graph.initializer}
    try:
        graph = onnx.shape_inference.infer_shapes(net.model, data_prop=False).graph
    except Exception:  # inference refuses what it does not know; an unknown type is then treated as a float
        graph = net.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type:
            known[value.name] = value.type.tensor_type.elem_type
    return known


def is_float(elem_type: int) -> bool:
    return elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def _replace(container: MutableSequence[Any], items: Iterable[object]) -> None:
    """Another content for a repeated field, which protobuf does not let one assign."""
    items = list(items)
    del container[:]
    container.extend(items)
