"""From an affine map to the node that is written: a convolution of either kind, or for features a product.

Invariant: as in a `ConvForm`, the matrix is *unrounded* float64 and its rounding to the stored type loses no channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rewriter.algebra.affine import Affine
from rewriter.algebra.composition import blocks
from rewriter.algebra.conv import ConvForm, Stored, TransposedForm, conv_of, lost_in, round_to, transposed_of
from rewriter.algebra.rows import Array
from rewriter.algebra.terms import Space
from rewriter.errors import Refusal


@dataclass(frozen=True, slots=True, eq=False)
class LinearForm:
    """weight @ x + bias along the last of `axes` axes. `bias` is None where it would be all zero."""

    kernel: Array  # float64, unrounded: (out, in)
    bias: Array | None
    axes: int
    dtype: str

    @property
    def parameters(self) -> int:
        return self.kernel.size + (0 if self.bias is None else self.bias.size)

    @property
    def nodes(self) -> int:
        """Written as one Gemm on a matrix, else as a product and an addition."""
        return 1 if self.axes == 2 or self.bias is None else 2

    def weight(self) -> Stored:
        return round_to(self.kernel, self.dtype)


Form: TypeAlias = "ConvForm | LinearForm | TransposedForm"


def form_of(affine: Affine, dtype: str, space: Space, *, at: str = "") -> Form | Refusal:
    """The node that computes an affine map of an entry with these axes, stored as `dtype`."""
    if affine.spread is not None:
        return transposed_of(affine, dtype, at=at)
    if affine.rank or space.windows:
        return conv_of(affine, dtype, at=at)
    refused = lost_in(affine, dtype, at)
    if refused is not None:
        return refused
    bias = affine.bias if affine.bias.any() else None
    return LinearForm(blocks(affine.kernel, affine.rows, 1), bias, len(space.dims), dtype)
