"""Maps that channels were cut into: what is done to them is done to the channels, as a matrix over all places."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import ConvForm, dtype_of, form_of, interpret, prove, space_of
from rewriter.algebra.places import MOST_ELEMENTS
from rewriter.algebra.terms import Aside
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Node
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Block, normal

ROWS, SETS, HIGH, WIDE = 5, 2, 3, 4
CHANNELS = SETS * HIGH * WIDE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(31)


def folded(region: Region) -> tuple[ConvForm, tuple[Node, ...]]:
    """The layer over all places and the views behind it: provable, and the same on an input of its own."""
    found, dtype, space = interpret(region), dtype_of(region), space_of(region)
    views = (found.views or ()) if isinstance(found, Aside) else ()
    affine = found.map if isinstance(found, Aside) else found
    assert not isinstance(affine, Refusal), affine
    assert isinstance(dtype, str)
    assert not isinstance(space, Refusal)
    form = form_of(affine, dtype, space, at=region.name)
    assert isinstance(form, ConvForm), form
    assert isinstance(prove(region, form, views), Proof), prove(region, form, views)
    x = np.random.default_rng(2).standard_normal((ROWS, CHANNELS, 1, 1))
    dense = np.zeros((form.kernel.shape[0], CHANNELS))
    outs, ins = form.kernel.shape[0] // form.groups, CHANNELS // form.groups
    for g in range(form.groups):
        dense[g * outs : (g + 1) * outs, g * ins : (g + 1) * ins] = form.kernel[g * outs : (g + 1) * outs, :, 0, 0]
    y = x[:, :, 0, 0] @ dense.T + (0 if form.bias is None else form.bias)
    expected = judge.run(region, x)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=0, atol=1e-11)
    return form, views


def refused(region: Region, code: Reason, words: str) -> None:
    found = interpret(region)
    assert isinstance(found, Refusal) and not isinstance(found, Aside), found
    assert (found.code, words in found.detail) == (code, True), found


def cut(block: Block, value: str, *rows: int, extents: tuple[int, ...] = (SETS, HIGH, WIDE)) -> str:
    return block.node("reshape", [value], shape=(*(rows or (-1,)), *extents))


@pytest.mark.parametrize("rows", [(-1,), (ROWS,), (-1, 1), (1, ROWS, 1)])
def test_a_layer_over_all_places_beside_convolutions(rng: np.random.Generator, rows: tuple[int, ...]) -> None:
    """RepMLPNet, the sum with its rows in one axis or in several, the layer's groups kept."""
    block = Block((ROWS, CHANNELS, 1, 1))
    wide = block.norm(block.conv("x", normal(rng, CHANNELS, CHANNELS // SETS, 1, 1), groups=SETS), CHANNELS, rng)
    maps = cut(block, "x")
    near = block.norm(block.conv(maps, normal(rng, SETS, 1, 3, 3), pads=1, groups=SETS), SETS, rng)
    near = block.add(near, block.scale(block.conv(maps, normal(rng, SETS, 1, 1, 1), groups=SETS), 0.5))
    near = near if len(rows) == 1 else cut(block, near, *rows)
    block.add(cut(block, wide, *rows), near)
    form, views = folded(block.region())
    assert (form.groups, [view.op for view in views]) == (SETS, ["reshape"])


@pytest.mark.parametrize(
    ("window", "settings"),
    [
        ((3, 3), {"pads": ((2, 0), (0, 1))}),
        ((2, 2), {"strides": (2, 1)}),
        ((2, 2), {"dilations": (2, 3), "pads": ((0, 1), (2, 2))}),
        ((1, 1), {"strides": (2, 2), "pads": ((1, 1), (0, 0))}),
    ],
)
def test_every_window_is_a_matrix(
    rng: np.random.Generator, window: tuple[int, int], settings: dict[str, object]
) -> None:
    block = Block((ROWS, CHANNELS, 1, 1))
    y = block.conv(
        cut(block, block.conv("x", normal(rng, CHANNELS, CHANNELS, 1, 1))), normal(rng, 3, 2, *window), **settings
    )
    y = block.shift(y, rng.standard_normal((3, 1, 1)))
    made = judge.run(block.region(), np.zeros((ROWS, CHANNELS, 1, 1))).shape
    block.node("reshape", [y], shape=(-1, int(np.prod(made[1:])), 1, 1))
    form, views = folded(block.region())
    assert not views and form.kernel.shape[0] == np.prod(made[1:])


def test_one_map_a_row(rng: np.random.Generator) -> None:
    block = Block((ROWS, CHANNELS, 1, 1))
    wide = cut(block, block.conv("x", normal(rng, CHANNELS, CHANNELS, 1, 1)), extents=(1, HIGH, 2 * WIDE))
    maps = cut(block, "x", extents=(1, HIGH, 2 * WIDE))
    near = block.norm(block.conv(maps, normal(rng, 3, 1, 3, 3), pads=1), 3, rng)
    block.add(wide, block.conv(near, normal(rng, 1, 3, 1, 1), rng.standard_normal(1)))
    folded(block.region())


def test_cut_on_other_bounds_than_those_of_a_row(rng: np.random.Generator) -> None:
    block = Block((ROWS, CHANNELS, 1, 1))
    y = cut(block, block.conv("x", normal(rng, CHANNELS, CHANNELS, 1, 1)), extents=(SETS, HIGH, WIDE - 1))
    block.conv(y, normal(rng, 2, 2, 1, 1))
    refused(block.region(), Reason.SHAPE, "cuts through the axes")


def test_what_else_reads_maps_is_refused(rng: np.random.Generator) -> None:
    block = Block((ROWS, CHANNELS, 1, 1))
    y = cut(block, block.conv("x", normal(rng, CHANNELS, CHANNELS, 1, 1)))
    block.node("transpose", [y], perm=(0, 2, 3, 1))
    refused(block.region(), Reason.SHAPE, "reads maps that channels were cut into")
    block = Block((ROWS, CHANNELS, 1, 1))
    y = cut(block, block.conv("x", normal(rng, CHANNELS, CHANNELS, 1, 1)))
    block.scale(y, rng.standard_normal((HIGH, 1)))
    refused(block.region(), Reason.SHAPE, "not one number per")


def test_a_matrix_beyond_the_budget_is_refused(rng: np.random.Generator) -> None:
    side = 48
    assert side**4 > MOST_ELEMENTS
    block = Block((1, side * side, 1, 1))
    y = block.node("reshape", ["x"], shape=(-1, 1, side, side))
    block.conv(y, normal(rng, 1, 1, 3, 3), pads=1)
    refused(block.region(), Reason.LIMIT, "over all places")
