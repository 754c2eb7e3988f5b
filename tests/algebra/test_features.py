"""Products with matrices: norms, scales, low-rank chains and views that net out become one matrix, or stay."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import ConvForm, LinearForm, dtype_of, form_of, interpret, prove, space_of
from rewriter.algebra.terms import Aside, ends_behind
from rewriter.errors import Reason, Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Block, normal


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


def fold(region: Region) -> LinearForm | ConvForm | Refusal:
    affine, dtype, space = interpret(region), dtype_of(region), space_of(region)
    if isinstance(affine, Refusal):
        return affine
    assert isinstance(dtype, str)
    assert not isinstance(space, Refusal)
    return form_of(affine, dtype, space, at=region.name)


def folded(region: Region, size: tuple[int, ...]) -> LinearForm:
    """The matrix, which has to exist, to be the same function of rows, and to be provable."""
    form = fold(region)
    assert isinstance(form, LinearForm), form
    x = np.random.default_rng(1).standard_normal(size)
    y = np.einsum("...i,oi->...o", x, form.kernel) + (0 if form.bias is None else form.bias)
    expected = judge.run(region, x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11)
    assert isinstance(prove(region, form), Proof), prove(region, form)
    return form


def refused(region: Region, code: Reason, words: str) -> None:
    found = fold(region)
    assert isinstance(found, Refusal), found
    assert (found.code, words in found.detail) == (code, True), found


def test_norms_before_and_behind(rng: np.random.Generator) -> None:
    """EfficientViT's NormLinear, LeViT's LinearNorm, VanillaNet in features."""
    block = Block(("n", 6))
    y = block.linear(block.norm("x", 6, rng), normal(rng, 8, 6), rng.standard_normal(8), rank=2)
    y = block.node("leaky_relu", [block.norm(y, 8, rng)], slope=1.0)
    block.linear(y, normal(rng, 4, 8), rank=2)
    form = folded(block.region(), (3, 6))
    assert (form.kernel.shape, form.axes, form.nodes) == ((4, 6), 2, 1)


def test_a_gemm_says_that_there_are_two_axes(rng: np.random.Generator) -> None:
    block = Block()
    block.norm(block.linear(block.scale("x", rng.standard_normal(5)), normal(rng, 4, 5), rank=2), 4, rng)
    assert folded(block.region(), (3, 5)).axes == 2
    block = Block()
    block.scale(block.linear("x", normal(rng, 4, 5)), rng.standard_normal(4))
    refused(block.region(), Reason.DYNAMIC, "not known")


def test_low_rank_chains(rng: np.random.Generator) -> None:
    """LoRA, and two heads averaged."""
    block = Block((2, 7, 6))
    base = block.shift(block.linear("x", normal(rng, 8, 6)), rng.standard_normal(8))
    low = block.scale(block.linear(block.linear("x", normal(rng, 2, 6)), normal(rng, 8, 2)), 0.25)
    block.scale(block.add(base, low), np.linspace(0.5, 1, 8))
    form = folded(block.region(), (2, 7, 6))
    assert (form.kernel.shape, form.axes, form.nodes) == ((8, 6), 3, 2)


@pytest.mark.parametrize("shape", [(2, 7, 6), (1, 7, 6), ("n", 7, 6), (None, 7, None)])
@pytest.mark.parametrize("back", [(-1, 7, 4), (0, -1, 4)])
def test_a_norm_between_two_reshapes(rng: np.random.Generator, shape: tuple[int, ...], back: tuple[int, ...]) -> None:
    """LeViT: rows are joined for the norm and taken apart again."""
    block = Block(shape)
    y = block.node("flatten", [block.linear("x", normal(rng, 4, 6))], axis=2)
    y = block.norm(block.node("reshape", [y], shape=(-1, 4)), 4, rng)
    block.node("reshape", [y], shape=back)
    batch = shape[0] if isinstance(shape[0], int) else 3
    if back[0] == 0 and shape != (1, 7, 6):  # all rows in the first axis: another shape
        refused(block.region(), Reason.SHAPE, "")
    elif back[0] == -1:
        folded(block.region(), (batch, 7, 6))


def test_a_norm_between_two_transpositions(rng: np.random.Generator) -> None:
    """RepBN: the norm wants channels on axis 1, the matrix on the last."""
    block = Block((2, 7, 6))
    y = block.node("transpose", ["x"], perm=(0, 2, 1))
    y = block.add(block.norm(y, 6, rng), block.scale(y, 0.7))
    block.linear(block.node("transpose", [y], perm=(0, 2, 1)), normal(rng, 4, 6), rng.standard_normal(4))
    assert folded(block.region(), (2, 7, 6)).kernel.shape == (4, 6)


@pytest.mark.parametrize("groups", [1, 2])
def test_pointwise_convolutions_between_two_transpositions(rng: np.random.Generator, groups: int) -> None:
    """RepAdapter: a convolution of window 1 is a product along channels, wherever the rows lie."""
    block = Block((2, 7, 6))
    rows = block.node("transpose", ["x"], perm=(0, 2, 1))
    y = block.conv(rows, normal(rng, 4, 6 // groups, 1), rng.standard_normal(4), groups=groups)
    y = block.add(block.scale(block.conv(y, normal(rng, 6, 4, 1)), 0.5), rows)
    block.linear(block.node("transpose", [y], perm=(0, 2, 1)), normal(rng, 4, 6), rng.standard_normal(4))
    assert folded(block.region(), (2, 7, 6)).kernel.shape == (4, 6)


@pytest.mark.parametrize(
    ("window", "settings"),
    [(3, {"pads": ((1, 1),)}), (1, {"strides": (2,)}), (1, {"pads": ((1, 0),)})],
)
def test_a_window_over_rows_is_no_product(rng: np.random.Generator, window: int, settings: dict[str, object]) -> None:
    block = Block((2, 7, 6))
    rows = block.node("transpose", ["x"], perm=(0, 2, 1))
    y = block.conv(rows, normal(rng, 6, 6, window), **settings)
    block.linear(block.node("transpose", [y], perm=(0, 2, 1)), normal(rng, 4, 6))
    refused(block.region(), Reason.SHAPE, "")


def test_views_that_stay(rng: np.random.Generator) -> None:
    """A norm behind a view goes into the matrix before it; proved with the view behind the matrix."""
    block = Block((2, 7, 6))
    y = block.linear("x", normal(rng, 4, 6))
    y = block.norm(block.node("reshape", [y], shape=(14, 4)), 4, rng)
    y = block.node("transpose", [y], perm=(1, 0))
    block.shift(y, rng.standard_normal((4, 1)))
    region = block.region()
    found = interpret(region)
    assert isinstance(found, Aside)
    assert ends_behind(found, region.exit)
    assert [node.op for node in found.views or ()] == ["reshape", "transpose"]
    space = space_of(region)
    assert not isinstance(space, Refusal)
    form = form_of(found.map, "float32", space)
    assert isinstance(form, LinearForm)
    assert isinstance(prove(region, form, found.views or ()), Proof)
    assert isinstance(prove(region, form, (found.views or ())[:1]), Refusal)
    assert isinstance(prove(region, form), Refusal)


def test_what_does_not_stay_behind_a_map(rng: np.random.Generator) -> None:
    """A view whose stored extents are those of other channels, and one that nothing follows."""
    block = Block((2, 7, 6))
    y = block.node("reshape", [block.linear("x", normal(rng, 4, 6))], shape=(14, 4))
    block.linear(y, normal(rng, 3, 4))
    found = interpret(block.region())
    assert isinstance(found, Aside)
    assert found.views is None
    block = Block((2, 7, 6))
    block.node("reshape", [block.linear("x", normal(rng, 4, 6))], shape=(14, 4))
    found = interpret(block.region())
    assert isinstance(found, Aside)
    assert not ends_behind(found, block.region().exit)


def test_what_does_not_net_out(rng: np.random.Generator) -> None:
    block = Block((2, 7, 6))
    y = block.linear("x", normal(rng, 4, 6))
    block.node("transpose", [y], perm=(0, 2, 1))
    refused(block.region(), Reason.SHAPE, "axes lie otherwise")
    block = Block((2, 4, 6))
    y = block.node("reshape", [block.linear("x", normal(rng, 4, 6))], shape=(2, 4, 2, 2))
    block.node("reshape", [y], shape=(2, 4, 4))
    refused(block.region(), Reason.SHAPE, "cuts through the axes")


def test_a_norm_of_rows(rng: np.random.Generator) -> None:
    block = Block((2, 4, 6))
    block.norm(block.linear("x", normal(rng, 4, 6)), 4, rng)
    refused(block.region(), Reason.SHAPE, "axis 1, which does not hold the channels")


def test_constants_along_the_last_axis(rng: np.random.Generator) -> None:
    """There [C] is per channel and [C, 1] is not."""
    for shape, folds in (((4,), True), ((1, 1, 4), True), ((4, 1), False), ((4, 4), False), ((1, 1, 1, 4), False)):
        block = Block((2, 4, 6))
        block.scale(block.linear("x", normal(rng, 4, 6)), rng.standard_normal(shape))
        if folds:
            folded(block.region(), (2, 4, 6))
        else:
            refused(block.region(), Reason.SHAPE, "not one number per 4 channels")


def test_a_product_on_an_image_is_a_pointwise_conv(rng: np.random.Generator) -> None:
    block = Block((1, 3, 6, 5))
    y = block.conv("x", normal(rng, 8, 3, 3, 3), pads=1)
    y = block.linear(block.node("transpose", [y], perm=(0, 2, 3, 1)), normal(rng, 4, 8), rng.standard_normal(4))
    block.norm(block.node("transpose", [y], perm=(0, 3, 1, 2)), 4, rng)
    form = fold(block.region())
    assert isinstance(form, ConvForm), form
    assert judge.same(block.region(), form, [(6, 5)])
    assert isinstance(prove(block.region(), form), Proof)


def test_a_wrong_matrix_is_caught(rng: np.random.Generator) -> None:
    block = Block((2, 7, 6))
    block.shift(block.linear("x", normal(rng, 4, 6)), rng.standard_normal(4))
    form = folded(block.region(), (2, 7, 6))
    kernel = form.kernel.copy()
    kernel[3, 5] *= 1 + 1e-5
    for wrong in (kernel, form.kernel[::-1]):
        assert isinstance(prove(block.region(), LinearForm(wrong, form.bias, 3, "float32")), Refusal)
    assert isinstance(prove(block.region(), LinearForm(form.kernel, None, 3, "float32")), Refusal)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(rng: np.random.Generator, dtype: str) -> None:
    block = Block((2, 6), dtype=dtype)
    block.norm(block.linear("x", normal(rng, 4, 6), rank=2), 4, rng)
    assert folded(block.region(), (2, 6)).weight().shape == (4, 6)


@pytest.mark.parametrize("extents", [("n", "t", 4), ("n", -1, 4)])
def test_a_norm_between_views_of_open_extents(rng: np.random.Generator, extents: tuple[int | str, ...]) -> None:
    """LeViT's norm, of any number of images and tokens."""
    block = Block(("n", "t", 6))
    y = block.node("flatten", [block.linear("x", normal(rng, 4, 6))], axis=2)
    block.node("reshape", [block.norm(y, 4, rng)], extents=extents)
    form = fold(block.region())
    assert isinstance(form, LinearForm)
    proof = prove(block.region(), form)
    assert isinstance(proof, Proof) and proof.size == (2, 3, 6)  # no two of one extent


def test_views_of_open_extents_that_lie_otherwise(rng: np.random.Generator) -> None:
    block = Block(("n", "t", 6))
    y = block.node("flatten", [block.linear("x", normal(rng, 4, 6))], axis=2)
    block.node("reshape", [block.norm(y, 4, rng)], extents=("t", "n", 4))
    refused(block.region(), Reason.SHAPE, "cuts through the axes")
