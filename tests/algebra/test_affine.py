"""The laws of affine maps: what the sum, the product and the chain of two maps are, tap by tap."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import Affine
from rewriter.errors import Reason, Refusal


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def row(taps: list[float], offset: int, dilation: int = 1, growth: int = 0) -> Affine:
    """One channel on one axis."""
    return Affine(np.array([[taps]], dtype=np.float64), np.zeros(1), (1,), (offset,), (dilation,), (growth,), 1)


def total(a: Affine, b: Affine) -> Affine:
    found = a.plus(b, at="here")
    assert isinstance(found, Affine), found
    return found


@pytest.mark.parametrize(
    ("a", "b", "taps", "offset", "dilation"),
    [
        (row([1, 2, 3], -1), row([10], 0), [1, 12, 3], -1, 1),
        (row([1, 2], -1), row([10, 20], 0), [1, 12, 20], -1, 1),
        (row([1], 4), row([10], -2), [10, 1], -2, 6),  # two single taps are one dilated row
        (row([1, 2, 3], -2, 2), row([10], 0), [1, 12, 3], -2, 2),
        (row([1, 2, 3], -2, 2), row([10], 1), [1, 0, 2, 10, 3], -2, 1),
        (row([1, 2, 3], -4, 4), row([10, 20], -2, 2), [1, 10, 22, 0, 3], -4, 2),
        (row([1, 2], 0, 6), row([10, 20], 2, 4), [1, 10, 0, 22], 0, 2),
        (row([1], 3), row([10], 3), [11], 3, 1),
    ],
)
def test_rows_align_by_offset(a: Affine, b: Affine, taps: list[float], offset: int, dilation: int) -> None:
    for found in (total(a, b), total(b, a)):
        assert found.kernel.tolist() == [[taps]]
        assert (found.offset, found.dilation) == ((offset,), (dilation,))


def test_the_sum_leaves_its_parts_alone(rng: np.random.Generator) -> None:
    a, b = Affine.identity(4, 2), Affine.identity(4, 2).scaled(rng.standard_normal(4))
    before = b.kernel.copy()
    assert (total(a, b).kernel == 1 + before).all()
    assert (a.kernel == 1).all()
    assert (b.kernel == before).all()


def test_identities_stay_depthwise_until_a_sum_needs_more(rng: np.random.Generator) -> None:
    identity = Affine.identity(4, 1)
    assert total(identity, identity).groups == 4
    dense = Affine.conv(rng.standard_normal((4, 4, 1)), stride=(1,), pads=((0, 0),), dilation=(1,))
    both = total(dense, identity)
    assert both.groups == 1
    assert np.array_equal(both.kernel[..., 0], dense.kernel[..., 0] + np.eye(4))


def test_scale_shift_and_sign(rng: np.random.Generator) -> None:
    factor, term = rng.standard_normal((2, 3))
    affine = Affine.identity(3, 1).scaled(factor).shifted(term).negated()
    assert np.array_equal(affine.kernel.reshape(-1), -factor)
    assert np.array_equal(affine.bias, -term)
    assert affine.per_channel


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Affine.identity(3, 1), "spatial axes"),
        (Affine.identity(4, 2), "3 channels to one of 4"),
        (
            Affine.conv(np.ones((5, 3, 1, 1)), stride=(1, 1), pads=((0, 0),) * 2, dilation=(1, 1)),
            "adds 3 channels to 5",
        ),
        (Affine.conv(np.ones((3, 3, 1, 1)), stride=(1, 2), pads=((0, 0),) * 2, dilation=(1, 1)), "stride"),
        (Affine.conv(np.ones((3, 3, 1, 2)), stride=(1, 1), pads=((0, 0),) * 2, dilation=(1, 1)), "spatial axis 1"),
    ],
)
def test_maps_that_do_not_add(other: Affine, words: str) -> None:
    found = Affine.identity(3, 2).plus(other, at="here")
    assert isinstance(found, Refusal)
    assert (found.code, found.node) == (Reason.SHAPE, "here")
    assert words in found.detail


@pytest.mark.parametrize("n", range(4, 12))
def test_extent(n: int) -> None:
    """As convolution arithmetic has it: floor((n + pads - d * (k - 1) - 1) / stride) + 1."""
    for pads, k, d, stride in [((1, 1), 3, 1, 2), ((0, 1), 2, 1, 3), ((2, 0), 2, 2, 1), ((0, 0), 1, 1, 4)]:
        affine = Affine.conv(np.ones((1, 1, k)), stride=(stride,), pads=(pads,), dilation=(d,))
        assert affine.extent((n,)) == ((n + sum(pads) - d * (k - 1) - 1) // stride + 1,)
        assert affine.pads == (pads,)
    assert Affine.identity(1, 1).extent((None,)) == (None,)


def test_then_needs_a_map_per_channel(rng: np.random.Generator) -> None:
    conv = Affine.conv(rng.standard_normal((3, 3, 3)), stride=(1,), pads=((0, 0),), dilation=(1,))
    assert Affine.identity(3, 1).then(conv, at="here") is conv
    for inner, code in [(conv, Reason.OP), (Affine.identity(2, 1), Reason.SHAPE)]:
        found = inner.then(conv, at="here")
        assert isinstance(found, Refusal)
        assert found.code == code
