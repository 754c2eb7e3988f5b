"""Affine maps on a zero-extended grid: what every foldable region computes.

The input is thought of as continued by zeros in every direction. Output position p then reads, per spatial axis, the
input at `stride * p + offset + dilation * tap`, and an input of extent n gives ceil((n + growth) / stride) positions.

It is a map on the whole grid, of which the image is a box: `padded` shows more of it, and is exact only where the map
gives, outside its box, what is padded with. So "conv after conv" is two steps, pad and an unpadded conv, and only the
first can fail.

Invariant: `kernel` is float64 and holds (out, longest run, *window), where `rows` says which inputs the run of each
output is (0 behind shorter ones); `bias` is float64 and holds (out,). An identity or a norm has runs of one channel, so
nothing is made dense before a sum or a composition needs it.

Sources: convolution arithmetic after Dumoulin and Visin (arXiv:1603.07285); the sum of parallel kernels after RepVGG
(arXiv:2101.03697) and ACNet (arXiv:1908.03930), aligned here by offset and not by centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod
from typing import TypeAlias

import numpy as np

from rewriter.algebra import border, composition
from rewriter.algebra.composition import Extents, Lattice, constant_part, lattice
from rewriter.algebra.rows import Array, Indices, Rows, add_rows
from rewriter.errors import Reason, Refusal

Size: TypeAlias = "tuple[int | None, ...]"
"""The spatial extents of an input, where they are known."""

Pads: TypeAlias = "tuple[tuple[int, int], ...]"

MOST_ELEMENTS = 1 << 27
"""A sum whose kernel grows past this (1 GiB) is not formed; windows far apart would make any size otherwise."""

MOST_COMPOSED = 1 << 24
"""A composition whose kernel grows past this, and past both kernels it is made of, is not formed: a depthwise and a
pointwise kernel of a few thousand channels would make one of any size, which no cost gate lets through."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The geometry of a transposed convolution: every input place adds its window, at `strides` from the next one's."""

    strides: Extents
    pads: Pads  # what is cut off again
    dilations: Extents
    beyond: Extents  # places behind the last window

    def extent(self, size: Size, window: Extents) -> Size:
        axes = zip(size, window, self.strides, self.pads, self.dilations, self.beyond, strict=True)
        return tuple([None if n is None else s * (n - 1) + d * (k - 1) + 1 + b - sum(p) for n, k, s, p, d, b in axes])


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """One affine map; see the module for what its fields say.

    With `spread` it is a transposed convolution of that geometry, and the grid that of a conv with the same kernel and
    no pads: only what is done per channel, before or behind it, goes on from there.
    """

    kernel: Array
    bias: Array
    stride: Extents
    offset: Extents  # of the first tap; -pad for an ordinary conv
    dilation: Extents
    growth: Extents  # pad_begin + pad_end - dilation * (k - 1)
    rows: Rows
    spread: Spread | None = None

    @staticmethod
    def identity(channels: int, rank: int) -> Affine:
        """x itself, on `rank` spatial axes."""
        ones, zeros = (1,) * rank, (0,) * rank
        rows = Rows.of_groups(channels, channels, channels)
        return Affine(np.ones((channels, 1, *ones)), np.zeros(channels), ones, zeros, ones, zeros, rows)

    @staticmethod
    def conv(
        kernel: Array,
        bias: Array | None = None,
        *,
        stride: Extents,
        pads: Pads,
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
            rows=Rows.of_groups(len(kernel), kernel.shape[1] * groups, groups),
        )

    @property
    def outputs(self) -> int:
        return self.kernel.shape[0]

    @property
    def inputs(self) -> int:
        return self.rows.inputs

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
    def groups(self) -> int:
        """Of the conv with the most groups that can hold this map."""
        return self.rows.groups

    @property
    def pointwise(self) -> bool:
        """Whether each place reads the same place and no other."""
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        plain = (self.window, self.stride, self.offset, self.growth) == (ones, ones, zeros, zeros)
        return plain and self.spread is None

    @property
    def idle(self) -> bool:
        """Whether it gives what it reads."""
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        own = np.arange(self.outputs)
        return (
            self.spread is None
            and self.kernel.shape == (self.inputs, 1, *ones)
            and (self.stride, self.offset, self.growth) == (ones, zeros, zeros)
            and np.array_equal(self.rows.first, own)
            and bool((self.kernel == 1).all())
            and not self.bias.any()
        )

    def extent(self, size: Size) -> Size:
        """The output's spatial extent for an input's; unknown axes stay unknown."""
        if self.spread is not None:
            return self.spread.extent(size, self.window)
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

    def take(self, channels: Indices) -> Affine:
        """These output channels, in this order."""
        rows = self.rows.take(channels)
        return replace(self, kernel=self.kernel[channels, : rows.width], bias=self.bias[channels], rows=rows)

    def padded(self, pads: Pads, fill: Array | float, *, at: str, size: Size | None = None) -> Affine | Refusal:
        """Its values continued by `fill` (or cut where pads are negative); `size` is the input's, where known.

        Exact where the map itself gives `fill` there: its bias is that, and no tap reads the image any more.
        """
        if self.spread is not None:
            return Refusal(Reason.EXACT, at, "pads what a transposed convolution gives")
        if wrong := self._shows(pads, fill, size):
            edge = Affine.identity(self.outputs, self.rank)._reaching(pads)
            return Refusal(Reason.EXACT, at, f"{wrong}{border.in_words(self, edge, fill, MOST_COMPOSED)}")
        return self._reaching(pads)

    def then(self, outer: Affine, *, at: str, size: Size | None = None) -> Affine | Refusal:
        """The map "self, then outer"; outer pads with zeros, which has to be what self gives there."""
        if self.rank != outer.rank:
            return Refusal(Reason.SHAPE, at, f"reads {self.rank} spatial axes and its kernel has {outer.rank}")
        if self.outputs != outer.inputs:
            return Refusal(Reason.SHAPE, at, f"reads {self.outputs} channels and its kernel has {outer.inputs}")
        if self.idle:
            return outer
        if refused := self._apart(outer, at):
            return refused
        if wrong := self._shows(outer.pads, 0.0, size):
            return Refusal(Reason.EXACT, at, f"{wrong}{border.in_words(self, outer, 0.0, MOST_COMPOSED)}")
        on = self.lattice_with(outer)
        shape = (outer.outputs, outer.rows.behind(self.rows).width, *on.window)
        if prod(shape) > max(MOST_COMPOSED, self.kernel.size + outer.kernel.size):
            return Refusal(Reason.LIMIT, at, f"with what is before it, its kernel would have {prod(shape):,} elements")
        kernel, rows = composition.composed(self.kernel, self.rows, outer.kernel, outer.rows, on)
        return Affine(
            kernel=kernel,
            bias=outer.bias + constant_part(outer.kernel, outer.rows, self.bias),
            stride=tuple(s * t for s, t in zip(self.stride, outer.stride, strict=True)),
            offset=tuple(o + s * p for o, s, p in zip(self.offset, self.stride, outer.offset, strict=True)),
            dilation=on.step,
            growth=tuple(g + s * h for g, s, h in zip(self.growth, self.stride, outer.growth, strict=True)),
            rows=rows,
            spread=self.spread or outer.spread,
        )

    def _apart(self, outer: Affine, at: str) -> Refusal | None:
        """Why one of the two is a transposed convolution that does not go together with the other, if so."""
        if self.spread is not None and not outer.pointwise:
            return Refusal(Reason.OP, at, "slides a window over what a transposed convolution gives")
        if outer.spread is not None and not self.pointwise:
            return Refusal(Reason.OP, at, "is a transposed convolution of what a window slid over")
        if outer.spread is not None and self.bias.any():
            detail = "a constant before a transposed convolution is none behind it: at the border fewer windows meet"
            return Refusal(Reason.EXACT, at, detail)
        return None

    def lattice_with(self, outer: Affine) -> Lattice:
        """Where the taps of \"self, then outer\" lie."""
        return lattice(self.stride, (self.dilation, self.window), (outer.dilation, outer.window))

    def _reaching(self, pads: Pads) -> Affine:
        """The same map on a box that is larger by `pads`."""
        axes = list(zip(self.offset, self.growth, self.stride, pads, strict=True))
        return replace(
            self,
            offset=tuple([o - s * begin for o, _, s, (begin, _) in axes]),
            growth=tuple([g + s * (begin + end) for _, g, s, (begin, end) in axes]),
        )

    def _shows(self, pads: Pads, fill: Array | float, size: Size | None) -> str | None:
        """What the map gives that is not `fill` where pads continue it, if anything; else None."""
        if all(pad <= 0 for ends in pads for pad in ends):
            return None
        if (self.bias != fill).any():
            return f"pads {_with(fill)} where the map before it gives its bias"
        known = size or (None,) * self.rank
        axes = zip(pads, self.stride, self._taps(), self.growth, known, strict=True)
        for axis, ((begin, end), stride, (first, _, last), growth, n) in enumerate(axes):
            behind = growth + first if n is None else -(-(n + growth) // stride) * stride + first - n
            if (begin > 0 and last >= stride) or (end > 0 and behind < 0):
                return f"pads {_with(fill)} where the map before it still reads the image (spatial axis {axis})"
        return None

    def plus(self, other: Affine, *, at: str, size: Size | None = None) -> Affine | Refusal:
        """The sum of two maps of one input, whose spatial extents are `size` where known.

        Windows are aligned by their offsets; the taps of both lie on the lattice of their common divisor, and the
        channels in the coarsest groups that hold both.
        """
        rows = self.rows.union(other.rows) if self.outputs == other.outputs else self.rows
        total = self._blank(other, rows, at, size, "adds")
        if isinstance(total, Refusal):
            return total
        for part in (self, other):
            add_rows(total._where(part), part.rows.first - rows.first, part.kernel, part.rows.count)
        return replace(total, bias=self.bias + other.bias)

    def beside(self, other: Affine, *, at: str, size: Size | None = None) -> Affine | Refusal:
        """The channels of this map, then those of another map of the same input."""
        total = self._blank(other, self.rows.beside(other.rows), at, size, "joins")
        if isinstance(total, Refusal):
            return total
        total._where(self)[: self.outputs, : self.kernel.shape[1]] = self.kernel
        total._where(other)[self.outputs :, : other.kernel.shape[1]] = other.kernel
        return replace(total, bias=np.concatenate([self.bias, other.bias]))

    def _blank(self, other: Affine, rows: Rows, at: str, size: Size | None, does: str) -> Affine | Refusal:
        """A map without weights whose window holds those of both; both have to give the same extents."""
        if difference := self._differs(other, size, does):
            return Refusal(Reason.SHAPE, at, difference)
        axes = [_common(a, b) for a, b in zip(self._taps(), other._taps(), strict=True)]
        window = tuple((last - first) // step + 1 for first, step, last in axes)
        shape = (rows.outputs, rows.width, *window)
        if prod(shape) > max(MOST_ELEMENTS, self.kernel.size + other.kernel.size):
            return Refusal(Reason.LIMIT, at, f"the common kernel would have {prod(shape):,} elements")
        return Affine(
            kernel=np.zeros(shape),
            bias=np.zeros(rows.outputs),
            stride=self.stride,
            offset=tuple(first for first, _, _ in axes),
            dilation=tuple(step for _, step, _ in axes),
            growth=tuple(map(min, self.growth, other.growth)),  # where they differ, both give the known extent
            rows=rows,
            spread=self.spread,
        )

    def _differs(self, other: Affine, size: Size | None, does: str) -> str | None:
        """Why the results of two maps do not lie on one grid over one input, if so."""
        if self.rank != other.rank:
            return f"{does} {self.rank} spatial axes to {other.rank}"
        if self.inputs != other.inputs:
            return f"{does} a map of {self.inputs} channels to one of {other.inputs}"
        if does == "adds" and self.outputs != other.outputs:
            return f"adds {self.outputs} channels to {other.outputs}"
        if self.spread != other.spread or (self.spread is not None and self.window != other.window):
            return f"{does} a transposed convolution to a map of another geometry"
        if self.stride != other.stride:
            return f"{does} stride {self.stride} to {other.stride}"
        known = size or (None,) * self.rank
        sizes = zip(self.extent(known), other.extent(known), self.growth, other.growth, strict=True)
        for axis, (mine, theirs, growth, others) in enumerate(sizes):
            if growth != others and (mine is None or mine != theirs):
                return (
                    f"{does} extents that are not provably equal on spatial axis {axis} ({growth:+d} and {others:+d})"
                )
        return None

    def _taps(self) -> list[tuple[int, int, int]]:
        """Per axis: first tap, step (0 where there is one tap only), last tap."""
        axes = zip(self.offset, self.dilation, self.window, strict=True)
        return [(first, d if k > 1 else 0, first + d * (k - 1)) for first, d, k in axes]

    def _where(self, part: Affine) -> Array:
        """The view of this kernel where `part` has its taps."""
        taps = tuple(
            slice((first - origin) // step, (last - origin) // step + 1, own // step or 1)
            for (first, own, last), origin, step in zip(part._taps(), self.offset, self.dilation, strict=True)
        )
        return self.kernel[:, :, *taps]


def _common(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    """First tap, step and last tap of the coarsest lattice that holds two rows of taps."""
    (first_a, step_a, last_a), (first_b, step_b, last_b) = a, b
    step = gcd(step_a, step_b, first_a - first_b) or 1
    return min(first_a, first_b), step, max(last_a, last_b)


def _with(fill: Array | float) -> str:
    return f"with {float(fill):g}" if np.ndim(fill) == 0 else "with constants"
