"""What predicates and `where` clauses read off a node: `k`, `pad`, `value`, `depthwise`, …

Invariant: reading an attribute never fails; one that is not known, or not one number, is None, and every comparison
with it is false. One that the operator does not have is (), no axes at all, and every comparison with it is true.
Per-axis attributes compare per axis: all axes must agree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

import numpy as np

from rewriter.errors import Reason
from rewriter.graph.view import Constant, Node
from rewriter.graph.vocabulary import OPERATORS
from rewriter.language.syntax import OpAtom, Predicate

Scalar: TypeAlias = "int | float | str | bool"
Reading: TypeAlias = "Scalar | tuple[int, ...] | None"

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def attribute(node: Node, name: str) -> Reading:
    """The attribute of a node by the name pattern files use; per-axis ones as tuples."""
    if not _has(node.op, name):
        return ()
    rule = ATTRIBUTES.get(name)
    if rule is not None:
        return rule(node)
    found = node.attrs.get(name)
    return found if isinstance(found, int | float | str | bool) else None


def _has(op: str, name: str) -> bool:
    operator = OPERATORS.get(op)
    return operator is not None and operator.attribute(name) is not None


def compare(op: str, left: Any, right: Any) -> bool:
    """`left op right`, per axis where one of them is; false where either is unknown, true where either is absent."""
    if left is None or right is None:
        return False
    if left == () or right == ():
        return True
    if not isinstance(left, tuple) and not isinstance(right, tuple):
        return _scalar(op, left, right)
    pairs = aligned(left, right)
    if pairs is None:
        return False
    verdicts = [_scalar(op, a, b) for a, b in pairs]
    return any(verdicts) if op == "!=" else all(verdicts)


def aligned(left: Any, right: Any) -> list[tuple[Any, Any]] | None:
    """Two operands axis by axis: one number is the same on every axis, and pads have two sides on each axis.

    None where the axes do not correspond.
    """
    sides = _axes_of(left), _axes_of(right)
    width = max(map(len, sides)) if all(sides) else 0
    lefts, rights = (_widened(side, width) for side in sides)
    return None if lefts is None or rights is None else list(zip(lefts, rights, strict=True))


def _axes_of(operand: Any) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", operand) if isinstance(operand, tuple) else (operand,)


def _widened(side: tuple[Any, ...], width: int) -> tuple[Any, ...] | None:
    if len(side) == 1 or width == 0:
        return side[:1] * width
    if 2 * len(side) == width:
        return tuple(element for element in side for _ in range(2))
    return side if len(side) == width else None


def _scalar(op: str, left: Any, right: Any) -> bool:
    if left is None or right is None or (isinstance(left, str) != isinstance(right, str) and op not in ("=", "!=")):
        return False
    return bool(COMPARISONS[op](left, right))


CODES: Mapping[str, Reason] = {
    "value": Reason.VALUE,
    "slope": Reason.VALUE,
    "amount": Reason.VALUE,
    "to": Reason.TYPE,
    "from": Reason.TYPE,
}
"""What a false predicate is a refusal for; the others are conditions like those of a `where` clause."""


def failed(atom: OpAtom, node: Node) -> tuple[Reason, str] | None:
    """The first predicate that is false, in words; None where all hold."""
    for predicate in atom.predicates:
        words = _failed(predicate, node)
        if words is not None:
            return CODES.get(predicate.name, Reason.WHERE), words
    return None


def _failed(predicate: Predicate, node: Node) -> str | None:
    found = attribute(node, predicate.name)
    if predicate.op is None:
        return None if found is True else f"it is not {predicate.name}"
    wanted: Reading = predicate.value
    if isinstance(predicate.value, str) and _has(node.op, predicate.value):  # another attribute of the same node
        wanted = attribute(node, predicate.value)
    if compare(predicate.op, found, wanted):
        return None
    return f"its {predicate.name} is {_shown(found)}, the pattern wants {predicate.name}{predicate.op}{predicate.value}"


def _shown(found: Reading) -> str:
    if found is None:
        return "not one number"
    return "x".join(map(str, found)) if isinstance(found, tuple) else str(found)


def is_transparent(node: Node) -> bool:
    """True where the node hands its input on unchanged, whatever stands there (pattern-language.md, Semantics 1)."""
    if node.problem is not None or len(node.data) != 1:
        return False
    match node.op:
        case "identity" | "dropout":
            return True
        case "cast":
            return node.attrs["to"] is not None and node.attrs["to"] == node.attrs["from"]
        case "pad":
            return node.attrs.get("amount") == 0
        case "leaky_relu":
            return node.attrs.get("slope") == 1
        case "scale":
            return _lone(node.consts["factor"]) == 1
        case "shift":
            return node.attrs["sign"] == 1 and _lone(node.consts["term"]) == 0
        case _:
            return False


def is_neutral(node: Node) -> bool:
    """True for a factor of ones and a term of zeros, which change no element but may add or widen axes."""
    if node.problem is not None or node.op not in _NEUTRAL or len(node.data) != 1:
        return False
    return _value(node) == _NEUTRAL[node.op]


_NEUTRAL: Final[Mapping[str, int]] = {"scale": 1, "shift": 0}


def _lone(constant: Constant) -> float | None:
    """The number of a constant that holds one and adds no axis."""
    return float(constant.floats().reshape(())) if constant.size == 1 and len(constant.shape) <= 1 else None


def uniform(constant: Constant) -> float | None:
    """The number that every element of a constant is."""
    if constant.size == 0:
        return None
    elements = constant.floats().reshape(-1)
    return float(elements[0]) if np.all(elements == elements[0]) else None


def _value(node: Node) -> Reading:
    if node.op == "shift" and node.attrs.get("sign", 1) != 1:
        return None  # c - x is no addition to x
    constant = node.consts.get("factor") or node.consts.get("term")
    return None if constant is None else uniform(constant)


def _window(node: Node) -> tuple[int, ...] | None:
    weight = node.consts.get("weight")
    if weight is not None:
        return weight.shape[2:] or None
    return tuple(node.attrs.get("window", ())) or None  # pools have no weight


def _reach(node: Node) -> tuple[int, ...] | None:
    window, dilations = _window(node), node.attrs.get("dilations")
    if window is None or dilations is None or len(window) != len(dilations):
        return None
    return tuple(d * (k - 1) + 1 for k, d in zip(window, dilations, strict=True))


def _axes(name: str) -> Callable[[Node], Reading]:
    def rule(node: Node) -> Reading:
        return tuple(node.attrs.get(name, ())) or None

    return rule


def _pad(node: Node) -> Reading:
    return tuple(p for axis in node.attrs.get("pads", ()) for p in axis) or None


def _channels_out(node: Node) -> Reading:
    return _channels(node, given=True)


def _channels_in(node: Node) -> Reading:
    return _channels(node, given=False)


def _channels(node: Node, *, given: bool) -> int | None:
    """A conv's weight is (out, in / groups, *window), a transposed one's (in, out / groups, *window)."""
    weight = node.consts.get("weight")
    if weight is None or len(weight.shape) < 2:
        return None
    whole_first = given == (node.op != "conv_transpose")
    return weight.shape[0] if whole_first else weight.shape[1] * int(node.attrs.get("groups", 1))


def _depthwise(node: Node) -> Reading:
    groups = node.attrs.get("groups", 1)
    return groups > 1 and groups == _channels_in(node)


def _pointwise(node: Node) -> Reading:
    window, strides = _window(node), node.attrs.get("strides", ())
    return window is not None and all(k == 1 for k in (*window, *strides))


def _computed(node: Node) -> Reading:
    weight = node.consts.get("weight")
    return None if weight is None else bool(weight.made_of)


ATTRIBUTES: Mapping[str, Callable[[Node], Reading]] = {
    "k": _window,
    "reach": _reach,
    "pad": _pad,
    "stride": _axes("strides"),
    "dilation": _axes("dilations"),
    "groups": lambda node: node.attrs.get("groups"),
    "out": _channels_out,
    "in": _channels_in,
    "value": _value,
    "depthwise": _depthwise,
    "pointwise": _pointwise,
    "computed": _computed,
}
