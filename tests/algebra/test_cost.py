"""Costs by hand, and the gate."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import ConvForm, conv_of, cost_of_form, cost_of_nodes, gate, interpret
from rewriter.errors import Reason, Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Cost
from tests.algebra.regions import Block, normal, repvgg


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def after(region: Region) -> ConvForm:
    affine = interpret(region)
    assert not isinstance(affine, Refusal), affine
    conv = conv_of(affine, "float32")
    assert isinstance(conv, ConvForm), conv
    return conv


def gated(region: Region) -> Refusal | None:
    conv = after(region)
    bias = 0 if conv.bias is None else conv.bias.size
    return gate(cost_of_nodes(region.nodes), cost_of_form(conv), at=region.name, bias=bias)


def figures(cost: Cost) -> tuple[int, float]:
    return cost.parameters, cost.multiply_adds


def test_repvgg(rng: np.random.Generator) -> None:
    region = repvgg(8, rng, skip=True).region()
    assert figures(cost_of_nodes(region.nodes)) == (576 + 64 + 3 * 16, 576 + 64 + 3 * 8)
    assert figures(cost_of_form(after(region))) == (576 + 8, 576)
    assert gated(region) is None


def test_groups_and_strides(rng: np.random.Generator) -> None:
    """A norm before a conv of stride 2 works on four pixels for each one that comes out."""
    block = Block()
    y = block.conv(block.norm("x", 4, rng), normal(rng, 8, 2, 2, 2), strides=2, groups=2)
    block.scale(y, np.ones((8, 1, 1)))
    assert figures(cost_of_nodes(block.nodes)) == (8 + 64 + 8, 4 * 4 + 64 + 8)


def test_a_scalar_works_on_every_channel(rng: np.random.Generator) -> None:
    block = Block()
    block.scale(block.conv("x", normal(rng, 8, 4, 1, 1)), 2.0)
    assert figures(cost_of_nodes(block.nodes)) == (33, 40)
    block = Block((1, 6, 5, 5))
    block.add(block.scale("x", 2.0), "x")
    assert figures(cost_of_nodes(block.nodes)) == (1, 6)
    block = Block()
    block.scale("x", np.ones((3, 1, 1)))
    assert figures(cost_of_nodes(block.nodes)) == (3, 3)


def test_a_tensor_that_is_stored_once_counts_once(rng: np.random.Generator) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 4, 4, 1, 1))
    twin = block.nodes[0]
    again = block.node("conv", ["x"], **twin.attrs)
    block.nodes[-1].consts["weight"] = twin.consts["weight"]  # type: ignore[index]
    block.add(y, again)
    assert figures(cost_of_nodes(block.nodes)) == (16, 32)


def test_no_nodes() -> None:
    assert figures(cost_of_nodes(())) == (0, 0)


def test_a_cross_without_its_square_is_dear(rng: np.random.Generator) -> None:
    """1x5 + 5x1 in a 5x5: 10 weights become 25."""
    block = Block()
    tall = block.conv("x", normal(rng, 4, 4, 5, 1), pads=((2, 2), (0, 0)))
    block.add(tall, block.conv("x", normal(rng, 4, 4, 1, 5), pads=((0, 0), (2, 2))))
    refusal = gated(block.region())
    assert refusal is not None
    assert refusal.code == Reason.COST
    assert "400 multiply-adds per output pixel instead of 160" in refusal.detail
    assert "400 parameters instead of 160" in refusal.detail


def test_depthwise_made_dense_is_dear(rng: np.random.Generator) -> None:
    block = Block()
    wide = block.conv("x", normal(rng, 4, 1, 3, 3), pads=1, groups=4)
    block.add(wide, block.conv("x", normal(rng, 4, 4, 1, 1)))
    assert gated(block.region()) is not None


def test_a_dilated_branch_inside_a_large_kernel_is_free(rng: np.random.Generator) -> None:
    block = Block()
    large = block.conv("x", normal(rng, 4, 1, 7, 7), pads=3, groups=4)
    block.add(large, block.conv("x", normal(rng, 4, 1, 3, 3), pads=3, dilations=3, groups=4))
    assert gated(block.region()) is None


def test_the_bias_that_a_fold_needs_is_no_growth(rng: np.random.Generator) -> None:
    block = Block()
    block.shift(block.conv("x", normal(rng, 4, 4, 1, 1)), 0.5)
    assert gated(block.region()) is None


def test_each_figure_closes_the_gate() -> None:
    before = Cost(10, 10)
    assert gate(before, Cost(10, 10), at="n") is None
    for dear in (Cost(11, 10), Cost(10, 11)):
        refusal = gate(before, dear, at="n")
        assert refusal is not None
        assert (refusal.code, refusal.node) == (Reason.COST, "n")
    assert gate(before, Cost(13, 10), at="n", bias=3) is None
    assert gate(before, Cost(14, 10), at="n", bias=3) is not None


def test_bytes_hold_the_running_statistics_too(rng: np.random.Generator) -> None:
    block = Block()
    block.norm(block.conv("x", normal(rng, 8, 4, 3, 3)), 8, rng)
    cost = cost_of_nodes(block.nodes)
    assert (cost.parameters, cost.bytes) == (288 + 16, 4 * (288 + 4 * 8))


def test_known_sizes_give_figures_per_image(rng: np.random.Generator) -> None:
    """A valid 3x3 on 8x8 gives 6x6 positions; the norm before it works on all 64 pixels of its 4 channels."""
    block = Block()
    y = block.conv(block.norm("x", 4, rng), normal(rng, 8, 4, 3, 3))
    shapes = {"x": (2, 4, 8, 8), block.nodes[0].output.name: (2, 4, 8, 8), y: (2, 8, 6, 6)}
    cost = cost_of_nodes(block.nodes, shapes)
    assert not cost.per_pixel
    assert cost.multiply_adds == 4 * 64 + 288 * 36
    assert cost_of_nodes(block.nodes, {"x": (2, 4, 8, 8)}).per_pixel


def test_what_was_too_dear_keeps_its_figures() -> None:
    refusal = gate(Cost(10, 10), Cost(11, 10), at="n")
    assert refusal is not None and (refusal.before, refusal.after) == (Cost(10, 10), Cost(11, 10))
