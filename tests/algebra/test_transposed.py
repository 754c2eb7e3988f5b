"""Transposed convolutions: what is per channel before or behind them goes in, what a window saw stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rewriter.algebra import dtype_of, form_of, interpret, prove, space_of
from rewriter.algebra.conv import TransposedForm
from rewriter.errors import Reason, Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Block, normal


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(29)


def fold(region: Region) -> object:
    affine, dtype, space = interpret(region), dtype_of(region), space_of(region)
    if isinstance(affine, Refusal):
        return affine
    assert isinstance(dtype, str)
    assert not isinstance(space, Refusal)
    return form_of(affine, dtype, space, at=region.name)


def folded(region: Region, size: tuple[int, ...]) -> TransposedForm:
    form = fold(region)
    assert isinstance(form, TransposedForm), form
    x = np.random.default_rng(2).standard_normal((2, len(form.kernel), *size))
    attrs = {"strides": form.strides, "pads": form.pads, "dilations": form.dilations, "groups": form.groups}
    y = judge.spread(x, form.kernel, attrs | {"output_padding": form.beyond})
    y = y if form.bias is None else y + judge.along(form.bias, y)
    np.testing.assert_allclose(y, judge.run(region, x), rtol=0, atol=1e-12)
    assert isinstance(prove(region, form), Proof), prove(region, form)
    return form


def refused(region: Region, code: Reason, words: str) -> None:
    found = fold(region)
    assert isinstance(found, Refusal), found
    assert (found.code, words in found.detail) == (code, True), found


def test_the_slow_judge_agrees_with_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    for groups, stride, pads, dilation, beyond in [(1, 2, 1, 1, 1), (2, 3, 0, 2, 0), (4, 1, 2, 2, 0)]:
        x, weight = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((4, 3, 3, 2))
        attrs = {
            "strides": (stride,) * 2, "pads": ((pads, pads),) * 2, "dilations": (dilation,) * 2, "groups": groups,
            "output_padding": (beyond,) * 2,
        }  # fmt: skip
        expected = torch.conv_transpose2d(
            torch.from_numpy(x), torch.from_numpy(weight), stride=stride, padding=pads, output_padding=beyond,
            groups=groups, dilation=dilation,
        )  # fmt: skip
        np.testing.assert_allclose(judge.spread(x, weight, attrs), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("groups", "strides", "pads", "dilations", "beyond"), [(1, 2, 1, 1, 1), (2, 3, 0, 2, 0)])
def test_a_norm_behind(
    rng: np.random.Generator, rank: int, groups: int, strides: int, pads: int, dilations: int, beyond: int
) -> None:
    block = Block()
    y = block.spread(
        "x", normal(rng, 4, 3, *(3,) * rank), rng.standard_normal(3 * groups), groups=groups, strides=strides,
        pads=pads, dilations=dilations, output_padding=(beyond,) * rank,
    )  # fmt: skip
    block.scale(block.norm(y, 3 * groups, rng), -2.0)
    form = folded(block.region(), (4, 3, 5)[:rank])
    assert (form.kernel.shape, form.groups) == ((4, 3, *(3,) * rank), groups)


def test_a_scale_before_and_pointwise_convs_around(rng: np.random.Generator) -> None:
    block = Block()
    y = block.conv(block.scale("x", rng.standard_normal((3, 1, 1))), normal(rng, 4, 3, 1, 1))
    y = block.spread(y, normal(rng, 4, 6, 2, 2), rng.standard_normal(6))
    block.conv(y, normal(rng, 5, 6, 1, 1), rng.standard_normal(5))
    assert folded(block.region(), (4, 5)).kernel.shape == (3, 5, 2, 2)


def test_sums_of_one_geometry(rng: np.random.Generator) -> None:
    for window, folds in ((3, True), (1, False)):
        block = Block()
        a = block.spread("x", normal(rng, 4, 4, 3, 3), rng.standard_normal(4), pads=1)
        b = block.spread("x", normal(rng, 4, 4, window, window), pads=window // 2)
        block.sub(a, block.norm(b, 4, rng))
        if folds:
            folded(block.region(), (4, 5))
        else:
            refused(block.region(), Reason.SHAPE, "another geometry")


def test_constants_before_it(rng: np.random.Generator) -> None:
    block = Block()
    block.spread(block.norm("x", 4, rng), normal(rng, 4, 4, 3, 3))
    refused(block.region(), Reason.EXACT, "a constant before a transposed convolution")


def test_windows_before_and_behind(rng: np.random.Generator) -> None:
    block = Block()
    block.spread(block.conv("x", normal(rng, 4, 4, 3, 3)), normal(rng, 4, 4, 2, 2))
    refused(block.region(), Reason.OP, "what a window slid over")
    block = Block()
    block.conv(block.spread("x", normal(rng, 4, 4, 2, 2)), normal(rng, 4, 4, 3, 3))
    refused(block.region(), Reason.OP, "what a transposed convolution gives")
    block = Block()
    block.add(block.spread("x", normal(rng, 4, 4, 1, 1), strides=1), "x")
    refused(block.region(), Reason.SHAPE, "another geometry")


def test_wrong_ones_are_caught(rng: np.random.Generator) -> None:
    block = Block()
    block.norm(block.spread("x", normal(rng, 4, 4, 3, 3), pads=1, output_padding=(1, 1)), 4, rng)
    region = block.region()
    form = folded(region, (4, 5))
    kernel = form.kernel.copy()
    kernel[1, 2, 0, 1] *= 1 + 1e-5
    wrong = [
        replace(form, kernel=kernel),
        replace(form, bias=None),
        replace(form, pads=((0, 2), (1, 1))),
        replace(form, beyond=(0, 0)),
        replace(form, kernel=form.kernel.swapaxes(0, 1)),
    ]
    assert all(isinstance(prove(region, each), Refusal) for each in wrong)
