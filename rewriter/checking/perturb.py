"""The original's own error: the same model with every float weight off by at most one rounding.

Invariant: the same net and seed give the same weights. Only numbers that the function is made of are touched: constants
that steer shapes, exponents, bounds and resize factors stay, since a changed size is not a rounding error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.checking.net import STANDARD, Net, ancestors, integer, is_float, with_arrays
from rewriter.checking.wire import Array, dtype_of

ROUNDOFF: dict[int, float] = {
    TensorProto.FLOAT: 2.0**-24,
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
    TensorProto.DOUBLE: 2.0**-53,
}

# Inputs that steer an operator instead of being data to it; None means every input after the first.
_STEERING: dict[str, tuple[int, ...] | None] = {
    "Clip": None,
    "ConstantOfShape": (0,),
    "DequantizeLinear": None,
    "Dropout": None,
    "Expand": (1,),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": None,
    "Pow": (1,),
    "QuantizeLinear": None,
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": None,
    "Slice": None,
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": None,
}
_WEIGHTED = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "PRelu",
}
_BLOCK = 1 << 20  # elements perturbed at a time, so that the float64 noise costs no memory


def perturbed(net: Net, seed: int, unit: float = 0.0) -> Net:
    """`net` with each weight w replaced by w·(1 + u·ξ), ξ uniform in [−1, 1], u the roundoff of its stored type, or
    `unit` where the engine computes no finer than that.
    """
    names = set(weights(net))
    rng = np.random.default_rng(seed)
    types = {t.name: t.data_type for t in net.graph.initializer}
    stored = net.stored()
    return with_arrays(net, {n: _noisy(stored[n], max(ROUNDOFF[types[n]], unit), rng) for n in stored if n in names})


def _noisy(values: Array, unit: float, rng: np.random.Generator) -> Array:
    flat = values.reshape(-1)
    result = np.empty_like(flat)
    for at in range(0, flat.size, _BLOCK):
        block = flat[at : at + _BLOCK].astype(np.float64)
        block *= 1 + unit * rng.uniform(-1, 1, block.size)
        result[at : at + _BLOCK] = block.astype(values.dtype)
    return result.reshape(values.shape)


def weights(net: Net) -> Iterator[str]:
    """Names of the float initializers that are weights; scalars count only where an operator takes them as weights."""
    steering: set[str] = set()
    weighted: set[str] = set()
    for node in net.graph.node:
        if node.domain in STANDARD and node.op_type in _STEERING:
            at = _STEERING[node.op_type]
            picked = list(node.input[1:]) if at is None else [node.input[i] for i in at if i < len(node.input)]
            steering.update(filter(None, picked))
        if node.op_type in _WEIGHTED:
            weighted.update(node.input)
    # Behind a Shape, and behind an operator with weights, lies the network itself and no longer the steering.
    fixed = ancestors(net.graph, steering, {"Shape", "Size", *_WEIGHTED})
    for tensor in net.graph.initializer:
        size = np.prod(list(tensor.dims), dtype=np.int64)
        if is_float(tensor.data_type) and tensor.name not in fixed and (size > 1 or tensor.name in weighted):
            yield tensor.name


def roundoff(net: Net) -> float:
    """u of the type that most weight elements are stored in; that of float32 where there are no weights."""
    counts: dict[int, int] = {}
    names = set(weights(net))
    for tensor in net.graph.initializer:
        if tensor.name in names:
            size = int(np.prod(list(tensor.dims), dtype=np.int64))
            counts[tensor.data_type] = counts.get(tensor.data_type, 0) + size
    return ROUNDOFF[max(counts, key=lambda kind: counts[kind])] if counts else ROUNDOFF[TensorProto.FLOAT]


def coarse(net: Net, unit: float) -> bool:
    """Whether the net rounds inside to a grid coarser than `unit`: quantization, or casts to a narrower float."""
    for node in net.graph.node:
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            return True
        if node.op_type == "Cast" and ROUNDOFF.get(integer(node, "to", 0), 0.0) > unit:
            return True
    return False


def roundoff_of(value: Any) -> float:
    """u of an output's own type; 0 for what is not a float array."""
    dtype = getattr(value, "dtype", None)
    return next((unit for kind, unit in ROUNDOFF.items() if dtype_of(kind) == dtype), 0.0)
