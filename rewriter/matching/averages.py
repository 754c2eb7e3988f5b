"""Outputs that are the mean of several heads, as distilled models and ensembles are shipped.

Invariant: a head is an operand of the sum that ends in a layer of its own; where only some do, nothing is said. None of
the heads of a mean is auxiliary: each changes what comes out.
"""

from __future__ import annotations

from rewriter.graph.view import Value
from rewriter.matching.cones import DEEPENING, ELEMENTS_KEPT, Cones

CLOSE = 1e-6
"""How far a factor may be from 1 / heads: exporters store it in float32."""


def averaged(cones: Cones, output: Value) -> int:
    """How many heads the output is the mean of; 0 where it is none."""
    node = cones.graph.producer(output)
    while node is not None and node.op in ELEMENTS_KEPT and node.data:
        node = cones.graph.producer(node.data[0])
    if node is None or node.op != "scale" or node.problem:
        return 0
    factor = node.consts["factor"]
    heads = _heads(cones, node.data[0])
    if factor.size != 1 or heads < 2 or abs(float(factor.floats().reshape(-1)[0]) * heads - 1) > CLOSE:
        return 0
    return heads


def _heads(cones: Cones, value: Value) -> int:
    """The operands of a sum of several, however nested, if each ends in a layer with weights; else 0."""
    waiting, heads = [value], 0
    while waiting:
        node = cones.graph.producer(waiting.pop())
        while node is not None and node.op in (*ELEMENTS_KEPT, "shift") and node.data:
            node = cones.graph.producer(node.data[0])
        if node is not None and node.op in ("add", "sum"):
            waiting += node.data
        elif node is not None and node.op in DEEPENING:
            heads += 1
        else:
            return 0
    return heads
