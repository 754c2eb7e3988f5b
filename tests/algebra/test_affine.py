"""The laws of affine maps: what the sum, the product and the chain of two maps are, tap by tap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from rewriter.algebra import Affine
from rewriter.algebra.rows import Rows
from rewriter.errors import Reason, Refusal

Array = npt.NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def row(taps: list[float], offset: int, dilation: int = 1, growth: int = 0) -> Affine:
    """One channel on one axis."""
    return Affine(
        np.array([[taps]], dtype=np.float64),
        np.zeros(1),
        (1,),
        (offset,),
        (dilation,),
        (growth,),
        Rows.of_groups(1, 1, 1),
    )


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
    assert affine.groups == 3


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


def on_the_grid(affine: Affine, x: Array, at: tuple[int, ...]) -> Array:
    """One output position by the definition, anywhere on the grid, of one image (channel, *size)."""
    y = affine.bias.copy()
    for tap in np.ndindex(*affine.window):
        axes = zip(at, affine.stride, affine.offset, affine.dilation, tap, strict=True)
        place = tuple([p * s + o + d * t for p, s, o, d, t in axes])
        if all(0 <= p < n for p, n in zip(place, x.shape[1:], strict=True)):
            for out, (first, count) in enumerate(zip(affine.rows.first, affine.rows.count, strict=True)):
                y[out] += affine.kernel[(out, slice(0, count), *tap)] @ x[(slice(first, first + count), *place)]
    return y


def values(affine: Affine, x: Array) -> Array:
    """All of its box."""
    sizes = [n for n in affine.extent(x.shape[1:]) if n is not None]
    y = np.zeros((affine.outputs, *sizes))
    for at in np.ndindex(*sizes):
        y[(slice(None), *at)] = on_the_grid(affine, x, at)
    return y


def drawn(rng: np.random.Generator, inputs: int, *, pads: bool, biased: bool = True) -> Affine:
    """A conv on one axis, with any stride, dilation and groups, whose outputs may be picked and reordered."""
    groups = int(rng.choice([g for g in (1, 2, 3, 6) if inputs % g == 0]))
    outputs = groups * int(rng.integers(1, 4))
    k, d = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    ends = (int(rng.integers(0, 3)), int(rng.integers(0, 3))) if pads else (0, 0)
    kernel = rng.standard_normal((outputs, inputs // groups, k))
    bias = rng.standard_normal(outputs) if biased else None
    conv = Affine.conv(kernel, bias, stride=(int(rng.integers(1, 4)),), pads=(ends,), dilation=(d,), groups=groups)
    return conv if rng.random() < 0.5 else conv.take(rng.integers(0, outputs, int(rng.integers(1, 7))))


@pytest.mark.parametrize("seed", range(200))
def test_one_map_after_another(seed: int) -> None:
    """Whatever stride, dilation, groups, order of channels: exact, borders included, as the second has no pads."""
    rng = np.random.default_rng(seed)
    inner = drawn(rng, int(rng.choice([1, 2, 3, 6])), pads=True)
    outer = drawn(rng, inner.outputs, pads=False)
    both = inner.then(outer, at="here")
    assert isinstance(both, Affine), both
    x = rng.standard_normal((inner.inputs, int(rng.integers(24, 32))))
    expected = values(outer, values(inner, x))
    found = values(both, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert (both.rows.first + both.rows.count <= both.inputs).all()


@pytest.mark.parametrize("seed", range(300))
@pytest.mark.parametrize("known", [True, False])
def test_padding_is_refused_exactly_where_the_border_shows_it(seed: int, known: bool) -> None:
    """Values continued by zeros are the map on a larger box, or they are not, and then some border class differs."""
    rng = np.random.default_rng(seed)
    inner = drawn(rng, 2, pads=True, biased=rng.random() < 0.2)
    n = int(rng.integers(24, 32))
    pads = ((int(rng.integers(-1, 3)), int(rng.integers(-1, 3))),)
    found = inner.padded(pads, 0.0, at="here", size=(n,) if known else None)
    sizes = [n] if known else list(range(n, n + inner.stride[0]))
    exact = True
    for size in sizes:
        x = rng.standard_normal((2, size))
        plain = values(inner, x)
        begin, end = pads[0]
        inside = plain[:, max(0, -begin) : plain.shape[1] - max(0, -end)]
        expected = np.pad(inside, ((0, 0), (max(0, begin), max(0, end))))
        wide = values(inner._reaching(pads), x)
        assert wide.shape == expected.shape
        exact = exact and np.allclose(wide, expected, rtol=0, atol=1e-12)
    assert isinstance(found, Affine) == exact, found


def test_a_bias_is_what_may_be_padded_with(rng: np.random.Generator) -> None:
    bias = rng.standard_normal(3)
    pointwise = Affine.conv(rng.standard_normal((3, 2, 1)), bias, stride=(1,), pads=((0, 0),), dilation=(1,))
    ring = pointwise.padded(((1, 2),), bias, at="here")
    assert isinstance(ring, Affine)
    x = rng.standard_normal((2, 5))
    edges = np.repeat(bias[:, None], 1, axis=1), np.repeat(bias[:, None], 2, axis=1)
    np.testing.assert_allclose(values(ring, x), np.concatenate([edges[0], values(pointwise, x), edges[1]], axis=1))
    assert isinstance(pointwise.padded(((1, 2),), bias + 1e-6, at="here"), Refusal)


@pytest.mark.parametrize("case", ["bias", "taps"])
def test_a_refusal_says_what_the_border_would_lose(rng: np.random.Generator, case: str) -> None:
    """The figure is that of the composition against the truth, in the first row of a large image of noise."""
    wide = case == "taps"
    bias = None if wide else rng.standard_normal(4)
    kernel = rng.standard_normal((4, 4, 3, 3) if wide else (4, 4, 1, 1))
    pads = ((1, 1), (1, 1)) if wide else ((0, 0), (0, 0))
    inner = Affine.conv(kernel, bias, stride=(1, 1), pads=pads, dilation=(1, 1))
    outer = Affine.conv(rng.standard_normal((4, 4, 3, 3)), None, stride=(1, 1), pads=((1, 0), (0, 0)), dilation=(1, 1))
    found = inner.then(outer, at="here")
    assert isinstance(found, Refusal)
    assert (found.code, found.node) == (Reason.EXACT, "here")
    told = float(found.detail.rpartition("wrong by ")[2].removesuffix("%")) / 100
    x = rng.standard_normal((4, 12, 60))
    truth = values(outer, values(inner, x))
    free = Affine.conv(outer.kernel, None, stride=(1, 1), pads=((0, 0), (0, 0)), dilation=(1, 1))
    everywhere = inner._reaching(((1, 0), (0, 0))).then(free, at="here")
    assert isinstance(everywhere, Affine)
    composed = values(everywhere, x)
    inside = slice(4, -4)
    wrong = (composed - truth)[:, 0, inside]
    size = composed[:, 4:-4, inside]
    assert told == pytest.approx((wrong**2).mean() ** 0.5 / (size**2).mean() ** 0.5, rel=0.25)
    np.testing.assert_allclose(composed[:, 1:], truth[:, 1:], rtol=0, atol=1e-12)


def test_maps_that_do_not_follow_each_other(rng: np.random.Generator) -> None:
    conv = Affine.conv(rng.standard_normal((3, 3, 3)), stride=(1,), pads=((0, 0),), dilation=(1,))
    assert Affine.identity(3, 1).then(conv, at="here") is conv
    for inner in (Affine.identity(2, 1), Affine.identity(3, 2)):
        found = inner.then(conv, at="here")
        assert isinstance(found, Refusal)
        assert found.code == Reason.SHAPE


def test_depthwise_then_pointwise_of_many_channels_is_not_formed() -> None:
    """It would be dense with a window: larger than both by far, and no gate would let it through."""
    depthwise = Affine.conv(np.ones((4096, 1, 3, 3)), stride=(1, 1), pads=((1, 1),) * 2, dilation=(1, 1), groups=4096)
    pointwise = Affine.conv(np.ones((1024, 4096, 1, 1)), stride=(1, 1), pads=((0, 0),) * 2, dilation=(1, 1))
    found = depthwise.then(pointwise, at="here")
    assert isinstance(found, Refusal)
    assert found.code == Reason.LIMIT
