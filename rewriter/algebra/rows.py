"""Which channels of its input each output channel of a map reads: one run of neighbours per output, a row.

The one idea: slices, permutations and joins of channels only pick, reorder and stack rows, and a sum or a composition
takes the smallest run that holds what both read; the groups of a convolution are the case where runs are equal blocks.
Invariant: a run says what *may* be read. No value is looked at, so a weight that happens to be 0 changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Output i reads `count[i]` inputs from `first[i]` on, out of `inputs`."""

    first: Indices
    count: Indices
    inputs: int

    @staticmethod
    def of_groups(outputs: int, inputs: int, groups: int) -> Rows:
        width = inputs // groups
        first = np.repeat(up_to(groups) * width, outputs // groups)
        return Rows(first, np.full(outputs, width), inputs)

    @property
    def outputs(self) -> int:
        return len(self.first)

    @property
    def width(self) -> int:
        """Of the longest run."""
        return int(self.count.max(initial=1))

    @property
    def groups(self) -> int:
        """The largest number of equal blocks that these rows stay inside."""
        common = gcd(self.outputs, self.inputs)
        most = min(self.inputs // self.width, common)
        return next(g for g in range(most, 0, -1) if common % g == 0 and self.within(g))

    def within(self, groups: int) -> bool:
        """Whether the outputs of each of so many equal groups read only the inputs of that group."""
        begin = self.block_of(groups)
        return bool((self.first >= begin).all() and (self.first + self.count <= begin + self.inputs // groups).all())

    def block_of(self, groups: int) -> Indices:
        """The first input of each output's group."""
        return up_to(self.outputs) // (self.outputs // groups) * (self.inputs // groups)

    def union(self, other: Rows) -> Rows:
        """The smallest runs that hold both."""
        first = np.minimum(self.first, other.first)
        last = np.maximum(self.first + self.count, other.first + other.count)
        return Rows(first, last - first, self.inputs)

    def take(self, places: Indices) -> Rows:
        return Rows(self.first[places], self.count[places], self.inputs)

    def beside(self, other: Rows) -> Rows:
        """These outputs, then the others, all of one input."""
        return Rows(np.concatenate([self.first, other.first]), np.concatenate([self.count, other.count]), self.inputs)

    def behind(self, inner: Rows) -> Rows:
        """What these outputs read where `inner` makes their inputs."""
        pairs, where = np.unique(np.stack([self.first, self.count]), axis=1, return_inverse=True)
        runs = [slice(first, first + count) for first, count in pairs.T]
        first = np.array([inner.first[run].min() for run in runs], dtype=np.intp)
        last = np.array([(inner.first[run] + inner.count[run]).max() for run in runs], dtype=np.intp)
        which = where.reshape(-1)
        return Rows(first[which], (last - first)[which], inner.inputs)


def up_to(number: int) -> Indices:
    return np.arange(number, dtype=np.intp)


def add_rows(target: Array, start: Indices, part: Array, count: Indices) -> None:
    """target[row, start[row] + j] += part[row, j], for all `count[row]` columns that a row has."""
    width = part.shape[1]
    begin = int(start[0]) if len(start) else 0
    if (start == begin).all() and begin + width <= target.shape[1]:
        target[:, begin : begin + width] += part
        return
    held = up_to(width) < count[:, None]
    rows, columns = np.nonzero(held)
    target[rows, columns + start[rows]] += part[rows, columns]
