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
from rewriter.torch_graphs.calls import FxNode, Held, dtype_of, fake, is_assert, is_getitem, shape_of
from rewriter.torch_graphs.dialect import Dialect
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


def picture(graph: Any, around: Surroundings, dialect: Dialect) -> Graph:
    return _Builder(graph, around, dialect).build()


@dataclass(slots=True)
class _Builder:
    graph: Any
    around: Surroundings
    dialect: Dialect
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    by_node: dict[FxNode, Value] = field(default_factory=dict[FxNode, Value])
    readers: dict[FxNode, list[int]] = field(default_factory=dict[FxNode, list[int]])
    results: dict[FxNode, list[FxNode]] = field(default_factory=dict[FxNode, list[FxNode]])  # operator -> its getitems
    alike: dict[str, list[FxNode]] = field(default_factory=dict[str, list[FxNode]])  # stored tensors by name
    changes: Mutations = field(default_factory=Mutations)
    reads: list[list[FxNode]] = field(default_factory=list[list[FxNode]])  # of each operator

    def build(self) -> Graph:
        self.changes = mutations(self.graph, self.dialect)
        for node in self.around.stored:
            self.alike.setdefault(self.around.names.get(node, node.name), []).append(node)
        operators = self._operators()
        self.reads = [self._reads(node) for node in operators]
        for index, read_nodes in enumerate(self.reads):
            for read_node in read_nodes:
                self.readers.setdefault(read_node, []).append(index)
        nodes = tuple([self._node(index, node) for index, node in enumerate(operators)])
        inputs, outputs = ([self._value(n) for n in part] for part in (self.around.inputs, self.around.outputs))
        return Graph(nodes, self.values, tuple(inputs), tuple(outputs), OPSET, self.dialect.shapes_hold)

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

    def _value(self, node: Any) -> Value:
        """What stands behind a node, or behind a tensor that the node at hand holds itself."""
        if isinstance(node, Held):
            return self._held(node)
        known = self.by_node.get(node)
        return known if known is not None else self._make(node, None, self.around.stored.get(node))

    def _held(self, held: Held) -> Value:
        known = self.values.get(held.name)
        if known is None:
            constant = held.constant
            known = Value(held.name, None, (), constant=constant, shape=constant.shape, dtype=constant.dtype)
            self.values[held.name] = known
        return known

    def _make(self, node: FxNode, producer: int | None, constant: Constant | None) -> Value:
        if node in self.changes.changed:
            constant = None
        name = self.around.names.get(node, node.name)
        twin = self.values.get(name)
        if twin is not None:  # one stored tensor under several names
            self.by_node[node] = twin
            return twin
        shape: tuple[Dim, ...] | None = self._shape(node) if constant is None else constant.shape
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

    def _shape(self, node: FxNode) -> tuple[Dim, ...] | None:
        """Extents that were seen and not proved stay open."""
        shape = shape_of(node)
        if shape is None or self.dialect.shapes_hold:
            return shape
        return tuple([extent if isinstance(extent, int) else None for extent in shape])

    def _node(self, index: int, node: FxNode) -> Node:
        reads = self.reads[index]
        data = tuple([self._value(n) for n in reads if n.op != "get_attr" or n in self.around.stored])
        getitems = sorted(self.results.get(node, ()), key=lambda n: n.args[1])
        call = self.dialect.call(node, self._value)
        found = read(call, self.dialect.name(node), data, several=any(n.args[1] > 0 for n in getitems))
        reading = self._marked(node, reads, found.canonical, data)
        constant = self._constant(node)
        scope = self.dialect.scope(node)
        return Node(
            index, reading.op, f"{scope}/{node.name}", reading.data, self._outputs(index, node, getitems, constant),
            reading.consts, reading.attrs, scope, Native(found.raw, (node, *getitems)), reading.problem,
            captures=(), layered=self.dialect.layered(node),
        )  # fmt: skip

    def _marked(self, node: FxNode, reads: Sequence[FxNode], reading: Canonical, data: tuple[Value, ...]) -> Canonical:
        """An in-place operator is its out-of-place form where nobody can tell."""
        problem = self.dialect.problem(node)
        if any(n in self.changes.changed for n in (node, *reads)):
            problem = CHANGED
        elif node in self.changes.impure and reading.problem is None:
            problem = problem or CHANGED
        return reading if problem is None else replace(reading, data=data, consts={}, problem=problem)

    def _constant(self, node: FxNode) -> Constant | None:
        unique = {n: self._value(n).constant for n in node.all_input_nodes}
        known = [constant for constant in unique.values() if constant is not None]
        if node in self.changes.impure or len(known) != len(unique):
            return None
        function = self.dialect.function(node)
        return None if function is None else computed(node, known, function)

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
