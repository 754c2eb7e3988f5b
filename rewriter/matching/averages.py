"""Outputs that are the mean of several heads, as distilled models and ensembles are shipped.

Invariant: a head is an operand of the sum that ends in a layer of its own; where only some do, nothing is said. None of
the heads of a mean is auxiliary: each changes what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping

from rewriter.dims.engine import Pass
from rewriter.dims.polynomials import number
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.cones import DEEPENING, ELEMENTS_KEPT, Cones
from rewriter.matching.slicewise import axes_of
from rewriter.matching.stacks import Stack, reading, walked

CLOSE = 1e-6
"""How far a factor may be from 1 / heads: exporters store it in float32."""


def averaged(cones: Cones, output: Value) -> int:
    """How many heads the output is the mean of; 0 where it is none."""
    node = _made(cones.graph, output, ELEMENTS_KEPT)
    if node is None or node.op != "scale" or node.problem:
        return 0
    factor = node.consts["factor"]
    heads = _heads(cones, node.data[0])
    if factor.size != 1 or heads < 2 or abs(float(factor.floats().reshape(-1)[0]) * heads - 1) > CLOSE:
        return 0
    return heads


def averaged_stacks(graph: Graph, sizes: Pass) -> Mapping[str, int]:
    """The outputs that are the mean over a stack of heads' results, or of what one head makes of a stack, by name."""
    found: dict[int, int] = {}
    readers = reading(graph)
    for node in graph.nodes:
        walk = walked(graph, node, sizes, readers) if node.op == "concat" and len(node.data) > 1 else None
        if walk is None or any(count != number(1) for count in walk.counts) or not _has_heads(graph, walk):
            continue
        for taken in walk.taken:
            place = taken.place
            whole = place.count.constant == len(walk.counts)
            if taken.node.op == "reducemean" and whole and axes_of(taken.node, place.rank, sizes) == [place.axis]:
                found[taken.node.index] = len(walk.counts)
    makers = {value.name: _made(graph, value, ELEMENTS_KEPT) for value in graph.outputs}
    return {name: found[node.index] for name, node in makers.items() if node is not None and node.index in found}


def _has_heads(graph: Graph, walk: Stack) -> bool:
    if any(node.op in DEEPENING for node in walk.nodes):
        return True
    ends = [_made(graph, value, (*ELEMENTS_KEPT, "shift", "unsqueeze")) for value in walk.concat.data]
    return all(node is not None and node.op in DEEPENING for node in ends)


def _made(graph: Graph, value: Value, through: tuple[str, ...] | frozenset[str]) -> Node | None:
    """What makes a value, behind operators that hand it on."""
    node = graph.producer(value)
    while node is not None and node.op in through and node.data:
        node = graph.producer(node.data[0])
    return node


def _heads(cones: Cones, value: Value) -> int:
    """The operands of a sum of several, however nested, if each ends in a layer with weights; else 0."""
    waiting, heads = [value], 0
    while waiting:
        node = _made(cones.graph, waiting.pop(), (*ELEMENTS_KEPT, "shift"))
        if node is not None and node.op in ("add", "sum"):
            waiting += node.data
        elif node is not None and node.op in DEEPENING:
            heads += 1
        else:
            return 0
    return heads
