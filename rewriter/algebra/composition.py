"""The kernel of one map after another, tap by tap.

The one idea: an output reads the entry at `stride * (outer tap) + (inner tap)`, so every tap of the outer kernel adds
the whole inner kernel, weighted, at its own place on a common lattice; which channels meet is what the rows say.
Invariant: only finite sums of products of the given numbers, in float64; nothing is rounded and no tap is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

import numpy as np

from rewriter.algebra.rows import Array, Rows, add_rows, up_to

Extents: TypeAlias = tuple[int, ...]
Tap: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lattice:
    """Where the taps of a composition lie: per axis, the step between its taps, and the steps of both kernels in it."""

    step: Extents
    window: Extents
    outer: Extents
    inner: Extents
    inner_window: Extents

    def places(self, tap: Tap) -> tuple[slice, ...]:
        """The taps of the inner kernel behind one tap of the outer."""
        axes = zip(tap, self.outer, self.inner, self.inner_window, strict=True)
        return tuple([slice(t * o, t * o + i * (k - 1) + 1, i or 1) for t, o, i, k in axes])


def lattice(stride: Extents, inner: tuple[Extents, Extents], outer: tuple[Extents, Extents]) -> Lattice:
    """Of (dilation, window) behind (dilation, window); `stride` is that of the inner map."""
    (inner_dilation, inner_window), (outer_dilation, outer_window) = inner, outer
    near = [d if k > 1 else 0 for d, k in zip(inner_dilation, inner_window, strict=True)]
    far = [s * d if k > 1 else 0 for s, d, k in zip(stride, outer_dilation, outer_window, strict=True)]
    step = tuple([gcd(a, b) or 1 for a, b in zip(near, far, strict=True)])
    axes = zip(near, inner_window, far, outer_window, step, strict=True)
    window = tuple([(a * (k - 1) + b * (q - 1)) // s + 1 for a, k, b, q, s in axes])
    return Lattice(
        step,
        window,
        tuple([b // s for b, s in zip(far, step, strict=True)]),
        tuple([a // s for a, s in zip(near, step, strict=True)]),
        inner_window,
    )


def composed(inner: Array, inner_rows: Rows, outer: Array, outer_rows: Rows, on: Lattice) -> tuple[Array, Rows]:
    """The kernel and rows of "inner, then outer"."""
    rows = outer_rows.behind(inner_rows)
    if outer_rows.width == 1:
        return _picked(inner, inner_rows, outer, outer_rows, on), rows
    if inner_rows.width == 1 and (np.diff(inner_rows.first) == 1).all():
        return _moved(inner, outer, outer_rows, on), rows
    groups = gcd(outer_rows.groups, inner_rows.groups)
    dense = _multiplied(blocks(inner, inner_rows, groups), blocks(outer, outer_rows, groups), groups, on)
    return _narrowed(dense, Rows.of_groups(outer_rows.outputs, inner_rows.inputs, groups), rows), rows


def blocks(kernel: Array, rows: Rows, groups: int) -> Array:
    """The kernel of rows that stay inside equal groups as (out, in / groups, *window)."""
    width = rows.inputs // groups
    if kernel.shape[1] == width and (rows.first == rows.block_of(groups)).all():
        return kernel
    laid = np.zeros((kernel.shape[0], width, *kernel.shape[2:]))
    add_rows(laid, rows.first - rows.block_of(groups), kernel, rows.count)
    return laid


def constant_part(outer: Array, rows: Rows, values: Array) -> Array:
    """What outputs take of inputs that are constant everywhere."""
    taken = outer.reshape(*outer.shape[:2], -1).sum(axis=-1)
    columns = np.minimum(rows.first[:, None] + up_to(outer.shape[1]), len(values) - 1)
    return (taken * values[columns]).sum(axis=1)


def _picked(inner: Array, inner_rows: Rows, outer: Array, outer_rows: Rows, on: Lattice) -> Array:
    """Each output reads one channel of the inner map."""
    width = inner_rows.take(outer_rows.first).width
    source = _by_tap(inner[outer_rows.first, :width], 2)
    return _spread(outer, width, on, lambda tap: _at(outer, tap)[:, :1, None] * source)


def _moved(inner: Array, outer: Array, outer_rows: Rows, on: Lattice) -> Array:
    """The inner map hands on a run of channels one by one, each through a window of its own."""
    first = outer_rows.first if (outer_rows.first != outer_rows.first[0]).any() else outer_rows.first[:1]
    columns = np.minimum(first[:, None] + up_to(outer.shape[1]), len(inner) - 1)
    source = _by_tap(inner[:, 0], 1)[columns]  # (out, width, taps), or (1, …) where all read the same channels
    return _spread(outer, outer.shape[1], on, lambda tap: _at(outer, tap)[..., None] * source)


def _multiplied(inner: Array, outer: Array, groups: int, on: Lattice) -> Array:
    between = len(inner) // groups
    source = inner.reshape(groups, between, -1)  # (group, between, in * taps)
    return _spread(
        outer, inner.shape[1], on, lambda tap: np.matmul(_at(outer, tap).reshape(groups, -1, between), source)
    )


def _spread(outer: Array, width: int, on: Lattice, product: Callable[[Tap], Array]) -> Array:
    """The sum over all taps of the outer kernel; `product` gives what an inner kernel has at one of them."""
    taps, shape = [*np.ndindex(*outer.shape[2:])], (len(outer), width, *on.window)
    if len(taps) == 1 and on.window == on.inner_window:  # nothing to add up
        return product(taps[0]).reshape(shape)
    total = np.zeros(shape)
    for tap in taps:
        part = total[:, :, *on.places(tap)]
        part += product(tap).reshape(part.shape)
    return total


def _at(kernel: Array, tap: Tap) -> Array:
    """(out, width) at one tap."""
    return kernel[(slice(None), slice(None), *tap)]


def _by_tap(kernel: Array, leading: int) -> Array:
    """The taps of a kernel as its last axis."""
    return kernel.reshape(*kernel.shape[:leading], -1)


def _narrowed(kernel: Array, rows: Rows, wanted: Rows) -> Array:
    """A kernel of rows in the smaller runs that hold everything it has."""
    if wanted.width == kernel.shape[1] and (wanted.first == rows.first).all():
        return kernel
    columns = (wanted.first - rows.first)[:, None] + up_to(wanted.width)
    inside = up_to(wanted.width) < wanted.count[:, None]
    found = kernel[up_to(len(kernel))[:, None], np.minimum(columns, kernel.shape[1] - 1)]
    return np.where(inside.reshape(*inside.shape, *(1,) * (kernel.ndim - 2)), found, 0.0)
