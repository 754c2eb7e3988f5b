"""Where a model stops being continuous: outputs that a choice (TopK, NMS, ArgMax, rounding, comparing) decides.

The idea: cut the graph at the frontier, the last continuous values that the choosing part reads. Two models agree when
the frontier agrees within tolerance and when the choosing part of the second, *fed the frontier of the first*, gives
the first one's outputs. A difference that goes away under that feeding comes from ties closer than the tolerance,
whatever the operators are: no margin has to be derived for each of them.

Invariant: an output that no choice decides is never in `Choices`, so it is compared as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from rewriter.checking.net import STANDARD, Net, attribute, element_types, input_names, is_float, reads, sorted_nodes

_CHOOSING = {
    "ArgMax",
    "ArgMin",
    "Bernoulli",
    "Ceil",
    "Equal",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "Less",
    "LessOrEqual",
    "Multinomial",
    "NonMaxSuppression",
    "NonZero",
    "Round",
    "Sign",
    "TopK",
    "Unique",
}
_SIZE_ONLY = {"Shape", "Size"}
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}


@dataclass(frozen=True, slots=True)
class Choices:
    """`outputs` are decided by `nodes`; `frontier` holds the continuous values that these read, in graph order."""

    outputs: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    frontier: tuple[str, ...] = ()


def choices(net: Net, outputs: Collection[str]) -> Choices:
    """Which of `outputs` are decided by a choice, and where the continuous part before it ends."""
    types = element_types(net)
    order = sorted_nodes(net.graph)
    inputs = set(input_names(net.graph))
    dependent = set(inputs)  # on the values of the inputs, not only on their sizes
    chosen: set[str] = set()
    first: list[NodeProto] = []
    frontier: dict[str, None] = {}
    for node in order:
        sources = [name for name in reads(node) if name in dependent]
        if not sources or node.op_type in _SIZE_ONLY:
            continue
        dependent.update(node.output)
        starts = _chooses(node, sources, types)
        if starts or any(name in chosen for name in sources):
            chosen.update(filter(None, node.output))
            frontier.update(dict.fromkeys(n for n in sources if n not in chosen and n not in inputs))
        if starts:
            first.append(node)
    decided = tuple(name for name in outputs if name in chosen)
    if not decided:
        return Choices()
    return Choices(decided, tuple(describe(node) for node in first), tuple(n for n in frontier if n not in chosen))


def _chooses(node: NodeProto, sources: list[str], types: dict[str, int]) -> bool:
    """Whether a node turns floats into a decision. Deciding over integers is exact and needs no care."""
    if node.domain not in STANDARD or not any(is_float(types.get(name, TensorProto.FLOAT)) for name in sources):
        return False
    if node.op_type == "Cast":
        to = attribute(node, "to")
        return to is not None and not is_float(to.i)
    return node.op_type in _CHOOSING


def random_nodes(net: Net) -> tuple[str, ...]:
    """Nodes that draw numbers, for the message about a model that differs from itself."""
    return tuple(describe(node) for node in net.graph.node if node.op_type in _RANDOM)


def describe(node: NodeProto) -> str:
    """A name a user finds: the node's own, or what it makes."""
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}"
