"""Tensors of open extents that few numbers tell: constants spread along axes, and places that count along them.

The one idea: what exporters compute from a size, to say where and what to write, is a Range that is cut, moved and
joined, or a constant that is expanded. Such a tensor is a small *tile* that repeats along every axis on which it has
one element, plus a fixed *step* from one place to the next. Invariant: a rule answers for every size or not at all;
extents are compared as polynomials, so two that are called equal are, and nothing is evaluated at a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rewriter.dims.polynomials import Poly, number
from rewriter.dims.tensors import WHOLE
from rewriter.graph.view import Array, Constant

Objects: TypeAlias = "npt.NDArray[np.object_]"
Extents: TypeAlias = "tuple[Poly, ...]"

MOST_ELEMENTS = 1 << 12
"""Of a tile; the channels of one write, or the places of one write on a few axes."""

ONE = number(1)


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Element i is `tile[i]` (i = 0 on axes on which the tile has one element) + the sum of `steps[axis] * i[axis]`.

    Whole numbers are polynomials; `steps` is [axis, *tile]. What comes of a constant of floats has its `source`
    and no steps.
    """

    dims: Extents
    tile: Array
    steps: npt.NDArray[np.int64] | None = None
    source: Constant | None = None

    def transposed(self, order: Sequence[int]) -> Spread:
        steps = self.steps
        if steps is not None:
            steps = steps[list(order)].transpose(0, *[1 + axis for axis in order])
        dims = tuple([self.dims[axis] for axis in order])
        return replace(self, dims=dims, tile=self.tile.transpose(order), steps=steps)

    def under(self, dims: Extents) -> Spread | None:
        """Axes of extent one put in or left out; None where the others are not the same."""
        kept = [axis for axis, extent in enumerate(self.dims) if extent != ONE]
        wanted = [axis for axis, extent in enumerate(dims) if extent != ONE]
        if [self.dims[axis] for axis in kept] != [dims[axis] for axis in wanted]:
            return None
        shape = [1] * len(dims)
        for axis, place in zip(kept, wanted, strict=True):
            shape[place] = self.tile.shape[axis]
        steps: npt.NDArray[np.int64] | None = None
        if self.steps is not None:
            steps = np.zeros((len(dims), *shape), dtype=np.int64)
            steps[wanted] = self.steps[kept].reshape(len(kept), *shape)
        return replace(self, dims=dims, tile=self.tile.reshape(shape), steps=steps)

    def over(self, dims: Extents) -> Spread | None:
        """Repeated to these extents, where each is its own or its own is one."""
        if len(dims) < len(self.dims):
            return None
        aligned = self.under((ONE,) * (len(dims) - len(self.dims)) + self.dims)
        if aligned is None or any(a not in (ONE, b) for a, b in zip(aligned.dims, dims, strict=True)):
            return None
        return replace(aligned, dims=dims)

    def cut(self, axis: int, start: Poly, stop: Poly) -> Spread | None:
        """The places from `start` on, before `stop`."""
        dims = (*self.dims[:axis], stop - start, *self.dims[axis + 1 :])
        if self.tile.shape[axis] > 1:
            begin, end = start.constant, stop.constant
            if begin is None or end is None:
                return None
            run = np.arange(begin, end)
            steps = None if self.steps is None else self.steps.take(run, 1 + axis)
            return replace(self, dims=dims, tile=self.tile.take(run, axis), steps=steps)
        if self.steps is None or not self.steps[axis].any():
            return replace(self, dims=dims)
        moved = single(start) * self.steps[axis].astype(np.object_)
        return replace(self, dims=dims, tile=self.tile + moved)

    def by_place(self, axis: int) -> Spread:
        """Whole places, in a last axis: as on every axis that of the element itself, but on one the element."""
        rank = len(self.dims)
        shape = (*self.tile.shape, rank)
        tile = numbers(np.zeros(shape, dtype=np.int64))
        steps = np.zeros((rank + 1, *shape), dtype=np.int64)
        for other in range(rank):
            steps[other, ..., other] = 1
        tile[..., axis] = self.tile
        steps[:rank, ..., axis] = 0 if self.steps is None else self.steps
        return Spread((*self.dims, number(rank)), tile, steps)

    def listed(self, axis: int) -> Spread | None:
        """With every element along this axis in the tile."""
        extent = self.dims[axis].constant
        if extent is None or self.tile.size // self.tile.shape[axis] * extent > MOST_ELEMENTS:
            return None
        tile = self.tile.repeat(extent, axis) if self.tile.shape[axis] == 1 else self.tile
        if self.steps is None:
            return replace(self, tile=tile)
        steps = self.steps.repeat(extent, 1 + axis) if self.tile.shape[axis] == 1 else self.steps.copy()
        along = np.arange(extent).reshape([-1 if i == axis else 1 for i in range(tile.ndim)])
        tile = tile + numbers(steps[axis] * along)
        steps[axis] = 0
        return replace(self, tile=tile, steps=steps)


def single(of: Poly) -> Objects:
    held: Objects = np.empty((), dtype=np.object_)
    held[()] = of
    return held


def numbers(of: Array) -> Objects:
    held: Objects = np.empty(of.shape, dtype=np.object_)
    for place, element in np.ndenumerate(of):
        held[place] = number(int(element))
    return held


def spread_of(constant: Constant) -> Spread | None:
    """A stored tensor, where it is small."""
    if constant.size > MOST_ELEMENTS or not constant.size or not (constant.prompt is None or constant.prompt()):
        return None
    if constant.dtype in WHOLE:
        return counted(constant.load())
    return Spread(tuple([number(extent) for extent in constant.shape]), constant.load(), source=constant)


def counted(elements: Array) -> Spread:
    """Known whole numbers; those that rise evenly along an axis as a step."""
    dims = tuple([number(extent) for extent in elements.shape])
    steps = np.zeros((elements.ndim, *elements.shape), dtype=np.int64)
    for axis, extent in enumerate(elements.shape):
        rises = np.diff(elements, axis=axis)
        even = extent > 1 and (rises == rises.take([0], axis)).all()
        if even and (steps == steps.take([0], 1 + axis)).all():
            steps[axis] = rises.take([0], axis)
            elements = elements.take([0], axis)
            steps = steps.take([0], 1 + axis)
    return Spread(dims, numbers(elements), steps)


def listing(items: Sequence[Poly]) -> Spread:
    """A list of whole numbers that may depend on sizes; where they rise evenly, as a step."""
    dims = (number(len(items)),)
    rises = {b - a for a, b in pairwise(items)}
    step = rises.pop().constant if len(rises) == 1 else None
    tile: Objects = np.empty(len(items) if step is None else 1, dtype=np.object_)
    tile[:] = items[: len(tile)]
    return Spread(dims, tile, np.full((1, len(tile)), step or 0, dtype=np.int64))
