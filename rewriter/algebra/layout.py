"""Where the axes of a value lie, in terms of the entry's: what reshapes and transposes do, and whether they net out.

The one idea: a map per row of channels does not care in which order or shape its rows are, so axes are followed as
names, the entry's by their place and the channels by `CHANNELS`, and operators on channels ask where those are.
Invariant: axes are only moved and joined whole and in order. A reshape that would cut through one, or that cannot be
followed for want of a size, gives None; so where a layout is the entry's again, every element is where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

from rewriter.graph.view import Dim

CHANNELS = -1

Axis: TypeAlias = "tuple[int, ...]"
"""The axes of the entry that one axis holds, joined; none where its extent is 1."""

Layout: TypeAlias = "tuple[Axis, ...]"
SizeOf: TypeAlias = "Callable[[int], Dim]"


def of_entry(rank: int, channels: int) -> Layout:
    """The layout of a value with `rank` axes, of which one holds the channels."""
    return tuple([(CHANNELS,) if axis == channels else (axis,) for axis in range(rank)])


def place_of(layout: Layout) -> int | None:
    """The axis that holds the channels and nothing else."""
    return layout.index((CHANNELS,)) if (CHANNELS,) in layout else None


def transposed(layout: Layout, perm: Sequence[int] | None) -> Layout | None:
    order = range(len(layout))[::-1] if perm is None else perm
    return tuple([layout[axis] for axis in order]) if len(order) == len(layout) else None


def squeezed(layout: Layout, axes: Sequence[int] | None) -> Layout | None:
    """Without axes of extent 1, which has to be known of them."""
    placed = None if axes is None else _placed(axes, len(layout))
    if placed is None or any(layout[axis] for axis in placed):
        return None
    return tuple([axis for i, axis in enumerate(layout) if i not in placed])


def unsqueezed(layout: Layout, axes: Sequence[int] | None) -> Layout | None:
    placed = None if axes is None else _placed(axes, len(layout) + len(axes))
    if placed is None:
        return None
    old = iter(layout)
    return tuple([() if i in placed else next(old) for i in range(len(layout) + len(placed))])


def flattened(layout: Layout, axis: int) -> Layout | None:
    """Two axes, what is before and what is behind."""
    if not -len(layout) <= axis <= len(layout):
        return None
    at = axis % len(layout) if axis < 0 else axis
    return tuple([name for one in layout[:at] for name in one]), tuple([name for one in layout[at:] for name in one])


def reshaped(layout: Layout, shape: Sequence[int | str], size_of: SizeOf, *, zero_copies: bool = True) -> Layout | None:
    """Extents from the left and from the right are matched with whole axes; one in the middle takes what is left."""
    names = [name for axis in layout for name in axis]
    wanted: list[int | str | Axis] = list(shape)
    if zero_copies:
        for i, extent in enumerate(shape):
            if extent == 0:
                if i >= len(layout):
                    return None
                wanted[i] = layout[i]
    front = _matched(wanted, names, size_of)
    rest = wanted[len(front) :]
    left = names[sum(map(len, front)) :]
    if not rest:
        return None if left else tuple(front)
    back = [axis[::-1] for axis in _matched([_mirrored(w) for w in rest[:0:-1]], left[::-1], size_of)][::-1]
    if len(back) != len(rest) - 1:
        return None
    middle = left[: len(left) - sum(map(len, back))]
    return (*front, tuple(middle), *back)


def _mirrored(wanted: int | str | Axis) -> int | str | Axis:
    return wanted if isinstance(wanted, int | str) else wanted[::-1]


def _matched(wanted: Sequence[int | str | Axis], names: Sequence[int], size_of: SizeOf) -> list[Axis]:
    """The extents from the first on that are whole axes, as far as sizes are known."""
    found: list[Axis] = []
    at = 0
    for extent in wanted:
        if isinstance(extent, str):
            axis = tuple(names[at : at + 1]) if at < len(names) and size_of(names[at]) == extent else None
        elif isinstance(extent, int):
            axis = _run(extent, names[at:], size_of)
        else:
            axis = extent if tuple(names[at : at + len(extent)]) == extent else None
        if axis is None:
            break
        found.append(axis)
        at += len(axis)
    return found


def _run(extent: int, names: Sequence[int], size_of: SizeOf) -> Axis | None:
    """The shortest run of axes from the first on whose extents multiply to `extent`."""
    if extent < 1:
        return None
    taken = 0
    if extent == 1:
        return tuple(names[:1]) if names and size_of(names[0]) == 1 else ()
    while taken < len(names):
        taken += 1
        sizes = [size_of(name) for name in names[:taken]]
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) < len(sizes) or prod(known) > extent:
            return None
        if prod(known) == extent:
            return tuple(names[:taken])
    return None


def _placed(axes: Sequence[int], rank: int) -> set[int] | None:
    """Axes counted from the front; None where one is out of range or named twice."""
    placed = {axis % rank for axis in axes if -rank <= axis < rank}
    return placed if len(placed) == len(axes) else None
