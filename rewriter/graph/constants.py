"""Values that nodes compute from constants alone, known without running the model.

Invariant: what is read here is what a runtime computes, node by node: float arithmetic is done in float64 and rounded
to the stored type at every node, which for + - * / and roots is the correctly rounded result (float64 has more than
twice the digits), so that overflow, underflow and cancellation in float16 show here as they do there. Only a kernel of
an earlier round is more exact than its type, and stays so under views. Nothing is allocated before its size is known
and within the budget, and the work behind a constant is bounded before any of it is done. Operators that are not listed
are not resolved: their results stay unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from rewriter.graph.tensors import numpy_dtype
from rewriter.graph.view import Array, Constant

BUDGET = 1 << 26
"""Elements that one resolved constant may have (64 Mi; the largest conv kernels in use have 5 Mi)."""

WORK = 1 << 28
"""Elements that all the steps behind one constant may handle; nothing is cached, so a step read twice counts twice."""

STEP = 1 << 12
"""What a step costs beside its elements."""

DEPTH = 64
"""Steps one behind the other, each of which calls the one before it."""

FEW = 64
"""Elements of a tensor that is read as a list of sizes, axes or pads; no value has as many axes."""

Attrs = Mapping[str, Any]
Shape = tuple[int, ...]
Rule = Callable[[str, Sequence[Constant], Attrs], Constant]

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"})


@dataclass(frozen=True, slots=True)
class _Step:
    """How a resolved constant is loaded, with what that costs in all."""

    function: Callable[[], Array]
    work: int
    depth: int

    def __call__(self) -> Array:
        return self.function()


def resolve(op: str, name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant | None:
    """The constant that `op` makes of `inputs`, or None where the operator or the sizes are out of reach."""
    rule = RULES.get(op)
    if rule is None or not inputs:
        return None
    try:
        made = rule(name, inputs, attrs)
    except (ValueError, LookupError, TypeError, ArithmeticError):
        return None  # a malformed node is no constant; what needs it will refuse and say so
    return replace(made, made_of=tuple(dict.fromkeys(s for c in inputs for s in c.stored)))


def integers(constant: Constant | None) -> tuple[int, ...] | None:
    """The elements of a short list of whole numbers (sizes, axes, pads); None where it is anything else."""
    if constant is None or constant.dtype not in ("int64", "int32"):
        return None
    if len(constant.shape) != 1 or constant.size > FEW:
        return None
    return tuple(int(element) for element in constant.load())


def derived(
    sources: Sequence[Constant], name: str, shape: Shape, function: Callable[[], Array], dtype: str | None = None
) -> Constant:
    """A constant computed from `sources` on demand, within the budgets."""
    size = prod(shape)
    costs = [(s.load.work, s.load.depth) if isinstance(s.load, _Step) else (s.size, 0) for s in sources]
    work = STEP + size + sum(work for work, _ in costs)
    depth = 1 + max(depth for _, depth in costs)
    if size > BUDGET or work > WORK or depth > DEPTH:
        raise ValueError("over the budget")
    return Constant(name, shape, dtype or sources[0].dtype, _Step(function, work, depth))


def _only(inputs: Sequence[Constant]) -> Constant:
    (source,) = inputs
    return source


def _identity(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    del attrs
    return replace(_only(inputs), name=name)


def _cast(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source, to = _only(inputs), attrs["to"]
    if not {source.dtype, to} <= FLOATS | INTEGERS:
        raise TypeError("not a cast between numbers")
    kind = numpy_dtype(to)
    return derived([source], name, source.shape, lambda: _rounded(kind, np.asarray, source.load()), to)


def _transpose(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source = _only(inputs)
    rank = len(source.shape)
    order: tuple[int, ...] = tuple(attrs.get("perm", range(rank)[::-1]))
    if sorted(order) != list(range(rank)):
        raise ValueError("perm is no order of the axes")
    shape = tuple(source.shape[axis] for axis in order)
    return derived([source], name, shape, lambda: np.transpose(source.load(), order))


def _reshape(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source, wanted = inputs  # before opset 5 the extents were an attribute: not resolved
    target = integers(wanted)
    if target is None or min(target, default=0) < -1 or target.count(-1) > 1:
        raise ValueError("the target is no shape")
    if not attrs.get("allowzero", 0):
        target = tuple(source.shape[i] if d == 0 else d for i, d in enumerate(target))
    if -1 in target:
        rest = source.size // prod(d for d in target if d != -1)
        target = tuple(rest if d == -1 else d for d in target)
    return _viewed(source, name, target)


def _unsqueeze(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source, axes = inputs[0], _axes(inputs, attrs)
    if not axes:
        raise ValueError("it names no axes")
    rank = len(source.shape) + len(axes)
    inserted = _on(rank, axes)
    rest = iter(source.shape)
    return _viewed(source, name, tuple([1 if axis in inserted else next(rest) for axis in range(rank)]))


def _squeeze(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source, axes = inputs[0], _axes(inputs, attrs)
    if axes is None:
        axes = tuple(axis for axis, d in enumerate(source.shape) if d == 1)
    elif not axes or any(source.shape[axis] != 1 for axis in axes):
        raise ValueError("an axis is not of extent one; or the list is empty, which runtimes read as none or as all")
    dropped = _on(len(source.shape), axes)
    return _viewed(source, name, tuple(d for axis, d in enumerate(source.shape) if axis not in dropped))


def _viewed(source: Constant, name: str, shape: Shape) -> Constant:
    if prod(shape) != source.size or len(shape) > FEW:
        raise ValueError("a view keeps the number of elements")
    return derived([source], name, shape, lambda: source.load().reshape(shape))


def _on(rank: int, axes: Sequence[int]) -> set[int]:
    """The axes counted from the front; each must exist and stand there once."""
    found = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(found) != len(axes):
        raise ValueError("axes are out of range or repeated")
    return found


def _axes(inputs: Sequence[Constant], attrs: Attrs) -> tuple[int, ...] | None:
    """The axes of Squeeze and Unsqueeze: an input from opset 13, an attribute before; None where there are none."""
    if len(inputs) == 1:
        return tuple(attrs["axes"]) if "axes" in attrs else None
    _, named = inputs
    axes = integers(named)
    if axes is None:
        raise TypeError("the axes are not a list of whole numbers")
    return axes


def _arithmetic(function: Callable[..., Array], arity: int) -> Rule:
    """An elementwise operator on floats: broadcast as numpy does, in float64, rounded to the type."""

    def rule(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
        if len(inputs) != arity or "axis" in attrs or "broadcast" in attrs:
            raise ValueError("not the operator of opset 7 and later, whose operands broadcast as numpy's do")
        if any(c.dtype != inputs[0].dtype or c.dtype not in FLOATS for c in inputs):
            raise TypeError("elementwise arithmetic is resolved on floats of one type")
        kind = numpy_dtype(inputs[0].dtype)
        shape = np.broadcast_shapes(*(c.shape for c in inputs))

        def compute() -> Array:
            return _rounded(kind, function, *(c.floats() for c in inputs))

        return derived(inputs, name, shape, compute)

    return rule


def _rounded(kind: np.dtype[Any], function: Callable[..., Array], *arrays: Array) -> Array:
    """Division by zero and overflow give infinities, which every reader of a constant refuses by name."""
    with np.errstate(all="ignore"):
        return function(*arrays).astype(kind)


RULES: Mapping[str, Rule] = {
    "Identity": _identity,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Add": _arithmetic(np.add, 2),
    "Sub": _arithmetic(np.subtract, 2),
    "Mul": _arithmetic(np.multiply, 2),
    "Div": _arithmetic(np.divide, 2),
    "Neg": _arithmetic(np.negative, 1),
    "Sqrt": _arithmetic(np.sqrt, 1),
    "Reciprocal": _arithmetic(np.reciprocal, 1),
}
