"""Sizes of every value, by onnx's own inference on a copy without weights.

Invariant: nothing that decides whether a rewrite is right reads these; they serve figures in reports only. Weights are
never copied or serialised: the inference sees their types and extents. What the file declares is believed for its
inputs and for values that no standard operator makes; elsewhere it may be stale and is not looked at.

Exporters write static sizes as arithmetic (Shape, Gather, Div, Slice, …), which the inference of whole models does not
follow. So where it leaves sizes open, one pass over the nodes carries short lists of whole numbers along (an element
that is not known is None) and asks for the types of single nodes again, where more is known than before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, defs, helper, shape_inference

from rewriter.errors import InputError
from rewriter.graph.proto import DEFAULT_DOMAINS, attributes, captured_names, producers, topological, value_type
from rewriter.graph.tensors import constant_of
from rewriter.graph.view import Dim

SMALL = 1024
"""Elements up to which a tensor of whole numbers may tell a shape and is kept."""

FEW = 16
"""Elements up to which any other tensor may tell a shape (scales of a Resize)."""

MOST_NODES = 20_000
"""Nodes up to which sizes are followed node by node."""

ALIKE = frozenset({"Sigmoid", "Relu", "LeakyRelu", "Tanh", "Identity", "BatchNormalization", "HardSwish", "Clip"})
"""Operators whose first output has the type of their first input."""

WHOLE = frozenset({TensorProto.INT64, TensorProto.INT32})

Shape: TypeAlias = "tuple[Dim, ...]"
Attrs: TypeAlias = "Mapping[str, Any]"
Rule: TypeAlias = "Callable[[Sequence[Numbers], Attrs], Numbers | None]"
Numbers: TypeAlias = npt.NDArray[np.object_]
"""Whole numbers, None for one that is not known."""


def infer(
    model: ModelProto, nodes: Sequence[NodeProto], given: Mapping[str, Shape] = MappingProxyType({})
) -> dict[str, Shape]:
    """Shapes by value name; values whose rank is unknown are absent. `given` holds other extents for inputs."""
    try:
        nodes = _in_order(nodes)
    except InputError:  # a cycle, or two values of one name: nothing can be told
        return {}
    shell = _shell(model, nodes)
    for info in shell.graph.input:
        if info.name in given:
            kind = info.type.tensor_type
            kind.CopyFrom(helper.make_tensor_type_proto(kind.elem_type, given[info.name]).tensor_type)
    known = {info.name: info.type for info in (*shell.graph.input, *shell.graph.value_info)}
    known |= {t.name: _type_of(t) for t in shell.graph.initializer}
    try:
        inferred = shape_inference.infer_shapes(shell).graph
        found = {info.name: info.type for info in (*inferred.value_info, *inferred.output) if info.HasField("type")}
        known |= found
    except Exception:  # whatever inference dislikes, a figure less is no reason to fail
        found = {}
    shapes = {name: shape for name, kind in known.items() if (shape := _shape(kind)) is not None}
    if len(nodes) <= MOST_NODES:
        _Pass(model, known, shapes, set() if found else set(known)).run(nodes, shell.graph.initializer)
    return shapes


def _in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    reads = [(*n.input, *captured_names(n)) if n.attribute else n.input for n in nodes]
    return [nodes[i] for i in topological(nodes, reads, producers([n.output for n in nodes]))]


def _shell(model: ModelProto, nodes: Sequence[NodeProto]) -> ModelProto:
    """The model without its weights: large tensors become inputs."""
    shell = ModelProto(ir_version=model.ir_version)
    shell.opset_import.extend(model.opset_import)
    shell.functions.extend(model.functions)
    graph, given = shell.graph, {i.name for i in model.graph.input}
    graph.name = "shapes"
    graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if tensor.name in given:
            continue
        if _tells(tensor):
            graph.initializer.append(tensor)
        else:
            graph.input.append(ValueInfoProto(name=tensor.name, type=_type_of(tensor)))
    foreign: set[str] = set()
    for node in nodes:
        large = _large_constant(node)
        if large is not None:
            graph.input.append(ValueInfoProto(name=node.output[0], type=_type_of(large)))
            continue
        graph.node.append(node)
        if node.domain not in DEFAULT_DOMAINS:
            foreign.update(node.output)
    graph.value_info.extend(v for v in model.graph.value_info if v.name in foreign)
    graph.output.extend(o if o.name in foreign else ValueInfoProto(name=o.name) for o in model.graph.output)
    return shell


def _tells(tensor: TensorProto) -> bool:
    if tensor.external_data or any(d < 0 for d in tensor.dims):
        return False
    return prod(tensor.dims) <= (SMALL if tensor.data_type in WHOLE else FEW)


def _large_constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or not node.attribute or not node.attribute[0].HasField("t"):
        return None
    tensor = node.attribute[0].t
    return None if _tells(tensor) else tensor


def _type_of(tensor: TensorProto) -> TypeProto:
    return helper.make_tensor_type_proto(tensor.data_type, [d if d >= 0 else None for d in tensor.dims])


def _shape(kind: TypeProto) -> Shape | None:
    return value_type(ValueInfoProto(type=kind))[1]


def _static(shape: Shape | None) -> bool:
    return shape is not None and all(isinstance(d, int) for d in shape)


def _certain(shape: Shape | None) -> int:
    """How much is known: the rank, and the extents that are numbers."""
    return -1 if shape is None else sum(isinstance(d, int) for d in shape)


# --- node by node --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pass:
    """One pass in topological order; `better` are the names of which it knows more than the whole-model inference."""

    model: ModelProto
    known: dict[str, TypeProto]
    shapes: dict[str, Shape]
    better: set[str]
    numbers: dict[str, Numbers] = field(default_factory=dict[str, Numbers])
    schemas: dict[tuple[str, str], defs.OpSchema | None] = field(
        default_factory=dict[tuple[str, str], "defs.OpSchema | None"]
    )

    def run(self, nodes: Sequence[NodeProto], tensors: Iterable[TensorProto]) -> None:
        for tensor in tensors:
            if tensor.data_type in WHOLE:
                self._keep(tensor.name, _elements(tensor))
        for node in nodes:
            try:
                if node.op_type in RULES:
                    self._numbers_of(node)
            except Exception:  # a list that is not known, or a node that numpy dislikes
                pass
            try:
                if any(output and not _static(self.shapes.get(output)) for output in node.output):
                    self._same(node) if node.op_type in ALIKE else self._types_of(node)
            except Exception:  # a node that inference dislikes tells nothing
                continue

    def _keep(self, name: str, numbers: Numbers | None) -> None:
        if numbers is not None and numbers.size <= SMALL:
            self.numbers[name] = numbers

    def _numbers_of(self, node: NodeProto) -> None:
        """The whole numbers that a node gives, where it gives some."""
        rule = RULES.get(node.op_type)
        if rule is None or node.domain not in DEFAULT_DOMAINS or len(node.output) != 1:
            return
        if node.op_type == "Shape":
            shape = self.shapes[node.input[0]]
            operands = [_array([d if isinstance(d, int) else None for d in shape])]
        else:
            operands = [self.numbers[name] for name in node.input if name]
        if len(operands) < len(node.input):
            return  # optional inputs left out: rare here, and not worth a rule each
        self._keep(node.output[0], rule(operands, attributes(node)))
        if node.op_type != "Constant":
            self.better.add(node.output[0])

    def _same(self, node: NodeProto) -> None:
        """What an operator gives that works element by element has the type of what it reads."""
        source = node.input[0]
        if source in self.better:
            self._learn(node.output[0], self.known[source], self.shapes[source])

    def _learn(self, name: str, kind: TypeProto, shape: Shape) -> None:
        self.known[name], self.shapes[name] = kind, shape
        self.better.add(name)

    def _types_of(self, node: NodeProto) -> None:
        """Ask for the types of one node again, where something that it reads is better known now."""
        if self.better.isdisjoint(node.input):
            return
        schema = self._schema(node)
        if schema is None or any(name and name not in self.known for name in node.input):
            return
        types = {name: self.known[name] for name in node.input if name}
        imports = list(self.model.opset_import)
        told = {name: tensor for name in node.input if (tensor := self._told(name)) is not None}
        found = shape_inference.infer_node_outputs(
            schema, node, types, told, opset_imports=imports, ir_version=self.model.ir_version
        )
        for name, kind in found.items():
            shape = _shape(kind)
            if shape is not None and _certain(shape) > _certain(self.shapes.get(name)):
                self._learn(name, kind, shape)

    def _told(self, name: str) -> TensorProto | None:
        """What a node may be told of an input: numbers, all of which are known."""
        numbers = self.numbers.get(name)
        if numbers is None or None in numbers.reshape(-1).tolist():
            return None
        return helper.make_tensor(name, self._whole_type(name), numbers.shape, numbers.reshape(-1).tolist())

    def _whole_type(self, name: str) -> int:
        kind = self.known.get(name)
        return kind.tensor_type.elem_type if kind is not None else TensorProto.INT64

    def _schema(self, node: NodeProto) -> defs.OpSchema | None:
        """The operator in the version that the model imports; None for what onnx does not know."""
        key = ("" if node.domain in DEFAULT_DOMAINS else node.domain, node.op_type)
        if key not in self.schemas:
            versions = [o.version for o in self.model.opset_import if o.domain == node.domain]
            try:
                self.schemas[key] = defs.get_schema(node.op_type, max(versions, default=0), key[0])
            except defs.SchemaError:
                self.schemas[key] = None
        return self.schemas[key]


def _elements(tensor: TensorProto) -> Numbers | None:
    try:
        return constant_of(tensor, None).load().astype(object)
    except InputError:
        return None


# --- lists of whole numbers ----------------------------------------------------------------------------------------


def _array(elements: object) -> Numbers:
    return np.array(elements, dtype=object)


def _elementwise(function: Callable[[int, int], int | None]) -> Rule:
    """On two operands that broadcast; unknown where one of them is, or where int64 would wrap."""

    def element(a: int | None, b: int | None) -> int | None:
        found = None if a is None or b is None else function(a, b)
        return found if found is not None and -(1 << 63) <= found < 1 << 63 else None

    both = np.frompyfunc(element, 2, 1)

    def rule(operands: Sequence[Numbers], attrs: Attrs) -> Numbers:
        del attrs
        a, b = operands
        return _array(both(a, b))

    return rule


def _divided(a: int, b: int) -> int | None:
    """Whole numbers divide towards zero."""
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _constant(operands: Sequence[Numbers], attrs: Attrs) -> Numbers | None:
    del operands
    ((key, content),) = attrs.items()
    if key == "value":
        return _elements(content) if content.data_type in WHOLE and prod(content.dims) <= SMALL else None
    return _array(content) if key in ("value_int", "value_ints") else None


def _shape_part(operands: Sequence[Numbers], attrs: Attrs) -> Numbers:
    return operands[0][attrs.get("start", 0) : attrs.get("end")]


def _gather(operands: Sequence[Numbers], attrs: Attrs) -> Numbers:
    source, places = operands
    return _array(np.take(source, places.astype(np.int64), axis=attrs.get("axis", 0)))


def _slice(operands: Sequence[Numbers], attrs: Attrs) -> Numbers | None:
    source, *given = operands
    lists = [_ints(each) for each in given] or [attrs[key] for key in ("starts", "ends", "axes") if key in attrs]
    starts, ends = lists[:2]
    axes = lists[2] if len(lists) > 2 else range(len(starts))
    steps = lists[3] if len(lists) > 3 else (1,) * len(starts)
    where = [slice(None)] * source.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0 and start < -source.shape[axis]:  # ONNX starts at the first element, Python takes none
            return None
        where[axis] = slice(start, end, step)
    return source[tuple(where)]


def _concat(operands: Sequence[Numbers], attrs: Attrs) -> Numbers:
    return np.concatenate(operands, axis=attrs["axis"])


def _squeeze(operands: Sequence[Numbers], attrs: Attrs) -> Numbers:
    source, *given = operands
    axes = _ints(given[0]) if given else attrs.get("axes")
    return np.squeeze(source, axis=None if axes is None else tuple(axes))


def _unsqueeze(operands: Sequence[Numbers], attrs: Attrs) -> Numbers:
    source, *given = operands
    return np.expand_dims(source, tuple(_ints(given[0]) if given else attrs["axes"]))


def _reshape(operands: Sequence[Numbers], attrs: Attrs) -> Numbers | None:
    source, target = operands[0], _ints(operands[1])
    return None if 0 in target else source.reshape(target)


def _cast(operands: Sequence[Numbers], attrs: Attrs) -> Numbers | None:
    return operands[0] if attrs["to"] in WHOLE else None


def _identity(operands: Sequence[Numbers], attrs: Attrs) -> Numbers:
    del attrs
    (source,) = operands
    return source


def _range(operands: Sequence[Numbers], attrs: Attrs) -> Numbers | None:
    del attrs
    run = range(*(int(operand.item()) for operand in operands))
    return _array(list(run)) if len(run) <= SMALL else None


def _ints(numbers: Numbers) -> list[int]:
    """All of a list, none unknown (int(None) is a TypeError, and then the node tells nothing)."""
    return [int(n) for n in numbers.reshape(-1)]


RULES: Mapping[str, Rule] = {
    "Constant": _constant,
    "Shape": _shape_part,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Cast": _cast,
    "Identity": _identity,
    "Range": _range,
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_divided),
}
