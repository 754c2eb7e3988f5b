"""What a composition that padding forbids would get wrong at the border: a figure for the refusal that forbids it.

The one idea: where the outer kernel stands on padding, the composition reads what the inner map gives there and not
what is padded with; the difference is an affine map too, and its size against the whole one is the error for noise.
Invariant: nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.algebra.composition import composed, constant_part
from rewriter.algebra.rows import Array

if TYPE_CHECKING:
    from rewriter.algebra.affine import Affine

Mask: TypeAlias = "npt.NDArray[np.bool_]"


def in_words(inner: Affine, outer: Affine, fill: Array | float, most: int) -> str:
    """The error of "inner, then outer" at its worst edge, outer's pads holding `fill`; "" past `most` elements."""
    on = inner.lattice_with(outer)
    if outer.outputs * outer.rows.behind(inner.rows).width * prod(on.window) > most:
        return ""
    whole = _size(inner, outer, outer.kernel, 0.0)
    wrong = max((_size(inner, outer, *parts) for parts in _edges(inner, outer, fill)), default=0.0)
    if not (wrong > 0 and whole > 0):
        return ""
    return f": at the border that would be wrong by {(wrong / whole) ** 0.5:.1%}"


def _edges(inner: Affine, outer: Affine, fill: Array | float) -> Iterator[tuple[Array, Array | float, int, Mask]]:
    """Per padded side: outer's taps on the padding, what stands there, and which taps of both still read the image.

    At the begin the first window, at the end one that reaches the last padded place, of an image whose size divides.
    """
    step = inner.lattice_with(outer)
    for axis, (begin, end) in enumerate(outer.pads):
        reach = outer.dilation[axis] * (outer.window[axis] - 1)
        taps = np.arange(outer.window[axis]) * outer.dilation[axis]
        reads = np.arange(step.window[axis]) * step.step[axis] + inner.offset[axis]
        if begin > 0:
            yield _along(outer.kernel, axis, taps < begin), fill, axis, reads >= inner.stride[axis] * begin
        if end > 0:
            before = inner.growth[axis] + inner.stride[axis] * (end - 1 - reach)
            yield _along(outer.kernel, axis, taps > reach - end), fill, axis, reads + before < 0


def _size(
    inner: Affine, outer: Affine, kernel: Array, fill: Array | float, axis: int = 0, inside: Mask | None = None
) -> float:
    """The energy of "inner less `fill`, then this kernel" for noise of variance 1."""
    found, _ = composed(inner.kernel, inner.rows, kernel, outer.rows, inner.lattice_with(outer))
    constant = constant_part(kernel, outer.rows, inner.bias - fill)
    seen = found if inside is None else _along(found, axis, inside)
    return float((seen**2).sum() + (constant**2).sum())


def _along(kernel: Array, axis: int, taps: Mask) -> Array:
    """The kernel with the other taps of one spatial axis set to 0."""
    return kernel * taps.reshape(-1, *(1,) * (kernel.ndim - 3 - axis))
