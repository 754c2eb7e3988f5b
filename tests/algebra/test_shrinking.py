"""Regions that store a size, on a smaller image: the same at the border, and none where the middle is not the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewriter.algebra import ConvForm, conv_of, interpret, prove
from rewriter.algebra.affine import Affine
from rewriter.algebra.evaluation import Run, run
from rewriter.algebra.shrinking import shrunk
from rewriter.errors import Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra.regions import Array, Block, normal
from tests.algebra.test_placement import (
    BOTH,
    CHANNELS,
    HIGH,
    IMAGES,
    RING,
    WIDE,
    Writer,
    by_joining,
    by_mask,
    ringed,
    whole,
)

SIZE = (HIGH - 2, WIDE - 2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def without_middle(x: Array, size: tuple[int, int]) -> Array:
    """The image without rows and columns in the middle."""
    for axis, n in zip((2, 3), size, strict=True):
        x = np.delete(x, range(n // 2, n // 2 + x.shape[axis] - n), axis)
    return x


def corners(y: Array, n: int) -> Array:
    """What windows that start in a corner see."""
    return np.stack(
        [y[:, :, rows, columns] for rows in (slice(n), slice(-n, None)) for columns in (slice(n), slice(-n, None))]
    )


@BOTH
@pytest.mark.parametrize("size", [(7, 7), (8, 11), (13, 9)])
def test_the_same_at_every_border(rng: np.random.Generator, write: Writer, size: tuple[int, int]) -> None:
    region = ringed(rng, write).region()
    small = shrunk(region, size)
    assert small is not None
    x = rng.standard_normal((IMAGES, 3, *SIZE))
    whole, part = (run(r, one, {}, Run(absolute=False)) for r, one in ((region, x), (small, without_middle(x, size))))
    assert part.shape == (IMAGES, 5, *size)
    assert np.allclose(corners(part, 2), corners(whole, 2), rtol=1e-12, atol=1e-12)


@BOTH
def test_a_ring_around_a_large_image_is_proved_on_a_small_one(rng: np.random.Generator, write: Writer) -> None:
    region = ringed(rng, write).region()
    affine = interpret(region)
    assert isinstance(affine, Affine)
    conv = conv_of(affine, "float32")
    assert isinstance(conv, ConvForm)
    proof = prove(region, conv)
    assert isinstance(proof, Proof)
    assert proof.size == (IMAGES, 3, 7, 7)


@BOTH
def test_strides_keep_their_phase(rng: np.random.Generator, write: Writer) -> None:
    region = ringed(rng, write, strides=2).region()
    assert shrunk(region, (9, 7)) is not None
    assert shrunk(region, (8, 7)) is None


@pytest.mark.parametrize("place", [3, 4, 5, 6, 7, 8])
def test_one_value_that_differs_in_the_middle_of_a_strip_is_seen(rng: np.random.Generator, place: int) -> None:
    """Neither reading nor proof overlooks it, though the smaller image would not show it."""
    right = ringed(np.random.default_rng(1)).region()
    affine = interpret(right)
    assert isinstance(affine, Affine)
    conv = conv_of(affine, "float32")
    assert isinstance(conv, ConvForm)
    block = ringed(np.random.default_rng(1))
    strip = next(node for node in block.nodes if node.op == "scatter_nd")
    strip.consts["updates"].load()[0, 1, 0, place] += 1e-3
    assert (shrunk(block.region(), (7, 7)) is None) == (place != 8)  # the one behind the gap is still there
    assert isinstance(prove(block.region(), conv), Refusal)


@pytest.mark.parametrize("write", [by_mask, by_joining])
def test_constants_that_are_not_even_are_seen(write: Callable[[Block, str, Array], str]) -> None:
    affine = interpret(whole(np.random.default_rng(1), write).region())
    assert isinstance(affine, Affine)
    conv = conv_of(affine, "float32")
    assert isinstance(conv, ConvForm)

    def dented(block: Block, y: str, values: Array) -> str:
        written = write(block, y, values)
        node = next(node for node in block.nodes if node.op in ("where", "concat"))
        if node.op == "where":
            node.consts["condition"].load()[0, 0, 7, 0] = True
        else:
            held = node.data[0].constant
            assert held is not None
            held.load()[0, 1, 0, 5] += 1e-3
        return written

    region = whole(np.random.default_rng(1), dented).region()
    assert shrunk(region, (7, 7)) is None
    assert isinstance(interpret(region), Refusal)
    assert isinstance(prove(region, conv), Refusal)


def test_a_value_inside_the_image_is_seen(rng: np.random.Generator) -> None:
    def dotted(block: Block, y: str, values: Array, strip: object) -> str:
        del strip
        indices = np.array([[[image, channel, 7, 6] for channel in range(CHANNELS)] for image in range(IMAGES)])
        updates = np.zeros((IMAGES, CHANNELS)) + values
        return block.node("scatter_nd", [y], {"indices": (indices, "int64"), "updates": updates}, reduction="none")

    assert shrunk(ringed(rng, dotted, RING[:1]).region(), (7, 7)) is None


def test_what_is_not_known_to_be_even_keeps_its_size(rng: np.random.Generator) -> None:
    block = ringed(rng)
    y = block.nodes[-1].output.name
    by_place = block.shift(y, rng.standard_normal((1, 1, *SIZE)))
    assert shrunk(block.region(by_place), (7, 7)) is None
    block.node("reshape", [y], shape=(IMAGES, 5, -1))
    assert shrunk(block.region(), (7, 7)) is None
    found = ringed(rng).region()
    assert shrunk(Region(Block((None, 3, *SIZE)).values["x"], found.exit, found.nodes), (7, 7)) is None


def test_per_channel_constants_and_sums_go_along(rng: np.random.Generator) -> None:
    block = ringed(rng)
    y = block.norm(block.scale(block.nodes[-1].output.name, rng.standard_normal((5, 1, 1))), 5, rng)
    block.add(y, block.conv("x", normal(rng, 5, 3, 3, 3), pads=1))
    small = shrunk(block.region(), (7, 7))
    assert small is not None
    assert run(small, np.zeros((IMAGES, 3, 7, 7)), {}, Run(absolute=False)).shape == (IMAGES, 5, 7, 7)
