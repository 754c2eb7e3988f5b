"""Reading ONNX messages: attributes, bodies and the names they capture, order, declared types, liveness.

Invariant: nothing is changed and nothing recurses along the graph; names are the edges, as in the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, TensorShapeProto, ValueInfoProto

from rewriter.errors import InputError
from rewriter.graph.canonical import element_type
from rewriter.graph.tensors import shown
from rewriter.graph.view import Dim

DEFAULT_DOMAINS = ("", "ai.onnx")

LAYERS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN"})
"""What counts as a layer where bodies are looked into for any."""


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes as Python values, texts decoded; tensors, graphs and what has no type stay protobuf."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        kind = attribute.type
        if kind == _INTS:
            found[attribute.name] = tuple(attribute.ints)
        elif kind == _INT:
            found[attribute.name] = attribute.i
        elif kind == _FLOAT:
            found[attribute.name] = attribute.f
        else:
            found[attribute.name] = _OTHERS.get(kind, _as_it_is)(attribute)
    return found


def _as_it_is(attribute: AttributeProto) -> AttributeProto:
    return attribute


_INT, _FLOAT, _INTS = AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.INTS
_OTHERS: Mapping[int, Callable[[AttributeProto], Any]] = {
    AttributeProto.STRING: lambda attribute: attribute.s.decode(errors="replace"),
    AttributeProto.FLOATS: lambda attribute: tuple(attribute.floats),
    AttributeProto.TENSOR: lambda attribute: attribute.t,
}


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node (branches of an If, body of a Loop or Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def captured_names(node: NodeProto) -> set[str]:
    """The outer names that the bodies of `node` read, at any depth (what a body has defined before is its own)."""
    found: set[str] = set()
    for body in bodies(node):
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {t.values.name for t in body.sparse_initializer}
        for inner in body.node:
            found.update(name for name in inner.input if name not in own)
            if inner.attribute:
                found |= captured_names(inner) - own
            own.update(inner.output)
        found.update(o.name for o in body.output if o.name not in own)
    found.discard("")
    return found


def has_layers(node: NodeProto) -> bool:
    """Whether convolutions or matrix products, or operators of other domains, are in the bodies of `node`."""
    waiting = [*bodies(node)]
    while waiting:
        for inner in waiting.pop().node:
            if inner.op_type in LAYERS or inner.domain not in DEFAULT_DOMAINS:
                return True
            waiting += bodies(inner)
    return False


def producers(outputs: Sequence[Sequence[str]], taken: Set[str] = frozenset()) -> dict[str, int]:
    """Which node makes a name, from the outputs of each.

    InputError where two nodes make one, or it is `taken`: no reading of such a graph is right.
    """
    found: dict[str, int] = {}
    for i, names in enumerate(outputs):
        for name in names:
            if name in found or name in taken:
                raise InputError(f"two values of the graph are called {shown(name)}; rename one of them")
            if name:
                found[name] = i
    return found


def topological(
    nodes: Sequence[NodeProto], reads: Sequence[Sequence[str]], producer: Mapping[str, int]
) -> Sequence[int]:
    """Indices of `nodes` so that each stands after what it reads; the stored order wherever that is legal."""
    if all([producer.get(name, -1) < i for i, names in enumerate(reads) for name in names]):
        return range(len(nodes))
    needs = [sorted({producer[name] for name in names if name in producer}) for names in reads]
    order: list[int] = []
    state = bytearray(len(nodes))  # 0 new, 1 entered, 2 done
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            top = stack[-1]
            if state[top] == 2:
                stack.pop()
            elif state[top] == 1:
                state[top] = 2
                order.append(top)
                stack.pop()
            else:
                state[top] = 1
                waiting = [need for need in needs[top] if state[need] != 2]
                if any(state[need] == 1 for need in waiting):
                    raise InputError(f"node {shown(nodes[top].name or top)}: the graph has a cycle through it")
                stack.extend(reversed(waiting))
    return order


def value_type(info: ValueInfoProto) -> tuple[str | None, tuple[Dim, ...] | None]:
    """Element type and shape that the model declares for a value; None for what it does not say or nobody knows."""
    if not info.type.HasField("tensor_type"):
        return None, None
    tensor = info.type.tensor_type
    dtype = element_type(tensor.elem_type)
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, tuple(_dim(d) for d in tensor.shape.dim)


def _dim(dim: TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # some exporters write -1 for what they do not know
    return dim.dim_param or None


def scope_of(node: NodeProto) -> str:
    """The path of the module that a node comes from, as "/model.22/cv2": from its name, else from what dynamo notes."""
    if "/" in node.name:
        return node.name.rpartition("/")[0]
    for entry in node.metadata_props:
        if entry.key == "namespace":  # ": pkg.Net/model: pkg.Stack/model.0: pkg.Conv/conv2d: aten.conv2d.default"
            return _path_of(entry.value)
    return ""


def _path_of(namespace: str) -> str:
    path, outer = "", ""
    for part in namespace.split("/")[:-1]:
        inner = part.partition(":")[0]
        path += f"/{inner.removeprefix(outer + '.')}" if inner else ""
        outer = inner
    return path


def live_names(nodes: Iterable[NodeProto], roots: Iterable[str]) -> set[str]:
    """Every name that `roots` depend on, through nodes and their bodies, the roots included."""
    by_output = {output: node for node in nodes for output in node.output if output}
    live: set[str] = set()
    stack = list(roots)
    while stack:
        name = stack.pop()
        if name in live:
            continue
        live.add(name)
        node = by_output.get(name)
        if node is not None:
            live.update(output for output in node.output if output)
            stack.extend(node.input)
            if node.attribute:
                stack.extend(captured_names(node))
    live.discard("")
    return live
