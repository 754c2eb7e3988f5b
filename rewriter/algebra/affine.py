"""Affine maps on a zero-extended grid: what every foldable region computes.

The input is thought of as continued by zeros in every direction. Output position p then reads, per spatial axis, the
input at `stride * p + offset + dilation * tap`, and an input of extent n gives ceil((n + growth) / stride) positions.

Invariant: `kernel` is float64 and holds (out, in / groups, *window), `bias` is float64 and holds (out,). An identity or
a norm is the depthwise 1x1 case (groups = channels), so nothing is made dense before a sum needs it.

Sources: convolution arithmetic after Dumoulin and Visin (arXiv:1603.07285); the sum of parallel kernels after RepVGG
(arXiv:2101.03697) and ACNet (arXiv:1908.03930), aligned here by offset and not by centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.errors import Reason, Refusal

Array: TypeAlias = npt.NDArray[np.float64]
Extents: TypeAlias = tuple[int, ...]
"""One whole number per spatial axis."""

MOST_ELEMENTS = 1 << 27
"""A sum whose kernel grows past this (1 GiB) is not formed; windows far apart would make any size otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """One affine map; see the module for what its fields say."""

    kernel: Array
    bias: Array
    stride: Extents
    offset: Extents  # of the first tap; -pad for an ordinary conv
    dilation: Extents
    growth: Extents  # pad_begin + pad_end - dilation * (k - 1)
    groups: int

    @staticmethod
    def identity(channels: int, rank: int) -> Affine:
        """x itself, on `rank` spatial axes."""
        ones, zeros = (1,) * rank, (0,) * rank
        return Affine(np.ones((channels, 1, *ones)), np.zeros(channels), ones, zeros, ones, zeros, channels)

    @staticmethod
    def conv(
        kernel: Array,
        bias: Array | None = None,
        *,
        stride: Extents,
        pads: tuple[tuple[int, int], ...],
        dilation: Extents,
        groups: int = 1,
    ) -> Affine:
        """A convolution in the usual sense (a cross-correlation) with zero padding."""
        reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        return Affine(
            kernel=kernel,
            bias=np.zeros(len(kernel)) if bias is None else bias,
            stride=stride,
            offset=tuple(-begin for begin, _ in pads),
            dilation=dilation,
            growth=tuple(begin + end - r for (begin, end), r in zip(pads, reach, strict=True)),
            groups=groups,
        )

    @property
    def outputs(self) -> int:
        return self.kernel.shape[0]

    @property
    def inputs(self) -> int:
        return self.kernel.shape[1] * self.groups

    @property
    def rank(self) -> int:
        return self.kernel.ndim - 2

    @property
    def window(self) -> Extents:
        return self.kernel.shape[2:]

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """What a conv with this window would pad; negative where it would have to cut."""
        reach = (d * (k - 1) for d, k in zip(self.dilation, self.window, strict=True))
        return tuple((-o, g + o + r) for o, g, r in zip(self.offset, self.growth, reach, strict=True))

    @property
    def per_channel(self) -> bool:
        """True for y = s * x + t with one s and one t per channel: what norms and identities are."""
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        return (
            self.groups == self.inputs == self.outputs
            and (self.window, self.stride) == (ones, ones)
            and (self.offset, self.growth) == (zeros, zeros)
        )

    def extent(self, size: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The output's spatial extent for an input's; unknown axes stay unknown."""
        axes = zip(size, self.growth, self.stride, strict=True)
        return tuple(None if n is None else -(-(n + g) // s) for n, g, s in axes)

    def scaled(self, factor: Array) -> Affine:
        """`factor * self`, one factor per output channel."""
        column = factor.reshape(-1, *(1,) * (self.kernel.ndim - 1))
        return replace(self, kernel=self.kernel * column, bias=self.bias * factor)

    def shifted(self, term: Array) -> Affine:
        """`self + term`, one term per output channel."""
        return replace(self, bias=self.bias + term)

    def negated(self) -> Affine:
        return replace(self, kernel=-self.kernel, bias=-self.bias)

    def then(self, outer: Affine, *, at: str) -> Affine | Refusal:
        """The map "self, then outer", where self is per channel (s * x + t) and so moves into outer's kernel.

        Outer sees zeros outside the image, not t: with padding this is exact only where t = 0.
        """
        if not self.per_channel:
            return Refusal(Reason.OP, at, "reads the result of another conv")
        if self.outputs != outer.inputs:
            return Refusal(Reason.SHAPE, at, f"reads {self.outputs} channels and its kernel has {outer.inputs}")
        factor, term = self.kernel.reshape(-1), self.bias
        if term.any() and any(pad > 0 for ends in outer.pads for pad in ends):
            return Refusal(Reason.EXACT, at, "pads with zeros what a constant was added to: they differ at the border")
        if not term.any() and (factor == 1).all():
            return outer
        grouped = outer.kernel.reshape(outer.groups, -1, *outer.kernel.shape[1:])  # (group, out, in, *window)
        along = (outer.groups, 1, -1, *(1,) * outer.rank)
        taken = grouped.reshape(*grouped.shape[:3], -1).sum(axis=-1)  # what one output takes of each input in all
        moved = np.matmul(taken, term.reshape(outer.groups, -1, 1)).reshape(-1)
        kernel = (grouped * factor.reshape(along)).reshape(outer.kernel.shape)
        return replace(outer, kernel=kernel, bias=outer.bias + moved)

    def plus(self, other: Affine, *, at: str, size: tuple[int | None, ...] | None = None) -> Affine | Refusal:
        """The sum of two maps of one input, whose spatial extents are `size` where known.

        Windows are aligned by their offsets; the taps of both lie on the lattice of their common divisor, and the
        channels in the coarsest groups that hold both.
        """
        if difference := self._differs(other, size):
            return Refusal(Reason.SHAPE, at, difference)
        axes = [_common(a, b) for a, b in zip(self._taps(), other._taps(), strict=True)]
        groups = gcd(self.groups, other.groups)
        window = tuple((last - first) // step + 1 for first, step, last in axes)
        shape = (self.outputs, self.inputs // groups, *window)
        if prod(shape) > max(MOST_ELEMENTS, self.kernel.size + other.kernel.size):
            return Refusal(Reason.LIMIT, at, f"the common kernel would have {prod(shape):,} elements")
        total = Affine(
            kernel=np.zeros(shape),
            bias=self.bias + other.bias,
            stride=self.stride,
            offset=tuple(first for first, _, _ in axes),
            dilation=tuple(step for _, step, _ in axes),
            growth=self.growth,
            groups=groups,
        )
        for part in (self, other):
            blocks = total._blocks_of(part)
            blocks += part.kernel.reshape(blocks.shape)
        return total

    def _differs(self, other: Affine, size: tuple[int | None, ...] | None) -> str | None:
        """Why the results of two maps of one input cannot be added element by element, if so."""
        if self.rank != other.rank:
            return f"adds {self.rank} spatial axes to {other.rank}"
        if self.inputs != other.inputs:
            return f"adds a map of {self.inputs} channels to one of {other.inputs}"
        if self.outputs != other.outputs:
            return f"adds {self.outputs} channels to {other.outputs}"
        if self.stride != other.stride:
            return f"adds stride {self.stride} to {other.stride}"
        known = size or (None,) * self.rank
        sizes = zip(self.extent(known), other.extent(known), self.growth, other.growth, strict=True)
        for axis, (mine, theirs, growth, others) in enumerate(sizes):
            if growth != others and (mine is None or mine != theirs):
                return f"adds extents that are not provably equal on spatial axis {axis} ({growth:+d} and {others:+d})"
        return None

    def _taps(self) -> list[tuple[int, int, int]]:
        """Per axis: first tap, step (0 where there is one tap only), last tap."""
        axes = zip(self.offset, self.dilation, self.window, strict=True)
        return [(first, d if k > 1 else 0, first + d * (k - 1)) for first, d, k in axes]

    def _blocks_of(self, part: Affine) -> Array:
        """The view of this kernel where `part` has its taps and its groups have their blocks."""
        finer = part.groups // self.groups
        taps = tuple(
            slice((first - origin) // step, (last - origin) // step + 1, own // step or 1)
            for (first, own, last), origin, step in zip(part._taps(), self.offset, self.dilation, strict=True)
        )
        per_group = self.kernel.reshape(
            self.groups, finer, self.outputs // part.groups, finer, self.inputs // part.groups, *self.window
        )
        return np.einsum("gaoai...->gaoi...", per_group)[..., *taps]


def _common(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    """First tap, step and last tap of the coarsest lattice that holds two rows of taps."""
    (first_a, step_a, last_a), (first_b, step_b, last_b) = a, b
    step = gcd(step_a, step_b, first_a - first_b) or 1
    return min(first_a, first_b), step, max(last_a, last_b)
