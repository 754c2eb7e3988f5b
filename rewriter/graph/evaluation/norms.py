"""Norms of constants: a batch norm over a kernel, and those that take their statistics from what they normalise.

Invariant: the variance is that of all elements (divided by their number), eps is the stored float32, and nothing but
the normalised values is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rewriter.graph.evaluation.calls import Call, Made, alike, counted, wide
from rewriter.graph.view import Array, Constant


def _batch(call: Call) -> Made:
    """With given statistics; in training mode (from opset 14) with those of the batch."""
    constants = call.only(5)
    source, dtype = constants[0], alike(constants)
    trains = bool(call.int("training_mode", 0)) and call.opset >= 14
    if call.opset < 9 or len(source.shape) < 2 or not source.size or (call.outputs > 1 and not trains):
        raise ValueError("what it normalises by is not clear")
    if any(c.shape != source.shape[1:2] for c in constants[1:]):
        raise ValueError("its parameters are not one number per channel each")
    eps, axes = call.number("epsilon", 1e-5), (0, *range(2, len(source.shape)))
    channels = (-1, *(1,) * (len(source.shape) - 2))

    def compute(x: Array, *parameters: Array) -> Array:
        x = wide(x)
        scale, bias, mean, var = (wide(p).reshape(channels) for p in parameters)
        if trains:
            mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return (x - mean) / np.sqrt(var + eps) * scale + bias

    return Made(source.shape, dtype, constants, compute, exact=False)


def _instance(call: Call) -> Made:
    """Every channel of every image by itself."""
    source, scale, bias = call.only(3)
    dtype, rank = alike([source, scale, bias]), len(source.shape)
    if rank < 3 or scale.shape != source.shape[1:2] or bias.shape != scale.shape:
        raise ValueError("its parameters are not one number per channel each")
    return _own(call, [source, scale, bias], dtype, tuple(range(2, rank)), (-1, *(1,) * (rank - 2)))


def _layer(call: Call) -> Made:
    """All axes from one on; the scale and the bias broadcast."""
    source, scale, bias = call.given(0), call.given(1), call.get(2)
    constants = [source, scale] if bias is None else [source, scale, bias]
    dtype, rank = alike(constants), len(source.shape)
    axis = counted(rank, call.int("axis", -1))
    if any(np.broadcast_shapes(c.shape, source.shape) != source.shape for c in constants) or call.outputs > 1:
        raise ValueError("its parameters do not fit what it normalises")
    return _own(call, constants, dtype, tuple(range(axis, rank)), None)


def _own(
    call: Call, constants: Sequence[Constant], dtype: str, axes: tuple[int, ...], shape: tuple[int, ...] | None
) -> Made:
    eps = call.number("epsilon", 1e-5)
    if not constants[0].size:
        raise ValueError("there is nothing to take statistics of")

    def compute(x: Array, *parameters: Array) -> Array:
        x = wide(x)
        x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
        scale, *bias = (wide(p) if shape is None else wide(p).reshape(shape) for p in parameters)
        return x * scale + bias[0] if bias else x * scale

    return Made(constants[0].shape, dtype, constants, compute, exact=False)


RULES: Mapping[str, Callable[[Call], Made]] = {
    "BatchNormalization": _batch,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
}
