"""Products of features with a matrix: Gemm and MatMul as `linear`.

Invariant: a clean `linear` gives weight @ x + bias along the last axis, with the weight as (out, in): alpha, beta and
transB are in its constants already, in float64 and not rounded. A product of two activations is none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rewriter.graph.constants import FLOATS
from rewriter.graph.raw import Canonical, Raw, number, others, parameters, plain, present, whole_number
from rewriter.graph.view import Array, Constant

_OPERANDS = {"weight": 1, "bias": 2}


def gemm(raw: Raw) -> Canonical:
    """alpha * A' * B' + beta * C, of two axes each."""
    consts, problem = parameters(raw, _OPERANDS, needed=1)
    alpha, beta = number(raw, "alpha", 1.0), number(raw, "beta", 1.0)
    across = bool(whole_number(raw, "transB", 0))
    weight, bias = consts.get("weight"), consts.get("bias")
    if raw.value(0) is None:
        problem = "its input is missing"
    elif whole_number(raw, "transA", 0):
        problem = problem or "it reads its input transposed"
    elif raw.opset < 7:
        problem = problem or "before opset 7 its bias broadcasts by attributes"
    elif weight is not None and (len(weight.shape) != 2 or weight.dtype not in FLOATS):
        problem = problem or "its weight is not a matrix of floats"
    if problem is None and weight is not None:
        out = weight.shape[0 if across else 1]
        if bias is not None and not _along_features(bias, out):
            problem = "its bias is not one number per feature"
        else:
            consts = {"weight": _turned(weight, alpha, across)}
            if bias is not None:
                consts["bias"] = _spread(bias, beta, out)
            return Canonical("linear", present(raw)[:1], consts, {"rank": 2})
    attrs = dict(raw.attrs) | {"rank": 2}
    return Canonical("linear", others(raw, _OPERANDS, consts), consts, attrs, problem)


def matmul(raw: Raw) -> Canonical:
    """`linear` where the right operand is a constant matrix; of whatever rank the left is."""
    value, weight = raw.value(0), raw.const(1)
    if value is None or value.constant is not None or weight is None or len(raw.inputs) != 2:
        return plain(raw)
    if len(weight.shape) != 2 or weight.dtype not in FLOATS:
        return plain(raw)
    return Canonical("linear", (value,), {"weight": _turned(weight, 1.0, across=False)})


def _along_features(bias: Constant, out: int) -> bool:
    """Whether it broadcasts as one number per feature, or one for all."""
    if bias.dtype not in FLOATS or len(bias.shape) > 2:
        return False
    return all(n == 1 for n in bias.shape[:-1]) and (bias.shape[-1:] or (1,))[0] in (1, out)


def _turned(weight: Constant, alpha: float, across: bool) -> Constant:
    """The weight as (out, in), times alpha."""
    if across and alpha == 1:
        return weight
    shape = weight.shape if across else weight.shape[::-1]

    def load() -> Array:
        array = weight.load() if alpha == 1 else weight.floats() * alpha
        return array if across else array.T

    return _as(weight, shape, load)


def _spread(bias: Constant, beta: float, out: int) -> Constant:
    if bias.shape == (out,) and beta == 1:
        return bias
    return _as(bias, (out,), lambda: np.broadcast_to(bias.floats().reshape(-1) * beta, (out,)))


def _as(constant: Constant, shape: tuple[int, ...], load: Callable[[], Array]) -> Constant:
    return Constant(constant.name, shape, constant.dtype, load, constant.stored)
