"""Each operator of a region by its definition, in float64: the half of the judge that knows what operators mean.

Invariant: nothing here shares code with the algebra. An operator that cannot be evaluated as its node says raises
`CannotRun`. In absolute values (`Run.absolute`) every sum adds up, so the result bounds what rounding may lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.graph.view import Constant, Node
from rewriter.matching.region import Region

Array: TypeAlias = npt.NDArray[np.float64]
Pads: TypeAlias = "tuple[tuple[int, int], ...]"

MOST_COLUMNS = 1 << 23
"""Elements of the unfolded input that one matrix product may hold (64 MiB)."""

MOST_ELEMENTS = 1 << 27
"""Of one value on the way (1 GiB); pads and strides of a hostile file make any size."""


class CannotRun(Exception):
    """A node that cannot be evaluated on what it is given; becomes a Refusal."""


ROUNDING: Mapping[str, float] = {"float64": 8 * 2.0**-52, "float32": 8 * 2.0**-23, "float16": 2 * 2.0**-10}
"""By how much of the largest of them constants beside activations may be off: those that are written around an image
stand for what a layer gives there, and exporters compute the two in different orders. Other types are never off."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way of running a region: as it is, or in absolute values, and then with what is written `rounded` upwards."""

    absolute: bool
    rounded: bool = False
    extents: Mapping[str, int] = field(default_factory=dict[str, int])  # of the entry, by the names that it gives them

    @property
    def minus(self) -> int:
        return 1 if self.absolute else -1

    def constant(self, node: Node, role: str) -> Array:
        values = node.consts[role].floats()
        return np.abs(values) if self.absolute else values

    def written(self, constant: Constant) -> Array:
        values = np.abs(constant.floats()) if self.absolute else constant.floats()
        part = ROUNDING.get(constant.dtype, 0.0) if self.rounded else 0.0
        return values + part * values.max(initial=0.0)

    def channels(self, node: Node, role: str, x: Array) -> Array:
        return self.constant(node, role).reshape(-1, *(1,) * (x.ndim - 2))


def run(region: Region, x: Array, rest: Mapping[str, float], how: Run) -> Array:
    """What the region gives for its entry and its leftovers."""
    values: dict[str, Array] = {name: np.asarray(value) for name, value in rest.items()} | {region.entry.name: x}
    sequences: dict[str, list[Array]] = {}
    named = zip(region.entry.shape or (), x.shape, strict=False)
    how = replace(how, extents={name: extent for name, extent in named if isinstance(name, str)})
    for node in region.nodes:
        if node.op in SEQUENCES and node.problem is None and node.data[0].name in (values.keys() | sequences.keys()):
            _run_sequence(node, values, sequences)
            continue
        evaluate = OPS.get(node.op)
        known = all(value.name in values or value.constant is not None for value in node.data)
        if evaluate is None or node.problem is not None or not known:
            raise CannotRun(f"{node.name or node.output.name} ({node.op}) cannot be evaluated")
        try:
            data = [values[v.name] if v.constant is None else how.written(v.constant) for v in node.data]
            found = evaluate(node, data, how)
        except (ValueError, IndexError, TypeError) as error:  # operands that do not broadcast, sizes that do not fit
            raise CannotRun(f"{node.name or node.output.name} ({node.op}): {error}") from error
        made = found if isinstance(found, list) else [found]  # leftovers are numbers
        values.update((output.name, array) for output, array in zip(node.outputs, made, strict=False))
    if region.exit.name not in values:
        raise CannotRun(f"no node gives {region.exit.name}")
    return values[region.exit.name]


def affordable(shape: Iterable[int]) -> None:
    """Raise where a value of this shape would be too large to make."""
    elements = np.prod([float(n) for n in shape])
    if elements > MOST_ELEMENTS:
        raise CannotRun(f"a value on the way would have {elements:.2g} elements")


def through(nodes: Iterable[Node], x: Array) -> Array:
    """What nodes of one operand each make of a value, one after another."""
    for node in nodes:
        try:
            found = OPS[node.op](node, [x], Run(absolute=False))
        except ValueError as error:
            raise CannotRun(f"{node.name or node.output.name} ({node.op}): {error}") from error
        assert not isinstance(found, list)
        x = found
    return x


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _run_conv(node: Node, data: list[Array], run: Run) -> Array:
    (x,) = data
    weight, attrs = run.constant(node, "weight"), node.attrs
    if weight.ndim != x.ndim or weight.shape[1] * attrs["groups"] != x.shape[1]:
        raise CannotRun(f"{node.name} has a weight of shape {weight.shape} for values of shape {x.shape}")
    y = convolve(x, weight, attrs["strides"], attrs["pads"], attrs["dilations"], attrs["groups"])
    return y + run.channels(node, "bias", x) if "bias" in node.consts else y


def _run_linear(node: Node, data: list[Array], run: Run) -> Array:
    (x,) = data
    y = np.matmul(x, run.constant(node, "weight").T)
    return y + run.constant(node, "bias") if "bias" in node.consts else y


def _run_conv_transpose(node: Node, data: list[Array], run: Run) -> Array:
    (x,) = data
    attrs = node.attrs
    geometry = attrs["strides"], attrs["pads"], attrs["dilations"], attrs["output_padding"]
    y = spread(x, run.constant(node, "weight"), *geometry, attrs["groups"])
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


# --- places and axes -------------------------------------------------------------------------------------------------


def _run_pad(node: Node, data: list[Array], run: Run) -> Array:
    """Negative pads cut; only constants are filled in."""
    (x,) = data
    pads, mode = node.attrs.get("pads"), node.attrs.get("mode")
    if node.attrs.get("amount") == 0:
        return x
    if pads is None or len(pads) != x.ndim or mode != "constant":
        raise CannotRun(f"{node.name} pads in a way that is not evaluated")
    kept = tuple([slice(max(0, -begin), n - max(0, -end)) for n, (begin, end) in zip(x.shape, pads, strict=True)])
    grown = [(max(0, begin), max(0, end)) for begin, end in pads]
    affordable([n + begin + end for n, (begin, end) in zip(x[kept].shape, grown, strict=True)])
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
        raise CannotRun(f"{node.name} averages in a way that is not evaluated")
    if node.attrs["ceil"] and any((n + begin + end - extent) % step for n, extent, step, (begin, end) in axes):
        raise CannotRun(f"{node.name} rounds its size up")
    affordable([*x.shape[:2], *(n + begin + end for n, (begin, end) in zip(x.shape[2:], pads, strict=True))])
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
        raise CannotRun(f"{node.name} ({node.op}) does something at inference")
    return data[0]


def _run_slice(node: Node, data: list[Array], run: Run) -> Array:
    found = data[0]
    for start, end, axis, step in zip(*(node.attrs[key] for key in ("starts", "ends", "axes", "steps")), strict=True):
        every = [slice(None)] * found.ndim
        every[axis] = slice(start, end, step)
        found = found[tuple(every)]
    return found


def _run_split(node: Node, data: list[Array], run: Run) -> list[Array]:
    """Equal parts where no sizes are given, of which the last may be smaller."""
    (x,) = data
    axis, count = node.attrs["axis"], len(node.outputs)
    sizes = node.attrs.get("sizes")
    if sizes is None:
        each = -(-x.shape[axis] // count)
        return np.split(x, [each * i for i in range(1, count)], axis)
    if len(sizes) != count or sum(sizes) != x.shape[axis]:
        raise CannotRun(f"{node.name} splits {x.shape[axis]} into {list(sizes)}")
    return np.split(x, np.cumsum(sizes)[:-1], axis)


SEQUENCES = frozenset({"splittosequence", "sequenceat"})


def _run_sequence(node: Node, values: dict[str, Array], sequences: dict[str, list[Array]]) -> None:
    """A value cut into a sequence, or one value of it."""
    read, attrs = node.data[0].name, node.attrs
    if node.op == "sequenceat":
        if read not in sequences:
            raise CannotRun(f"{node.name} picks from what is no sequence")
        values[node.output.name] = sequences[read][attrs["index"]]
        return
    whole = values[read].shape[attrs["axis"]]
    ends = np.cumsum(attrs["sizes"])[:-1] if "sizes" in attrs else range(attrs["each"], whole, attrs["each"])
    sequences[node.output.name] = np.split(values[read], list(ends), attrs["axis"])


def _run_concat(node: Node, data: list[Array], run: Run) -> Array:
    return np.concatenate(data, axis=node.attrs["axis"])


def _run_gather(node: Node, data: list[Array], run: Run) -> Array:
    if "indices" not in node.consts:
        raise CannotRun(f"{node.name} gathers by what is not constant")
    return np.take(data[0], node.consts["indices"].load(), axis=node.attrs["axis"])


def _run_scatter_nd(node: Node, data: list[Array], run: Run) -> Array:
    """Every index leads to a part of the value, which is replaced."""
    if len(data) != 1 or not {"indices", "updates"} <= node.consts.keys() or node.attrs["reduction"] != "none":
        raise CannotRun(f"{node.name} writes in a way that is not evaluated")
    found = data[0].copy()
    found[tuple(np.moveaxis(node.consts["indices"].load(), -1, 0))] = run.written(node.consts["updates"])
    return found


def _run_assign(node: Node, data: list[Array], run: Run) -> Array:
    """Part of the value is replaced; an end of None is that of the axis."""
    found = data[0].copy()
    ends = zip(node.attrs["starts"], node.attrs["stops"], strict=True)
    found[tuple([slice(start, stop) for start, stop in ends])] = run.written(node.consts["values"])
    return found


def _run_where(node: Node, data: list[Array], run: Run) -> Array:
    if len(data) != 2 or "condition" not in node.consts:
        raise CannotRun(f"{node.name} chooses by what is not constant")
    return np.where(node.consts["condition"].load().astype(np.bool_), *data)


def _run_reshape(node: Node, data: list[Array], run: Run) -> Array:
    (x,) = data
    shape: Sequence[int | str] | None = node.attrs.get("shape", node.attrs.get("extents"))
    if shape is None or any(isinstance(n, str) and n not in run.extents for n in shape):
        raise CannotRun(f"{node.name} has a shape that is not constant")
    known = [run.extents[n] if isinstance(n, str) else n for n in shape]
    return x.reshape([x.shape[i] if n == 0 and not node.attrs.get("allowzero") else n for i, n in enumerate(known)])


def _run_flatten(node: Node, data: list[Array], run: Run) -> Array:
    (x,) = data
    axis = node.attrs.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[: axis if axis >= 0 else x.ndim + axis])), -1)


def _run_transpose(node: Node, data: list[Array], run: Run) -> Array:
    return data[0].transpose(node.attrs.get("perm"))


def _run_squeeze(node: Node, data: list[Array], run: Run) -> Array:
    return data[0].squeeze(node.attrs.get("axes"))


def _run_unsqueeze(node: Node, data: list[Array], run: Run) -> Array:
    return np.expand_dims(data[0], node.attrs["axes"])


OPS: Mapping[str, Callable[[Node, list[Array], Run], Array | list[Array]]] = {
    "conv": _run_conv,
    "conv_transpose": _run_conv_transpose,
    "linear": _run_linear,
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
    "leaky_relu": _run_same,
    "pad": _run_pad,
    "avg_pool": _run_avg_pool,
    "slice": _run_slice,
    "split": _run_split,
    "concat": _run_concat,
    "gather": _run_gather,
    "scatter_nd": _run_scatter_nd,
    "assign": _run_assign,
    "where": _run_where,
    "reshape": _run_reshape,
    "flatten": _run_flatten,
    "transpose": _run_transpose,
    "squeeze": _run_squeeze,
    "unsqueeze": _run_unsqueeze,
}
"""How each op is evaluated; a new op of regions gets its line here, written from its definition alone."""


# --- convolution -----------------------------------------------------------------------------------------------------


def convolve(
    x: Array, weight: Array, strides: tuple[int, ...], pads: Pads, dilations: tuple[int, ...], groups: int
) -> Array:
    """A convolution of (n, channel, *size) as one matrix product with the unfolded input; zero images cost nothing."""
    live = np.flatnonzero([image.any() for image in x])
    affordable([*x.shape[:2], *(n + begin + end for n, (begin, end) in zip(x.shape[2:], pads, strict=True))])
    padded = np.pad(np.moveaxis(x[live], 1, 0), ((0, 0), (0, 0), *pads))
    spatial = tuple(range(2, x.ndim))
    extents = tuple(d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True))
    if any(n < extent for n, extent in zip(padded.shape[2:], extents, strict=True)):
        raise CannotRun(f"a window of {extents} is larger than the padded image {padded.shape[2:]}")
    windows = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=spatial)
    every = tuple(slice(None, None, step) for step in (*strides, *dilations))
    windows = windows[:, :, *every]  # (channel, n, *out, *window)
    rank = len(spatial)
    windows = np.moveaxis(windows, range(2 + rank, 2 + 2 * rank), range(1, 1 + rank))  # (channel, *window, n, *out)
    y = np.zeros((len(weight), len(x), *windows.shape[2 + rank :]))
    if len(live):
        y[:, live] = _product(windows, weight, groups)
    return np.moveaxis(y, 0, 1)


def spread(
    x: Array,
    weight: Array,
    strides: tuple[int, ...],
    pads: Pads,
    dilations: tuple[int, ...],
    beyond: tuple[int, ...],
    groups: int,
) -> Array:
    """A transposed convolution of (n, channel, *size): every place adds its window, and the pads are cut off."""
    if len(weight) != x.shape[1] or weight.ndim != x.ndim:
        raise CannotRun(f"a weight of shape {weight.shape} does not fit values of shape {x.shape}")
    window = weight.shape[2:]
    axes = list(zip(x.shape[2:], window, strides, dilations, beyond, strict=True))
    full = [s * (n - 1) + d * (k - 1) + 1 + b for n, k, s, d, b in axes]
    affordable([len(x), groups, weight.shape[1], *full])
    y = np.zeros((len(x), groups, weight.shape[1], *full))
    grouped = x.reshape(len(x), groups, -1, *x.shape[2:])
    rows = weight.reshape(groups, -1, *weight.shape[1:])
    for tap in np.ndindex(*window):
        at = [slice(d * t, d * t + s * (n - 1) + 1, s) for t, (n, _, s, d, _) in zip(tap, axes, strict=True)]
        y[:, :, :, *at] += np.einsum("ngi...,gio->ngo...", grouped, rows[:, :, :, *tap])
    kept = [slice(begin, size - end) for size, (begin, end) in zip(full, pads, strict=True)]
    return y.reshape(len(x), -1, *full)[:, :, *kept]


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
