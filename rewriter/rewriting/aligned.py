"""Two reshapes of one value, of which one cuts into maps what the other has as rows of channels: one behind the other.

The one idea: a reshape keeps the order of elements, so [rows, sets, height, width] is as well a view of [rows,
sets * height * width, 1, 1] as of what both are made of; then layers over all places and convolutions on the maps
start from one value (RepMLPNet, arXiv:2112.11081). Invariant: the elements stay what they were; it is done only where
what is computed from the two is added up, so that there is something to fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.linear import is_affine
from rewriter.matching.predicates import is_transparent
from rewriter.matching.sums import is_sum
from rewriter.rewriting.edits import Reread

FURTHEST = 16
"""Nodes from a reshape to the sum that it goes into."""


def align(graph: Graph) -> list[Reread]:
    """Maps that are cut out of the value that others read as rows of channels are cut out of those."""
    views: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if _extents(node) and not node.output.is_output:
            views.setdefault(_source(graph, node.data[0]).name, []).append(node)
    edits: list[Reread] = []
    for reshapes in views.values():
        for rows, maps in _pairs(reshapes):
            if _sums(graph, rows.output) & _sums(graph, maps.output):
                edits.append(Reread(maps, maps.data[0].name, rows.output.name))
                break
    return edits


def _source(graph: Graph, value: Value) -> Value:
    """The value behind nodes that hand theirs on as it is."""
    producer = graph.producer(value)
    while producer is not None and is_transparent(producer):
        value = producer.data[0]
        producer = graph.producer(value)
    return value


def _extents(node: Node) -> tuple[int, ...]:
    """What a reshape makes of everything behind the first axis, where that is named."""
    shape: Sequence[int] | None = node.attrs.get("shape") if node.op == "reshape" and len(node.data) == 1 else None
    named = shape is not None and len(shape) > 2 and min(shape[1:]) > 0 and (shape[0] > 0 or shape[0] == -1)
    return tuple(shape[1:]) if shape is not None and named else ()


def _pairs(reshapes: Sequence[Node]) -> Iterator[tuple[Node, Node]]:
    for rows in reshapes:
        channels, *units = _extents(rows)
        if all(n == 1 for n in units):
            yield from ((rows, other) for other in reshapes if _cuts(other, channels))


def _cuts(node: Node, channels: int) -> bool:
    extents = _extents(node)
    return extents[0] != channels and prod(extents) == channels


def _sums(graph: Graph, value: Value) -> set[int]:
    """The sums that a value goes into by linear operators that nobody else reads."""
    found: set[int] = set()
    waiting = [(index, FURTHEST) for index in value.readers]
    while waiting:
        index, left = waiting.pop()
        node = graph.nodes[index]
        if not is_affine(node) or not left:
            continue
        if is_sum(node):
            found.add(index)
        if len(node.output.readers) == 1:
            waiting.append((node.output.readers[0], left - 1))
    return found
