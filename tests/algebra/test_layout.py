"""Where axes go, held against numpy: whatever is followed is where an array of addresses says it is."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import layout
from rewriter.algebra.layout import CHANNELS, Layout

SIZES = (2, 3, 5, 4)  # of axes 0, 1, the channels, and 3
ENTRY: Layout = ((0,), (1,), (CHANNELS,), (3,))


def size_of(name: int) -> int | None:
    return SIZES[2] if name == CHANNELS else SIZES[name]


def places(axes: Layout) -> np.ndarray:
    """The addresses of the entry's elements, arranged as a layout says."""
    addresses = np.arange(np.prod(SIZES)).reshape(SIZES)
    order = [2 if name == CHANNELS else name for axis in axes for name in axis]
    flat = addresses.transpose(order)
    return flat.reshape([int(np.prod([SIZES[2] if n == CHANNELS else SIZES[n] for n in axis])) for axis in axes])


@pytest.mark.parametrize("seed", range(200))
def test_a_chain_of_views(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes, x = ENTRY, places(ENTRY)
    for _ in range(4):
        match rng.integers(5):
            case 0:
                perm = [int(i) for i in rng.permutation(len(axes))]
                found, y = layout.transposed(axes, perm), x.transpose(perm)
            case 1:
                shape = _shape(rng, x.shape)
                found, y = layout.reshaped(axes, shape, size_of), x.reshape(shape)
            case 2:
                at = int(rng.integers(0, len(axes) + 1))
                found, y = layout.unsqueezed(axes, [at]), np.expand_dims(x, at)
            case 3:
                at = int(rng.integers(0, len(axes) + 1))
                found, y = layout.flattened(axes, at), x.reshape(int(np.prod(x.shape[:at])), -1)
            case _:
                units = [i for i, n in enumerate(x.shape) if n == 1]
                found, y = layout.squeezed(axes, units), x.squeeze(tuple(units))
        if found is not None:
            assert places(found).shape == y.shape
            assert (places(found) == y).all()
            axes, x = found, y


def _shape(rng: np.random.Generator, shape: tuple[int, ...]) -> list[int]:
    """Some extents of an array with as many elements, perhaps with one left open."""
    left, found = int(np.prod(shape)), []
    while left > 1:
        extent = int(rng.choice([n for n in range(1, left + 1) if left % n == 0]))
        found.append(extent)
        left //= extent
    if found and rng.random() < 0.5:
        found[int(rng.integers(len(found)))] = -1
    return found or [1]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5, 4), ((0, 1), (CHANNELS,), (3,))),
        ((-1, 5, 4), ((0, 1), (CHANNELS,), (3,))),
        ((2, 3, 1, 5, 4), ((0,), (1,), (), (CHANNELS,), (3,))),
        ((0, -1), ((0,), (1, CHANNELS, 3))),
        ((0, 0, 20), ((0,), (1,), (CHANNELS, 3))),
        ((2, 3, 20), ((0,), (1,), (CHANNELS, 3))),
        ((2, 5, 3, 4), None),  # a transposition, not a view of whole axes
        ((2, 3, 5, 2, 2), None),
        ((0, 0, 0, 0, 1), None),  # copies an axis that is not there ... of four
        ((30, 4, -1, 1), ((0, 1, CHANNELS), (3,), (), ())),
    ],
)
def test_reshapes(shape: tuple[int, ...], expected: Layout | None) -> None:
    if shape == (0, 0, 0, 0, 1):
        expected = (*ENTRY, ())
    assert layout.reshaped(ENTRY, shape, size_of) == expected


def test_one_axis_of_unknown_extent_takes_what_is_left() -> None:
    def known(name: int) -> int | None:
        return None if name == 0 else size_of(name)

    merged = ((0, 1), (CHANNELS,), (3,))
    assert layout.reshaped(ENTRY, (-1, 5, 4), known) == merged
    assert layout.reshaped(merged, (-1, 3, 5, 4), known) == ENTRY
    assert layout.reshaped(merged, (7, 3, 5, 4), known) == ENTRY  # 7 is what it has to be
    assert layout.reshaped(merged, (-1, 5, 4), lambda name: None) is None
    assert layout.reshaped(ENTRY, (0, 3, 5, 4), known) == ENTRY
    assert layout.reshaped(ENTRY, (0, 0, 0, 0), known, zero_copies=False) is None


def test_what_is_not_there_is_not_followed() -> None:
    assert layout.transposed(ENTRY, [0, 1]) is None
    assert layout.transposed(ENTRY, None) == ENTRY[::-1]
    assert layout.squeezed(ENTRY, [0]) is None
    assert layout.squeezed(ENTRY, None) is None
    assert layout.unsqueezed(ENTRY, [9]) is None
    assert layout.flattened(ENTRY, 9) is None
    assert layout.flattened(ENTRY, -1) == ((0, 1, CHANNELS), (3,))


def test_axes_are_split_where_the_extents_are_named() -> None:
    def named(name: int) -> int | str | None:
        return {0: "n", 1: "t"}.get(name, size_of(name))

    joined: Layout = ((0, 1), (CHANNELS,), (3,))
    assert layout.reshaped(joined, ("n", "t", 5, 4), named) == ENTRY
    assert layout.reshaped(joined, (-1, "t", 5, 4), named) == ENTRY
    assert layout.reshaped(joined, ("n", "u", 5, 4), named) == ENTRY  # it runs only where that is as long
    for other in (("t", "n", 5, 4), ("n", 5, "t", 4), ("n", "t", 4, 5), ("u", "t", "n", 5, 4)):
        assert layout.reshaped(joined, other, named) is None
    assert layout.reshaped(joined, ("n", "t", 5, 4), lambda name: None if name < 2 else size_of(name)) is None
