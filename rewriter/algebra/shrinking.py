"""The same region on a smaller image, so that what it stores for one size is proved at the cost of a small one.

The one idea: windows treat all places alike, so rows and columns may be taken out of the middle of an image, provided
that what is written there goes on evenly: indices behind the gap move up, and those inside it go.
Invariant: that it is even is checked on the elements that go, against those just before them; where it is not, or where
an operator is met that does not treat all places alike, there is no smaller region and the proof takes the full size.
This is part of the judge: it reads the nodes by their definitions and nothing of the algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.graph.view import Array, Constant, Node, Value
from rewriter.matching.region import Region

Indices: TypeAlias = "npt.NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Gap:
    """An axis of so many places, of which `count` from `start` on are taken out."""

    extent: int
    start: int
    count: int

    def padded(self, begin: int, end: int) -> Gap:
        return Gap(self.extent + begin + end, self.start + begin, self.count)

    def windowed(self, reach: int, stride: int) -> Gap:
        """Behind windows that do not leave the image; the gap stays in the middle of what they see."""
        return Gap((self.extent - reach) // stride + 1, (self.start - (reach - 1) // 2) // stride, self.count // stride)


Axes: TypeAlias = "tuple[Gap, ...]"


class Uneven(Exception):
    """A region that is not the same everywhere in the middle, or not known to be."""


def shrunk(region: Region, size: Sequence[int]) -> Region | None:
    """The region on an entry of these spatial extents, at most its own, or None where it would not be the same."""
    shape = region.entry.shape
    if shape is None or len(shape) != 2 + len(size) or not all(isinstance(n, int) for n in shape):
        return None
    small = (*shape[:2], *size)
    gaps = [
        Gap(n, m // 2, n - m) for n, m in zip(shape, small, strict=True) if isinstance(n, int) and isinstance(m, int)
    ]
    axes: dict[str, Axes] = {region.entry.name: tuple(gaps)}
    nodes: list[Node] = []
    try:
        for node in region.nodes:
            made, found = AXES[node.op](node, [axes[value.name] for value in node.data if value.name in axes])
            nodes.append(made)
            axes[node.output.name] = found
    except (Uneven, LookupError, ValueError):  # an operator that is not listed, or a node that does not fit
        return None
    return replace(region, entry=replace(region.entry, shape=small), nodes=tuple(nodes))


# --- operators that write nothing ------------------------------------------------------------------------------------


def _alike(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    """Element by element; constants may not differ along an axis that has a gap."""
    axes = read[0]
    for constant in node.consts.values():
        if any(n > 1 and gap.count for n, gap in zip(constant.shape[::-1], axes[::-1], strict=False)):
            raise Uneven
    return node, axes


def _normed(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    if read[0][1].count:
        raise Uneven
    return node, read[0]


def _added(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    """Leftovers, of which nothing is known, are the same everywhere."""
    if any([(gap.extent, gap.count) for gap in axes] != [(gap.extent, gap.count) for gap in read[0]] for axes in read):
        raise Uneven
    return node, read[0]


def _convolved(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    weight = node.consts["weight"].shape
    return node, (read[0][0], Gap(weight[0], 0, 0), *_windowed(node, read[0], weight[2:]))


def _pooled(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    if node.attrs["ceil"]:
        raise Uneven
    return node, (*read[0][:2], *_windowed(node, read[0], node.attrs["window"]))


def _windowed(node: Node, axes: Axes, window: Sequence[int]) -> list[Gap]:
    found: list[Gap] = []
    geometry = (node.attrs[key] for key in ("pads", "strides", "dilations"))
    for gap, k, (begin, end), stride, dilation in zip(axes[2:], window, *geometry, strict=True):
        if gap.count % stride or axes[0].count or axes[1].count:
            raise Uneven
        found.append(gap.padded(begin, end).windowed(dilation * (k - 1) + 1, stride))
    return found


def _padded(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    if node.attrs["amount"] == 0:
        return node, read[0]
    return node, tuple([gap.padded(*ends) for gap, ends in zip(read[0], node.attrs["pads"], strict=True)])


def _transposed(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    order: Sequence[int] = node.attrs["perm"]
    return node, tuple([read[0][axis] for axis in order])


# --- operators that write --------------------------------------------------------------------------------------------


def _scattered(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    """The indices and updates of a ScatterND, one axis after another without what falls into its gap."""
    axes, indices = read[0], node.consts["indices"].load().astype(np.int64)
    depth = indices.shape[-1]
    extents = np.array([gap.extent for gap in axes[:depth]])
    places = indices.reshape(-1, depth)
    places = np.where(places < 0, places + extents, places)
    updates = node.consts["updates"].load().reshape(len(places), *[gap.extent for gap in axes[depth:]])
    for axis, gap in enumerate(axes):
        if not gap.count:
            continue
        if not 1 <= gap.start < gap.extent - gap.count:
            raise Uneven
        if axis >= depth:
            updates = _without(updates, axis - depth + 1, gap)
        else:
            places, updates = _closed(places, updates, axis, gap)
    consts = {"indices": _of(node.consts["indices"], places), "updates": _of(node.consts["updates"], updates)}
    return replace(node, consts=consts), axes


def _chosen(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    """The condition of a Where, and the constant that it may choose."""
    (axes,) = read
    condition = node.consts["condition"]
    made = replace(node, data=_cut(node.data, axes), consts={"condition": _of(condition, _even(condition, axes))})
    return made, axes


def _joined(node: Node, read: Sequence[Axes]) -> tuple[Node, Axes]:
    """Values one behind the other, of which one may have a gap on that axis, with constants around it."""
    first = read[0]
    axis: int = node.attrs["axis"] % len(first)
    if len(read) != len(node.data) and len(read) == 1:
        widths = [0 if value.constant is None else value.constant.shape[axis] for value in node.data]
        place = next(i for i, value in enumerate(node.data) if value.constant is None)
        beside = tuple([Gap(1, 0, 0) if i == axis else gap for i, gap in enumerate(first)])
        moved = first[axis].padded(sum(widths[:place]), sum(widths[place:]))
        return replace(node, data=_cut(node.data, beside)), (*first[:axis], moved, *first[axis + 1 :])
    if len(read) != len(node.data) or any(axes[axis].count for axes in read):
        raise Uneven
    total = Gap(sum(axes[axis].extent for axes in read), 0, 0)
    return node, (*first[:axis], total, *first[axis + 1 :])


def _cut(data: Sequence[Value], axes: Axes) -> tuple[Value, ...]:
    cut = [v if v.constant is None else replace(v, constant=_of(v.constant, _even(v.constant, axes))) for v in data]
    return tuple(cut)


def _even(constant: Constant, axes: Axes) -> Array:
    """A constant that stands beside a value, without what falls into gaps."""
    elements = constant.load()
    for back, gap in enumerate(axes[::-1], 1):
        if gap.count and back <= elements.ndim and elements.shape[-back] > 1:
            if not 1 <= gap.start < gap.extent - gap.count or elements.shape[-back] != gap.extent:
                raise Uneven
            elements = _without(elements, elements.ndim - back, gap)
    return elements


def _without(elements: Array, axis: int, gap: Gap) -> Array:
    """An array without its gap, where that goes on as it begins."""
    gone = range(gap.start, gap.start + gap.count)
    before = np.take(elements, [gap.start - 1], axis)
    if (np.take(elements, gone, axis) != before).any():
        raise Uneven
    return np.delete(elements, gone, axis)


def _closed(places: Indices, updates: Array, axis: int, gap: Gap) -> tuple[Indices, Array]:
    """The same of elements that are found by places: runs across the gap have to be whole, and of one value."""
    at = places[:, axis]
    along = np.flatnonzero((at >= gap.start - 1) & (at < gap.start + gap.count))
    others = np.delete(places, axis, axis=1)
    order = along[np.lexsort((at[along], *others[along].T))].reshape(-1, 1 + gap.count)
    whole = (at[order] == np.arange(gap.start - 1, gap.start + gap.count)).all()
    if not whole or (others[order] != others[order[:, :1]]).any() or (updates[order] != updates[order[:, :1]]).any():
        raise Uneven
    kept = np.ones(len(places), dtype=np.bool_)
    kept[order[:, 1:]] = False
    moved = places.copy()
    moved[at >= gap.start + gap.count, axis] -= gap.count
    return moved[kept], updates[kept]


def _of(constant: Constant, elements: Array) -> Constant:
    return replace(constant, shape=elements.shape, load=lambda: elements)


Rule: TypeAlias = "Callable[[Node, Sequence[Axes]], tuple[Node, Axes]]"

AXES: Mapping[str, Rule] = (
    {
        "conv": _convolved,
        "avg_pool": _pooled,
        "bn": _normed,
        "pad": _padded,
        "transpose": _transposed,
        "scatter_nd": _scattered,
        "where": _chosen,
        "concat": _joined,
    }
    | dict.fromkeys(("scale", "shift", "identity", "dropout", "cast", "leaky_relu", "neg"), _alike)
    | dict.fromkeys(("add", "sub", "sum"), _added)
)
"""Where the gaps lie behind an operator, and the operator without what falls into them."""
