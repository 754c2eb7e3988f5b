"""Operators that add up along axes: reductions, running sums, softmax.

Invariant: floats add up in float64 and are rounded once; the order of a runtime's own sum is not known, so they are
inexact. Whole numbers add up in their own type and are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from rewriter.graph.constants import FLOATS
from rewriter.graph.evaluation.calls import NUMBERS, Binary, Call, Made, alike, counted, distinct, looked_at, wide
from rewriter.graph.view import Array

Reduce: TypeAlias = "Callable[[Array, tuple[int, ...], bool], Array]"
"""From elements, the axes and whether these stay with an extent of one."""

SINCE = {"ReduceSum": 13}
"""The opset from which axes are an input; 18 for all others."""

PLAIN = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"})
"""What one element alone is left as by; for the others runtimes disagree where no axis is reduced."""

EXACT = frozenset({"ReduceMax", "ReduceMin"})


def _reduction(function: Reduce, dtypes: frozenset[str] = FLOATS) -> Callable[[Call], Made]:
    def rule(call: Call) -> Made:
        source = call.given(0)
        dtype = alike([source], dtypes)
        rank, given = len(source.shape), call.listed("axes", 1, since=SINCE.get(call.op, 18))
        if given == () and "axes" in call.attrs:
            raise ValueError("its list of axes is empty")
        if not given:
            given = () if call.int("noop_with_empty_axes", 0) else tuple(range(rank))
        axes, keep = distinct(rank, given), bool(call.int("keepdims", 1))
        if (not axes and rank and call.op not in PLAIN) or any(source.shape[axis] == 0 for axis in axes):
            raise ValueError("it reduces nothing")
        kept = [(axis, 1 if axis in axes else n) for axis, n in enumerate(source.shape) if keep or axis not in axes]
        shape = tuple([n for _, n in kept])
        exact = dtype not in FLOATS or call.op in EXACT

        def compute(x: Array) -> Array:
            x = wide(x)
            return function(x, axes, keep) if axes or not rank else x

        return Made(shape, dtype, (source,), compute, work=source.size, exact=exact)

    return rule


def _sum(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return x.sum(axes, dtype=x.dtype, keepdims=keep)  # without a type, numpy widens small whole numbers


def _product(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return x.prod(axes, dtype=x.dtype, keepdims=keep)


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    top = x.max(axes, keepdims=True)
    found = np.log(np.exp(x - top).sum(axes, keepdims=True)) + top
    return found if keep else found.squeeze(axes)


def _cumulative(call: Call) -> Made:
    source, given = call.only(2)
    dtype = alike([source], NUMBERS)
    if given.size != 1 or given.dtype not in ("int32", "int64"):
        raise TypeError("its axis is no whole number")
    axis = counted(len(source.shape), int(looked_at(given).reshape(())))
    back, without = bool(call.int("reverse", 0)), bool(call.int("exclusive", 0))

    def compute(x: Array) -> Array:
        x = np.flip(wide(x), axis) if back else wide(x)
        total = x.cumsum(axis, dtype=x.dtype)
        total = total - x if without and dtype not in FLOATS else _shifted(total, axis) if without else total
        return np.flip(total, axis) if back else total

    return Made(source.shape, dtype, (source,), compute, exact=dtype not in FLOATS)


def _shifted(total: Array, axis: int) -> Array:
    """What stood one place before; nothing at the first."""
    found = np.roll(total, 1, axis)
    found[(slice(None),) * axis + (slice(0, 1),)] = 0
    return found


def _softmax(finish: Binary) -> Callable[[Call], Made]:
    """Along one axis; before opset 13 along all from an axis on, which is the same for the last."""

    def rule(call: Call) -> Made:
        (source,) = call.only(1)
        dtype, rank = alike([source]), len(source.shape)
        axis = counted(rank, call.int("axis", -1 if call.opset >= 13 else 1))
        if (call.opset < 13 and axis != rank - 1) or 0 in source.shape:
            raise ValueError("it works on several axes at once")

        def compute(x: Array) -> Array:
            shifted = wide(x) - wide(x).max(axis, keepdims=True)
            return finish(shifted, np.exp(shifted).sum(axis, keepdims=True))

        return Made(source.shape, dtype, (source,), compute, exact=False)

    return rule


RULES: Mapping[str, Callable[[Call], Made]] = {
    "ReduceSum": _reduction(_sum, NUMBERS),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdims=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.max(axes, keepdims=keep), NUMBERS),
    "ReduceMin": _reduction(lambda x, axes, keep: x.min(axes, keepdims=keep), NUMBERS),
    "ReduceProd": _reduction(_product, NUMBERS),
    "ReduceL1": _reduction(lambda x, axes, keep: _sum(np.abs(x), axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: np.sqrt(_sum(x * x, axes, keep))),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: np.log(_sum(x, axes, keep))),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "CumSum": _cumulative,
    "Softmax": _softmax(lambda shifted, total: np.exp(shifted) / total),
    "LogSoftmax": _softmax(lambda shifted, total: shifted - np.log(total)),
}
