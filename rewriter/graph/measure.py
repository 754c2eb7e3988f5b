"""A model in numbers: parameters, multiply-adds and tensor bytes, of a whole view or of any part of its nodes.

*Parameters* are float elements that reach a weight, bias, scale, shift or norm input, each stored tensor once; running
statistics are buffers, constants of arithmetic and of shapes are neither (design.md, "Command line"). The operand of an
Add or Mul is a scale or shift when it varies along the channels of a map and nothing else ([C,1,1] or [1,C,1,1]), or when
it is a vector added to what a matrix product gives. So single numbers, anchors and strides do not count.

*Multiply-adds* are those of convolutions and matrix products, for the sizes that the model declares; where a size that
is needed is not known there is no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import TypeAlias

from rewriter.graph.constants import FLOATS
from rewriter.graph.tensors import stored_bytes
from rewriter.graph.view import Constant, Dim, Graph, Node

Shapes: TypeAlias = Mapping[str, tuple[Dim, ...]]

ROLES = frozenset({"weight", "bias", "scale"})
PRODUCTS = frozenset({"linear", "matmul"})
WEIGHTED = PRODUCTS | frozenset(
    """conv conv_transpose deformconv prelu layer_norm instancenormalization groupnormalization lstm gru rnn""".split()
)


def parameters(graph: Graph, nodes: Iterable[Node]) -> dict[str, int]:
    """The stored tensors that `nodes` read as parameters, with their number of elements."""
    found: dict[str, int] = {}
    for node in nodes:
        for constant in _parameters_of(graph, node):
            for name in constant.stored:
                stored = graph.values[name].constant if name in graph.values else None
                if (stored or constant).dtype in FLOATS:
                    found[name] = (stored or constant).size
    return found


def _parameters_of(graph: Graph, node: Node) -> list[Constant]:
    given = [constant for role, constant in node.consts.items() if role in ROLES]
    if node.op in ("scale", "shift"):
        operand = node.consts["factor" if node.op == "scale" else "term"]
        if _per_channel(operand) or _bias_of_product(graph, node, operand):
            given.append(operand)
    if node.op in WEIGHTED:
        given += [v.constant for v in node.data if v.constant is not None]
    if node.op == "gather" and node.data[0].constant is not None and len(node.data[0].constant.shape) > 1:
        given.append(node.data[0].constant)
    return given


def _per_channel(operand: Constant) -> bool:
    return len(operand.shape) in (3, 4) and operand.shape[-3] == operand.size > 1


def _bias_of_product(graph: Graph, node: Node, operand: Constant) -> bool:
    producer = graph.producer(node.data[0])
    return node.op == "shift" and len(operand.shape) == 1 and producer is not None and producer.op == "matmul"


def multiply_adds(nodes: Iterable[Node], shapes: Shapes) -> int | None:
    """Of the convolutions and matrix products among `nodes`; None where a size they need is not known."""
    total = 0
    for node in nodes:
        rule = RULES.get(node.op)
        if rule is None:
            continue
        count = rule(node, shapes)
        if count is None:
            return None
        total += count
    return total


def tensor_bytes(graph: Graph) -> int:
    """Bytes of the stored tensors that the main graph knows (the file is a little larger)."""
    stored = [v.constant for v in graph.values.values() if v.constant is not None and not v.constant.made_of]
    return sum(stored_bytes(c.dtype, c.size) for c in stored)


def _known(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(d for d in shape if isinstance(d, int))


def _conv(node: Node, shapes: Shapes) -> int | None:
    out = _known(shapes.get(node.output.name))
    weight = node.consts.get("weight")
    taps = prod(weight.shape[1:]) if weight is not None else None
    return None if out is None or taps is None else prod(out) * taps


def _conv_transpose(node: Node, shapes: Shapes) -> int | None:
    inner = _known(shapes.get(node.data[0].name))
    weight = node.data[1].constant if len(node.data) > 1 else None
    return None if inner is None or weight is None else prod(inner) * prod(weight.shape[1:])


def _product(node: Node, shapes: Shapes) -> int | None:
    out = _known(shapes.get(node.output.name))
    left = _known(shapes.get(node.data[0].name))
    if out is None or not left:
        return None
    inner = left[-2] if node.op == "linear" and node.attrs.get("transA", 0) else left[-1]
    return prod(out) * inner


RULES: Mapping[str, Callable[[Node, Shapes], int | None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _product,
    "matmul": _product,
}
