"""Rings around an image of any size: slices that lie at a known distance from its ends, and nothing that is close."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rewriter.algebra import ConvForm, conv_of, interpret, prove
from rewriter.algebra.affine import Affine
from rewriter.errors import Reason, Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Array, Block, normal

CHANNELS = 4
OPEN = (None, 3, None, None)
Slice = tuple[int, int | None]
Strip = tuple[Slice, Slice]
"""Rows and columns of the padded image."""

ALL: Slice = (0, None)
FIRST: Slice = (0, 1)
LAST: Slice = (-1, None)
RING: tuple[Strip, ...] = ((FIRST, ALL), (ALL, FIRST), (LAST, ALL), (ALL, LAST))
TOP: dict[str, Any] = {"starts": (0, 0, 0, 0), "stops": (None, None, 1, None), "least": (1, 4, 3, 3)}
MOVED = (2, 1, 0, 3)
"""Rows in front, as today's exporter has them to write to some."""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def ringed(
    rng: np.random.Generator,
    strips: Sequence[Strip] = RING,
    *,
    shape: Sequence[int | None] = OPEN,
    off: float | Array = 0.0,
    images: Slice = ALL,
    pad: int = 1,
    moved: bool = False,
    core: int = 1,
    **conv: Any,
) -> Region:
    """A layer with a bias, that bias around it by slices, and a layer that reads both."""
    block = Block(tuple(shape))
    bias = rng.standard_normal(CHANNELS).astype(np.float32).astype(np.float64)
    y = block.conv("x", normal(rng, CHANNELS, 3, 1, 1), bias)
    y = block.node("pad", [y], pads=((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="constant", value=0.0, amount=pad)
    values = (bias + off).reshape(1, -1, 1, 1)
    for rows, columns in strips:
        ends, least = [images, ALL, rows, columns], [1, CHANNELS, core + 2 * pad, core + 2 * pad]
        if moved:
            y = block.node("transpose", [y], perm=MOVED)
            ends, least = [ends[axis] for axis in MOVED], [least[axis] for axis in MOVED]
        starts, stops = (tuple([end[i] for end in ends]) for i in (0, 1))
        y = block.node("assign", [y], {"values": values}, starts=starts, stops=stops, least=tuple(least))
        if moved:
            y = block.node("transpose", [y], perm=MOVED)
    block.conv(y, normal(rng, 5, CHANNELS, 2 * pad + 1, 3), rng.standard_normal(5), **conv)
    return block.region()


def fold(region: Region) -> ConvForm | Refusal:
    affine = interpret(region)
    return conv_of(affine, "float32") if isinstance(affine, Affine) else affine


def folded(region: Region) -> ConvForm:
    conv = fold(region)
    assert isinstance(conv, ConvForm), conv
    assert isinstance(prove(region, conv), Proof)
    return conv


def refused(region: Region, words: str, code: Reason = Reason.EXACT) -> None:
    found = fold(region)
    assert isinstance(found, Refusal), found
    assert (found.code, words in found.detail) == (code, True), found


# --- rings that fold -------------------------------------------------------------------------------------------------

CORNERS_LEFT = (*RING[1::2], ((0, 1), (1, -1)), ((-1, None), (1, -1)))


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("strips", [RING, RING[::-1], (*RING, RING[0]), CORNERS_LEFT])
def test_the_bias_all_around_in_any_order(rng: np.random.Generator, strips: Sequence[Strip], moved: bool) -> None:
    region = ringed(rng, strips, moved=moved)
    conv = folded(region)
    assert conv.pads == ((1, 1), (1, 1))
    assert judge.same(region, conv, [(1, 1), (1, 6), (5, 4)])


@pytest.mark.parametrize("shape", [(2, 3, None, 7), (None, 3, 6, 7), (1, 3, 6, None), (2, 3, 6, 7)])
def test_some_of_the_extents_may_be_known(rng: np.random.Generator, shape: Sequence[int | None]) -> None:
    folded(ringed(rng, shape=shape))


def test_wider_room_with_a_stride(rng: np.random.Generator) -> None:
    strips = [((0, 2), ALL), (ALL, (0, 2)), ((-2, None), ALL), (ALL, (-2, -1)), (ALL, LAST)]
    conv = folded(ringed(rng, strips, pad=2, strides=2))
    assert conv.pads[0] == (2, 2)


def test_a_bias_that_was_computed_in_another_order(rng: np.random.Generator) -> None:
    folded(ringed(rng, off=1e-8))


# --- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(4))
def test_a_strip_that_is_missing(rng: np.random.Generator, place: int) -> None:
    refused(ringed(rng, [strip for i, strip in enumerate(RING) if i != place]), "writes 0 around the image")


@pytest.mark.parametrize("channel", range(CHANNELS))
def test_a_value_that_is_almost_the_bias(rng: np.random.Generator, channel: int) -> None:
    off = np.zeros(CHANNELS)
    off[channel] = 3e-6
    refused(ringed(rng, off=off), f"(channel {channel})")


INSIDE: list[Slice] = [(1, 2), (-2, -1), (0, 2), (-2, None), (2, None), (0, -2), (0, -1), (1, None), (5, 6)]


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_row_or_column_too_far_in_for_some_size(rng: np.random.Generator, inside: Slice, axis: int) -> None:
    """Among them bounds that clear a small image and not a large one, or the other way round."""
    strip = (inside, ALL) if axis == 0 else (ALL, inside)
    refused(ringed(rng, (*RING, strip)), "over the image")


def test_an_image_that_may_be_empty(rng: np.random.Generator) -> None:
    """Around nothing there is nothing but constants, and the fold has no image to start from."""
    folded(ringed(rng))
    refused(ringed(rng, core=0), "may be empty", Reason.DYNAMIC)
    folded(ringed(rng, core=0, shape=(None, 3, 6, 7)))


def test_everything_at_once(rng: np.random.Generator) -> None:
    refused(ringed(rng, ((ALL, ALL),)), "over the image")


def test_some_of_the_images(rng: np.random.Generator) -> None:
    refused(ringed(rng, images=(0, 1)), "over the image")
    refused(ringed(rng, images=(0, 1), shape=(2, 3, None, None)), "some of the images or channels", Reason.OP)


def test_nothing_and_what_does_not_fit(rng: np.random.Generator) -> None:
    refused(ringed(rng, (((1, 1), ALL), *RING)), "is nothing", Reason.SHAPE)
    block = Block(OPEN)
    y = block.conv("x", normal(rng, CHANNELS, 3, 1, 1), np.ones(CHANNELS))
    y = block.node("pad", [y], pads=((0, 0), (0, 0), (1, 1), (1, 1)), mode="constant", value=0.0, amount=1)
    y = block.node("assign", [y], {"values": np.ones((1, 3, 1, 1))}, **TOP)
    block.conv(y, normal(rng, 5, CHANNELS, 3, 3))
    refused(block.region(), "does not fit", Reason.SHAPE)


def test_a_write_over_an_image_without_room(rng: np.random.Generator) -> None:
    block = Block(OPEN)
    y = block.conv("x", normal(rng, CHANNELS, 3, 1, 1), np.ones(CHANNELS))
    y = block.node("assign", [y], {"values": np.ones((1, 1, 1, 1))}, **TOP)
    block.conv(y, normal(rng, 5, CHANNELS, 3, 3))
    refused(block.region(), "over the image, not around it")
