"""The view of an ONNX model: protobuf in, `Graph` out, nothing copied and nothing changed.

Invariant: `Node.native` is the NodeProto itself, so an edit finds the very object it talks about. Names are the edges,
as in the format; a name that is read and never made (an outer scope, a malformed file) is a value without producer.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from rewriter.graph.canonical import canonical, cast_type
from rewriter.graph.evaluation import Call, Ledger, Unknown, extents, resolve
from rewriter.graph.proto import (
    DEFAULT_DOMAINS,
    attributes,
    captured_names,
    has_layers,
    producers,
    scope_of,
    topological,
    value_type,
)
from rewriter.graph.raw import Canonical, Extents, Raw
from rewriter.graph.settled import released, settled
from rewriter.graph.tensors import constant_of
from rewriter.graph.view import Constant, Dim, Graph, Node, Value

Declared: TypeAlias = "Mapping[str, tuple[str | None, tuple[Dim, ...] | None]]"
"""The outputs of the model with the types it declares for them."""

# Operators whose result has the element type of their data inputs: all that a region may hold, and what stands between
# regions most often. A type that cannot be told stays unknown, and rules that need it refuse.
KEEPS_TYPE = frozenset(
    """conv conv_transpose linear matmul bn scale shift add sub sum mul div neg identity dropout relu leaky_relu silu
    sigmoid tanh avg_pool max_pool globalaveragepool globalmaxpool pad concat slice split gather reshape flatten
    transpose squeeze unsqueeze expand resize softmax layer_norm reducemean reducesum gelu hardswish hardsigmoid clip
    exp log sqrt abs erf pow min max prelu elu selu mish softplus reducemax reducemin logsoftmax instancenormalization
    groupnormalization depthtospace spacetodepth scatter_nd scatterelements where splittosequence
    sequenceat""".split()  # noqa: SIM905
)
# Of these only the first input; of the others any of them tells. The type of a sequence is that of its tensors.
FIRST_ONLY = frozenset(
    """bn slice gather reshape squeeze unsqueeze expand resize pad reducemean reducesum split dropout
    layer_norm scatter_nd scatterelements pow prelu reducemax reducemin instancenormalization groupnormalization
    splittosequence sequenceat""".split()  # noqa: SIM905
)
LAST_ONLY = frozenset({"where"})
"""What chooses by a condition, which may be read like the others and comes first."""
ONE_TYPE = {
    "conv": "weight",
    "conv_transpose": "weight",
    "linear": "weight",
    "scale": "factor",
    "shift": "term",
    "bn": "scale",
}
LIKE = frozenset({"CastLike"})
"""Casts to the type of their second input, whose elements are not read."""
SIZES = frozenset({"Shape", "Size"})
"""What reads the extents of a value, not its elements."""
SAME_FOR_ALL = frozenset({"split"})
"""Operators all of whose outputs have one type."""


def view(
    model: ModelProto,
    *,
    nodes: Sequence[NodeProto] | None = None,
    folder: Path | None = None,
    made: Mapping[str, Constant] | None = None,
    sizes: Mapping[str, Extents] | None = None,
) -> Graph:
    """A picture of `model`, of its main graph.

    `nodes` stands in for the stored node list (an edit in progress), `folder` is where external data lies, `made` are
    constants of earlier rounds that are not stored yet, and `sizes` are extents of values that were proved. Raises
    InputError where the graph has a cycle, or two values of one name.
    """
    with _collector_off():
        return _Builder.of(model, nodes, folder, made or {}, sizes or {}).build()


@contextmanager
def _collector_off() -> Generator[None]:
    """Nothing that is built here is garbage, and looking for it again and again takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(slots=True)
class _Builder:
    """The state of one building pass; it lives only inside `view`."""

    model: ModelProto
    folder: Path | None
    protos: Sequence[NodeProto]
    inputs: Sequence[Sequence[str]]
    outputs: Sequence[Sequence[str]]
    attrs: Sequence[dict[str, Any]]
    captured: Mapping[int, tuple[str, ...]]  # position of a node with bodies -> what they read here
    order: Sequence[int]
    stored: Mapping[str, TensorProto]
    constants: dict[str, Constant]
    opset: int
    overruled: frozenset[str]  # operators of the default domain that the model defines itself
    declared: Declared
    sizes: Mapping[str, Extents]
    read_by: dict[str, list[int]]
    all_captured: frozenset[str]
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    unknown: dict[str, str] = field(default_factory=dict[str, str])  # what is computed from constants, and why not here
    ledger: Ledger = field(default_factory=Ledger)
    aside: list[int] = field(default_factory=list[int])  # nodes that make constants and read other values beside

    @classmethod
    def of(
        cls,
        model: ModelProto,
        nodes: Sequence[NodeProto] | None,
        folder: Path | None,
        made: Mapping[str, Constant],
        sizes: Mapping[str, Extents],
    ) -> _Builder:
        graph = model.graph
        protos = list(graph.node if nodes is None else nodes)
        inputs, outputs = [list(n.input) for n in protos], [list(n.output) for n in protos]
        attrs = [attributes(n) for n in protos]
        captured = {i: tuple(sorted(captured_names(protos[i]))) for i, a in enumerate(attrs) if _has_bodies(a)}
        reads = [(*names, *captured.get(i, ())) for i, names in enumerate(inputs)] if captured else inputs
        given = {i.name for i in graph.input}
        stored = {t.name: t for t in graph.initializer if t.name not in given}
        order = topological(protos, reads, producers(outputs, given | stored.keys() | made.keys()))
        opset = max((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), default=1)
        overruled = frozenset(f.name for f in model.functions if f.domain in DEFAULT_DOMAINS)
        return cls(
            model, folder, protos, inputs, outputs, attrs, captured, order, stored, dict(made), opset, overruled,
            declared={o.name: value_type(o) for o in graph.output},
            sizes=sizes,
            read_by=_readers(reads, order),
            all_captured=frozenset(name for names in captured.values() for name in names),
        )  # fmt: skip

    def build(self) -> Graph:
        inputs = tuple(self._input(info) for info in self.model.graph.input)
        nodes = tuple([self._node(i, position) for i, position in enumerate(self.order)])
        outputs = tuple(self._value(o.name) for o in self.model.graph.output)
        graph = Graph(nodes, self.values, inputs, outputs, self.opset)
        aside = [index for index in self.aside if settled(nodes[index])]
        return released(graph, aside) if aside else graph

    def _input(self, info: ValueInfoProto) -> Value:
        dtype, shape = value_type(info)
        return self._make(info.name, None, None, dtype, shape, is_input=True)

    def _value(self, name: str) -> Value:
        """What stands behind a name that is read."""
        known = self.values.get(name)
        return known if known is not None else self._make(name, None, self._constant(name), None)

    def _constant(self, name: str) -> Constant | None:
        tensor = self.stored.get(name)
        if tensor is not None and name not in self.constants:
            self.constants[name] = constant_of(tensor, self.folder)
        return self.constants.get(name)

    def _make(
        self,
        name: str,
        producer: int | None,
        constant: Constant | None,
        dtype: str | None,
        shape: tuple[Dim, ...] | None = None,
        is_input: bool = False,
    ) -> Value:
        is_output = name in self.declared
        if constant is not None:
            dtype, shape = constant.dtype, constant.shape
        if is_output:  # what the model declares stands in for what is not known
            declared = self.declared[name]
            dtype, shape = dtype or declared[0], declared[1] if shape is None else shape
        readers = tuple(self.read_by.get(name, ()))
        captured = name in self.all_captured
        unknown = self.unknown.get(name)
        value = Value(name, producer, readers, is_input, is_output, captured, constant, shape, dtype, unknown)
        self.values[name] = value
        return value

    def _node(self, index: int, position: int) -> Node:
        proto, values, attrs = self.protos[position], self.values, self.attrs[position]
        inputs = [(values.get(name) or self._value(name)) if name else None for name in self.inputs[position]]
        names = self.outputs[position]
        reading = self._reading(proto, inputs, attrs, names)
        if not self.constants.keys().isdisjoint(names) and any(v is not None and v.constant is None for v in inputs):
            self.aside.append(index)
        dtype = _result_type(reading, self.opset)
        if len(names) == 1:
            outputs = (self._output(names[0], index, dtype),)
        else:
            same = reading.op in SAME_FOR_ALL
            outputs = tuple([self._output(n, index, dtype if same or i == 0 else None) for i, n in enumerate(names)])
        captures = tuple([self._value(name) for name in self.captured[position]]) if position in self.captured else ()
        return Node(
            index, reading.op, proto.name, reading.data, outputs, reading.consts, reading.attrs, scope_of(proto),
            proto, reading.problem, captures, self._layered(proto, bool(captures) or _has_bodies(attrs)),
        )  # fmt: skip

    def _layered(self, proto: NodeProto, bodies: bool) -> bool:
        return proto.domain not in DEFAULT_DOMAINS or proto.op_type in self.overruled or (bodies and has_layers(proto))

    def _reading(
        self, proto: NodeProto, inputs: list[Value | None], attrs: dict[str, Any], outputs: Sequence[str]
    ) -> Canonical:
        op, domain = proto.op_type, proto.domain
        if domain not in DEFAULT_DOMAINS or op in self.overruled:
            own = f"{domain or 'ai.onnx'}.{op}".lower()
            return Canonical(own, tuple([v for v in inputs if v is not None]), {}, attrs)
        named, extra = len(outputs), 0
        self._evaluate(op, outputs, inputs, attrs)
        if named > 1:
            named = sum(1 for name in outputs if name)
            extra = sum(1 for name in outputs[1:] if name and (name in self.read_by or name in self.declared))
        first = inputs[0] if inputs else None
        size = () if first is None else self.sizes.get(first.name, ())
        return canonical(Raw(op, inputs, attrs, named, extra, self.opset, size))

    def _evaluate(self, op: str, outputs: Sequence[str], inputs: list[Value | None], attrs: dict[str, Any]) -> None:
        """Record the constants that a node makes, or why it makes none though nothing else is read."""
        if op == "Constant":
            found = _constant_node(outputs[0], attrs, self.folder) if len(outputs) == 1 else None
            made = [] if found is None else [found]
        elif op in SIZES:
            made = self._extents(op, outputs[0], inputs, attrs) if len(outputs) == 1 else []
        else:
            try:
                call = self._call(op, outputs, inputs, attrs)
                made = [] if call is None else resolve(call, outputs, self.ledger)
            except Unknown as reason:
                made = []
                self.unknown.update(dict.fromkeys(outputs, str(reason)))
        self.constants.update((constant.name, constant) for constant in made if constant.name)

    def _call(self, op: str, outputs: Sequence[str], inputs: list[Value | None], attrs: dict[str, Any]) -> Call | None:
        """The node as a call on constants; None where it reads anything else."""
        if op in LIKE and len(inputs) == 2 and inputs[0] is not None and inputs[1] is not None:
            op, inputs, attrs = "Cast", inputs[:1], {"to": inputs[1].dtype}
        elif op == "Cast":
            attrs = attrs | {"to": cast_type(attrs)}
        unknown: str | None = None
        for value in inputs:
            if value is not None and value.constant is None:
                if value.unknown is None:
                    return None
                unknown = unknown or value.unknown
        if unknown is not None:
            raise Unknown(unknown)
        constants = [None if value is None else value.constant for value in inputs]
        return Call(op, constants, attrs, self.opset, len(outputs))

    def _extents(self, op: str, name: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> list[Constant]:
        """What Shape or Size gives, where the extents are known."""
        value = inputs[0] if len(inputs) == 1 else None
        if value is None:
            return []
        shape = self.sizes.get(value.name) if value.constant is None else value.constant.shape
        known = [n for n in shape or () if n is not None]
        if shape is None or len(known) < len(shape):
            return []
        if op == "Size":
            return [extents(name, [prod(known)], scalar=True)]
        return [extents(name, known[attrs.get("start", 0) : attrs.get("end")])]

    def _output(self, name: str, index: int, dtype: str | None) -> Value:
        if not name:
            return Value("", index, ())
        return self._make(name, index, self.constants.get(name), dtype)


def _has_bodies(attrs: Mapping[str, Any]) -> bool:
    """Whether there may be graphs among the attributes, which stay protobuf."""
    return any([type(content) is AttributeProto for content in attrs.values()])


def _readers(reads: Sequence[Sequence[str]], order: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, position in enumerate(order):
        for name in reads[position]:
            if name in found:
                found[name].append(index)
            else:
                found[name] = [index]
    found.pop("", None)
    return found


def _result_type(reading: Canonical, opset: int) -> str | None:
    """The element type of the first output, where the operator and what it reads tell it."""
    op = reading.op
    if op == "cast":
        return reading.attrs.get("to")
    if op not in KEEPS_TYPE:
        return None
    tell = slice(None, 1) if op in FIRST_ONLY else slice(-1, None) if op in LAST_ONLY else slice(None)
    for value in reading.data[tell]:
        if value.dtype is not None:
            return value.dtype
    role = ONE_TYPE.get(op)
    if role is None or (op == "bn" and opset > 14):  # the parameters of a batch norm may be of another type since 15
        return None
    constant = reading.consts.get(role)
    return None if constant is None else constant.dtype


def _constant_node(name: str, attrs: Mapping[str, Any], folder: Path | None) -> Constant | None:
    """A Constant node whose content is a tensor, numbers or one number; texts and sparse tensors are not known."""
    if len(attrs) != 1:
        return None
    ((key, content),) = attrs.items()
    if key == "value":
        return constant_of(content, folder, name=name) if isinstance(content, TensorProto) else None
    wanted = _NUMBERS.get(key)
    if wanted is None:
        return None
    kind, several = wanted
    if several:
        if not isinstance(content, tuple) or not all(isinstance(n, kind) for n in cast("tuple[Any, ...]", content)):
            return None
    elif not isinstance(content, kind):
        return None
    array = np.asarray(content, dtype=np.float32 if kind is float else np.int64)
    return Constant(name, array.shape, array.dtype.name, lambda: array)


_NUMBERS = {
    "value_float": (float, False),
    "value_int": (int, False),
    "value_floats": (float, True),
    "value_ints": (int, True),
}
