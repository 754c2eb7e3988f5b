"""Nodes that read a value for its size or its type alone, which are known: they are no readers of it.

The one idea: what such a node gives is a constant, and if what it reads goes, the constant takes its place. So it keeps
no value from being folded, nor does what nobody but such nodes reads. Invariant: a node whose output somebody outside
can see stays a reader.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from rewriter.graph.view import Graph, Node, Value


def settled(node: Node) -> bool:
    """Whether everything that the node gives is a constant that only nodes of this graph read."""
    named = [value for value in node.outputs if value.name]
    return bool(named) and all(v.constant is not None and v.readers and not _seen(v) for v in named)


def _seen(value: Value) -> bool:
    return value.is_output or value.captured


def released(graph: Graph, reading: Collection[int]) -> Graph:
    """The graph, the nodes `reading` (settled ones that read other values) and what only they need no readers."""
    idle = _idle(graph, set(reading))
    fresh: dict[str, Value] = {}
    for value in graph.values.values():
        if value.constant is None and not idle.isdisjoint(value.readers):
            readers = tuple([index for index in value.readers if index not in idle])
            fresh[value.name] = replace(value, readers=readers)
    return with_values(graph, fresh)


def with_values(graph: Graph, fresh: Mapping[str, Value]) -> Graph:
    """The graph with others in place of the values of these names."""
    values = {**graph.values, **fresh}
    nodes = tuple([_with(node, fresh) for node in graph.nodes])
    inputs, outputs = (tuple([values[v.name] for v in ends]) for ends in (graph.inputs, graph.outputs))
    return replace(graph, nodes=nodes, values=values, inputs=inputs, outputs=outputs)


def _idle(graph: Graph, found: set[int]) -> set[int]:
    """The nodes `found`, and those all of whose readers are among these."""
    for node in reversed(graph.nodes):
        if node.index not in found and node.outputs and not node.captures:
            readers = [index for value in node.outputs for index in value.readers]
            if not any(_seen(value) for value in node.outputs) and readers and found.issuperset(readers):
                found.add(node.index)
    return found


def _with(node: Node, fresh: Mapping[str, Value]) -> Node:
    if not any(value.name in fresh for value in (*node.data, *node.outputs, *node.captures)):
        return node
    data, outputs, captures = (
        tuple([fresh.get(value.name, value) for value in values]) for values in (node.data, node.outputs, node.captures)
    )
    return replace(node, data=data, outputs=outputs, captures=captures)
