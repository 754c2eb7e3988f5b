"""What stands for a value while a region is read: a map of the entry, and where its axes lie.

Invariant: `Space` is fixed for a region: which axis of the entry holds channels, and which axes a window slides over.
Every other axis is one of rows, which the map treats alike; so a matrix on features is the case without windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rewriter.algebra.affine import Affine, Size
from rewriter.algebra.layout import CHANNELS, Layout, of_entry, place_of
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Dim


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

    def size_of(self, affine: Affine, name: int) -> int | None:
        """The extent of an axis of the entry, named as layouts do, in the value that a map gives."""
        if name == CHANNELS:
            return affine.outputs
        if self.windows and name > 1:
            return affine.extent(self.size)[name - 2]
        extent = self.dims[name]
        return extent if isinstance(extent, int) else None


@dataclass(frozen=True, slots=True)
class Term:
    """A value inside: a map of the entry (None for zero), its axes, and whether leftovers were added to it."""

    map: Affine | None
    layout: Layout
    open: bool = False

    def of(self, affine: Affine) -> Term:
        return replace(self, map=affine)

    @property
    def channels(self) -> int | None:
        """The axis that holds the channels alone."""
        return place_of(self.layout)


@dataclass(frozen=True, slots=True)
class Aside(Refusal):
    """A value that is an affine map of the entry with its axes elsewhere: no fold ends there, one may go through."""


def aside(at: str) -> Aside:
    return Aside(Reason.SHAPE, at, "its axes lie otherwise than those of what it is computed from")
