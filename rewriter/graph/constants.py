"""Values that nodes compute from constants alone, known without running the model.

Invariant: nothing is allocated before its size is known and within the budget; float arithmetic is done in float64 and
not rounded (what is made from it is rounded once, at the end), but a Cast rounds, because there the model says so.
Operators that are not listed here are simply not resolved: their results stay unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rewriter.graph.tensors import numpy_dtype
from rewriter.graph.view import Array, Constant

BUDGET = 1 << 26
"""Elements that one resolved constant may have (64 Mi; the largest conv kernels in use have 5 Mi)."""

Attrs = Mapping[str, Any]
Shape = tuple[int, ...]

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


def resolve(op: str, name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant | None:
    """The constant that `op` makes of `inputs`, or None where the operator or the sizes are out of reach."""
    rule = RULES.get(op)
    if rule is None or not inputs:
        return None
    try:
        made = rule(name, inputs, attrs)
        return replace(made, made_of=tuple(dict.fromkeys(s for c in inputs for s in c.stored)))
    except (ValueError, IndexError, KeyError, TypeError):
        return None  # a malformed node is no constant; what needs it will refuse and say so


def derived(source: Constant, name: str, shape: Shape, load: Callable[[], Array], dtype: str | None = None) -> Constant:
    """A constant computed on demand, within the budget."""
    if int(np.prod(shape, dtype=np.float64)) > BUDGET:
        raise ValueError("over the element budget")
    return Constant(name, shape, dtype or source.dtype, load)


def _identity(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    del attrs
    return derived(inputs[0], name, inputs[0].shape, inputs[0].load)


def _cast(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source, to = inputs[0], attrs["to"]
    return derived(source, name, source.shape, lambda: _quiet(lambda a: a.astype(numpy_dtype(to)), source.load()), to)


def _transpose(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source = inputs[0]
    order = tuple(attrs.get("perm") or reversed(range(len(source.shape))))
    shape = tuple(source.shape[axis] for axis in order)
    return derived(source, name, shape, lambda: np.transpose(source.load(), order))


def _reshape(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source = inputs[0]
    target = [int(d) for d in inputs[1].load()]
    if not attrs.get("allowzero", 0):
        target = [source.shape[i] if d == 0 else d for i, d in enumerate(target)]
    known = int(np.prod([d for d in target if d != -1], dtype=np.int64))
    shape = tuple(source.size // known if d == -1 else d for d in target)
    return _viewed(source, name, shape)


def _unsqueeze(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source = inputs[0]
    rank = len(source.shape) + len(axes := _axes(inputs, attrs))
    inserted = {axis % rank for axis in axes}
    rest = iter(source.shape)
    return _viewed(source, name, tuple(1 if axis in inserted else next(rest) for axis in range(rank)))


def _squeeze(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
    source = inputs[0]
    rank = len(source.shape)
    axes = _axes(inputs, attrs) or tuple(axis for axis, d in enumerate(source.shape) if d == 1)
    dropped = {axis % rank for axis in axes}
    return _viewed(source, name, tuple(d for axis, d in enumerate(source.shape) if axis not in dropped))


def _viewed(source: Constant, name: str, shape: Shape) -> Constant:
    if int(np.prod(shape, dtype=np.int64)) != source.size:
        raise ValueError("a view keeps the number of elements")
    return derived(source, name, shape, lambda: source.load().reshape(shape))


def _axes(inputs: Sequence[Constant], attrs: Attrs) -> tuple[int, ...]:
    """The axes of Squeeze and Unsqueeze: an input from opset 13, an attribute before."""
    if len(inputs) > 1:
        return tuple(int(axis) for axis in inputs[1].load().reshape(-1))
    return tuple(attrs.get("axes", ()))


def _arithmetic(function: Callable[..., Array]) -> Callable[[str, Sequence[Constant], Attrs], Constant]:
    """An elementwise operator on floats: broadcast as numpy does, in float64."""

    def rule(name: str, inputs: Sequence[Constant], attrs: Attrs) -> Constant:
        del attrs
        if any(c.dtype != inputs[0].dtype or c.dtype not in FLOATS for c in inputs):
            raise TypeError("elementwise arithmetic is resolved on floats of one type")
        shape = np.broadcast_shapes(*(c.shape for c in inputs))
        return derived(inputs[0], name, shape, lambda: _quiet(function, *(c.floats() for c in inputs)))

    return rule


def _quiet(function: Callable[..., Array], *arrays: Array) -> Array:
    """Division by zero and overflow give infinities, which every reader of a constant refuses by name."""
    with np.errstate(all="ignore"):
        return function(*arrays)


RULES: Mapping[str, Callable[[str, Sequence[Constant], Attrs], Constant]] = {
    "Identity": _identity,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
    "Neg": _arithmetic(np.negative),
    "Sqrt": _arithmetic(np.sqrt),
    "Reciprocal": _arithmetic(np.reciprocal),
}
