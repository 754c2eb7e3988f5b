"""Products of constants: MatMul, Gemm, Einsum, Conv.

Invariant: the multiply-adds are counted before anything is computed; floats multiply in float64 and are inexact.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from rewriter.graph.constants import FLOATS
from rewriter.graph.evaluation.calls import NUMBERS, Call, Made, Shape, Unknown, alike, wide
from rewriter.graph.evaluation.steps import BUDGET, PRODUCT
from rewriter.graph.view import Array


def _matmul(call: Call) -> Made:
    left, right = call.only(2)
    dtype = alike([left, right], NUMBERS)
    if not left.shape or not right.shape:
        raise ValueError("a product of matrices has no scalars")
    a = left.shape if len(left.shape) > 1 else (1, *left.shape)
    b = right.shape if len(right.shape) > 1 else (*right.shape, 1)
    if a[-1] != b[-2]:
        raise ValueError("its matrices do not fit together")
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    rows, columns = a[-2:-1] if len(left.shape) > 1 else (), b[-1:] if len(right.shape) > 1 else ()
    shape = (*batch, *rows, *columns)
    work = prod((*batch, a[-2], a[-1], b[-1])) // PRODUCT

    def compute(x: Array, y: Array) -> Array:
        return np.matmul(wide(x), wide(y))

    return Made(shape, dtype, (left, right), compute, work=work, exact=dtype not in FLOATS)


def _gemm(call: Call) -> Made:
    left, right, added = call.given(0), call.given(1), call.get(2)
    sources = [left, right] if added is None else [left, right, added]
    dtype = alike(sources)
    if len(left.shape) != 2 or len(right.shape) != 2 or call.opset < 7:
        raise ValueError("it does not multiply two matrices")
    turn = [bool(call.int(name, 0)) for name in ("transA", "transB")]
    a, b = (s[::-1] if turned else s for s, turned in zip((left.shape, right.shape), turn, strict=True))
    shape = (a[0], b[1])
    if a[1] != b[0] or (added is not None and np.broadcast_shapes(added.shape, shape) != shape):
        raise ValueError("its matrices do not fit together")
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)

    def compute(x: Array, y: Array, *more: Array) -> Array:
        product = alpha * (wide(x.T if turn[0] else x) @ wide(y.T if turn[1] else y))
        return product + beta * wide(more[0]) if more else product

    return Made(shape, dtype, sources, compute, work=a[0] * a[1] * b[1] // PRODUCT, exact=False)


def _einsum(call: Call) -> Made:
    """Named axes only; all combinations of indices are counted, though numpy may need fewer."""
    constants = call.only(len(call.inputs))
    dtype = alike(constants)
    inputs, arrow, output = call.text("equation", "").replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(constants) or not all(c in string.ascii_letters for term in (*terms, output) for c in term):
        raise ValueError("its equation is not plain")
    sizes: dict[str, int] = {}
    for term, constant in zip(terms, constants, strict=True):
        for letter, n in zip(term, constant.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise ValueError("its operands do not fit together")
    letters = "".join(terms)
    output = output if arrow else "".join(sorted(letter for letter in sizes if letters.count(letter) == 1))
    if len(set(output)) != len(output) or len(constants) > 4:
        raise ValueError("its equation is not plain")
    shape = tuple([sizes[letter] for letter in output])
    equation = f"{','.join(terms)}->{output}"

    def compute(*arrays: Array) -> Array:
        return np.einsum(equation, *[wide(a) for a in arrays], optimize=("greedy", BUDGET))

    return Made(shape, dtype, constants, compute, work=prod(sizes.values()) // PRODUCT, exact=False)


def _conv(call: Call) -> Made:
    image, weight, bias = call.given(0), call.given(1), call.get(2)
    sources = [image, weight] if bias is None else [image, weight, bias]
    dtype, rank = alike(sources), len(image.shape) - 2
    groups = call.int("group", 1)
    mode = call.text("auto_pad", "NOTSET")
    pads = call.attrs.get("pads", (0,) * 2 * rank) if mode == "NOTSET" else (0,) * 2 * rank
    strides, dilations = (tuple(call.attrs.get(name, (1,) * rank)) for name in ("strides", "dilations"))
    if rank < 1 or len(weight.shape) != rank + 2 or mode not in ("NOTSET", "VALID") or groups < 1:
        raise ValueError("it pads in a way of its own, or is no convolution of images")
    if image.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups or min(pads) < 0:
        raise ValueError("its weight does not fit its image")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError("its bias does not fit its weight")
    around = tuple(zip(pads[:rank], pads[rank:], strict=True))
    axes = zip(image.shape[2:], weight.shape[2:], around, strides, dilations, strict=True)
    sizes = tuple([(n + begin + end - d * (k - 1) - 1) // s + 1 for n, k, (begin, end), s, d in axes])
    padded = prod(n + begin + end for n, (begin, end) in zip(image.shape[2:], around, strict=True))
    if min((*sizes, *strides, *dilations)) < 1 or prod(image.shape[:2]) * padded > BUDGET:
        raise Unknown("its image is smaller than its window, or padded beyond measure")
    shape = (image.shape[0], weight.shape[0], *sizes)
    work = max(prod(shape) * prod(weight.shape[1:]), prod(image.shape[:2]) * padded)

    def compute(x: Array, w: Array, *more: Array) -> Array:
        y = _convolved(np.pad(wide(x), ((0, 0), (0, 0), *around)), wide(w), groups, sizes, strides, dilations)
        return y + wide(more[0]).reshape(-1, *(1,) * rank) if more else y

    return Made(shape, dtype, sources, compute, work=work, exact=False)


def _convolved(x: Array, w: Array, groups: int, sizes: Shape, strides: Shape, dilations: Shape) -> Array:
    """Every tap of the window takes a strided part of the image to all outputs of its group."""
    y = np.zeros((x.shape[0], groups, w.shape[0] // groups, *sizes))
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    kernels = w.reshape(groups, -1, *w.shape[1:])
    for tap in np.ndindex(*w.shape[2:]):
        at = [
            slice(d * t, d * t + s * (n - 1) + 1, s) for t, n, s, d in zip(tap, sizes, strides, dilations, strict=True)
        ]
        y += np.einsum("ngi...,goi->ngo...", grouped[:, :, :, *at], kernels[:, :, :, *tap])
    return y.reshape(x.shape[0], -1, *sizes)


RULES: Mapping[str, Callable[[Call], Made]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": _conv,
}
