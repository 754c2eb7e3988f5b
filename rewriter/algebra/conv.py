"""From an affine map to the one conv that is written, and the rounding of its weights to the stored type.

Invariant: a `ConvForm` holds the *unrounded* float64 kernel; its pads are never negative; rounded to `dtype` it is
finite and no output channel is lost to underflow. Rounding is to nearest, ties to even, once (IEEE 754-2019, 4.3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.algebra.affine import MOST_ELEMENTS, Affine
from rewriter.algebra.composition import Extents, blocks
from rewriter.algebra.rows import Array
from rewriter.errors import Reason, Refusal

Stored: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A binary floating-point format: bits of significand with the hidden one, and its exponents."""

    precision: int
    lowest: int  # exponent of the smallest normal number
    highest: int  # exponent of the largest number

    @property
    def smallest_normal(self) -> float:
        return 2.0**self.lowest

    @property
    def largest(self) -> float:
        return (2.0 - 2.0 ** (1 - self.precision)) * 2.0**self.highest

    @property
    def overflow(self) -> float:
        """From here on a number rounds to infinity: half a step past the largest."""
        return (2.0 - 2.0**-self.precision) * 2.0**self.highest if self.precision < 53 else float("inf")


FORMATS: Mapping[str, FloatFormat] = {
    "float16": FloatFormat(11, -14, 15),
    "bfloat16": FloatFormat(8, -126, 127),
    "float32": FloatFormat(24, -126, 127),
    "float64": FloatFormat(53, -1022, 1023),
}


@dataclass(frozen=True, slots=True, eq=False)
class ConvForm:
    """One convolution node to be. `bias` is None where it would be all zero."""

    kernel: Array  # float64, unrounded: (out, in / groups, *window)
    bias: Array | None
    strides: Extents
    pads: tuple[tuple[int, int], ...]
    dilations: Extents
    groups: int
    dtype: str

    @property
    def nodes(self) -> int:
        return 1

    @property
    def parameters(self) -> int:
        return self.kernel.size + (0 if self.bias is None else self.bias.size)

    def weight(self) -> Stored:
        """The kernel as it is stored; see `round_to`."""
        return round_to(self.kernel, self.dtype)

    def stored_bias(self) -> Stored | None:
        return None if self.bias is None else round_to(self.bias, self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class TransposedForm:
    """One transposed convolution node to be. `bias` is None where it would be all zero."""

    kernel: Array  # float64, unrounded: (in, out / groups, *window)
    bias: Array | None
    strides: Extents
    pads: tuple[tuple[int, int], ...]
    dilations: Extents
    beyond: Extents
    groups: int
    dtype: str

    @property
    def nodes(self) -> int:
        return 1

    @property
    def parameters(self) -> int:
        return self.kernel.size + (0 if self.bias is None else self.bias.size)


def transposed_of(affine: Affine, dtype: str, *, at: str = "") -> TransposedForm | Refusal:
    """The transposed convolution that computes a map with a spread, stored as `dtype`."""
    assert affine.spread is not None
    lost = lost_in(affine, dtype, at)
    if lost is not None:
        return lost
    groups, spread = affine.groups, affine.spread
    kernel = blocks(affine.kernel, affine.rows, groups)
    grouped = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)  # (group, in, out, *window)
    return TransposedForm(
        kernel=grouped.reshape(affine.inputs, affine.outputs // groups, *affine.window),
        bias=affine.bias if affine.bias.any() else None,
        strides=spread.strides,
        pads=spread.pads,
        dilations=spread.dilations,
        beyond=spread.beyond,
        groups=groups,
        dtype=dtype,
    )


def conv_of(affine: Affine, dtype: str, *, at: str = "") -> ConvForm | Refusal:
    """The conv that computes an affine map, stored as `dtype`; `at` names the place in a refusal."""
    if not 1 <= affine.rank <= 3:
        return Refusal(Reason.SHAPE, at, f"a conv has 1 to 3 spatial axes, not {affine.rank}")
    padded = _with_pads(affine, at)
    if isinstance(padded, Refusal):
        return padded
    lost = lost_in(padded, dtype, at)
    if lost is not None:
        return lost
    groups = padded.groups
    return ConvForm(
        kernel=blocks(padded.kernel, padded.rows, groups),
        bias=padded.bias if padded.bias.any() else None,
        strides=padded.stride,
        pads=padded.pads,
        dilations=padded.dilation,
        groups=groups,
        dtype=dtype,
    )


def round_to(values: Array, dtype: str) -> Stored:
    """Float64 values rounded once to a stored type, to nearest and ties to even.

    numpy has no bfloat16: its values come as float32 that hold them exactly (`bfloat16_bits` gives the stored bits).
    """
    if dtype != "bfloat16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.dtype(dtype))
    form = FORMATS[dtype]
    _, exponent = np.frexp(values)
    step = np.maximum(exponent - 1, form.lowest) - (form.precision - 1)  # the last place, as a power of two
    rounded = np.ldexp(np.rint(np.ldexp(values, -step)), step)
    with np.errstate(over="ignore"):
        return np.where(np.abs(rounded) > form.largest, np.copysign(np.inf, rounded), rounded).astype(np.float32)


def bfloat16_bits(values: Stored) -> npt.NDArray[np.uint16]:
    """The stored bits of bfloat16 values that `round_to` gave as float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


def _with_pads(affine: Affine, at: str) -> Affine | Refusal:
    """The same map in a window that reaches both edges: a tap past the first or last pad would ask to cut the input."""
    if all(pad >= 0 for ends in affine.pads for pad in ends):
        return affine
    room = [tuple(max(0, -(pad // d)) for pad in ends) for ends, d in zip(affine.pads, affine.dilation, strict=True)]
    window = tuple(k + before + after for k, (before, after) in zip(affine.window, room, strict=True))
    shape = (*affine.kernel.shape[:2], *window)
    if np.prod(shape, dtype=np.float64) > max(MOST_ELEMENTS, affine.kernel.size):
        return Refusal(Reason.LIMIT, at, f"its window would be {window}")
    return replace(
        affine,
        kernel=np.pad(affine.kernel, ((0, 0), (0, 0), *room)),
        offset=tuple(o - d * b for o, d, (b, _) in zip(affine.offset, affine.dilation, room, strict=True)),
    )


def lost_in(affine: Affine, dtype: str, at: str) -> Refusal | None:
    """What rounding would destroy: a value that overflows, or a channel whose every weight is below the normal range.

    Such a channel keeps fewer bits than the type has, or none. One whose largest weight is normal loses at most half a
    unit in the last place of that weight, which is what rounding costs anyway. A channel without weights is its bias.
    """
    form = FORMATS[dtype]
    rows = affine.kernel.reshape(affine.outputs, -1)
    weights = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    bias = np.abs(affine.bias)
    largest = float(np.maximum(weights, bias).max())  # NaN where anything is
    if not largest < form.overflow:
        return Refusal(Reason.VALUE, at, f"folded, a weight of {largest:g} would overflow {dtype}")
    size = np.where(weights > 0, weights, bias)
    under = np.flatnonzero((size > 0) & (size < form.smallest_normal))
    if under.size:
        channel = int(under[0])
        return Refusal(Reason.VALUE, at, f"folded, channel {channel} ({size[channel]:g}) would underflow {dtype}")
    return None
