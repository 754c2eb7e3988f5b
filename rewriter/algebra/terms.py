"""What stands for a value while a region is read: a map of the entry, and where its axes lie.

Invariant: `Space` is fixed for a region: which axis of the entry holds channels, and which axes a window slides over.
Every other axis is one of rows, which the map treats alike; so a matrix on features is the case without windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from rewriter.algebra.affine import Affine, Size
from rewriter.algebra.layout import CHANNELS, Layout, of_entry, place_of
from rewriter.algebra.placement import Placement
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Dim, Node, Value

Views: TypeAlias = "tuple[Node, ...] | None"


@dataclass(frozen=True, slots=True)
class Space:
    """The entry's axes: `dims` as far as they are known, `channels` of them on axis `axis`, windows from axis 2 on."""

    channels: int
    axis: int
    dims: tuple[Dim, ...]
    windows: bool

    @property
    def layout(self) -> Layout:
        units = [i for i, n in enumerate(self.dims) if n == 1 and i != self.axis and not (self.windows and i > 1)]
        whole = of_entry(len(self.dims), self.axis)
        return tuple([() if i in units else axis for i, axis in enumerate(whole)])

    @property
    def size(self) -> Size:
        """The extents that windows slide over."""
        return tuple([n if isinstance(n, int) else None for n in self.dims[2:]]) if self.windows else ()

    def size_of(self, affine: Affine, name: int) -> Dim:
        """The extent of an axis of the entry, named as layouts do, in the value that a map gives."""
        if name == CHANNELS:
            return affine.outputs
        if self.windows and name > 1:
            return affine.extent(self.size)[name - 2]
        return self.dims[name]


@dataclass(frozen=True, slots=True)
class Cut:
    """A value in which channels were cut into maps: the extents of the maps, those of all axes before them as a reshape
    names them (one may be -1), and where the axes lay before.
    """

    rows: tuple[int, ...]
    extents: tuple[int, ...]
    whole: Layout

    @property
    def places(self) -> int:
        """Of one map."""
        return prod(self.extents[1:])


@dataclass(frozen=True, slots=True)
class Term:
    """A value inside: a map of the entry (None for zero), its axes, and whether leftovers were added to it.

    It is what `views` make, one after another, of the map's own result; None where a later step could not do without
    them being where they are, as one that gives other channels. With a `placement` the map is that of a core inside
    it; with a `cut` its channels lie as maps, and the layout says no more than that.
    """

    map: Affine | None
    layout: Layout
    open: bool = False
    views: Views = ()
    placement: Placement | None = None
    cut: Cut | None = None

    def of(self, affine: Affine) -> Term:
        return replace(self, map=affine)

    def settled(self, space: Space) -> Term | Refusal:
        """What was under construction as a map, views before it left where they are."""
        if self.placement is None or self.map is None:
            return self
        found = self.placement.shown(self.map, space.size)
        return (
            found
            if isinstance(found, Refusal)
            else Term(found, self.layout, self.open, None if self.views else self.views)
        )

    @property
    def channels(self) -> int | None:
        """The axis that holds the channels alone."""
        return place_of(self.layout)


@dataclass(frozen=True, slots=True)
class Parts:
    """A sequence of values: what a split gave in one piece."""

    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Aside(Refusal):
    """A value that is an affine map of the entry with its axes elsewhere, as far as `views` put them there.

    A fold that ends there writes the map and keeps the views; where it has none to keep, it can only go through, as it
    can through a value that is no map, but the `map` of a core with something else around it.
    """

    map: Affine
    views: Views


def aside(at: str, affine: Affine, views: Views) -> Aside:
    return Aside(Reason.SHAPE, at, "its axes lie otherwise than those of what it is computed from", affine, views)


def ends_behind(found: Aside, value: Value | None) -> bool:
    """Whether a fold may end at this value: all of its views stay, and something behind them goes."""
    return bool(found.views) and value is not None and value.producer != found.views[-1].index
