"""Slices, splits, joins and orders of channels and places: each folds as rows of one kernel, or says why it stays."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import ConvForm, conv_of, dtype_of, interpret, prove
from rewriter.errors import Reason, Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Block, normal

FAR = (1 << 63) - 1


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(17)


def fold(region: Region) -> ConvForm | Refusal:
    affine, dtype = interpret(region), dtype_of(region)
    if isinstance(affine, Refusal):
        return affine
    return dtype if isinstance(dtype, Refusal) else conv_of(affine, dtype, at=region.name)


def folded(region: Region, sizes: list[tuple[int, ...]] | None = None) -> ConvForm:
    conv = fold(region)
    assert isinstance(conv, ConvForm), conv
    assert judge.same(region, conv, sizes or [(5, 6), (8, 7)])
    assert isinstance(prove(region, conv), Proof), prove(region, conv)
    return conv


def refused(region: Region, code: Reason, words: str) -> None:
    found = fold(region)
    assert isinstance(found, Refusal), found
    assert (found.code, words in found.detail) == (code, True), found


def image(channels: int, *sizes: int | None) -> Block:
    return Block((1, channels, *(sizes or (None, None))))


def test_partial_identity(rng: np.random.Generator) -> None:
    """RMNet: half of the channels go through a conv, the other half past it."""
    block = image(6)
    a, b = block.split("x", [2, 4])
    joined = block.concat(block.conv(b, normal(rng, 5, 4, 3, 3), rng.standard_normal(5), pads=1), a)
    block.add(block.norm(joined, 7, rng), block.conv("x", normal(rng, 7, 6, 1, 1)))
    assert folded(block.region()).kernel.shape == (7, 6, 3, 3)


def test_branches_over_channels_stay_depthwise(rng: np.random.Generator) -> None:
    """RepNeXt and InceptionNeXt: each branch has its channels, one has none."""
    block = image(8)
    parts = block.split("x", [2, 2, 2, 2])
    windows = [(3, 3), (1, 5), (5, 1)]
    convs = [
        block.conv(p, normal(rng, 2, 1, *k), pads=[(n // 2, n // 2) for n in k], groups=2)
        for p, k in zip(parts[1:], windows, strict=True)
    ]
    block.norm(block.concat(parts[0], *convs), 8, rng)
    conv = folded(block.region())
    assert (conv.kernel.shape, conv.groups) == ((8, 1, 5, 5), 8)


def test_unequal_groups_in_a_sum(rng: np.random.Generator) -> None:
    """A conv of two groups beside one of channels 0 to 2 only: the rows are no equal blocks any more."""
    block = image(4)
    first = block.cut("x", [0], [3], [1])
    whole = block.conv("x", normal(rng, 4, 2, 3, 3), pads=1, groups=2)
    block.add(whole, block.conv(first, normal(rng, 4, 3, 1, 1)))
    assert folded(block.region()).groups == 1


def test_orders_of_channels(rng: np.random.Generator) -> None:
    order = [3, 0, -1, 2, 2]
    block = image(4)
    y = block.node("gather", ["x"], {"indices": (np.int64(order), "int64")}, axis=1)
    block.conv(y, normal(rng, 5, 1, 3, 3), pads=1, groups=5)
    assert folded(block.region()).kernel.shape == (5, 4, 3, 3)


def test_a_slice_backwards(rng: np.random.Generator) -> None:
    block = image(5)
    block.conv(block.cut("x", [-1], [-FAR], [1], [-2]), normal(rng, 2, 3, 1, 1))
    assert not folded(block.region()).kernel[:, [1, 3]].any()


def test_space_to_depth(rng: np.random.Generator) -> None:
    """YOLOv5's Focus: four strided slices, joined, then 3x3: one conv of stride 2, where the size is even."""
    for size in (8, 9, None):
        block = image(3, size, size)
        starts = [(0, 0), (1, 0), (0, 1), (1, 1)]
        parts = [block.cut("x", start, (FAR, FAR), (2, 3), (2, 2)) for start in starts]
        block.conv(block.concat(*parts), normal(rng, 4, 12, 3, 3), rng.standard_normal(4), pads=1)
        if size == 8:
            conv = folded(block.region(), [(8, 8)])
            assert (conv.kernel.shape, conv.strides, conv.pads) == ((4, 3, 6, 6), (2, 2), ((2, 2), (2, 2)))
        else:
            refused(block.region(), Reason.SHAPE, "joins extents that are not provably equal")


def test_places_cut_off(rng: np.random.Generator) -> None:
    """An end that is counted from the end, or open, fits any size; one that is counted from the begin a known one."""
    for size, end, folds in ((None, -1, True), (None, FAR, True), (None, 6, False), (8, 6, True)):
        block = image(2, size, 5)
        block.conv(block.cut("x", [1], [end], [2]), normal(rng, 2, 2, 3, 3))
        if folds:
            folded(block.region(), [(size or 9, 5)])
        else:
            refused(block.region(), Reason.DYNAMIC, "size that is not known")


def test_rows_are_not_channels(rng: np.random.Generator) -> None:
    block = image(4)
    block.conv(block.concat("x", "x", axis=0), normal(rng, 4, 4, 1, 1))
    refused(block.region(), Reason.OP, "joins rows")
    block = image(4)
    block.conv(block.split("x", [1, 3], axis=2)[0], normal(rng, 4, 4, 1, 1))
    refused(block.region(), Reason.OP, "splits the rows")
    block = image(4)
    block.conv(block.cut("x", [0], [1], [0]), normal(rng, 4, 4, 1, 1))
    refused(block.region(), Reason.OP, "takes some of the rows")


def test_parts_that_do_not_fit(rng: np.random.Generator) -> None:
    block = image(4)
    block.conv(block.split("x", [1, 2])[0], normal(rng, 4, 1, 1, 1))
    refused(block.region(), Reason.SHAPE, "splits 4 channels into [1, 2]")
    block = image(4)
    block.conv(block.cut("x", [2], [2], [1]), normal(rng, 4, 1, 1, 1))
    refused(block.region(), Reason.SHAPE, "leaves no channel")
    block = image(4)
    y = block.node("gather", ["x"], {"indices": (np.int64([4]), "int64")}, axis=1)
    block.conv(y, normal(rng, 4, 1, 1, 1))
    refused(block.region(), Reason.VALUE, "out of range")


def test_a_leftover_is_not_joined(rng: np.random.Generator) -> None:
    block = image(4)
    block.concat(block.conv("x", normal(rng, 4, 4, 1, 1)), block.outside("r"))
    refused(block.region(rest=[(1, "r")]), Reason.OP, "joins a leftover")


def test_equal_parts(rng: np.random.Generator) -> None:
    block = image(6)
    first = block.node("split", ["x"], outputs=3, axis=1)
    block.conv(block.concat(f"{first}.2", first), normal(rng, 3, 4, 1, 1))
    assert folded(block.region()).kernel.shape == (3, 6, 1, 1)


def test_parts_in_a_sequence(rng: np.random.Generator) -> None:
    """Only picking one of them reads a sequence."""
    block = image(5)
    parts = block.node("splittosequence", ["x"], axis=1, each=2)
    picked = [block.node("sequenceat", [parts], index=i) for i in (-1, 0, 1)]
    block.add(block.concat(*picked), block.conv("x", normal(rng, 5, 5, 3, 3), pads=1))
    assert folded(block.region()).kernel.shape == (5, 5, 3, 3)
    for op, attrs, words in (("sequenceat", {"index": 3}, "sequenceat reads"), ("neg", {}, "neg reads")):
        block = image(5)
        block.node(op, [block.node("splittosequence", ["x"], axis=1, each=2)], **attrs)
        block.conv(block.nodes[-1].output.name, normal(rng, 5, 2, 1, 1))
        refused(block.region(), Reason.OP, words)
