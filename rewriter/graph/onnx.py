"""The view of an ONNX model: protobuf in, `Graph` out, nothing copied and nothing changed.

Invariant: `Node.native` is the NodeProto itself, so an edit finds the very object it talks about. Names are the edges, as
in the format; a name that is read and never made (an outer scope, a malformed file) becomes a value without producer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from rewriter.errors import InputError
from rewriter.graph.canonical import Canonical, Raw, canonical
from rewriter.graph.constants import resolve
from rewriter.graph.tensors import constant_of, dtype_name
from rewriter.graph.view import Constant, Dim, Graph, Node, Value

DEFAULT_DOMAINS = ("", "ai.onnx")

Declared: TypeAlias = "Mapping[str, tuple[str | None, tuple[Dim, ...] | None]]"
"""The outputs of the model with the types it declares for them."""

# Operators whose result has the element type of their first data input: all that a region may hold, and what stands
# between regions most often. A type that cannot be told stays unknown, and rules that need it refuse.
KEEPS_TYPE = frozenset(
    """conv conv_transpose bn scale shift add sub sum mul div neg identity dropout relu leaky_relu silu sigmoid tanh
    avg_pool max_pool pad concat slice reshape transpose squeeze unsqueeze resize softmax gelu hardswish clip""".split()
)


def view(
    model: ModelProto,
    *,
    nodes: Sequence[NodeProto] | None = None,
    folder: Path | None = None,
    made: Mapping[str, Constant] | None = None,
) -> Graph:
    """A picture of `model`, of its main graph.

    `nodes` stands in for the stored node list (an edit in progress), `folder` is where external data lies and `made` are
    constants of earlier rounds that are not stored yet. Raises InputError where the graph has a cycle.
    """
    return _Builder.of(model, nodes, folder, made or {}).build()


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes as Python values; tensors and graphs as protobuf, texts decoded, types by their canonical name."""
    return {attribute.name: _attribute(attribute) for attribute in node.attribute}


def _attribute(attribute: AttributeProto) -> Any:
    match attribute.type:
        case AttributeProto.INT:
            return dtype_name(attribute.i) if attribute.name == "to" else attribute.i
        case AttributeProto.FLOAT:
            return attribute.f
        case AttributeProto.STRING:
            return attribute.s.decode(errors="replace")
        case AttributeProto.INTS:
            return tuple(attribute.ints)
        case AttributeProto.FLOATS:
            return tuple(attribute.floats)
        case AttributeProto.TENSOR:
            return attribute.t
        case _:
            return attribute


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node (branches of an If, body of a Loop or Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def captured_names(node: NodeProto) -> set[str]:
    """The outer names that the bodies of `node` read, at any depth (names that the body itself defines are its own)."""
    found: set[str] = set()
    for body in bodies(node):
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {o for inner in body.node for o in inner.output}
        read = {name for inner in body.node for name in inner.input} | {o.name for o in body.output}
        for inner in body.node:
            if inner.attribute:
                read |= captured_names(inner)
        found |= read - own
    found.discard("")
    return found


def sorted_nodes(nodes: Sequence[NodeProto], names: Sequence[tuple[str, ...]]) -> list[int]:
    """Indices of `nodes` so that each stands after what it reads; the stored order wherever that is legal."""
    producer = {output: i for i, node in enumerate(nodes) for output in node.output if output}
    needs = [{producer[name] for name in read if name in producer} for read in names]
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return list(range(len(nodes)))
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
                waiting = [need for need in sorted(needs[top]) if state[need] != 2]
                if any(state[need] == 1 for need in waiting):
                    raise InputError(f"node {nodes[top].name or top}: the graph has a cycle through it")
                stack.extend(reversed(waiting))
    return order


def value_type(info: ValueInfoProto) -> tuple[str | None, tuple[Dim, ...] | None]:
    """Element type and shape that the model declares for a value."""
    if not info.type.HasField("tensor_type"):
        return None, None
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return dtype_name(tensor.elem_type), None
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return dtype_name(tensor.elem_type), dims


@dataclass(slots=True)
class _Builder:
    """The state of one building pass; it lives only inside `view`."""

    model: ModelProto
    protos: list[NodeProto]
    order: list[int]
    captured: list[tuple[str, ...]]
    constants: dict[str, Constant]
    opset: int
    read_by: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    all_captured: set[str] = field(default_factory=set[str])
    values: dict[str, Value] = field(default_factory=dict[str, Value])

    @classmethod
    def of(
        cls, model: ModelProto, nodes: Sequence[NodeProto] | None, folder: Path | None, made: Mapping[str, Constant]
    ) -> _Builder:
        protos = list(model.graph.node if nodes is None else nodes)
        captured = [tuple(sorted(captured_names(n))) if n.attribute else () for n in protos]
        names = [(*n.input, *c) for n, c in zip(protos, captured, strict=True)]
        inputs = {i.name for i in model.graph.input}
        constants = {t.name: constant_of(t, folder) for t in model.graph.initializer if t.name not in inputs}
        opset = max((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), default=1)
        return cls(model, protos, sorted_nodes(protos, names), captured, constants | dict(made), opset)

    def build(self) -> Graph:
        for index, position in enumerate(self.order):
            for name in self.protos[position].input:
                if name:
                    self.read_by[name].append(index)
            for name in self.captured[position]:
                self.read_by[name].append(index)
                self.all_captured.add(name)
        graph = self.model.graph
        output_names = {o.name: value_type(o) for o in graph.output}
        inputs = tuple(self._input(info, output_names) for info in graph.input)
        nodes = tuple(self._node(i, position, output_names) for i, position in enumerate(self.order))
        outputs = tuple(self._value(o.name, None, output_names) for o in graph.output)
        return Graph(nodes, self.values, inputs, outputs, self.opset)

    def _input(self, info: ValueInfoProto, outputs: Declared) -> Value:
        dtype, shape = value_type(info)
        return self._make(info.name, None, outputs, dtype=dtype, shape=shape, is_input=True)

    def _value(self, name: str, producer: int | None, outputs: Declared) -> Value:
        known = self.values.get(name)
        if known is not None:
            return known
        constant = self.constants.get(name)
        dtype = constant.dtype if constant else None
        shape = constant.shape if constant else None
        return self._make(name, producer, outputs, dtype=dtype, shape=shape, constant=constant)

    def _make(self, name: str, producer: int | None, outputs: Declared, **known: Any) -> Value:
        readers = tuple(self.read_by.get(name, ()))
        if name in outputs:  # what the model declares stands in for what is not known
            dtype, shape = outputs[name]
            known["dtype"] = known.get("dtype") or dtype
            known["shape"] = shape if known.get("shape") is None else known["shape"]
        value = Value(name, producer, readers, is_output=name in outputs, captured=name in self.all_captured, **known)
        self.values[name] = value
        return value

    def _node(self, index: int, position: int, outputs: Declared) -> Node:
        proto = self.protos[position]
        inputs = [self._value(name, None, outputs) if name else None for name in proto.input]
        attrs = attributes(proto) if proto.attribute else {}
        self._resolve(proto, inputs, attrs)
        extra = sum(1 for name in proto.output[1:] if name and (name in self.read_by or name in outputs))
        reading = self._canonical(proto, inputs, attrs, extra)
        dtype = self._result_type(reading)
        made = tuple(
            self._output(name, index, dtype if i == 0 else None, outputs) for i, name in enumerate(proto.output)
        )
        captures = tuple(self._value(name, None, outputs) for name in self.captured[position])
        scope = proto.name.rpartition("/")[0]
        return Node(
            index, reading.op, proto.name, reading.data, made, reading.consts, reading.attrs, scope, proto,
            reading.problem, captures,
        )  # fmt: skip

    def _canonical(self, proto: NodeProto, inputs: list[Value | None], attrs: dict[str, Any], extra: int) -> Canonical:
        if proto.domain in DEFAULT_DOMAINS:
            return canonical(Raw(proto.op_type, inputs, attrs, extra, self.opset))
        op = f"{proto.domain}.{proto.op_type}".lower()
        return Canonical(op, tuple(v for v in inputs if v is not None), {}, attrs)

    def _resolve(self, proto: NodeProto, inputs: list[Value | None], attrs: dict[str, Any]) -> None:
        """Record the constant that this node makes, where it makes one."""
        if proto.domain not in DEFAULT_DOMAINS or len(proto.output) != 1:
            return
        name = proto.output[0]
        if proto.op_type == "Constant":
            constant = _constant_node(proto, attrs)
        else:
            consts = [v.constant for v in inputs if v is not None and v.constant is not None]
            if not consts or len(consts) != len(inputs):
                return
            constant = resolve(proto.op_type, name, consts, attrs)
        if constant is not None:
            self.constants[name] = constant

    def _output(self, name: str, index: int, dtype: str | None, outputs: Declared) -> Value:
        if not name:
            return Value("", index, ())
        constant = self.constants.get(name)
        if constant is not None:
            return self._make(name, index, outputs, dtype=constant.dtype, shape=constant.shape, constant=constant)
        return self._make(name, index, outputs, dtype=dtype)

    def _result_type(self, reading: Canonical) -> str | None:
        if reading.op == "cast":
            return reading.attrs.get("to")
        if reading.op not in KEEPS_TYPE:
            return None
        weight = reading.consts.get("weight")
        if weight is not None:
            return weight.dtype
        return reading.data[0].dtype if reading.data else None


def _constant_node(proto: NodeProto, attrs: Mapping[str, Any]) -> Constant | None:
    """A Constant node whose content is a tensor, a number or a list of numbers; texts and sparse tensors are not known."""
    import numpy as np

    if "value" in attrs:
        return constant_of(attrs["value"], None, name=proto.output[0])
    for key, dtype in (
        ("value_float", "float32"),
        ("value_int", "int64"),
        ("value_floats", "float32"),
        ("value_ints", "int64"),
    ):
        if key in attrs:
            array = np.asarray(attrs[key], dtype=dtype)
            return Constant(proto.output[0], array.shape, dtype, lambda: array)
    return None


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
