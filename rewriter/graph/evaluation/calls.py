"""A node all of whose inputs are constants, as rules read it, and what a rule says of its outputs.

Invariant: reading raises `Unknown` with a reason in words, or one of the errors of malformed arguments (ValueError,
LookupError, TypeError), and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rewriter.graph.constants import FLOATS, INTEGERS, at_hand, integers
from rewriter.graph.tensors import numpy_dtype
from rewriter.graph.view import Array, Constant

Shape: TypeAlias = "tuple[int, ...]"

Unary: TypeAlias = "Callable[[Array], Array]"
Binary: TypeAlias = "Callable[[Array, Array], Array]"
Compute: TypeAlias = "Callable[..., Array]"
"""From the elements of the inputs to those of the output."""

CHECKED = 1 << 20
"""Elements of indices, divisors and the like that are looked at before anything is made with them."""


class Unknown(Exception):
    """Why a constant is not evaluated, in words that go on after "it is computed, but"."""


@dataclass(frozen=True, slots=True)
class Made:
    """One output: what it is, and how its elements come from the elements of `sources`.

    `compute` gives elements of any type, which are then cast to `dtype`; of a `view` they are handed on as they are.
    `work` counts multiply-adds where they are more than the elements. What is not `exact` differs between runtimes in
    the last digits.
    """

    shape: Shape
    dtype: str
    sources: Sequence[Constant]
    compute: Compute
    work: int | None = None
    view: bool = False
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """A node of the default domain; an optional input that is absent is None, or beyond the end."""

    op: str
    inputs: Sequence[Constant | None]
    attrs: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def get(self, place: int) -> Constant | None:
        return self.inputs[place] if place < len(self.inputs) else None

    def given(self, place: int) -> Constant:
        found = self.get(place)
        if found is None:
            raise ValueError(f"input {place} is missing")
        return found

    def only(self, count: int) -> list[Constant]:
        """All inputs, which have to be `count`."""
        if len(self.inputs) != count:
            raise ValueError("another number of inputs")
        return [self.given(place) for place in range(count)]

    def ints(self, place: int) -> tuple[int, ...] | None:
        """An input that is a short list of whole numbers; None where it is absent."""
        constant = self.get(place)
        if constant is None:
            return None
        found = integers(constant)
        if found is None:
            raise ValueError("an input is no short list of whole numbers")
        return found

    def listed(self, name: str, place: int, since: int) -> tuple[int, ...] | None:
        """A list that was an attribute before opset `since` and is an input from then on."""
        if self.opset >= since:
            return self.ints(place)
        if self.attrs.get(name) is None:
            return None
        found: tuple[Any, ...] = tuple(self.attrs[name])
        if not all(type(n) is int for n in found):
            raise TypeError("an attribute is no list of whole numbers")
        return found

    def int(self, name: str, default: int) -> int:
        found = self.attrs.get(name, default)
        if type(found) is not int:
            raise TypeError("an attribute is no whole number")
        return found

    def number(self, name: str, default: float) -> float:
        """A float attribute as runtimes have it, in float32."""
        return float(np.float32(self.attrs.get(name, default)))

    def text(self, name: str, default: str) -> str:
        found = self.attrs.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)


def alike(constants: Sequence[Constant], dtypes: frozenset[str] = FLOATS) -> str:
    """The one element type of all of them, among `dtypes`."""
    found = {constant.dtype for constant in constants}
    if len(found) != 1 or not found <= dtypes:
        raise TypeError("its operands are not of one type that it takes")
    return constants[0].dtype


NUMBERS = FLOATS | INTEGERS - {"bool"}


def looked_at(constant: Constant) -> Array:
    """The elements, where they are few enough to be looked at before they are needed."""
    if constant.size > CHECKED:
        raise Unknown(f"what decides about it has {constant.size:,} elements, more than {CHECKED:,}")
    if not at_hand(constant):
        raise Unknown("what decides about it takes too much to compute")
    return constant.load()


def cast(array: Array, dtype: str) -> Array:
    kind = numpy_dtype(dtype)
    return array if array.dtype == kind else array.astype(kind)


def wide(array: Array) -> Array:
    """Floats in float64; whole numbers as they are."""
    return array if array.dtype.kind in "iub" else array.astype(np.float64)


def counted(rank: int, axis: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError("an axis is out of range")
    return axis % rank


def distinct(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    """Axes counted from the front; each must exist and stand there once."""
    found = tuple(counted(rank, axis) for axis in axes)
    if len(set(found)) != len(found):
        raise ValueError("axes are repeated")
    return found
