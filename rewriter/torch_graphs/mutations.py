"""Values that operators change in place, and whether the view may read these operators as if they did not.

Invariant: an in-place operator is clean where nobody else ever reads what it changes, under whatever name: it then is
its out-of-place form. Everything that reads a value changed otherwise is marked, and no pattern may take it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rewriter.torch_graphs.bodies import bodies, is_runner
from rewriter.torch_graphs.calls import SIZES, FxNode, is_assert, op_of
from rewriter.torch_graphs.dialect import Aten, Dialect
from rewriter.torch_graphs.tensors import nodes_in

LAYOUTS = frozenset({"as_strided", "stride", "storage_offset", "is_contiguous", "data_ptr"})
"""Operators whose result depends on where elements lie in memory."""


@dataclass(slots=True)
class Mutations:
    """`clean` in-place nodes, `impure` ones that have to stay, and all that is `changed` under its readers."""

    clean: set[FxNode] = field(default_factory=set[FxNode])
    impure: set[FxNode] = field(default_factory=set[FxNode])
    changed: set[FxNode] = field(default_factory=set[FxNode])


def mutations(graph: Any, dialect: Dialect) -> Mutations:
    found, same = Mutations(), _Classes()
    dirty: list[FxNode] = []
    for node in graph.nodes:
        written = _written(node, dialect)
        if len(written) == 1 and _is_clean(node, written[0], same, dialect):
            found.clean.add(node)
            continue
        if written or dialect.trains(node):
            found.impure.add(node)
            dirty += written
        for other in dialect.aliased(node):
            same.join(node, other)
    for node in dirty:
        found.changed |= same.members(node)
    found.changed |= _laid_out(graph)
    return found


def _written(node: FxNode, dialect: Dialect) -> list[FxNode]:
    """The nodes whose values it changes: of what only runs bodies, none where these change nothing."""
    inner = bodies(node, dialect.root) if is_runner(node) else []
    if inner and not any(mutations(body.graph, Aten(body)).impure for body in inner):
        return []
    return dialect.written(node)


def sharing(graph: Any, dialect: Dialect) -> set[tuple[int, str]]:
    """Which outputs, by their places, may share elements with which inputs, by name, or with which other outputs."""
    same = _Classes()
    for node in graph.nodes:
        for other in dialect.aliased(node):
            same.join(node, other)
    outputs = nodes_in(graph.output_node().args)
    found: set[tuple[int, str]] = set()
    for place, node in enumerate(outputs):
        members = same.members(node)
        found |= {(place, n.name) for n in members if n.op == "placeholder"}
        found |= {(place, f"output {other}") for other, n in enumerate(outputs) if other != place and n in members}
    return found


def _laid_out(graph: Any) -> set[FxNode]:
    """All that a node depends on which reads memory as it lies: another layout would be other values there."""
    found: set[FxNode] = set()
    for node in reversed(graph.nodes):
        if op_of(node) in LAYOUTS or node in found:
            found.update(n for n in node.all_input_nodes if n.op not in ("placeholder", "get_attr"))
            found.add(node)
    return found


def _is_clean(node: FxNode, base: FxNode, same: _Classes, dialect: Dialect) -> bool:
    if base.op in ("placeholder", "get_attr") or not node.args or node.args[0] is not base:
        return False
    others = [user for user in base.users if user is not node and not is_assert(user) and op_of(user) not in SIZES]
    return not others and same.members(base) == {base} and dialect.separable(node)


@dataclass(slots=True)
class _Classes:
    """Nodes that may share their elements."""

    of: dict[FxNode, set[FxNode]] = field(default_factory=dict[FxNode, set[FxNode]])

    def members(self, node: FxNode) -> set[FxNode]:
        return self.of.get(node, {node})

    def join(self, one: FxNode, other: FxNode) -> None:
        """The smaller class joins the larger one: a chain of views of any length takes linear time."""
        large, small = sorted((self.of.get(n) or {n} for n in (one, other)), key=len, reverse=True)
        if large is small:
            return
        large |= small
        for node in (*small, one, other):
            self.of[node] = large
