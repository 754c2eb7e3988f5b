"""The view of an fx graph of ATen operators: nodes in, `Graph` out, nothing copied and nothing changed.

Invariant: `Node.native` leads back to the fx nodes: the operator and the getitems that name its results. A value is
called as its fx node, a stored tensor as in the state dict. What is changed in place under its readers, and every node
that reads it, is marked so that no pattern takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from rewriter.graph.raw import Canonical, Foreign
from rewriter.graph.view import Constant, Dim, Graph, Node, Value
from rewriter.torch_graphs.calls import (
    FxNode,
    call_of,
    dtype_of,
    fake,
    is_assert,
    is_getitem,
    is_tensor,
    op_of,
    path_of,
    schema_of,
    shape_of,
)
from rewriter.torch_graphs.mutations import Mutations, mutations
from rewriter.torch_graphs.onnx_terms import OPSET
from rewriter.torch_graphs.readings import read
from rewriter.torch_graphs.tensors import computed, nodes_in

CHANGED = "it reads a value that is changed in place"


@dataclass(frozen=True, slots=True, eq=False)
class Native(Foreign):
    """The fx nodes that a view node is, the operator first."""

    nodes: tuple[FxNode, ...] = ()

    @property
    def node(self) -> FxNode:
        return self.nodes[0]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an fx graph alone does not say: which nodes are stored tensors, inputs and outputs, and their names.

    `kept` are all values that somebody sees, the new contents of buffers too.
    """

    stored: Mapping[FxNode, Constant]
    inputs: Sequence[FxNode]
    outputs: Sequence[FxNode]
    kept: Set[FxNode]
    names: Mapping[FxNode, str]


def picture(graph: Any, around: Surroundings) -> Graph:
    return _Builder(graph, around).build()


@dataclass(slots=True)
class _Builder:
    graph: Any
    around: Surroundings
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    by_node: dict[FxNode, Value] = field(default_factory=dict[FxNode, Value])
    readers: dict[FxNode, list[int]] = field(default_factory=dict[FxNode, list[int]])
    results: dict[FxNode, list[FxNode]] = field(default_factory=dict[FxNode, list[FxNode]])  # operator -> its getitems
    alike: dict[str, list[FxNode]] = field(default_factory=dict[str, list[FxNode]])  # stored tensors by name
    changes: Mutations = field(default_factory=Mutations)

    def build(self) -> Graph:
        self.changes = mutations(self.graph)
        for node in self.around.stored:
            self.alike.setdefault(self.around.names.get(node, node.name), []).append(node)
        operators = self._operators()
        for index, node in enumerate(operators):
            for read_node in self._reads(node):
                self.readers.setdefault(read_node, []).append(index)
        nodes = tuple([self._node(index, node) for index, node in enumerate(operators)])
        inputs, outputs = ([self._value(n) for n in part] for part in (self.around.inputs, self.around.outputs))
        return Graph(nodes, self.values, tuple(inputs), tuple(outputs), OPSET, shapes_hold=True)

    def _operators(self) -> list[FxNode]:
        found: list[FxNode] = []
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr", "output"):
                continue
            if is_getitem(node) and isinstance(fake(node.args[0]), list | tuple):
                self.results.setdefault(node.args[0], []).append(node)
            else:
                found.append(node)
        return found

    def _reads(self, node: FxNode) -> list[FxNode]:
        """What an operator reads; a check of a type reads nothing that an edit could change."""
        return [] if is_assert(node) else nodes_in((node.args, node.kwargs))

    def _value(self, node: FxNode) -> Value:
        known = self.by_node.get(node)
        return known if known is not None else self._make(node, None, self.around.stored.get(node))

    def _make(self, node: FxNode, producer: int | None, constant: Constant | None) -> Value:
        if node in self.changes.changed:
            constant = None
        name = self.around.names.get(node, node.name)
        twin = self.values.get(name)
        if twin is not None:  # one stored tensor under several names
            self.by_node[node] = twin
            return twin
        shape: tuple[Dim, ...] | None = shape_of(node) if constant is None else constant.shape
        readers = [index for n in self.alike.get(name, [node]) for index in self.readers.get(n, ())]
        value = Value(
            name,
            producer,
            readers=tuple(sorted(readers)),
            is_input=node.op == "placeholder" and constant is None,
            is_output=node in self.around.kept,
            captured=node in self.changes.changed,
            constant=constant,
            shape=shape,
            dtype=dtype_of(node) if constant is None else constant.dtype,
        )
        self.values[name] = self.by_node[node] = value
        return value

    def _node(self, index: int, node: FxNode) -> Node:
        reads = self._reads(node)
        data = tuple([self._value(n) for n in reads if n.op != "get_attr" or n in self.around.stored])
        getitems = sorted(self.results.get(node, ()), key=lambda n: n.args[1])
        call = call_of(node, self._value)
        found = read(call, _own_name(node), data, several=any(n.args[1] > 0 for n in getitems))
        reading = self._marked(node, reads, found.canonical, data)
        constant = self._constant(node, data)
        scope = path_of(node)
        return Node(
            index, reading.op, f"{scope}/{node.name}", reading.data, self._outputs(index, node, getitems, constant),
            reading.consts, reading.attrs, scope, Native(found.raw, (node, *getitems)), reading.problem,
            captures=(), layered=schema_of(node) is None and is_tensor(fake(node)),
        )  # fmt: skip

    def _marked(self, node: FxNode, reads: Sequence[FxNode], reading: Canonical, data: tuple[Value, ...]) -> Canonical:
        """An in-place operator is its out-of-place form where nobody can tell."""
        changed = any(n in self.changes.changed for n in (node, *reads))
        if changed or (node in self.changes.impure and reading.problem is None):
            return replace(reading, data=data, consts={}, problem=CHANGED)
        return reading

    def _constant(self, node: FxNode, data: Sequence[Value]) -> Constant | None:
        unique = {n: self._value(n).constant for n in node.all_input_nodes}
        known = [constant for constant in unique.values() if constant is not None]
        if node in self.changes.impure or not data or len(known) != len(unique):
            return None
        return computed(node, known)

    def _outputs(
        self, index: int, node: FxNode, getitems: Sequence[FxNode], constant: Constant | None
    ) -> tuple[Value, ...]:
        if not getitems:
            return () if fake(node) is None else (self._make(node, index, constant),)
        made: list[Value] = []
        for n in getitems:
            made += [Value("", index, ()) for _ in range(n.args[1] - len(made))]  # results that nobody takes
            made.append(self._make(n, index, None))
        return tuple(made)


def _own_name(node: FxNode) -> str:
    """The name of an operator that the vocabulary has no word for."""
    schema = schema_of(node)
    return f"{'python' if schema is None else schema.name.partition('::')[0]}.{op_of(node)}".lower()
