"""The judge of every fold: a region is run node by node in float64 and compared with the one conv that replaces it.

Invariant: nothing here shares code with the algebra that made the conv; each op is evaluated from its definition. The
measure is |difference| / S, where S is what the region gives in absolute values (|x|, |W|, |bias|, |mean|, |beta|,
every branch with +): the size of what was added up, which cancellation does not shrink (Higham, Accuracy and Stability
of Numerical Algorithms, section 3.1). Where S = 0 both sides must be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.algebra.conv import ConvForm
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Node
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof

Array: TypeAlias = npt.NDArray[np.float64]
Pads: TypeAlias = "tuple[tuple[int, int], ...]"

LIMIT = 1e-12
"""A right fold stays below 1e-15, one weight of a common kernel wrong by 1e-5 gives 1e-6 (algebra.md)."""

GAUSSIAN_INPUTS = 4
MOST_COLUMNS = 1 << 23
"""Elements of the unfolded input that one matrix product may hold (64 MiB)."""

MOST_PIXELS = 1 << 24
"""Elements that one probing input may have over all sizes; a window or stride that asks for more is not proved."""


class _CannotRun(Exception):
    """A node that cannot be evaluated on what it is given; becomes a Refusal."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way of running a region: as it is, or in absolute values."""

    absolute: bool

    @property
    def minus(self) -> int:
        return 1 if self.absolute else -1

    def constant(self, node: Node, role: str) -> Array:
        values = node.consts[role].floats()
        return np.abs(values) if self.absolute else values

    def channels(self, node: Node, role: str, x: Array) -> Array:
        return self.constant(node, role).reshape(-1, *(1,) * (x.ndim - 2))


def prove(region: Region, conv: ConvForm) -> Proof | Refusal:
    """Whether `conv`, unrounded, computes what the region does; see the module for the measure."""
    channels = conv.kernel.shape[1] * conv.groups
    reach = _reach(region, conv)
    least = [2 * r + s for r, s in zip(reach, conv.strides, strict=True)]
    if channels * max(conv.strides) * np.prod(least, dtype=np.float64) > MOST_PIXELS:
        return Refusal(Reason.LIMIT, region.name, f"to prove it takes inputs of {channels} channels and size {least}")
    sizes = _sizes(region, conv.strides, least)
    error = 0.0
    random = np.random.default_rng(0)
    rest = {value.name: float(random.normal()) for _, value in region.rest}
    for size in sizes:
        try:
            with np.errstate(all="ignore"):  # what is not finite fails the comparison
                found = _compare(region, conv, _inputs(random, channels, size), rest)
        except _CannotRun as reason:
            return Refusal(Reason.EXACT, region.name, f"cannot be proved: {reason}")
        error = max(error, found)
    if not error <= LIMIT:
        detail = f"the folded conv differs by {error:.1e} of what the branches add up to (limit {LIMIT:g})"
        return Refusal(Reason.EXACT, region.name, detail)
    return Proof(error=error, limit=LIMIT, inputs=1 + GAUSSIAN_INPUTS, size=sizes[0])


def prove_stored(conv: ConvForm, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None, *, at: str) -> Refusal | None:
    """Whether the arrays that are written are the nearest finite ones, in the stored type, to the proved kernel."""
    if (bias is None) != (conv.bias is None):
        return Refusal(Reason.EXACT, at, "the stored bias is not the proved one")
    pairs = [("weight", weight, conv.kernel)]
    if bias is not None and conv.bias is not None:
        pairs.append(("bias", bias, conv.bias))
    checks = (prove_rounded(exact, stored, conv.dtype, at=at, what=role) for role, stored, exact in pairs)
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


def _reach(region: Region, conv: ConvForm) -> list[int]:
    """Per axis, the extent of the largest window of the region and of the conv."""
    windows = [(conv.kernel.shape[2:], conv.dilations)]
    for node in region.nodes:
        if node.op == "conv" and "weight" in node.consts:
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


def _inputs(random: np.random.Generator, channels: int, size: tuple[int, ...]) -> Array:
    """Zero and the Gaussian ones, as (input, channel, *size); channels vary slowest in memory, for the products."""
    x = random.standard_normal((channels, 1 + GAUSSIAN_INPUTS, *size))
    x[:, 0] = 0
    return np.moveaxis(x, 0, 1)


def _compare(region: Region, conv: ConvForm, x: Array, rest: Mapping[str, float]) -> float:
    """The largest |difference| / S on these inputs; infinite where shapes differ or a zero is missed.

    S grows with every |x|, so that of the least |x| of the Gaussian inputs bounds the S of each from below: one run in
    absolute values serves all, and the error that is reported is never too small.
    """
    exact = _run(region, x, rest, Run(absolute=False))
    folded = _conv(x, conv.kernel, conv.strides, conv.pads, conv.dilations, conv.groups)
    if conv.bias is not None:
        folded = folded + conv.bias.reshape(-1, *(1,) * (x.ndim - 2))
    for sign, value in region.rest:
        folded = folded + sign * (x if value.name == region.entry.name else rest[value.name])
    if exact.shape != folded.shape:
        return np.inf
    least = np.stack([np.abs(x[0]), np.abs(x[1:]).min(axis=0)], axis=1).swapaxes(0, 1)
    size = _run(region, least, {name: abs(value) for name, value in rest.items()}, Run(absolute=True))
    pairs = ((slice(0, 1), slice(0, 1)), (slice(1, None), slice(1, 2)))  # zero with zero, Gaussian with the least
    return max(_ratio(exact[rows], folded[rows], size[bound]) for rows, bound in pairs)


def _ratio(exact: Array, folded: Array, size: Array) -> float:
    difference = np.abs(exact - folded)
    if not (np.isfinite(difference).all() and np.isfinite(size).all()):
        return np.inf
    empty = np.broadcast_to(size == 0, exact.shape)
    if exact[empty].any() or folded[empty].any():
        return np.inf
    return float(np.divide(difference, size, out=np.zeros_like(difference), where=~empty).max(initial=0.0))


def _run(region: Region, x: Array, rest: Mapping[str, float], run: Run) -> Array:
    """What the region gives for its entry and its leftovers, each op by its definition."""
    values: dict[str, Array] = {name: np.asarray(value) for name, value in rest.items()}
    values[region.entry.name] = x
    for node in region.nodes:
        evaluate = OPS.get(node.op)
        if evaluate is None or node.problem is not None or any(value.name not in values for value in node.data):
            raise _CannotRun(f"{node.name or node.output.name} ({node.op}) cannot be evaluated")
        try:
            values[node.output.name] = evaluate(node, [values[value.name] for value in node.data], run)
        except ValueError as error:  # operands that do not broadcast
            raise _CannotRun(f"{node.name or node.output.name} ({node.op}): {error}") from error
    if region.exit.name not in values:
        raise _CannotRun(f"no node gives {region.exit.name}")
    return values[region.exit.name]


def _run_conv(node: Node, data: list[Array], run: Run) -> Array:
    (x,) = data
    weight, attrs = run.constant(node, "weight"), node.attrs
    if weight.ndim != x.ndim or weight.shape[1] * attrs["groups"] != x.shape[1]:
        raise _CannotRun(f"{node.name} has a weight of shape {weight.shape} for values of shape {x.shape}")
    y = _conv(x, weight, attrs["strides"], attrs["pads"], attrs["dilations"], attrs["groups"])
    return y + run.channels(node, "bias", x) if "bias" in node.consts else y


def _run_bn(node: Node, data: list[Array], run: Run) -> Array:
    (x,) = data
    scale, bias, mean, var = (run.channels(node, role, x) for role in ("scale", "bias", "mean", "var"))
    return (x + run.minus * mean) / np.sqrt(var + node.attrs["eps"]) * scale + bias


def _run_scale(node: Node, data: list[Array], run: Run) -> Array:
    return data[0] * run.constant(node, "factor")


def _run_shift(node: Node, data: list[Array], run: Run) -> Array:
    sign = 1 if run.absolute else node.attrs["sign"]
    return sign * data[0] + run.constant(node, "term")


def _run_sum(node: Node, data: list[Array], run: Run) -> Array:
    total = data[0]
    for value in data[1:]:
        total = total + value
    return total


def _run_sub(node: Node, data: list[Array], run: Run) -> Array:
    left, right = data
    return left + run.minus * right


def _run_neg(node: Node, data: list[Array], run: Run) -> Array:
    return data[0] if run.absolute else -data[0]


def _run_pad(node: Node, data: list[Array], run: Run) -> Array:
    """Negative pads cut; only constants are filled in."""
    (x,) = data
    pads, mode = node.attrs.get("pads"), node.attrs.get("mode")
    if node.attrs.get("amount") == 0:
        return x
    if pads is None or len(pads) != x.ndim or mode != "constant":
        raise _CannotRun(f"{node.name} pads in a way that is not evaluated")
    kept = tuple([slice(max(0, -begin), n - max(0, -end)) for n, (begin, end) in zip(x.shape, pads, strict=True)])
    grown = [(max(0, begin), max(0, end)) for begin, end in pads]
    fill = abs(node.attrs["value"]) if run.absolute else node.attrs["value"]
    return np.pad(x[kept], grown, constant_values=fill)


def _run_avg_pool(node: Node, data: list[Array], run: Run) -> Array:
    """Sums over windows that stay inside the padded image, by the number of places in a window."""
    (x,) = data
    window, strides, pads, dilations = (node.attrs[key] for key in ("window", "strides", "pads", "dilations"))
    extents = tuple([d * (k - 1) + 1 for d, k in zip(dilations, window, strict=True)])
    counted = node.attrs["include_pad"] or not np.any(pads)
    axes = zip(x.shape[2:], extents, strides, pads, strict=False)
    if len(window) != x.ndim - 2 or not counted:
        raise _CannotRun(f"{node.name} averages in a way that is not evaluated")
    if node.attrs["ceil"] and any((n + begin + end - extent) % step for n, extent, step, (begin, end) in axes):
        raise _CannotRun(f"{node.name} rounds its size up")
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=tuple(range(2, x.ndim)))
    every = tuple([slice(None, None, step) for step in (*strides, *dilations)])
    return windows[:, :, *every].mean(axis=tuple(range(x.ndim, 2 * x.ndim - 2)))


def _run_same(node: Node, data: list[Array], run: Run) -> Array:
    does_nothing = {
        "cast": node.attrs.get("to") == node.attrs.get("from"),
        "leaky_relu": node.attrs.get("slope") == 1,
    }
    if not does_nothing.get(node.op, True):
        raise _CannotRun(f"{node.name} ({node.op}) does something at inference")
    return data[0]


OPS: Mapping[str, Callable[[Node, list[Array], Run], Array]] = {
    "conv": _run_conv,
    "bn": _run_bn,
    "scale": _run_scale,
    "shift": _run_shift,
    "add": _run_sum,
    "sum": _run_sum,
    "sub": _run_sub,
    "neg": _run_neg,
    "identity": _run_same,
    "dropout": _run_same,
    "cast": _run_same,
    "pad": _run_pad,
    "avg_pool": _run_avg_pool,
    "leaky_relu": _run_same,
}
"""How each op is evaluated; a new op of regions gets its line here, written from its definition alone."""


def _conv(
    x: Array, weight: Array, strides: tuple[int, ...], pads: Pads, dilations: tuple[int, ...], groups: int
) -> Array:
    """A convolution of (n, channel, *size) as one matrix product with the unfolded input; zero images cost nothing."""
    live = np.flatnonzero([image.any() for image in x])
    padded = np.pad(np.moveaxis(x[live], 1, 0), ((0, 0), (0, 0), *pads))
    spatial = tuple(range(2, x.ndim))
    extents = tuple(d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True))
    if any(n < extent for n, extent in zip(padded.shape[2:], extents, strict=True)):
        raise _CannotRun(f"a window of {extents} is larger than the padded image {padded.shape[2:]}")
    windows = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=spatial)
    every = tuple(slice(None, None, step) for step in (*strides, *dilations))
    windows = windows[:, :, *every]  # (channel, n, *out, *window)
    rank = len(spatial)
    windows = np.moveaxis(windows, range(2 + rank, 2 + 2 * rank), range(1, 1 + rank))  # (channel, *window, n, *out)
    y = np.zeros((len(weight), len(x), *windows.shape[2 + rank :]))
    if len(live):
        y[:, live] = _product(windows, weight, groups)
    return np.moveaxis(y, 0, 1)


def _product(windows: Array, weight: Array, groups: int) -> Array:
    """`weight` (out, in / groups, *window) times `windows` (in, *window, n, *out), within each group of channels.

    Where the unfolded input would be too large it goes in halves, of the groups first, then of the positions.
    """
    rank = weight.ndim - 2
    positions = windows.shape[1 + rank :]
    if windows.size > MOST_COLUMNS and groups > 1:
        first = groups // 2
        ins, outs = first * weight.shape[1], first * (len(weight) // groups)
        halves = (windows[:ins], weight[:outs], first), (windows[ins:], weight[outs:], groups - first)
        return np.concatenate([_product(*half) for half in halves])
    if windows.size > MOST_COLUMNS and max(positions) > 1:
        longest = int(np.argmax(positions))
        pieces = np.array_split(windows, 2, axis=1 + rank + longest)
        return np.concatenate([_product(piece, weight, groups) for piece in pieces], axis=1 + longest)
    taps = int(np.prod(weight.shape[1:]))
    rows = weight.reshape(groups, -1, taps)
    return np.matmul(rows, windows.reshape(groups, taps, -1)).reshape(len(weight), *positions)
