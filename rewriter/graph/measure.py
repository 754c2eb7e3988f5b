"""A model in numbers: parameters, multiply-adds and tensor bytes, of a whole view or of any part of its nodes.

*Parameters* are float elements that reach a weight, bias, scale, shift or norm input, each stored tensor once; running
statistics are buffers, constants of arithmetic and of shapes are neither (design.md, "Command line"). The operand of an
Add or Mul is a scale or shift when it varies along the channels of a map and nothing else ([C,1,1] or [1,C,1,1]), or
when it is a vector added to what a matrix product gives. So single numbers, anchors and strides do not count. Weights
that are also inputs of the model, and those that only the body of an If, Loop or Scan reads, are not counted.

*Multiply-adds* are those of convolutions and matrix products, for the sizes that the model declares; where a size that
is needed is not known there is no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import TypeAlias

from rewriter.graph.constants import FLOATS
from rewriter.graph.tensors import stored_bytes
from rewriter.graph.view import Constant, Dim, Graph, Node, Value

Shapes: TypeAlias = Mapping[str, tuple[Dim, ...]]

ROLES = frozenset({"weight", "bias", "scale", "slope", "recurrence", "peephole"})
PRODUCTS = frozenset({"linear", "matmul"})
ARITHMETIC = frozenset({"scale", "shift", "add", "sub", "mul", "div", "sum"})
WEIGHTED = frozenset({"conv", "conv_transpose"})
"""Operators all of whose inputs but the first are parameters."""


def parameters(graph: Graph, nodes: Iterable[Node]) -> dict[str, int]:
    """The stored tensors that `nodes` read as parameters, with their number of elements."""
    return {name: size for _, read in parameters_by_node(graph, nodes) for name, size in read.items()}


def parameters_by_node(graph: Graph, nodes: Iterable[Node]) -> Iterator[tuple[Node, dict[str, int]]]:
    """The same for each node by itself; a tensor that several read is named with each."""
    fed: frozenset[int] | None = None
    for node in nodes:
        constants = _constants_of(graph, node)
        for value in _computed_of(node):
            fed = _fed(graph) if fed is None else fed
            constants += _behind(graph, value, fed)
        found: dict[str, int] = {}
        for constant in constants:
            for name in constant.stored:
                stored = (graph.values[name].constant if name in graph.values else None) or constant
                if stored.dtype in FLOATS:
                    found[name] = stored.size
        yield node, found


def _constants_of(graph: Graph, node: Node) -> list[Constant]:
    """The constants that a node reads as parameters."""
    held = [v.constant for v in node.data if v.constant is not None]
    if node.op in ARITHMETIC:
        operands = [*node.consts.values(), *held]
        return [c for c in operands if _per_channel(c) or _bias_of_product(graph, node, c)]
    if node.op in PRODUCTS:
        return [*node.consts.values(), *held]
    if node.op == "gather":
        return [c for c in held[:1] if node.data[0].constant is c and len(c.shape) > 1]
    return [constant for role, constant in node.consts.items() if role in ROLES]


def _computed_of(node: Node) -> list[Value]:
    """The values that a node reads as parameters and that are computed by operators nobody resolves."""
    places = node.data if node.op in PRODUCTS else node.data[1:] if node.op in WEIGHTED else ()
    return [value for value in places if value.constant is None and value.producer is not None]


def _fed(graph: Graph) -> frozenset[int]:
    """The nodes that an input of the model (or a name that nothing makes) reaches."""
    found: set[int] = set()
    for node in graph.nodes:
        for value in (*node.data, *node.captures):
            if value.producer in found or (value.producer is None and value.constant is None):
                found.add(node.index)
                break
    return frozenset(found)


def _behind(graph: Graph, value: Value, fed: frozenset[int]) -> list[Constant]:
    """The constants that a value is computed from, where it is computed from nothing else."""
    found: list[Constant] = []
    stack, seen = [value], {value.name}
    while stack:
        value = stack.pop()
        if value.constant is not None:
            found.append(value.constant)
        elif value.producer is None or value.producer in fed:
            return []
        else:
            node = graph.nodes[value.producer]
            found.extend(node.consts.values())
            new = [v for v in (*node.data, *node.captures) if v.name not in seen]
            seen.update(v.name for v in new)
            stack.extend(new)
    return found


def _per_channel(operand: Constant) -> bool:
    return len(operand.shape) in (3, 4) and operand.shape[-3] == operand.size > 1


def _bias_of_product(graph: Graph, node: Node, operand: Constant) -> bool:
    producer = graph.producer(node.data[0]) if node.data else None
    return node.op == "shift" and len(operand.shape) == 1 and producer is not None and producer.op in PRODUCTS


def multiply_adds(nodes: Iterable[Node], shapes: Shapes) -> int | None:
    """Of the convolutions and matrix products among `nodes`; None where a size they need is not known."""
    total = 0
    for node in nodes:
        rule = RULES.get(node.op)
        if rule is None:
            continue
        if not (node.data and node.outputs):
            return None
        count = rule(node, shapes)
        if count is None:
            return None
        total += count
    return total


def tensor_bytes(graph: Graph) -> int:
    """Bytes of the stored tensors that the main graph knows (the file is a little larger)."""
    stored = [v.constant for v in graph.values.values() if v.constant is not None and v.constant.made_of is None]
    return sum(stored_bytes(c.dtype, c.size) for c in stored)


def stored_by(graph: Graph, node: Node) -> dict[str, int]:
    """The stored tensors that a node reads, with their bytes."""
    found: dict[str, int] = {}
    held = [v.constant for v in (*node.data, *node.captures) if v.constant is not None]
    for constant in (*node.consts.values(), *held):
        for name in constant.stored:
            value = graph.values.get(name)
            stored = constant if value is None or value.constant is None else value.constant
            found[name] = stored_bytes(stored.dtype, stored.size)
    return found


def _known(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(d for d in shape if isinstance(d, int))


def _conv(node: Node, shapes: Shapes) -> int | None:
    out = _known(shapes.get(node.output.name))
    weight = node.consts.get("weight")
    taps = _known(shapes.get(node.data[1].name)) if weight is None and len(node.data) > 1 else None
    taps = weight.shape if weight is not None else taps
    return None if out is None or taps is None else prod(out) * prod(taps[1:])


def _conv_transpose(node: Node, shapes: Shapes) -> int | None:
    inner = _known(shapes.get(node.data[0].name))
    weight = node.consts.get("weight")
    return None if inner is None or weight is None else prod(inner) * prod(weight.shape[1:])


def _product(node: Node, shapes: Shapes) -> int | None:
    out = _known(shapes.get(node.output.name))
    left = _known(shapes.get(node.data[0].name))
    if out is None or not left:
        return None
    inner = left[0] if node.op == "linear" and node.attrs.get("transA", 0) else left[-1]
    return prod(out) * inner


RULES: Mapping[str, Callable[[Node, Shapes], int | None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _product,
    "matmul": _product,
}
