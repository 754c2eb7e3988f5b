"""Rings: what is written around a map folds where it is what the map gives there, and nothing that is close to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

IMAGES, CHANNELS, HIGH, WIDE = 2, 4, 15, 13
"""Of the padded image."""

Strip = tuple[int | slice, int | slice]
"""Rows and columns of it."""

ALL = slice(None)
RING: tuple[Strip, ...] = ((0, ALL), (-1, ALL), (ALL, 0), (ALL, -1))
Writer = Callable[[Block, str, Array, Strip], str]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def by_rows(block: Block, y: str, values: Array, strip: Strip) -> str:
    """By one index of an axis that is moved to the front, as the exporter of today writes it."""
    row, column = strip
    perm, rest = ((2, 1, 0, 3), (IMAGES, WIDE)) if isinstance(row, int) else ((3, 1, 2, 0), (HIGH, IMAGES))
    updates = np.zeros((1, CHANNELS, *rest)) + values.reshape(-1, 1, 1)
    consts = {"indices": ([[row if isinstance(row, int) else column]], "int64"), "updates": updates}
    y = block.node("transpose", [y], perm=perm)
    y = block.node("scatter_nd", [block.node("identity", [y])], consts, reduction="none")
    return block.node("transpose", [y], perm=perm)


def by_places(block: Block, y: str, values: Array, strip: Strip) -> str:
    """Place by place, as the exporter of TorchScript writes it."""
    taken = [[range(n)[at]] if isinstance(at, int) else range(n)[at] for at, n in zip(strip, (HIGH, WIDE), strict=True)]
    indices = np.stack(np.meshgrid(range(IMAGES), range(CHANNELS), *taken, indexing="ij"), axis=-1)
    updates = np.zeros(indices.shape[:-1]) + values.reshape(-1, 1, 1)
    return block.node("scatter_nd", [y], {"indices": (indices, "int64"), "updates": updates}, reduction="none")


def padded(block: Block, y: str, value: float = 0.0, amount: int = 1) -> str:
    pads = ((0, 0), (0, 0), (amount, amount), (amount, amount))
    return block.node("pad", [y], pads=pads, mode="constant", value=value, amount=amount)


def ringed(
    rng: np.random.Generator,
    write: Writer = by_places,
    strips: Sequence[Strip] = RING,
    values: Array | None = None,
    bias: Array | None = None,
    first: int = 1,
    **conv: Any,
) -> Block:
    """A layer with a bias, that bias around it, and a layer that reads both."""
    block = Block((IMAGES, 3, HIGH - 2, WIDE - 2))
    bias = np.asarray(rng.standard_normal(CHANNELS) if bias is None else bias, np.float32).astype(np.float64)
    y = block.conv("x", normal(rng, CHANNELS, 3, first, first), bias, pads=first // 2)
    y = padded(block, y)
    for strip in strips:
        y = write(block, y, bias if values is None else values, strip)
    block.conv(y, normal(rng, 5, CHANNELS, 3, 3), rng.standard_normal(5), **conv)
    return block


def fold(region: Region) -> ConvForm | Refusal:
    affine = interpret(region)
    return conv_of(affine, "float32") if isinstance(affine, Affine) else affine


def folded(region: Region) -> Proof:
    conv = fold(region)
    assert isinstance(conv, ConvForm), conv
    proof = prove(region, conv)
    assert isinstance(proof, Proof), proof
    assert conv.pads == ((1, 1), (1, 1))
    return proof


def refused(region: Region, words: str, code: Reason = Reason.EXACT) -> None:
    found = fold(region)
    assert isinstance(found, Refusal), found
    assert (found.code, words in found.detail) == (code, True), found


BOTH = pytest.mark.parametrize("write", [by_rows, by_places])


# --- rings that fold -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("strips", [RING, RING[::-1], (RING[2], RING[0], RING[3], RING[1]), (*RING, RING[0])])
def test_the_bias_all_around_in_any_order(rng: np.random.Generator, write: Writer, strips: Sequence[Strip]) -> None:
    region = ringed(rng, write, strips).region()
    assert folded(region).error < 1e-15
    conv = fold(region)
    assert isinstance(conv, ConvForm)
    assert judge.same(region, conv, [(HIGH - 2, WIDE - 2)])


@BOTH
def test_a_bias_of_zero_needs_no_ring_and_may_have_one(rng: np.random.Generator, write: Writer) -> None:
    for strips in ((), RING[:1], RING):
        folded(ringed(rng, write, strips, bias=np.zeros(CHANNELS)).region())


def test_strips_may_leave_the_corners_to_others(rng: np.random.Generator) -> None:
    inside = slice(1, -1)
    folded(ringed(rng, strips=((0, inside), (-1, inside), (ALL, 0), (ALL, -1))).region())


def test_what_is_written_over_is_not_seen(rng: np.random.Generator) -> None:
    block = ringed(rng, strips=())
    block.nodes.pop()
    bias = block.nodes[0].consts["bias"].floats()
    y = by_places(block, block.nodes[-1].output.name, bias + 1, RING[0])
    for strip in RING:
        y = by_places(block, y, bias, strip)
    block.conv(y, normal(rng, 5, CHANNELS, 3, 3))
    folded(block.region())


@BOTH
def test_a_bias_that_was_computed_in_another_order_is_off_by_last_places(
    rng: np.random.Generator, write: Writer
) -> None:
    bias = np.float32([1.0, -0.25, 0.003, 0.5])
    values = np.nextafter(bias, np.float32(2)).astype(np.float64)
    values[2] += 2e-7
    proof = folded(ringed(rng, write, values=values, bias=bias).region())
    assert 1e-9 < proof.error < proof.limit < 1e-5


def test_the_mean_behind_a_ring_with_a_stride(rng: np.random.Generator) -> None:
    region = ringed(rng, strides=2).region()
    conv = fold(region)
    assert isinstance(conv, ConvForm)
    assert conv.strides == (2, 2)
    assert isinstance(prove(region, conv), Proof)


# --- what stays ------------------------------------------------------------------------------------------------------


@BOTH
def test_a_value_that_is_almost_the_bias(rng: np.random.Generator, write: Writer) -> None:
    bias = np.float32([1.0, -0.25, 0.003, 0.5])
    for channel in range(CHANNELS):
        values = bias.astype(np.float64)
        values[channel] += 3e-6
        refused(ringed(rng, write, values=values, bias=bias).region(), f"(channel {channel})")


@BOTH
def test_strips_that_are_missing(rng: np.random.Generator, write: Writer) -> None:
    for missing in range(4):
        strips = [strip for i, strip in enumerate(RING) if i != missing]
        refused(ringed(rng, write, strips).region(), "writes 0 around the image")
    refused(ringed(rng, write, ()).region(), "pads with 0 where the map before it gives its bias")


@BOTH
def test_a_row_too_far_in(rng: np.random.Generator, write: Writer) -> None:
    refused(ringed(rng, write, ((1, ALL), *RING[1:])).region(), "over the image")


def test_corners_that_are_missing(rng: np.random.Generator) -> None:
    refused(ringed(rng, strips=(*RING[:2], (slice(2, -2), 0), RING[3])).region(), "writes 0 around the image")


def test_a_layer_with_a_window_reads_the_image_from_outside(rng: np.random.Generator) -> None:
    refused(ringed(rng, first=3).region(), "still reads the image")


def test_some_of_the_channels(rng: np.random.Generator) -> None:
    def some(block: Block, y: str, values: Array, strip: Strip) -> str:
        name = by_places(block, y, values, strip)
        node = block.nodes[-1]
        indices, updates = (node.consts[role].load()[:, :2] for role in ("indices", "updates"))
        block.nodes.pop()
        consts = {"indices": (indices, "int64"), "updates": updates}
        assert block.node("scatter_nd", [y], consts, reduction="none") == name
        return name

    refused(ringed(rng, some).region(), "some of the images or channels", Reason.OP)


def test_values_that_differ_along_a_strip(rng: np.random.Generator) -> None:
    block = ringed(rng)
    node = next(node for node in block.nodes if node.op == "scatter_nd")
    node.consts["updates"].load()[0, 1, 0, 3] += 1e-3
    refused(block.region(), "not one per channel")


def test_places_that_are_no_box(rng: np.random.Generator) -> None:
    block = ringed(rng)
    node = next(node for node in block.nodes if node.op == "scatter_nd")
    places = node.consts["indices"].load()
    places[0, 0, 0, 1] = places[0, 0, 0, 2]
    refused(block.region(), "no box")


def test_indices_out_of_range_and_writes_that_do_not_fit(rng: np.random.Generator) -> None:
    refused(ringed(rng, by_rows, ((HIGH, ALL),)).region(), "out of range", Reason.VALUE)
    block = Block((IMAGES, 3, HIGH - 1, WIDE - 2))
    found = ringed(rng, by_rows).region()
    other = Region(block.values["x"], found.exit, tuple(found.nodes))
    refused(other, "does not fit", Reason.SHAPE)


def test_sizes_that_are_not_known(rng: np.random.Generator) -> None:
    found = ringed(rng).region()
    for shape in ((None, 3, HIGH - 2, WIDE - 2), (IMAGES, 3, None, WIDE - 2), (IMAGES, 3, HIGH - 2, "w")):
        entry = Block(shape).values["x"]
        refused(Region(entry, found.exit, found.nodes), "a size that is not known", Reason.DYNAMIC)


def test_updates_that_are_added(rng: np.random.Generator) -> None:
    block = ringed(rng, strips=RING[:1])
    node = block.nodes[2]
    consts = {role: (node.consts[role].load(), node.consts[role].dtype) for role in node.consts}
    block.nodes.pop()
    block.node("scatter_nd", [node.output.name], consts, reduction="add")
    refused(block.region(), "adds to what is there", Reason.OP)


def test_an_endless_chain_of_writes(rng: np.random.Generator) -> None:
    refused(ringed(rng, strips=RING * 9).region(), "more than 32 writes", Reason.LIMIT)


# --- the proof does not trust the reading ----------------------------------------------------------------------------


@pytest.mark.parametrize("off", [3e-6, 1e-3, 1.0])
def test_a_fold_of_another_ring_is_caught(rng: np.random.Generator, off: float) -> None:
    """Written as if the values had been the bias; elementwise, the region gives something else."""
    bias = np.float32([1.0, -0.25, 0.003, 0.5])
    right = fold(ringed(np.random.default_rng(1), bias=bias).region())
    assert isinstance(right, ConvForm)
    values = bias.astype(np.float64)
    values[1] += off
    for wrong in (ringed(np.random.default_rng(1), values=values, bias=bias),
                  ringed(np.random.default_rng(1), strips=RING[1:], bias=bias)):  # fmt: skip
        found = prove(wrong.region(), right)
        assert isinstance(found, Refusal), found
        assert found.code is Reason.EXACT
