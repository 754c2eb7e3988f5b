"""From a map to the conv that is written: pads, rounding, and what the stored type cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.algebra import Affine, ConvForm, bfloat16_bits, conv_of, round_to
from rewriter.algebra.rows import Rows
from rewriter.errors import Reason, Refusal
from tests.algebra import judge


def pointwise(weights: list[list[float]], bias: list[float] | None = None) -> Affine:
    kernel = np.asarray(weights, dtype=np.float64)[..., None, None]
    values = None if bias is None else np.asarray(bias, dtype=np.float64)
    return Affine.conv(kernel, values, stride=(1, 1), pads=((0, 0), (0, 0)), dilation=(1, 1))


def refusal(affine: Affine, dtype: str) -> Refusal:
    found = conv_of(affine, dtype, at="here")
    assert isinstance(found, Refusal), found
    assert (found.code, found.node) == (Reason.VALUE, "here")
    return found


def test_no_bias_where_it_is_zero() -> None:
    without = conv_of(pointwise([[1.0]]), "float32")
    assert isinstance(without, ConvForm)
    assert without.bias is None
    assert without.stored_bias() is None
    assert without.parameters == 1
    biased = conv_of(pointwise([[1.0]], [2.0]), "float32")
    assert isinstance(biased, ConvForm)
    assert biased.parameters == 2


@pytest.mark.parametrize(("offset", "growth"), [(2, -3), (1, -4), (0, -5), (-3, 2), (3, 0)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_pads_are_never_negative(offset: int, growth: int, dilation: int) -> None:
    """Taps that begin inside the image, or end before its last pixel, get zeros up to the edge."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((2, 2, 2))
    affine = Affine(kernel, np.zeros(2), (1,), (offset,), (dilation,), (growth,), Rows.of_groups(2, 2, 1))
    conv = conv_of(affine, "float64")
    assert isinstance(conv, ConvForm)
    assert min(conv.pads[0]) >= 0
    assert conv.pads[0][0] == (-offset if offset <= 0 else -offset % dilation)  # no more zeros than it takes
    x = rng.standard_normal((1, 2, 12))
    wide = np.pad(x, ((0, 0), (0, 0), (20, 20)))
    taps = [[20 + p + offset + dilation * t for t in range(2)] for p in range(12 + growth)]
    expected = np.stack([np.einsum("oit,nit->no", kernel, wide[:, :, at]) for at in taps], axis=-1)
    assert np.allclose(judge.apply(conv, x), expected, rtol=0, atol=1e-12)


def test_rank() -> None:
    found = conv_of(Affine.identity(3, 0), "float32")
    assert isinstance(found, Refusal)
    assert found.code == Reason.SHAPE


def test_an_edge_too_far_away() -> None:
    found = conv_of(
        Affine(np.ones((1, 1, 1)), np.zeros(1), (1,), (1 << 28,), (1,), (0,), Rows.of_groups(1, 1, 1)), "float32"
    )
    assert isinstance(found, Refusal)
    assert found.code == Reason.LIMIT


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("float32", 3.4028234663852886e38)])
def test_overflow(dtype: str, largest: float) -> None:
    fits = conv_of(pointwise([[largest * (1 + 1e-6 if dtype == "float16" else 1 + 1e-9)]]), dtype)
    assert isinstance(fits, ConvForm)
    assert fits.weight().item() == largest
    assert "overflow" in refusal(pointwise([[1.0], [largest * 1.001]]), dtype).detail
    assert "overflow" in refusal(pointwise([[1.0]], [-largest * 1.001]), dtype).detail


def test_overflow_of_bfloat16() -> None:
    """Its largest is below that of float32: a cast by way of float32 would not see it."""
    assert isinstance(conv_of(pointwise([[3.38e38]]), "bfloat16"), ConvForm)
    assert "overflow" in refusal(pointwise([[3.4e38]]), "bfloat16").detail


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_not_finite(value: float, dtype: str) -> None:
    assert "overflow" in refusal(pointwise([[1.0], [value]]), dtype).detail
    assert "overflow" in refusal(pointwise([[1.0], [1.0]], [value, 0.0]), dtype).detail


@pytest.mark.parametrize(
    ("dtype", "normal"),
    [("float16", 2.0**-14), ("bfloat16", 2.0**-126), ("float32", 2.0**-126), ("float64", 2.0**-1022)],
)
def test_underflow_is_judged_per_channel(dtype: str, normal: float) -> None:
    found = refusal(pointwise([[1.0, 1.0], [normal / 2, -normal / 4]]), dtype)
    assert "channel 1" in found.detail
    assert "underflow" in found.detail
    assert isinstance(conv_of(pointwise([[1.0, 1.0], [normal, normal / 4]]), dtype), ConvForm)
    assert isinstance(conv_of(pointwise([[1.0, 1.0], [0.0, 0.0]]), dtype), ConvForm)


def test_underflow_of_a_channel_that_is_its_bias() -> None:
    assert isinstance(conv_of(pointwise([[1.0]], [1e-30]), "float16"), ConvForm)
    assert "underflow" in refusal(pointwise([[0.0]], [1e-30]), "float16").detail


@given(st.floats(-1e39, 1e39) | st.floats(-1e-36, 1e-36) | st.floats(-4.0, 4.0))
def test_bfloat16_is_the_nearest(value: float) -> None:
    """Against its definition: of the two neighbours the nearer, the even one in a tie."""
    found = float(round_to(np.array([value]), "bfloat16")[0])
    if not np.isfinite(found):
        assert abs(value) >= (2 - 2**-8) * 2.0**127
        return
    bits = int(bfloat16_bits(np.array([found], dtype=np.float32))[0])
    rivals = [
        np.array([(bits + step) << 16], dtype=np.uint32).view(np.float32)[0] for step in (-1, 1) if bits + step > 0
    ]
    for rival in map(float, rivals):
        if np.isfinite(rival):
            nearer, further = abs(found - value), abs(rival - value)
            assert nearer < further or (nearer == further and bits % 2 == 0) or found == rival


def test_bfloat16_agrees_with_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).standard_normal(10000).astype(np.float32).astype(np.float64)
    ours = round_to(values, "bfloat16")
    assert (ours == values.astype(ml_dtypes.bfloat16).astype(np.float32)).all()
    assert (bfloat16_bits(ours) == values.astype(ml_dtypes.bfloat16).view(np.uint16)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_rounding(dtype: str) -> None:
    """Just above a tie: a detour over a shorter type would round down."""
    eps = float(np.finfo(dtype).eps)
    assert float(round_to(np.array([1 + eps / 2]), dtype)[0]) == 1.0
    assert float(round_to(np.array([1 + eps / 2 + 2.0**-45]), dtype)[0]) == 1 + eps
