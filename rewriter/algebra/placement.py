"""Values under construction: a map on a core box, room around it, and constants that were written into that room.

The one idea: exporters write a padding that no attribute of a Pad can say (the bias of the layer before, per channel)
as a Pad and some ScatterND. Every write fills one box, so the room falls into a few boxes that hold one constant per
channel each; where all of them hold what the map gives outside its image, the whole is that map, shown further.
Invariant: nothing is taken on trust: a write is one full box over all images and channels, apart from the core, with
one value per channel, and every place of the room is compared with the bias. What is compared are boxes, so the extent
of the image does not matter. The proof of a region writes the elements one by one instead, and knows nothing of boxes.

Such rings are those of DBB (Ding et al., arXiv:2103.13425) and of ECBSR (Zhang et al., ACM MM 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.algebra.affine import Affine, Pads, Size
from rewriter.algebra.constants import name_of, tensor
from rewriter.algebra.layout import CHANNELS, Axis, Layout
from rewriter.algebra.rows import Array, Indices
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Dim, Node

if TYPE_CHECKING:
    from rewriter.algebra.terms import Space, Term

KEEPS = frozenset({"identity", "transpose", "scatter_nd", "assign"})
"""Operators under which a value stays under construction; whatever else reads it has to know what it is."""

WRITES = frozenset({"where", "concat"})
"""Operators that read constants beside it, and then write them."""

ROUNDING: Mapping[str, float] = {"float64": 8 * 2.0**-52, "float32": 8 * 2.0**-23, "float16": 2 * 2.0**-10}
"""How far a value may be off, as a part of the largest of its write: some units in the last place, else nothing.
Exporters compute the bias of a folded norm and the values of the ring in different orders, in the type of the model;
of 512 channels in float32 the worst is off by one unit."""

MOST_WRITES = 32

MOST_ELEMENTS = 1 << 24
"""Of a constant that is read; a row of 4 k pixels and 512 channels takes 8 Mi of indices."""

Box: TypeAlias = "tuple[tuple[int, int], ...]"
"""The begin and end of a write on each spatial axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    at: str
    box: Box
    values: Array
    """One per channel."""
    tolerance: float


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What lies around a core: `fill`, and over it what was written. `at` is the node that made room."""

    at: str
    pads: Pads
    fill: float
    writes: tuple[Write, ...] = ()

    def grown(self, axis: int, begin: int, end: int) -> Placement:
        """With more room at both ends of a spatial axis."""

        def along(ends: Sequence[tuple[int, int]], change: tuple[int, int]) -> tuple[tuple[int, int], ...]:
            a, b = ends[axis]
            return (*ends[:axis], (a + change[0], b + change[1]), *ends[axis + 1 :])

        writes = tuple([replace(write, box=along(write.box, (begin, begin))) for write in self.writes])
        return replace(self, pads=along(self.pads, (begin, end)), writes=writes)

    def extent(self, core: Size) -> Size:
        return tuple([None if n is None else n + sum(ends) for n, ends in zip(core, self.pads, strict=True)])

    def shown(self, inner: Affine, size: Size) -> Affine | Refusal:
        """Core and surroundings as one map, `size` being the extents of the entry; or why they are none."""
        if not self.writes:
            return inner.padded(self.pads, self.fill, at=self.at, size=size)
        core = inner.extent(size)
        for write in _last(self, _stood_in(core)):
            if wrong := _differs(write, inner.bias):
                return Refusal(Reason.EXACT, write.at, wrong)
        return inner.padded(self.pads, inner.bias, at=self.at, size=size)


def _stood_in(core: Size) -> list[int]:
    """Extents for those that are open: boxes lie in the room before such a core or behind it, whatever its size.

    So they meet in the same places around a core of one element as around any other.
    """
    return [1 if n is None else n for n in core]


def _last(placement: Placement, core: Sequence[int]) -> list[Write]:
    """The writes of which something is left to be seen, with the fill as one that covers everything.

    Along each axis boxes begin and end at few places, so the pieces between those tell everything.
    """
    inside = [(begin, begin + n) for n, (begin, _) in zip(core, placement.pads, strict=True)]
    whole = tuple([(0, n + sum(ends)) for n, ends in zip(core, placement.pads, strict=True)])
    fill = Write(placement.at, whole, np.asarray(placement.fill), 0.0)
    writes = [fill, *placement.writes]
    boxes = [*[write.box for write in writes], inside]
    marks = [np.unique([place for box in boxes for place in box[axis]]) for axis in range(len(core))]
    seen = np.zeros([len(axis) - 1 for axis in marks], dtype=np.intp)
    for number, box in [*enumerate(boxes[:-1]), (-1, inside)]:
        seen[tuple([slice(*np.searchsorted(axis, ends)) for axis, ends in zip(marks, box, strict=True)])] = number
    return [writes[number] for number in np.unique(seen).tolist() if number >= 0]


def _differs(write: Write, bias: Array) -> str | None:
    """Where what stands in a box is not what the map gives outside its image."""
    off = np.abs(write.values - bias)
    if (off <= write.tolerance).all():
        return None
    channel = int(off.argmax())
    found = float(np.broadcast_to(write.values, bias.shape)[channel])
    return f"writes {found:.9g} around the image where the map before it gives {bias[channel]:.9g} (channel {channel})"


# --- one write -------------------------------------------------------------------------------------------------------


def scattered(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """A ScatterND of constants: one more box."""
    name, indices = name_of(node), node.consts.get("indices")
    if indices is None or not indices.shape or indices.dtype != "int64" or "updates" not in node.consts:
        return Refusal(Reason.VALUE, name, "where or what it writes is no constant")
    if node.attrs["reduction"] != "none":
        return Refusal(Reason.OP, name, "adds to what is there and does not replace it")
    if term.placement is None:
        return Refusal(Reason.EXACT, name, "writes over the image, not around it")
    if max(indices.size, node.consts["updates"].size) > MOST_ELEMENTS:
        return _too_large(name)
    updates = tensor(node, "updates")
    if isinstance(updates, Refusal):
        return updates
    canvas = _canvas(name, term, term.placement, inner, space)
    if isinstance(canvas, Refusal):
        return canvas
    patch = _patch(name, indices.load(), updates, canvas.extents)
    return patch if isinstance(patch, Refusal) else canvas.written(term, [patch], node.consts["updates"].dtype)


def assigned(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """Constants over a slice: one more box, whose bounds lie at a known distance from an end of each axis."""
    name, values = name_of(node), tensor(node, "values")
    if isinstance(values, Refusal):
        return values
    if term.placement is None:
        return Refusal(Reason.EXACT, name, "writes over the image, not around it")
    core, images = inner.extent(space.size), space.dims[0]
    stood_in = _stood_in(core)
    spatial = term.placement.extent(tuple(stood_in))
    extents = _extents(term.layout, inner.outputs, images if isinstance(images, int) else 1, spatial)
    bounds = [*zip(node.attrs["starts"], node.attrs["stops"], strict=True)]
    if extents is None or not len(extents) == len(bounds) == values.ndim or min(extents) < 1:
        return Refusal(Reason.SHAPE, name, "writes to a value with other axes")
    rooms: dict[Axis, tuple[int, int]] = {
        (2 + axis,): ends for axis, ends in enumerate(term.placement.pads) if core[axis] is None
    }
    rooms |= {} if isinstance(images, int) else {(0,): (0, 0)}
    told = node.attrs.get("least", ())  # traces of torch need not say it: their open extents are two at least
    for axis, least in zip(term.layout, told, strict=False):
        if axis in rooms and least <= sum(rooms[axis]):
            return Refusal(Reason.DYNAMIC, name, "the image may be empty, and all of it room")
    for axis, ends in zip(term.layout, bounds, strict=True):
        if axis in rooms and not all(_beside(bound, *rooms[axis]) for bound in ends if bound is not None):
            return Refusal(Reason.EXACT, name, "writes over the image, or for some of its sizes")
    ranges = [slice(*ends).indices(n)[:2] for ends, n in zip(bounds, extents, strict=True)]
    fits = zip(values.shape, ranges, strict=True)
    if any(begin >= end or n not in (1, end - begin) for n, (begin, end) in fits):
        return Refusal(Reason.SHAPE, name, "what it writes does not fit, or is nothing")
    canvas = _Canvas(name, term.placement, extents, tuple(stood_in))
    return canvas.written(term, [_Patch(ranges, values)], node.consts["values"].dtype)


def _beside(bound: int, before: int, behind: int) -> bool:
    """Whether a place, counted from the end where it is negative, lies in the room on its side of the core."""
    return 0 <= bound <= before or -behind <= bound < 0


def chosen(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """A Where between the value and a constant: what it keeps of the value is a box, the constant lies around it."""
    name, condition = name_of(node), node.consts.get("condition")
    at = next((place for place, value in enumerate(node.data) if value.constant is not None), None)
    constant = None if at is None else node.data[at].constant
    if condition is None or constant is None or len(node.data) != 2 or term.placement is None:
        return Refusal(Reason.OP, name, "does not choose between a value with room around it and a constant")
    if max(condition.size, constant.size) > MOST_ELEMENTS:
        return _too_large(name)
    canvas = _canvas(name, term, term.placement, inner, space)
    if isinstance(canvas, Refusal):
        return canvas
    kept = condition.load().astype(np.bool_)
    kept = ~kept if at == 0 else kept
    rank = len(canvas.extents)
    ranges = (
        _box_of(kept.reshape((1,) * (rank - kept.ndim) + kept.shape), canvas.extents) if kept.ndim <= rank else None
    )
    if ranges is None:
        return Refusal(Reason.EXACT, name, "what it keeps of the value is no box")
    elements = constant.floats()
    if elements.ndim > rank or not np.isfinite(elements).all():
        return Refusal(Reason.VALUE, name, "its constant has more axes than the value, or is not finite")
    elements = elements.reshape((1,) * (rank - elements.ndim) + elements.shape)
    patches: list[_Patch] = []
    for axis, ((begin, end), extent) in enumerate(zip(ranges, canvas.extents, strict=True)):
        for run in ((0, begin), (end, extent)):
            if run[0] < run[1]:
                whole = [(0, n) for n in canvas.extents]
                patches.append(_Patch([*whole[:axis], run, *whole[axis + 1 :]], elements))
    return canvas.written(term, patches, constant.dtype)


def _box_of(kept: npt.NDArray[np.bool_], extents: Sequence[int]) -> Sequence[tuple[int, int]] | None:
    """The box that is marked, of a mask that broadcasts to these extents."""
    if any(n not in (1, extent) for n, extent in zip(kept.shape, extents, strict=True)) or not kept.any():
        return None
    ranges: list[tuple[int, int]] = []
    for axis, n in enumerate(kept.shape):
        marked = np.flatnonzero(kept.any(axis=tuple([other for other in range(kept.ndim) if other != axis])))
        ranges.append((int(marked[0]), int(marked[-1]) + 1) if n > 1 else (0, extents[axis]))
    inside = tuple(
        [slice(begin, end) if n > 1 else slice(None) for (begin, end), n in zip(ranges, kept.shape, strict=True)]
    )
    return ranges if kept[inside].all() else None


def joined(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """A Concat with constants along a spatial axis: more room, and the constants in it."""
    name, rank = name_of(node), len(term.layout)
    axis: int = node.attrs["axis"]
    held = term.layout[axis] if -rank <= axis < rank else ()
    if not space.windows or len(held) != 1 or held[0] < 2:
        return Refusal(Reason.OP, name, "joins constants to the channels or images")
    axis, along = axis % rank, held[0] - 2
    given = [value.constant for value in node.data]
    place = given.index(None)
    constants = [constant for constant in given if constant is not None]
    if any(len(constant.shape) != rank for constant in constants):
        return Refusal(Reason.SHAPE, name, "joins constants of other axes")
    if any(constant.size > MOST_ELEMENTS for constant in constants):
        return _too_large(name)
    before, behind = (sum(c.shape[axis] for c in part) for part in (constants[:place], constants[place:]))
    placed = term.placement or Placement(name, ((0, 0),) * inner.rank, 0.0)
    canvas = _canvas(name, term, placed.grown(along, before, behind), inner, space)
    if isinstance(canvas, Refusal):
        return canvas
    patches: list[_Patch] = []
    at = 0
    for number, constant in enumerate(constants):
        at = canvas.extents[axis] - behind if number == place else at
        elements, end = constant.floats(), at + constant.shape[axis]
        ranges = [*[(0, n) for n in canvas.extents[:axis]], (at, end), *[(0, n) for n in canvas.extents[axis + 1 :]]]
        if elements.shape != tuple([stop - start for start, stop in ranges]) or not np.isfinite(elements).all():
            return Refusal(Reason.SHAPE, name, "joins constants of another size, or that are not finite")
        patches += [_Patch(ranges, elements)] if elements.size else []
        at = end
    return canvas.written(term, patches, constants[0].dtype)


def _too_large(name: str) -> Refusal:
    return Refusal(Reason.LIMIT, name, f"what it writes has more than {MOST_ELEMENTS:,} elements")


@dataclass(frozen=True, slots=True, eq=False)
class _Canvas:
    """A value under construction with known extents, and the spatial ones of its core."""

    at: str
    placed: Placement
    extents: Sequence[int]
    core: Size

    def written(self, term: Term, patches: Sequence[_Patch], dtype: str) -> Term | Refusal:
        """With these boxes written over what is there."""
        writes = [*self.placed.writes]
        for patch in patches:
            strip = _strip(self.at, patch, term.layout, self.extents)
            if isinstance(strip, Refusal):
                return strip
            box, values = strip
            axes = zip(box, self.placed.pads, self.core, strict=True)
            if all(begin < before + (n or 0) and before < end for (begin, end), (before, _), n in axes):
                return Refusal(Reason.EXACT, self.at, "writes over the image, not around it")
            tolerance = ROUNDING.get(dtype, 0.0) * float(np.abs(values).max())
            writes.append(Write(self.at, box, values, tolerance))
        if len(writes) > MOST_WRITES:
            return Refusal(Reason.LIMIT, self.at, f"more than {MOST_WRITES} writes, one over another")
        return replace(term, placement=replace(self.placed, writes=tuple(writes)))


def _canvas(name: str, term: Term, placed: Placement, inner: Affine, space: Space) -> _Canvas | Refusal:
    core = inner.extent(space.size)
    extents = _extents(term.layout, inner.outputs, space.dims[0], placed.extent(core))
    if extents is None:
        return Refusal(Reason.DYNAMIC, name, "where it writes depends on a size that is not known")
    return _Canvas(name, placed, extents, core)


def _extents(layout: Layout, channels: int, images: Dim, spatial: Size) -> list[int] | None:
    """Of the axes of a value under construction, where all are known and none are joined."""
    known: dict[Axis, Dim] = {(): 1, (CHANNELS,): channels, (0,): images}
    known |= {(2 + axis,): n for axis, n in enumerate(spatial)}
    found = [extent for axis in layout if isinstance(extent := known.get(axis), int)]
    return found if len(found) == len(layout) else None


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    """What one write covers: the begin and end on every axis of the value, and the elements in their places."""

    ranges: Sequence[tuple[int, int]]
    elements: Array


def _patch(name: str, indices: Indices, updates: Array, extents: Sequence[int]) -> _Patch | Refusal:
    """ScatterND by its definition: `indices[..., :]` leads to a part of the value, which `updates[...]` replaces.

    Later ones would win over earlier ones in some order; so none may be named twice, and all have to fill a box.
    """
    depth = indices.shape[-1]
    if not 1 <= depth <= len(extents) or updates.shape != (*indices.shape[:-1], *extents[depth:]) or not updates.size:
        found = f"indices {list(indices.shape)} and updates {list(updates.shape)} for a value of {list(extents)}"
        return Refusal(Reason.SHAPE, name, f"what it writes does not fit: {found}")
    sizes = np.asarray(extents[:depth])
    places = indices.reshape(-1, depth)
    if (places < -sizes).any() or (places >= sizes).any():
        return Refusal(Reason.VALUE, name, "an index is out of range")
    places = places % sizes
    first = places.min(axis=0)
    shape = tuple((places.max(axis=0) + 1 - first).tolist())
    order: Indices = np.asarray(np.ravel_multi_index(tuple((places - first).T), shape))
    if prod(shape) != len(order) or (np.bincount(order) != 1).any():
        return Refusal(Reason.EXACT, name, "the places that it writes to are no box, or some are written twice")
    elements = np.empty((len(order), *updates.shape[indices.ndim - 1 :]))
    elements[order] = updates.reshape(elements.shape)
    begins = first.tolist()
    ranges = [*zip(begins, [b + n for b, n in zip(begins, shape, strict=True)], strict=True)]
    return _Patch([*ranges, *[(0, n) for n in extents[depth:]]], elements.reshape(*shape, *extents[depth:]))


def _strip(name: str, patch: _Patch, layout: Layout, extents: Sequence[int]) -> tuple[Box, Array] | Refusal:
    """Its box on the spatial axes and its values per channel, where it is full on all others and knows no other."""
    spatial = [layout.index((2 + axis,)) for axis in range(len(layout) - 2)]
    full = zip(patch.ranges, extents, strict=True)
    if any(run != (0, n) and axis not in spatial for axis, (run, n) in enumerate(full)):
        return Refusal(Reason.OP, name, "writes to some of the images or channels")
    channels = layout.index((CHANNELS,))
    columns = np.moveaxis(patch.elements, channels, 0)
    columns = columns.reshape(len(columns), -1)
    if (columns != columns[:, :1]).any():
        return Refusal(Reason.EXACT, name, "writes values that are not one per channel")
    return tuple([patch.ranges[axis] for axis in spatial]), np.broadcast_to(columns[:, 0], (extents[channels],))
