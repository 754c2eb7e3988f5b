"""Operators that pick, write and count places: Gather and Scatter and their kin, ranges, filled tensors, triangles.

Invariant: indices are looked at before anything is made with them: one out of range, or a place that is written twice,
is read differently by runtimes, and stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.errors import InputError
from rewriter.graph.evaluation.calls import NUMBERS, Call, Made, Unknown, alike, counted, looked_at
from rewriter.graph.evaluation.steps import BUDGET
from rewriter.graph.evaluation.views import ANY, moved
from rewriter.graph.tensors import constant_of, dtype_name, numpy_dtype
from rewriter.graph.view import Array, Constant

INDICES = frozenset({"int32", "int64"})


def _indices(constant: Constant, extents: int | Array) -> Array:
    """Indices counted from the front."""
    alike([constant], INDICES)
    found = looked_at(constant).astype(np.int64)
    if not ((found >= -np.asarray(extents)) & (found < extents)).all():
        raise ValueError("an index is out of range")
    return np.where(found < 0, found + extents, found)


def _gather(call: Call) -> Made:
    source, where = call.only(2)
    axis = counted(len(source.shape), call.int("axis", 0))
    index = _indices(where, source.shape[axis])
    shape = (*source.shape[:axis], *where.shape, *source.shape[axis + 1 :])
    return moved(source, shape, lambda x: np.take(x, index, axis))


def _gather_elements(call: Call) -> Made:
    source, where = call.only(2)
    axis = counted(len(source.shape), call.int("axis", 0))
    at = _elements_at(source, where, axis)
    return moved(source, where.shape, lambda x: x[at])


def _elements_at(source: Constant, where: Constant, axis: int) -> tuple[Array, ...]:
    """The places in `source` that belong to the elements of `where`."""
    if len(where.shape) != len(source.shape) or any(a > b for a, b in zip(where.shape, source.shape, strict=True)):
        others = [a > b for i, (a, b) in enumerate(zip(where.shape, source.shape, strict=True)) if i != axis]
        if any(others):
            raise ValueError("its indices reach beyond what they index")
    index = _indices(where, source.shape[axis])
    at = list(np.indices(where.shape, sparse=True))
    at[axis] = index
    return tuple(at)


def _gather_nd(call: Call) -> Made:
    source, where = call.only(2)
    if call.int("batch_dims", 0):
        raise ValueError("it has axes of a batch")
    at, depth = _points(source, where)
    shape = (*where.shape[:-1], *source.shape[depth:])
    return moved(source, shape, lambda x: x[at])


def _points(source: Constant, where: Constant) -> tuple[tuple[Array, ...], int]:
    """The last axis of `where` holds the leading indices of one place each."""
    depth = where.shape[-1] if where.shape else 0
    if not 0 < depth <= len(source.shape):
        raise ValueError("its indices have too many axes, or none")
    found = _indices(where, np.array(source.shape[:depth]))
    return tuple(np.moveaxis(found, -1, 0)), depth


REDUCTIONS: Mapping[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter_nd(call: Call) -> Made:
    source, where, updates = call.only(3)
    alike([source, updates], ANY)
    at, depth = _points(source, where)
    if updates.shape != (*where.shape[:-1], *source.shape[depth:]):
        raise ValueError("its updates do not fit its indices")
    return _written(call, source, updates, at, source.shape[:depth])


def _scatter_elements(call: Call) -> Made:
    source, where, updates = call.only(3)
    alike([source, updates], ANY)
    if updates.shape != where.shape:
        raise ValueError("its updates do not fit its indices")
    axis = counted(len(source.shape), call.int("axis", 0))
    return _written(call, source, updates, _elements_at(source, where, axis), source.shape)


def _written(call: Call, source: Constant, updates: Constant, at: tuple[Array, ...], extents: tuple[int, ...]) -> Made:
    """Plain writing moves elements; a reduction computes, in the type of the elements."""
    reduction = call.text("reduction", "none")
    function = REDUCTIONS.get(reduction)
    if function is None and reduction != "none":
        raise ValueError("its reduction is not known")
    places = np.ravel_multi_index(np.broadcast_arrays(*at), extents) if extents else np.zeros(1)
    if np.unique(places).size != places.size:
        raise ValueError("a place is written twice")

    def compute(x: Array, y: Array) -> Array:
        kind = np.result_type(x, y) if x.dtype != y.dtype else x.dtype
        found = x.astype(kind)  # a copy
        found[at] = y if function is None else function(found[at], y)
        return found

    return Made(source.shape, source.dtype, (source, updates), compute, view=True)


def _full(call: Call) -> Made:
    """ConstantOfShape: one number, a float32 zero where none is given, in the extents that it reads."""
    shape = call.ints(0)
    if shape is None or min(shape, default=0) < 0:
        raise ValueError("it reads no shape")
    content = call.attrs.get("value")
    if content is None:
        return Made(shape, "float32", (), lambda: np.broadcast_to(np.float32(0), shape))
    if not isinstance(content, TensorProto) or prod(content.dims) != 1:
        raise ValueError("its value is no number")
    try:
        value = constant_of(content, None)
        number = value.load().reshape(())
    except InputError as error:
        raise ValueError("its value is no number") from error
    alike([value], ANY)
    return Made(shape, value.dtype, (), lambda: np.broadcast_to(number, shape))


def _range(call: Call) -> Made:
    """Whole numbers, also in floats as long as these are exact."""
    ends = call.only(3)
    dtype = alike(ends, NUMBERS)
    start, limit, step = (float(looked_at(end).reshape(())) for end in ends)
    if not all(n.is_integer() and abs(n) < 1 << 24 for n in (start, limit, step)) or step == 0:
        raise ValueError("it is no range of small whole numbers")
    found = range(int(start), int(limit), int(step))
    if dtype in ("float16", "bfloat16") or len(found) > BUDGET:
        raise Unknown(f"Range gives {len(found):,} elements, or in a type that does not count so far")
    kind = numpy_dtype(dtype)
    return Made((len(found),), dtype, (), lambda: np.arange(found.start, found.stop, found.step).astype(kind))


def _triangle(call: Call) -> Made:
    source, given = call.given(0), call.get(1)
    if len(source.shape) < 2 or (given is not None and given.size != 1):
        raise ValueError("it is no matrix")
    k = 0 if given is None else int(looked_at(given).reshape(()))
    function: Any = np.triu if call.int("upper", 1) else np.tril
    return moved(source, source.shape, lambda x: function(x, k))


def _eye(call: Call) -> Made:
    (like,) = call.only(1)
    if len(like.shape) != 2:
        raise ValueError("it is no matrix")
    dtype = dtype_name(call.int("dtype", 1)) if "dtype" in call.attrs else like.dtype
    k, (rows, columns) = call.int("k", 0), like.shape
    if dtype not in ANY:
        raise TypeError("its elements are no numbers")
    return Made((rows, columns), dtype, (), lambda: np.eye(rows, columns, k))


RULES: Mapping[str, Callable[[Call], Made]] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "ConstantOfShape": _full,
    "Range": _range,
    "Trilu": _triangle,
    "EyeLike": _eye,
}
