"""The judge of every fold: a region is run node by node in float64 and compared with what replaces it.

Invariant: nothing here shares code with the algebra that made it; each op is evaluated from its definition. The
measure is |difference| / S, where S is what the region gives in absolute values (|x|, |W|, |bias|, |mean|, |beta|,
every branch with +): the size of what was added up, which cancellation does not shrink (Higham, Accuracy and Stability
of Numerical Algorithms, section 3.1). Where S = 0 both sides must be 0.

The weights of the region are the elements that the graph stores. What the graph computes them from (`graph.evaluation`)
is not judged here but by the comparison of the whole models, in which a runtime computes it by itself.

Constants that are written around an image stand for what the layer before gives there, and were rounded on the way. A
difference is allowed as far as their last places, through everything behind them, make one; nowhere else, and where
nothing is written none is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.algebra.conv import ConvForm, TransposedForm
from rewriter.algebra.evaluation import Array, CannotRun, Run, convolve, run, spread, through
from rewriter.algebra.linear import Form, LinearForm
from rewriter.algebra.shrinking import shrunk
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Dim, Node
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof

LIMIT = 1e-12
"""A right fold stays below 1e-15, one weight of a common kernel wrong by 1e-5 gives 1e-6 (algebra.md)."""

GAUSSIAN_INPUTS = 4

MOST_PIXELS = 1 << 24
"""Elements that one probing input may have over all sizes; a window or stride that asks for more is not proved."""

OPEN = (1 << 31) - 1
"""An end of a slice from here on is that of whatever it cuts."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs to compare on: zero, then Gaussian ones. They are the rows of one batch, or `whole` values each."""

    size: tuple[int, ...]
    whole: bool

    def inputs(self, random: np.random.Generator, channels: int) -> Array:
        """Of images the channels vary slowest in memory, for the products."""
        count = 1 + GAUSSIAN_INPUTS
        x = random.standard_normal((count, *self.size) if self.whole else (channels, count, *self.size))
        x = x if self.whole else np.moveaxis(x, 0, 1)
        x[0] = 0
        return x

    def map(self, function: Callable[[Array], Array], x: Array) -> Array:
        return np.stack([function(one) for one in x]) if self.whole else function(x)


def prove(region: Region, form: Form, views: Sequence[Node] = ()) -> Proof | Refusal:
    """Whether `form`, unrounded, computes what the region does; see the module for the measure.

    `views` are nodes of the region that stay, one after another behind it.
    """
    if not isinstance(form, LinearForm) and _stores_sizes(region):
        region = _smaller(region, form) or region
    probes = _features(region, form) if isinstance(form, LinearForm) else _images(region, form)
    if isinstance(probes, Refusal):
        return probes
    found = _Found()
    random = np.random.default_rng(0)
    rest = {value.name: float(random.normal()) for _, value in region.rest}
    for probe in probes:
        try:
            with np.errstate(all="ignore"):  # what is not finite fails the comparison
                found = found.or_worse(
                    _compare(region, form, views, probe, probe.inputs(random, _channels(form)), rest)
                )
        except CannotRun as reason:
            return Refusal(Reason.EXACT, region.name, f"cannot be proved: {reason}")
    if not found.beyond <= LIMIT:
        kind = "matrix" if isinstance(form, LinearForm) else "conv"
        detail = f"the folded {kind} differs by {found.error:.1e} of what the branches add up to (limit {LIMIT:g})"
        return Refusal(Reason.EXACT, region.name, detail)
    return Proof(error=found.error, limit=LIMIT + found.rounding, inputs=1 + GAUSSIAN_INPUTS, size=probes[0].size)


def prove_stored(form: Form, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None, *, at: str) -> Refusal | None:
    """Whether the arrays that are written are the nearest finite ones, in the stored type, to the proved kernel."""
    if (bias is None) != (form.bias is None):
        return Refusal(Reason.EXACT, at, "the stored bias is not the proved one")
    pairs = [("weight", weight, form.kernel)]
    if bias is not None and form.bias is not None:
        pairs.append(("bias", bias, form.bias))
    checks = (prove_rounded(exact, stored, form.dtype, at=at, what=role) for role, stored, exact in pairs)
    return next((wrong for wrong in checks if wrong is not None), None)


def prove_rounded(
    exact: Array, stored: npt.NDArray[Any], dtype: str, *, at: str, what: str = "tensor"
) -> Refusal | None:
    """Whether `stored` holds the nearest values of `dtype` to `exact`, all of them finite."""
    if stored.shape != exact.shape or not np.isfinite(stored.astype(np.float64)).all():
        return Refusal(Reason.EXACT, at, f"the stored {what} has another shape, or values that are not finite")
    if not _is_rounded(stored, exact, dtype):
        return Refusal(Reason.EXACT, at, f"the stored {what} is not the proved one, rounded to {dtype}")
    return None


def _is_rounded(stored: npt.NDArray[Any], exact: Array, dtype: str) -> bool:
    """Whether each value is the nearest of its type, an even one in a tie. numpy casts so, but has no bfloat16."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore", under="ignore"):
            return stored.dtype == np.dtype(dtype) and bool((stored == exact.astype(np.dtype(dtype))).all())
    _, exponent = np.frexp(exact)
    step = np.ldexp(1.0, np.maximum(exponent - 1, -126) - 7)  # of the last of the 8 bits around each value
    steps = stored.astype(np.float64) / step
    error = np.abs(steps - exact / step)
    return bool(((steps % 1 == 0) & (error <= 0.5) & ((error < 0.5) | (steps % 2 == 0))).all())


# --- what to compare on ----------------------------------------------------------------------------------------------


def _channels(form: Form) -> int:
    if isinstance(form, TransposedForm):
        return len(form.kernel)
    return form.kernel.shape[1] if isinstance(form, LinearForm) else form.kernel.shape[1] * form.groups


def _features(region: Region, form: LinearForm) -> list[Probe] | Refusal:
    """Two rows or more on every axis, on each another number, or what the region stores."""
    shape = region.entry.shape or (None,) * form.axes
    dims: Sequence[Dim] = shape if _stores_sizes(region) else (None,) * len(shape)
    rows = [n if isinstance(n, int) else 2 + axis for axis, n in enumerate(dims[:-1])]
    return _whole(region, [*rows, _channels(form)])


def _images(region: Region, conv: ConvForm | TransposedForm) -> list[Probe] | Refusal:
    """The smallest sizes that show every class of border in every phase of the stride, or what the region stores."""
    channels = _channels(conv)
    shape = region.entry.shape
    if _stores_sizes(region) and shape is not None:
        batch, sizes = shape[0], [n for n in shape[2:] if isinstance(n, int)]
        if len(sizes) < len(conv.strides):
            return Refusal(Reason.DYNAMIC, region.name, "it stores sizes, and its entry's are not known")
        rows = batch if isinstance(batch, int) else _rows(region, channels * prod(sizes))
        return _whole(region, [rows, channels, *sizes])
    reach = _reach(region, conv)
    strides = conv.strides if isinstance(conv, ConvForm) else (1,) * len(reach)  # the other kind has no phases
    least = [2 * r + s for r, s in zip(reach, strides, strict=True)]
    if channels * max(strides) * np.prod(least, dtype=np.float64) > MOST_PIXELS:
        return Refusal(Reason.LIMIT, region.name, f"to prove it takes inputs of {channels} channels and size {least}")
    sizes = _sizes(region, strides, least)
    if any(node.op == "assign" for node in region.nodes):  # what it writes may be as long as the image
        sizes.append(tuple([n + s * (2 + axis) for axis, (n, s) in enumerate(zip(sizes[-1], strides, strict=True))]))
    return [Probe(size, whole=False) for size in sizes]


def _rows(region: Region, elements: int) -> int:
    """A number of rows of so many elements, two at least, that reshapes can divide as they name their axes."""
    rows = 2
    for node in region.nodes:
        named = prod(n for n in node.attrs.get("shape") or () if n > 0) if node.op == "reshape" else 1
        rows = lcm(rows, named // gcd(named, elements))
    return rows


def _smaller(region: Region, conv: ConvForm | TransposedForm) -> Region | None:
    """A region that stores sizes, for the smallest size of its phases that shows its borders, where there is one."""
    shape = region.entry.shape or ()
    strides = conv.strides if isinstance(conv, ConvForm) else (1,) * len(conv.strides)
    sizes: list[int] = []
    for n, reach, stride in zip(shape[2:], _reach(region, conv), strides, strict=False):
        if not isinstance(n, int):
            return None
        least = 2 * reach + stride
        sizes.append(min(n, least + (n - least) % stride))
    return shrunk(region, sizes)


def _whole(region: Region, size: Sequence[int]) -> list[Probe] | Refusal:
    if np.prod(size, dtype=np.float64) > MOST_PIXELS:
        return Refusal(Reason.LIMIT, region.name, f"to prove it takes inputs of size {list(size)}")
    return [Probe(tuple(size), whole=True)]


def _stores_sizes(region: Region) -> bool:
    """Whether a node is right for some sizes of the entry only."""
    return any(
        node.op in BAKED
        or (node.op == "slice" and _bounded(node))
        or (node.op == "concat" and any(value.constant is not None for value in node.data))
        for node in region.nodes
    )


BAKED = frozenset({"reshape", "expand", "scatter_nd", "where"})


def _bounded(node: Node) -> bool:
    """Whether a slice of places begins or ends where the size decides what that is."""
    cuts = zip(*(node.attrs[key] for key in ("starts", "ends", "axes")), strict=True)
    return any((start < 0 or 0 <= end < OPEN) and axis not in (1,) for start, end, axis in cuts)


def _reach(region: Region, conv: ConvForm | TransposedForm) -> list[int]:
    """Per axis, the extent of the largest window of the region and of the conv."""
    windows = [(conv.kernel.shape[2:], conv.dilations)]
    for node in region.nodes:
        if node.op in ("conv", "conv_transpose") and "weight" in node.consts:
            windows.append((node.consts["weight"].shape[2:], node.attrs["dilations"]))
        elif node.op == "avg_pool" and node.problem is None:
            windows.append((node.attrs["window"], node.attrs["dilations"]))
    reaches = [[d * (k - 1) + 1 for k, d in zip(window, dilations, strict=False)] for window, dilations in windows]
    return [max(reach[axis] for reach in reaches if axis < len(reach)) for axis in range(len(conv.strides))]


def _sizes(region: Region, strides: tuple[int, ...], least: list[int]) -> list[tuple[int, ...]]:
    """The smallest spatial sizes from `least` on, one for every phase of the stride that the entry may have.

    Only an axis whose extent is known has one phase. Axes take their phases together, shifted against each other, so
    that height and width differ.
    """
    shape = region.entry.shape
    known = (None,) * len(least) if shape is None or len(shape) != len(least) + 2 else shape[2:]
    sizes: set[tuple[int, ...]] = set()
    for phase in range(max(strides)):
        axes = enumerate(zip(least, strides, known, strict=True))
        sizes.add(tuple(m + ((n - m) % s if isinstance(n, int) else (phase + axis) % s) for axis, (m, s, n) in axes))
    return sorted(sizes)


# --- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """The largest |difference| / S, that less what the rounding of written constants may make, and that itself."""

    error: float = 0.0
    beyond: float = 0.0
    rounding: float = 0.0

    def or_worse(self, other: _Found) -> _Found:
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("error", "beyond", "rounding"))
        return _Found(*[float(np.maximum(*pair)) for pair in pairs])  # which hands on what is not a number


def _compare(
    region: Region, form: Form, views: Sequence[Node], probe: Probe, x: Array, rest: Mapping[str, float]
) -> _Found:
    """On these inputs; infinite where shapes differ or a zero is missed.

    S grows with every |x|, so that of the least |x| of the Gaussian inputs bounds the S of each from below: one run in
    absolute values serves all, and the error that is reported is never too small.
    """
    exact = probe.map(lambda one: run(region, one, rest, Run(absolute=False)), x)
    folded = probe.map(lambda one: through(views, _folded(form, one)), x)
    for sign, value in region.rest:
        folded = folded + sign * (x if value.name == region.entry.name else rest[value.name])
    if exact.shape != folded.shape:
        return _Found(np.inf, np.inf)
    least = np.stack([np.abs(x[0]), np.abs(x[1:]).min(axis=0)], axis=1).swapaxes(0, 1)
    sizes = {name: abs(value) for name, value in rest.items()}
    size = probe.map(lambda one: run(region, one, sizes, Run(absolute=True)), least)
    spare: Array = np.zeros_like(size)
    if any(node.op in WRITTEN or any(value.constant is not None for value in node.data) for node in region.nodes):
        spare = probe.map(lambda one: run(region, one, sizes, Run(absolute=True, rounded=True)), least) - size
    found = _Found()
    for rows, bound in ((slice(0, 1), slice(0, 1)), (slice(1, None), slice(1, 2))):  # zero with zero, others with least
        found = found.or_worse(_ratios(exact[rows], folded[rows], size[bound], spare[bound]))
    return found


WRITTEN = frozenset({"scatter_nd", "assign"})
"""Operators that write constants, beside those that read one as they read activations."""


def _folded(form: Form, x: Array) -> Array:
    if isinstance(form, LinearForm):
        y = np.matmul(x, form.kernel.T)
        return y if form.bias is None else y + form.bias
    if isinstance(form, TransposedForm):
        y = spread(x, form.kernel, form.strides, form.pads, form.dilations, form.beyond, form.groups)
    else:
        y = convolve(x, form.kernel, form.strides, form.pads, form.dilations, form.groups)
    return y if form.bias is None else y + form.bias.reshape(-1, *(1,) * (x.ndim - 2))


def _ratios(exact: Array, folded: Array, size: Array, spare: Array) -> _Found:
    difference = np.abs(exact - folded)
    if not (np.isfinite(difference).all() and np.isfinite(size).all() and np.isfinite(spare).all()):
        return _Found(np.inf, np.inf)
    empty = np.broadcast_to(size == 0, exact.shape)
    if exact[empty].any() or folded[empty].any():
        return _Found(np.inf, np.inf)
    parts = (difference, np.maximum(difference - spare, 0.0), np.broadcast_to(spare, exact.shape))
    return _Found(*[float(np.divide(p, size, out=np.zeros_like(p), where=~empty).max(initial=0.0)) for p in parts])
