"""Where one group of outputs leaves the way to another: the mark of deep supervision.

An auxiliary head of a segmenter or a classifier reads the trunk half way, and the trunk goes on to the main head. A
head of a task of its own reads the end of the trunk beside the others, perhaps through a few layers more. Invariant: a
group is *tapped* from another only where, from every value at which its own nodes leave what both need, the way to the
other is at least twice as long in convs or linears and leads through more of a trunk (a sum or Concat of computed
values, or a change of resolution), not only through a longer chain of layers; and where its own part is a plain chain,
without such sums and Concats, and has a layer at all: features of inner blocks, normed perhaps, are no head. Names and
the order of outputs decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewriter.graph.view import Node, Value
from rewriter.matching.cones import DEEPENING, POOLS, SIZE_ONLY, Cones

TWICE = 2
"""How many times as long the way to the other group has to be, and how many layers longer at least."""

MERGES = frozenset({"add", "sum", "concat"})  # no sub: a norm written out subtracts its mean
RESAMPLING = frozenset({"resize", "upsample", "conv_transpose"})


@dataclass(frozen=True, slots=True)
class Tap:
    """The value at which a group leaves with the least margin, and the layers from there to it and to the other."""

    value: str
    own: int
    other: int
    plain: bool  # its own part joins nothing
    trunk: bool  # from some tap on, the other's way leads through more of a trunk

    @property
    def early(self) -> bool:
        return self.plain and self.trunk and self.own > 0 and self.other >= max(TWICE * self.own, self.own + TWICE)


@dataclass(frozen=True, slots=True)
class Ways:
    """Per node that works for some outputs, the layers on the longest way from it to them, with itself.

    `trunk` are the nodes from which a way leads through more of a trunk.
    """

    layers: Mapping[int, int]
    trunk: frozenset[int]


def tap(cones: Cones, own: int, other: int, to_other: Ways | None = None) -> Tap | None:
    """Where the outputs `own` leave what `other` needs too (masks); None where the two have nothing in common.

    `to_other` are the `ways` to the other outputs, for who has found them already.
    """
    mine = [i for i, flow in enumerate(cones.flows) if flow & own and not flow & other]
    to_own = ways(cones, mine)
    taps = _taps(cones, to_own.layers)
    if not taps:
        return None
    theirs = ways(cones, working_for(cones, other)) if to_other is None else to_other
    found = [(_longest(cones, value, to_own), _longest(cones, value, theirs), value) for value in taps]
    along = any(r in theirs.trunk for *_, value in found for r in value.readers)
    least_own, least_other, least = min(found, key=lambda each: (each[1] - TWICE * each[0], each[1]))
    plain = not any(layers and _joins(cones.graph.nodes[i]) for i, layers in to_own.layers.items())
    return Tap(least.name, least_own, least_other, plain, along)


def working_for(cones: Cones, outputs: int) -> list[int]:
    """The nodes whose elements reach one of a mask of outputs, in the order of the graph."""
    return [i for i, flow in enumerate(cones.flows) if flow & outputs]


def _taps(cones: Cones, mine: Mapping[int, int]) -> list[Value]:
    """The values that nodes of the group's own read and others make, an input of the model among them."""
    found: dict[str, Value] = {}
    for node in (cones.graph.nodes[i] for i in reversed(mine)):
        if node.op in SIZE_ONLY:
            continue
        for value in (*node.data, *node.captures):
            outside = value.producer is None or value.producer not in mine
            if outside and value.constant is None and _carries(cones, value):
                found[value.name] = value
    return list(found.values())


def _carries(cones: Cones, value: Value) -> bool:
    """Elements of an input of the model, and not only its sizes, are in it."""
    return value.is_input if value.producer is None else cones.alive[value.producer]


def _longest(cones: Cones, value: Value, found: Ways) -> int:
    nodes = cones.graph.nodes
    return max((found.layers.get(r, 0) for r in value.readers if nodes[r].op not in SIZE_ONLY), default=0)


def ways(cones: Cones, inside: Sequence[int]) -> Ways:
    """The ways to the end of the nodes inside, which come in the order of the graph."""
    nodes = cones.graph.nodes
    layers, trunk = dict[int, int](), set[int]()
    for node in (nodes[i] for i in reversed(inside)):
        later = [r for v in node.outputs for r in v.readers if r in layers and nodes[r].op not in SIZE_ONLY]
        behind = max((layers[r] for r in later), default=0)
        layers[node.index] = behind + (node.op in DEEPENING)
        if any(r in trunk for r in later) or (behind > 0 and _is_trunk(node)):
            trunk.add(node.index)
    return Ways(layers, frozenset(trunk))


def _joins(node: Node) -> bool:
    """A sum or Concat of several computed values."""
    return node.op in MERGES and len({value.name for value in node.data if value.constant is None}) > 1


def _is_trunk(node: Node) -> bool:
    strides = node.attrs.get("strides", ())
    return (
        _joins(node)
        or node.op in RESAMPLING
        or ((node.op == "conv" or node.op in POOLS) and any(stride > 1 for stride in strides))
    )
