"""Rings: what is written around a map folds where it is what the map gives there, and nothing that is close to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rewriter.algebra import ConvForm, conv_of, interpret, placement, prove
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
    dtype: str = "float32",
    **conv: Any,
) -> Block:
    """A layer with a bias, that bias around it, and a layer that reads both."""
    block = Block((IMAGES, 3, HIGH - 2, WIDE - 2), dtype)
    bias = np.asarray(rng.standard_normal(CHANNELS) if bias is None else bias, np.float32).astype(np.float64)
    y = block.conv("x", normal(rng, CHANNELS, 3, first, first), bias, pads=first // 2)
    y = padded(block, y)
    for strip in strips:
        y = write(block, y, bias if values is None else values, strip)
    block.conv(y, normal(rng, 5, CHANNELS, 3, 3), rng.standard_normal(5), **conv)
    return block


def whole(rng: np.random.Generator, write: Callable[[Block, str, Array], str], bias: Array | None = None) -> Block:
    """The same, all of the ring by `write`, which reads the unpadded map."""
    block = ringed(rng, strips=(), bias=bias)
    block.nodes[1:] = []
    bias = block.nodes[0].consts["bias"].floats()
    y = write(block, block.nodes[0].output.name, bias)
    block.conv(y, normal(rng, 5, CHANNELS, 3, 3), rng.standard_normal(5))
    return block


def by_mask(
    block: Block, y: str, values: Array, swapped: bool = False, kept: Strip = (slice(1, -1), slice(1, -1))
) -> str:
    """A choice between the map with room around it and the values."""
    mask = np.zeros((1, 1, HIGH, WIDE), np.bool_)
    mask[:, :, *kept] = True
    sides = [padded(block, y), block.known_value(values.reshape(1, -1, 1, 1))]
    consts = {"condition": (~mask if swapped else mask, "bool")}
    return block.node("where", sides[::-1] if swapped else sides, consts)


def by_joining(block: Block, y: str, values: Array, columns_first: bool = False, above: int = 1) -> str:
    """Rows and columns of the values beside the map."""
    for axis in (3, 2) if columns_first else (2, 3):
        high, wide = (HIGH - 2, 1) if axis == 3 else (1, WIDE - 2)
        if (axis == 2) == columns_first:
            high, wide = (1, WIDE) if axis == 2 else (HIGH, 1)
        strip = np.zeros((IMAGES, CHANNELS, high, wide)) + values.reshape(-1, 1, 1)
        count = above if axis == 2 else 1
        parts = [block.known_value(strip) for _ in range(2)]
        y = block.concat(*parts[:count], y, *parts[count:], axis=axis - 4 if columns_first else axis)
    return y


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


def test_types_of_other_precision_are_off_by_their_own_last_places(rng: np.random.Generator) -> None:
    bias = np.float32([1.0, -0.25, 0.125, 0.5])
    for dtype, near, far in (("float16", 2.0**-10, 2.0**-8), ("float64", 2.0**-52, 1e-9)):
        values = np.stack([bias.astype(np.float64)] * 2) + np.float64([[near], [far]])
        region = ringed(rng, values=values[0], bias=bias, dtype=dtype).region()
        conv = conv_of(known(interpret(region)), dtype)
        assert isinstance(conv, ConvForm) and isinstance(prove(region, conv), Proof)
        refused(ringed(rng, values=values[1], bias=bias, dtype=dtype).region(), "around the image")


def known(found: Affine | Refusal) -> Affine:
    assert isinstance(found, Affine), found
    return found


def test_the_mean_behind_a_ring_with_a_stride(rng: np.random.Generator) -> None:
    region = ringed(rng, strides=2).region()
    conv = fold(region)
    assert isinstance(conv, ConvForm)
    assert conv.strides == (2, 2)
    assert isinstance(prove(region, conv), Proof)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_choice_by_mask(rng: np.random.Generator, swapped: bool) -> None:
    region = whole(rng, lambda block, y, values: by_mask(block, y, values, swapped)).region()
    assert folded(region).size == (IMAGES, 3, 7, 7)
    conv = fold(region)
    assert isinstance(conv, ConvForm)
    assert judge.same(region, conv, [(HIGH - 2, WIDE - 2)])


@pytest.mark.parametrize("columns_first", [False, True])
def test_rows_and_columns_joined_to_the_map(rng: np.random.Generator, columns_first: bool) -> None:
    region = whole(rng, lambda block, y, values: by_joining(block, y, values, columns_first)).region()
    assert folded(region).size == (IMAGES, 3, 7, 7)
    conv = fold(region)
    assert isinstance(conv, ConvForm)
    assert judge.same(region, conv, [(HIGH - 2, WIDE - 2)])


def test_both_rows_above_the_map_are_two_rows_of_padding(rng: np.random.Generator) -> None:
    conv = fold(whole(rng, lambda block, y, values: by_joining(block, y, values, above=2)).region())
    assert isinstance(conv, ConvForm)
    assert conv.pads == ((2, 0), (1, 1))


def test_the_bias_taken_away_before_padding_and_added_behind(rng: np.random.Generator) -> None:
    def shifted(block: Block, y: str, values: Array) -> str:
        column = values.reshape(-1, 1, 1)
        return block.shift(padded(block, block.shift(y, -column)), column)

    folded(whole(rng, shifted).region())


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


def test_other_values_by_mask_or_joined(rng: np.random.Generator) -> None:
    for write in (by_mask, by_joining):
        refused(whole(rng, lambda block, y, values: write(block, y, values + 3e-6)).region(), "around the image")  # noqa: B023
        refused(whole(rng, lambda block, y, values: write(block, y, values * 0)).region(), "around the image")  # noqa: B023


def test_masks_that_cut_into_the_image_or_keep_padding(rng: np.random.Generator) -> None:
    def masked(kept: Strip) -> Region:
        return whole(rng, lambda block, y, values: by_mask(block, y, values, kept=kept)).region()

    refused(masked((slice(2, -1), slice(1, -1))), "over the image")
    refused(masked((slice(0, -1), slice(1, -1))), "writes 0 around the image")
    refused(masked((slice(1, -1, 2), slice(1, -1))), "no box")


def test_constants_of_another_size_joined(rng: np.random.Generator) -> None:
    def joined(shape: tuple[int, ...], axis: int) -> Region:
        return whole(
            rng, lambda block, y, values: block.concat(block.known_value(np.zeros(shape)), y, axis=axis)
        ).region()

    refused(joined((IMAGES, CHANNELS, 1, WIDE), 2), "another size", Reason.SHAPE)
    refused(joined((IMAGES, 1, HIGH - 2, WIDE - 2), 1), "channels or images", Reason.OP)
    refused(joined((CHANNELS, 1, WIDE - 2), 2), "other axes", Reason.SHAPE)


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


def test_constants_too_large_to_be_read(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MOST_ELEMENTS", 7)
    for block in (ringed(rng), ringed(rng, by_rows), whole(rng, by_mask), whole(rng, by_joining)):
        refused(block.region(), "more than 7 elements", Reason.LIMIT)


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
