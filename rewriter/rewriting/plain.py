"""The picture of a graph in plain terms: what is computed from sizes to say where to write or to cut is no data.

The one idea: where an image is of any size, exporters compute from it the places that they write to and cut at. Once
those are proved to be a slice (`dims.settling`), the node has constant settings, and the nodes behind them are read by
nobody. Invariant: they are still there. Whoever takes a value away whose size they read has to take the reader of that
with it (`Value.measured_by`), and each node is held against what is computed at two sizes, by its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeAlias

import numpy as np

from rewriter.dims.engine import Pass, measured
from rewriter.dims.settling import has_computed, plain_nodes
from rewriter.graph.raw import Extents
from rewriter.graph.settled import released, with_values
from rewriter.graph.view import Dim, Graph, Node, Value
from rewriter.rewriting.sized import sampled_sizes

At: TypeAlias = Callable[[Sequence[Node], Mapping[str, Extents]], Graph]
"""Some nodes of the graph alone, where values, by name, have these extents."""

MOST_ELEMENTS = 1 << 24
"""Of a value at a sample size; a write into a larger one is not confirmed."""


def in_plain_terms(graph: Graph, at: At) -> Graph:
    """The graph, nodes whose settings are computed from sizes as such with known ones where they are proved."""
    if not has_computed(graph):
        return graph
    sizes = measured(graph)
    made = plain_nodes(sizes)
    computing = _computing(sizes, made)
    for turn in range(2 if made else 0):
        extents = sampled_sizes(sizes, turn)
        named = {
            name: extent
            for value in graph.inputs
            for name, extent in zip(value.shape or (), extents.get(value.name, ()), strict=False)
        }
        there = {id(node.native): node for node in at(computing, extents).nodes}
        made = {
            index: node
            for index, node in made.items()
            if _confirmed(
                _numbered(node, named), there[id(node.native)], extents.get(graph.nodes[index].data[0].name, (None,))
            )
        }
    return replace(_rewritten(graph, made), stored=graph) if made else graph


def _computing(sizes: Pass, made: Mapping[int, Node]) -> list[Node]:
    """The nodes that are made plain, and those that compute their settings, down to what reads a size."""
    found: set[int] = set()
    waiting = list(made)
    while waiting:
        index = waiting.pop()
        node = sizes.graph.nodes[index]
        if index in found:
            continue
        found.add(index)
        if index in made:
            read = [value for value in sizes.operands(node)[1:] if value not in made[index].data]
        else:
            read = [] if node.op in ("shape", "size") else sizes.operands(node)
        waiting += [value.producer for value in read if value is not None and value.producer is not None]
    return [sizes.graph.nodes[index] for index in sorted(found)]


def _numbered(node: Node, named: Mapping[Dim, int | None]) -> Node:
    """The node with numbers for the extents of inputs that it names."""
    if "extents" not in node.attrs:
        return node
    shape = [named.get(extent, -2) if isinstance(extent, str) else extent for extent in node.attrs["extents"]]
    return replace(node, attrs={**node.attrs, "shape": shape})


def _confirmed(plain: Node, node: Node, extents: Extents) -> bool:
    """Whether the node, its settings computed at one size, does the same as the plain one."""
    known = [n for n in extents if n is not None]
    if len(known) < len(extents):
        return False
    try:
        if "indices" in node.consts:
            return _writes_alike(plain, node, known)
        return RESULTS[node.op](plain, known) == RESULTS[node.op](node, known)
    except (LookupError, ValueError):  # places outside of the value, or settings that are not known
        return False


def _writes_alike(plain: Node, node: Node, extents: Sequence[int]) -> bool:
    """What is written may have passed through another write over everything; then only the places are compared."""
    if prod(extents) > MOST_ELEMENTS:
        return False
    indices, updates = node.consts["indices"], node.consts.get("updates")
    places = tuple(np.moveaxis(indices.load(), -1, 0))
    wanted = np.full(extents, np.nan)
    found = wanted.copy()
    if plain.op == "identity":
        wanted = np.arange(prod(extents), dtype=np.float64).reshape(extents)
        found[places] = wanted.reshape(*indices.shape[:-1], *extents[indices.shape[-1] :])
    else:
        ends = zip(plain.attrs["starts"], plain.attrs["stops"], strict=True)
        values = 0.0 if updates is None else plain.consts["values"].floats()
        wanted[tuple([slice(start, stop) for start, stop in ends])] = values
        found[places] = 0.0 if updates is None else updates.floats()
    return np.array_equal(wanted, found, equal_nan=True)


def _cuts(node: Node, extents: Sequence[int]) -> list[range]:
    """The places on each axis that are left."""
    left = [range(n) for n in extents]
    if node.op != "identity":
        for start, end, axis, step in zip(
            *(node.attrs[key] for key in ("starts", "ends", "axes", "steps")), strict=True
        ):
            left[axis] = left[axis][start:end:step]
    return left


def _extents(node: Node, extents: Sequence[int]) -> list[int]:
    """Those of what a Reshape gives."""
    copies = not node.attrs.get("allowzero")
    found = [extents[axis] if n == 0 and copies else n for axis, n in enumerate(node.attrs["shape"])]
    left = prod(extents) // max(1, prod([n for n in found if n != -1]))
    return [left if n == -1 else n for n in found]


RESULTS: Mapping[str, Callable[[Node, Sequence[int]], object]] = {
    "slice": _cuts,
    "identity": _cuts,
    "reshape": _extents,
}


def _rewritten(graph: Graph, made: Mapping[int, Node]) -> Graph:
    lost: dict[str, set[int]] = {}
    for index, node in made.items():
        kept = {value.name for value in node.data}
        for value in graph.nodes[index].data:
            if value.name not in kept:
                lost.setdefault(value.name, set()).add(index)
    fewer = {name: _without(graph.values[name], readers) for name, readers in lost.items()}
    nodes = tuple([made.get(node.index, node) for node in graph.nodes])
    plain = with_values(replace(graph, nodes=nodes), fewer)
    unread = [v.producer for v in fewer.values() if v.producer is not None and not v.readers and not _seen(v)]
    idle = [index for index in unread if all(not v.readers and not _seen(v) for v in plain.nodes[index].outputs)]
    return _measured(graph, released(plain, idle), made)


def _without(value: Value, readers: Collection[int]) -> Value:
    return replace(value, readers=tuple([index for index in value.readers if index not in readers]))


def _seen(value: Value) -> bool:
    return value.is_output or value.captured


def _measured(before: Graph, after: Graph, made: Container[int]) -> Graph:
    """With the plain nodes that follow from the size of each value, by way of nodes that nobody reads any more."""
    follow: dict[int, frozenset[int]] = {}  # of an idle node
    for node in reversed(before.nodes):
        now = after.nodes[node.index].outputs
        if any(value.readers for value in node.outputs) and not any(value.readers or _seen(value) for value in now):
            behind = [index for value in node.outputs for index in value.readers]
            follow[node.index] = _followers(behind, follow, made)
    fresh: dict[str, Value] = {}
    for name, value in before.values.items():
        left = set(value.readers).difference(after.values[name].readers)
        if found := _followers(left, follow, made):
            fresh[name] = replace(after.values[name], measured_by=tuple(sorted(found)))
    return with_values(after, fresh)


def _followers(readers: Iterable[int], follow: Mapping[int, frozenset[int]], made: Container[int]) -> frozenset[int]:
    found = [follow.get(index, frozenset([index]) if index in made else frozenset[int]()) for index in readers]
    return frozenset[int]().union(*found)
