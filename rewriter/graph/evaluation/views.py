"""Operators that give the same elements in other extents or another order: transposes, reshapes, slices, joins.

Invariant: a rule only moves elements, so that a kernel of an earlier round keeps its digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from rewriter.graph.constants import FEW
from rewriter.graph.evaluation.calls import Call, Made, Shape, Unary, alike, counted, distinct, looked_at
from rewriter.graph.view import Array, Constant

ANY = frozenset({"float16", "bfloat16", "float32", "float64", "bool"}) | frozenset(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)


def moved(source: Constant, shape: Shape, compute: Unary) -> Made:
    if source.dtype not in ANY:
        raise TypeError("its elements are no numbers")
    return Made(shape, source.dtype, (source,), compute, view=True)


def viewed(source: Constant, shape: Shape) -> Made:
    if prod(shape) != source.size or len(shape) > FEW:
        raise ValueError("a view keeps the number of elements")
    return moved(source, shape, lambda x: x.reshape(shape))


def _identity(call: Call) -> Constant:
    (source,) = call.only(1)
    return source


def _dropout(call: Call) -> Constant:
    """Nothing at inference; whether it trains is an attribute until opset 6, and an input from 12."""
    training = call.get(2)
    trains = training is not None and bool(looked_at(training).reshape(()))
    if call.opset < 7 or trains or call.outputs > 1:
        raise ValueError("it may be in training mode")
    return call.given(0)


def _transpose(call: Call) -> Made:
    (source,) = call.only(1)
    rank = len(source.shape)
    order: Shape = tuple(call.attrs.get("perm", range(rank)[::-1]))
    if sorted(order) != list(range(rank)):
        raise ValueError("perm is no order of the axes")
    return moved(source, tuple(source.shape[axis] for axis in order), lambda x: np.transpose(x, order))


def _reshape(call: Call) -> Made:
    source, _ = call.only(2)  # before opset 5 the extents were an attribute: not evaluated
    target = call.ints(1)
    if target is None or min(target, default=0) < -1 or target.count(-1) > 1:
        raise ValueError("the target is no shape")
    if not call.int("allowzero", 0):
        target = tuple([source.shape[i] if d == 0 else d for i, d in enumerate(target)])
    if -1 in target:
        rest = source.size // prod(d for d in target if d != -1)
        target = tuple([rest if d == -1 else d for d in target])
    return viewed(source, target)


def _flatten(call: Call) -> Made:
    (source,) = call.only(1)
    rank = len(source.shape)
    axis = call.int("axis", 1)
    if not -rank <= axis <= rank:
        raise ValueError("the axis is out of range")
    axis = axis + rank if axis < 0 else axis
    return viewed(source, (prod(source.shape[:axis]), prod(source.shape[axis:])))


def _unsqueeze(call: Call) -> Made:
    source, axes = call.given(0), call.listed("axes", 1, since=13)
    if not axes or len(call.inputs) > 2:
        raise ValueError("it names no axes")
    rank = len(source.shape) + len(axes)
    inserted = distinct(rank, axes)
    rest = iter(source.shape)
    return viewed(source, tuple([1 if axis in inserted else next(rest) for axis in range(rank)]))


def _squeeze(call: Call) -> Made:
    source, axes = call.given(0), call.listed("axes", 1, since=13)
    if len(call.inputs) > 2:
        raise ValueError("it has another number of inputs")
    if axes is None:
        axes = tuple(axis for axis, d in enumerate(source.shape) if d == 1)
    elif not axes or any(source.shape[axis] != 1 for axis in axes):
        raise ValueError("an axis is not of extent one; or the list is empty, which runtimes read as none or as all")
    dropped = distinct(len(source.shape), axes)
    return viewed(source, tuple([d for axis, d in enumerate(source.shape) if axis not in dropped]))


def _expand(call: Call) -> Made:
    source, _ = call.only(2)
    target = call.ints(1)
    if target is None or min(target, default=1) < 0:
        raise ValueError("the target is no shape")
    shape = np.broadcast_shapes(source.shape, target)
    return moved(source, shape, lambda x: np.broadcast_to(x, shape))


def _tile(call: Call) -> Made:
    source, _ = call.only(2)
    repeats = call.ints(1)
    if repeats is None or len(repeats) != len(source.shape) or min(repeats, default=0) < 0:
        raise ValueError("it has not one number of repeats per axis")
    shape = tuple([n * times for n, times in zip(source.shape, repeats, strict=True)])
    return moved(source, shape, lambda x: np.tile(x, repeats))


def _slice(call: Call) -> Made:
    """Starts and ends as Python counts them; going backwards, ONNX clamps a start before the first element to it."""
    source = call.given(0)
    starts, ends = call.listed("starts", 1, since=10), call.listed("ends", 2, since=10)
    axes, steps = call.listed("axes", 3, since=10), call.ints(4) if call.opset >= 10 else None
    if starts is None or ends is None:
        raise ValueError("it has no starts or ends")
    axes = distinct(len(source.shape), range(len(starts)) if axes is None else axes)
    cuts = zip(axes, starts, ends, (1,) * len(starts) if steps is None else steps, strict=True)
    where = [slice(None)] * len(source.shape)
    shape = list(source.shape)
    for axis, start, end, step in cuts:
        if step < 0 and start < -shape[axis]:
            raise ValueError("it goes backwards from before the first element, which is clamped in different ways")
        where[axis] = slice(start, end, step)
        shape[axis] = len(range(*where[axis].indices(shape[axis])))
    index = tuple(where)
    return moved(source, tuple(shape), lambda x: x[index])


def _split(call: Call) -> list[Made]:
    source = call.given(0)
    axis = counted(len(source.shape), call.int("axis", 0))
    sizes = call.listed("split", 1, since=13)
    extent = source.shape[axis]
    if sizes is None:
        each = -(-extent // call.outputs)
        sizes = tuple([min(each, extent - each * i) for i in range(call.outputs)])
    if len(sizes) != call.outputs or sum(sizes) != extent or min(sizes) < 0:
        raise ValueError("its parts do not add up")
    ends = np.cumsum(sizes)
    return [_part(source, axis, int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


def _part(source: Constant, axis: int, start: int, end: int) -> Made:
    index = (slice(None),) * axis + (slice(start, end),)
    shape = (*source.shape[:axis], end - start, *source.shape[axis + 1 :])
    return moved(source, shape, lambda x: x[index])


def _concat(call: Call) -> Made:
    constants = call.only(len(call.inputs))
    dtype = alike(constants, ANY)
    first = constants[0].shape
    axis = counted(len(first), call.int("axis", 1 if call.opset < 4 else 1 << 32))
    rest = {(*c.shape[:axis], *c.shape[axis + 1 :]) for c in constants}
    if len(rest) != 1 or any(len(c.shape) != len(first) for c in constants):
        raise ValueError("its parts do not fit together")
    shape = (*first[:axis], sum(c.shape[axis] for c in constants), *first[axis + 1 :])

    def compute(*parts: Array) -> Array:
        return np.concatenate(parts, axis)

    return Made(shape, dtype, constants, compute, view=True)


def _pad(call: Call) -> Made:
    source, flat = call.given(0), call.listed("pads", 1, since=11)
    rank, mode = len(source.shape), call.text("mode", "constant")
    if not rank or flat is None or len(flat) % 2 or mode not in ("constant", "edge", "reflect"):
        raise ValueError("it has no list of pads, or a mode of its own")
    named = call.ints(3) if call.opset >= 18 else None
    axes = distinct(rank, range(rank) if named is None else named)
    half = len(flat) // 2
    pairs = dict(zip(axes, zip(flat[:half], flat[half:], strict=True), strict=True))
    pads = [pairs.get(axis, (0, 0)) for axis in range(rank)]
    kept = [n + min(begin, 0) + min(end, 0) for n, (begin, end) in zip(source.shape, pads, strict=True)]
    grown = [(max(begin, 0), max(end, 0)) for begin, end in pads]
    least = {"constant": 0, "edge": 1, "reflect": max([1, *(1 + amount for pair in grown for amount in pair)])}[mode]
    if min(kept, default=0) < 0 or (mode != "constant" and min(kept, default=1) < least):
        raise ValueError("its pads are larger than what it pads")
    inner = tuple([slice(max(-b, 0), max(-b, 0) + n) for (b, _), n in zip(pads, kept, strict=True)])
    shape = tuple([n + begin + end for n, (begin, end) in zip(kept, grown, strict=True)])
    more: dict[str, Any] = {"constant_values": _fill(call, source)} if mode == "constant" else {}
    padding: Any = np.pad
    return moved(source, shape, lambda x: padding(x[inner], grown, mode=mode, **more))


def _fill(call: Call, source: Constant) -> Any:
    if call.opset < 11:
        return call.number("value", 0.0)
    given = call.get(2)
    if given is None:
        return 0
    if given.dtype != source.dtype or given.size != 1:
        raise TypeError("what it pads with is no number of the same type")
    return looked_at(given).reshape(())


RULES: Mapping[str, Callable[[Call], Made | Constant | Sequence[Made]]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Pad": _pad,
}
