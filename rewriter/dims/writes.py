"""What a graph writes into the room around an image, where places and extents follow from the size of that image.

The one idea: a ScatterND whose indices fill a box is an assignment to a slice, and the bounds of that slice lie at a
fixed distance from one end of the axis, whatever its extent. Invariant: both are proved for every size, as polynomials;
a bound that cannot be compared with the extent, a step, a place that is named twice: then it is no such write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from rewriter.dims.cuts import FAR
from rewriter.dims.engine import ROOM, Pass
from rewriter.dims.polynomials import Poly, number
from rewriter.dims.spreads import MOST_ELEMENTS, ONE, Extents, Spread, listing, single, spread_of
from rewriter.dims.tensors import WHOLE, slice_lists
from rewriter.graph.view import Constant, Node, Value

SCATTERS = ("scatter_nd", "scatterelements")


def is_open(node: Node) -> bool:
    """A ScatterND or ScatterElements whose places or values are no constants."""
    return len(node.data) > 1 and node.problem is None and node.attrs.get("reduction", "none") == "none"


def write(node: Node, spreads: Spreads) -> Node | None:
    """The node as `assign`, or as `identity` where a value takes the place of all that was there."""
    found = spreads.written(node)
    if isinstance(found, Value):
        return replace(node, op="identity", data=(found,), attrs={})
    if found is None:
        return None
    attrs = {"starts": found.starts, "stops": found.stops, "least": found.least}
    return replace(node, op="assign", data=node.data[:1], consts={"values": found.values}, attrs=attrs)


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """An assignment of `values`, which broadcast, to a slice: an end of None is that of the axis, and what is negative
    counts from there. The axes are as long as `least` says or longer.
    """

    starts: tuple[int, ...]
    stops: tuple[int | None, ...]
    least: tuple[int, ...]
    values: Constant


# --- boxes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """The places of a box on one axis of a value, and the axis of the indices that goes along it."""

    start: Poly
    stop: Poly
    along: int | None


def _covers(run: Run, axis: int, extent: Poly) -> bool:
    return run.start == number(0) and run.stop == extent and run.along in (axis, None)


def _ends(run: Run, extent: Poly) -> tuple[int, int | None] | None:
    """The bounds of a slice that holds these places of an axis, whatever its extent."""
    start, stop = anchored(run.start, extent), anchored(run.stop, extent)
    if start is None or (stop is None and run.stop != extent):
        return None
    return start, None if run.stop == extent else stop


def anchored(place: Poly, extent: Poly) -> int | None:
    """A place by its distance from the start, or from the end (then it is negative), where one is known for every size.

    Of an extent that is known, by that from the nearer end.
    """
    fixed, beyond = place.constant, (extent - place).constant
    if beyond is None or beyond <= 0 or (fixed is not None and fixed <= beyond):
        return fixed
    return -beyond


def _values(updates: Spread, runs: Sequence[Run], rank: int, source: Constant) -> Constant:
    """What is written, its axes as those of the value; once along those on which it is the same everywhere."""
    rest = updates.tile.shape[rank:]
    order = [run.along for run in runs if run.along is not None]
    others = [axis for axis in range(updates.tile.ndim) if axis not in order]
    extents = [1 if run.along is None else updates.tile.shape[run.along] for run in runs]
    tile = updates.tile.transpose([*order, *others]).reshape([*extents, *rest])
    for axis in range(tile.ndim):
        first = tile.take([0], axis)
        tile = first if (tile == first).all() else tile
    return replace(source, shape=tile.shape, load=lambda: tile)


# --- what nodes make -------------------------------------------------------------------------------------------------

Rule: TypeAlias = "Callable[[Spreads, Node], Spread | None]"


@dataclass(slots=True)
class Spreads:
    """The spreads of a graph, as far as they are asked for; `sizes` has gone over the graph."""

    sizes: Pass
    known: dict[str, Spread | None] = field(default_factory=dict[str, "Spread | None"])
    leasts: dict[Poly, int] = field(default_factory=dict[Poly, int])

    def of(self, value: Value | None) -> Spread | None:
        """Found for what a value is made of first, one node after another: a chain may be long."""
        if value is None:
            return None
        waiting = [value]
        while waiting:
            one = waiting[-1]
            node = None if one.constant is not None else self.sizes.graph.producer(one)
            missing = [] if node is None else [v for v in self._needed(one, node) if v.name not in self.known]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if one.name not in self.known:
                self.known[one.name] = self._made(one, node)
        return self.known[value.name]

    def _needed(self, value: Value, node: Node) -> list[Value]:
        """What the rule of a node reads."""
        if value.name in self.known or node.op not in RULES or self.sizes.elements_of(value) is not None:
            return []
        operands = [one for one in self.sizes.operands(node) if one is not None]
        return operands if node.op in SEVERAL else operands[2:] if node.op in SCATTERS else operands[:1]

    def _made(self, value: Value, node: Node | None) -> Spread | None:
        if value.constant is not None:
            return spread_of(value.constant)
        held = self.sizes.elements_of(value)
        if held is not None:
            found = listing([item.expr for item in held.items])
            return found.under(()) if held.scalar else found
        try:
            found = None if node is None or node.op not in RULES else RULES[node.op](self, node)
        except (LookupError, ValueError, TypeError):  # a malformed node tells nothing
            return None
        return None if found is None or found.tile.size > MOST_ELEMENTS else found

    def written(self, node: Node) -> Write | Value | None:
        """What a ScatterND or ScatterElements writes, or the value that it puts in place of everything."""
        operands = self.sizes.operands(node)
        extents, indices, updates = self.dims_of(operands[0]), self.of(operands[1]), operands[2]
        if indices is not None and node.op == "scatterelements":
            indices = indices.by_place(node.attrs.get("axis", 0) % len(indices.dims))
        given = self.dims_of(updates)
        runs = None if extents is None or indices is None else self.runs(indices, extents)
        if runs is None or extents is None or indices is None or updates is None or given is None:
            return None
        rank = len(indices.dims) - 1
        if given != (*indices.dims[:-1], *extents[len(runs) :]):
            return None
        if rank == len(runs) and all(_covers(run, axis, extents[axis]) for axis, run in enumerate(runs)):
            return updates
        held = self.of(updates)
        if held is None or held.source is None:
            return None
        ends = [_ends(run, extent) for run, extent in zip(runs, extents, strict=False)]
        slices = [end for end in ends if end is not None] + [(0, None)] * (len(extents) - len(runs))
        if None in ends:
            return None
        least = tuple([self.least(extent) for extent in extents])
        starts, stops = tuple([start for start, _ in slices]), tuple([stop for _, stop in slices])
        return Write(starts, stops, least, _values(held, runs, rank, held.source))

    def least(self, extent: Poly) -> int:
        """A number that an extent is not below, whatever the sizes; small ones are told."""
        if extent not in self.leasts:
            told = (n for n in range(ROOM, 0, -1) if self.sizes.nonnegative(extent - n))
            self.leasts[extent] = next(told, 0)
        return self.leasts[extent]

    def runs(self, indices: Spread, extents: Extents) -> Sequence[Run] | None:
        """The box that the indices fill, of a value with these extents, each place once; None where they do not."""
        listed = indices.listed(len(indices.dims) - 1) if indices.dims else None
        if listed is None or listed.steps is None or listed.tile.shape[-1] > len(extents):
            return None
        if not listed.tile.size or any(n != 1 for n in listed.tile.shape[:-1]):
            return None
        found: list[Run] = []
        for component, start in enumerate(listed.tile.reshape(-1).tolist()):
            steps = listed.steps[:-1, ..., component].reshape(-1).tolist()
            moving = [axis for axis, step in enumerate(steps) if step and indices.dims[axis] != ONE]
            if len(moving) > 1 or any(steps[axis] != 1 for axis in moving):
                return None
            extent, fixed = extents[component], start.constant
            first = start + extent if fixed is not None and fixed < 0 else start
            stop = first + (indices.dims[moving[0]] if moving else ONE)
            if not self.sizes.nonnegative(first) or not self.sizes.nonnegative(extent - stop):
                return None
            found.append(Run(first, stop, moving[0] if moving else None))
        used = sorted(run.along for run in found if run.along is not None)
        return found if used == [axis for axis, n in enumerate(indices.dims[:-1]) if n != ONE] else None

    def bound(self, extent: Poly, place: Poly) -> Poly | None:
        """Where a place lies that may count from the end, between 0 and the extent; None where that cannot be told."""
        fixed = place.constant
        if fixed is not None and fixed >= FAR:
            return extent
        if fixed is not None and fixed < 0:
            place = place + extent
        return place if self.sizes.nonnegative(place) and self.sizes.nonnegative(extent - place) else None

    def dims_of(self, value: Value | None) -> Extents | None:
        found = self.sizes.dims_of(value)
        return None if found is None else tuple([size.expr for size in found])

    def first(self, node: Node) -> Spread | None:
        return self.known.get(node.data[0].name) if node.data else None


def _same(of: Spreads, node: Node) -> Spread | None:
    return of.first(node)


def _cast(of: Spreads, node: Node) -> Spread | None:
    """Whole numbers stay whole numbers; floats stay of their type."""
    held, to = of.first(node), node.attrs.get("to")
    if held is None or (to not in WHOLE if held.source is None else to != held.source.dtype):
        return None
    return held


def _transpose(of: Spreads, node: Node) -> Spread | None:
    held = of.first(node)
    return None if held is None else held.transposed(node.attrs.get("perm", range(len(held.dims))[::-1]))


def _view(of: Spreads, node: Node) -> Spread | None:
    held, dims = of.first(node), of.dims_of(node.output)
    return None if held is None or dims is None else held.under(dims)


def _expand(of: Spreads, node: Node) -> Spread | None:
    held, dims = of.first(node), of.dims_of(node.output)
    return None if held is None or dims is None else held.over(dims)


def _range(of: Spreads, node: Node) -> Spread | None:
    ends = [of.sizes.elements_of(value) for value in of.sizes.operands(node)]
    if len(ends) != 3:
        return None
    start, limit, step = (None if end is None or len(end.items) != 1 else end.items[0].expr for end in ends)
    if start is None or limit is None or step != ONE or not of.sizes.nonnegative(limit - start):
        return None
    return Spread((limit - start,), single(start).reshape(1), np.ones((1, 1), dtype=np.int64))


def _slice(of: Spreads, node: Node) -> Spread | None:
    found = of.first(node)
    starts, ends, axes, steps = slice_lists(of.sizes, node)
    if found is None or starts is None or ends is None or axes is None or steps is None:
        return None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis.expr.constant
        if found is None or at is None or step.expr != ONE:
            return None
        at %= len(found.dims)
        begin, stop = (of.bound(found.dims[at], place.expr) for place in (start, end))
        if begin is None or stop is None or not of.sizes.nonnegative(stop - begin):
            return None
        found = found.cut(at, begin, stop)
    return found


def _scattered(of: Spreads, node: Node) -> Spread | None:
    """What is written, where it is written over everything."""
    found = of.written(node)
    return of.of(found) if isinstance(found, Value) else None


def _sum(of: Spreads, node: Node) -> Spread | None:
    """Of whole numbers."""
    dims = of.dims_of(node.output)
    held = [of.known.get(value.name) for value in of.sizes.operands(node) if value is not None]
    parts = [None if one is None or dims is None or one.steps is None else one.over(dims) for one in held]
    total = parts[0]
    for part in parts[1:]:
        if total is None or part is None or total.steps is None or part.steps is None:
            return None
        total = Spread(total.dims, total.tile + part.tile, total.steps + part.steps)
    return total


def _concat(of: Spreads, node: Node) -> Spread | None:
    held = [of.known.get(value.name) for value in node.data]
    rank = len(held[0].dims) if held and held[0] is not None else 0
    axis = node.attrs["axis"] % rank
    parts = [one.listed(axis) for one in held if one is not None and one.steps is not None and len(one.dims) == rank]
    tiles: list[Any] = []
    steps: list[Any] = []
    dims = [] if parts[0] is None else [*parts[0].dims]
    for part in parts:
        if part is None or part.steps is None or len(parts) != len(held):
            return None
        if any(a != b for i, (a, b) in enumerate(zip(part.dims, dims, strict=True)) if i != axis):
            return None
        tiles.append(part.tile)
        steps.append(part.steps)
    shape = [max(extents) for extents in zip(*[tile.shape for tile in tiles], strict=True)]
    whole = [(*shape[:axis], tile.shape[axis], *shape[axis + 1 :]) for tile in tiles]
    tiles = [np.broadcast_to(tile, extents) for tile, extents in zip(tiles, whole, strict=True)]
    steps = [np.broadcast_to(step, (rank, *extents)) for step, extents in zip(steps, whole, strict=True)]
    dims[axis] = number(sum(extents[axis] for extents in whole))
    return Spread(tuple(dims), np.concatenate(tiles, axis), np.concatenate(steps, 1 + axis))


SEVERAL = frozenset({"add", "concat"})
"""Operators of which every operand is read."""

RULES: Mapping[str, Rule] = (
    {
        "cast": _cast,
        "transpose": _transpose,
        "expand": _expand,
        "range": _range,
        "slice": _slice,
        "add": _sum,
        "concat": _concat,
    }
    | dict.fromkeys(SCATTERS, _scattered)
    | dict.fromkeys(("identity", "dropout"), _same)
    | dict.fromkeys(("reshape", "squeeze", "unsqueeze", "flatten"), _view)
)
