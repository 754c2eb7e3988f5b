"""The picture of a graph with its writes in plain terms: what is computed from sizes to say where to write is no data.

The one idea: where an image is of any size, exporters compute from it the places that they write to. Once those are
proved to be a slice (`dims.writes`), the node is an assignment of constants, and the nodes behind its indices are read
by nobody. Invariant: they are still there. Whoever takes a value away whose size they read has to take the writes with
it (`Value.measured_by`), and each write is held against what the nodes give at two sizes, by the definition of each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import TypeAlias

import numpy as np

from rewriter.dims.writes import Write, writes
from rewriter.graph.raw import Extents
from rewriter.graph.settled import released, with_values
from rewriter.graph.view import Graph, Node, Value
from rewriter.rewriting.sized import sampled_sizes

Found = Mapping[int, "Write | Value"]


At: TypeAlias = Callable[[Mapping[str, Extents]], Graph]
"""The same graph where values, by name, have these extents."""

MOST_ELEMENTS = 1 << 24
"""Of a value at a sample size; a write into a larger one is not confirmed."""


def with_writes(graph: Graph, at: At) -> Graph:
    """The graph, each ScatterND of constants into a slice as `assign`, and of one value over another as `identity`."""
    found = writes(graph)
    for turn in range(2 if found else 0):
        sizes = sampled_sizes(graph, turn, [graph.nodes[index].data[0] for index in found])
        there = at(sizes)
        found = {
            index: written
            for index, written in found.items()
            if _confirmed(written, there.nodes[index], sizes.get(graph.nodes[index].data[0].name))
        }
    return _rewritten(graph, found) if found else graph


def _confirmed(written: Write | Value, node: Node, extents: Extents | None) -> bool:
    """Whether the node, at one size, by the definition of ScatterND, writes the same to the same places.

    What it writes may have passed through another write over everything; then only the places are compared.
    """
    known = [n for n in extents or () if n is not None]
    indices, updates = node.consts.get("indices"), node.consts.get("updates")
    if extents is None or len(known) < len(extents) or indices is None or prod(known) > MOST_ELEMENTS:
        return False
    places = tuple(np.moveaxis(indices.load(), -1, 0))
    wanted = np.full(known, np.nan)
    found = wanted.copy()
    try:
        if isinstance(written, Value):
            wanted = np.arange(prod(known), dtype=np.float64).reshape(known)
            found[places] = wanted.reshape(*indices.shape[:-1], *known[indices.shape[-1] :])
        else:
            ends = zip(written.starts, written.stops, strict=True)
            values = 0.0 if updates is None else written.values.floats()
            wanted[tuple([slice(start, stop) for start, stop in ends])] = values
            found[places] = 0.0 if updates is None else updates.floats()
    except (IndexError, ValueError):  # places outside of the value, or a shape that does not fit
        return False
    return np.array_equal(wanted, found, equal_nan=True)


def _rewritten(graph: Graph, found: Found) -> Graph:
    made = {index: _node(graph.nodes[index], written) for index, written in found.items()}
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


def _node(node: Node, written: Write | Value) -> Node:
    if isinstance(written, Value):
        return replace(node, op="identity", data=(written,), attrs={})
    attrs = {"starts": written.starts, "stops": written.stops}
    return replace(node, op="assign", data=node.data[:1], consts={"values": written.values}, attrs=attrs)


def _without(value: Value, readers: Collection[int]) -> Value:
    return replace(value, readers=tuple([index for index in value.readers if index not in readers]))


def _seen(value: Value) -> bool:
    return value.is_output or value.captured


def _measured(before: Graph, after: Graph, made: Container[int]) -> Graph:
    """With the writes that follow from the size of each value, by way of nodes that nobody reads any more."""
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
