"""Each rule of the algebra: a region that folds and is the same function, beside one that must stay."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import ConvForm, conv_of, dtype_of, interpret, prove
from rewriter.errors import Reason, Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Block, Pads, normal, repvgg

SIZES = {1: [(5,), (8,)], 2: [(5, 6), (8, 7)], 3: [(4, 5, 3)]}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def fold(region: Region) -> ConvForm | Refusal:
    affine = interpret(region)
    if isinstance(affine, Refusal):
        return affine
    dtype = dtype_of(region)
    return dtype if isinstance(dtype, Refusal) else conv_of(affine, dtype, at=region.name)


def folded(region: Region, sizes: list[tuple[int, ...]] | None = None) -> ConvForm:
    """The fold, which has to exist, to be the same function, and to be provable."""
    conv = fold(region)
    assert isinstance(conv, ConvForm), conv
    assert isinstance(prove(region, conv), Proof), prove(region, conv)
    assert judge.same(region, conv, sizes or SIZES[len(conv.strides)])
    return conv


def refused(region: Region, code: Reason, words: str) -> None:
    found = fold(region)
    assert isinstance(found, Refusal), found
    assert found.code == code, found
    assert words in found.detail, found
    assert found.node, found


# --- RepVGG and its relatives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "skip", "normed"), [(1, True, True), (1, False, False), (2, False, True)])
def test_repvgg(rng: np.random.Generator, stride: int, skip: bool, normed: bool) -> None:
    conv = folded(repvgg(4, rng, stride=stride, skip=skip, normed=normed).region())
    assert conv.kernel.shape == (4, 4, 3, 3)
    assert conv.pads == ((1, 1), (1, 1))
    assert conv.strides == (stride, stride)
    assert conv.bias is not None


def test_bare_skip_and_norm_after_the_sum(rng: np.random.Generator) -> None:
    block = Block()
    total = block.add(block.conv("x", normal(rng, 3, 3, 3, 3), pads=1), "x")
    block.norm(total, 3, rng)
    assert folded(block.region()).groups == 1


def test_skip_needs_as_many_channels(rng: np.random.Generator) -> None:
    block = Block()
    block.add(block.conv("x", normal(rng, 6, 3, 1, 1)), "x")
    refused(block.region(), Reason.SHAPE, "adds 6 channels to 3")


def test_one_channel_that_would_broadcast(rng: np.random.Generator) -> None:
    block = Block()
    block.add(block.conv("x", normal(rng, 4, 1, 3, 3), pads=1), block.norm("x", 1, rng))
    refused(block.region(), Reason.SHAPE, "adds 4 channels to 1")


@pytest.mark.parametrize(("pads", "strides", "words"), [(0, 1, "not provably equal"), (1, 2, "stride")])
def test_skip_needs_the_same_pixels(rng: np.random.Generator, pads: int, strides: int, words: str) -> None:
    block = Block()
    block.add(block.conv("x", normal(rng, 3, 3, 3, 3), pads=pads, strides=strides), "x")
    refused(block.region(), Reason.SHAPE, words)


def test_acnet_aligns_by_offset(rng: np.random.Generator) -> None:
    block = Block()
    square = block.conv("x", normal(rng, 3, 3, 3, 3), pads=1)
    tall = block.conv("x", normal(rng, 3, 3, 3, 1), pads=((1, 1), (0, 0)))
    wide = block.conv("x", normal(rng, 3, 3, 1, 3), pads=((0, 0), (1, 1)))
    block.add(square, tall, wide)
    assert folded(block.region()).kernel.shape == (3, 3, 3, 3)


def test_even_kernels_with_the_pads_on_one_side(rng: np.random.Generator) -> None:
    block = Block()
    upper = block.conv("x", normal(rng, 2, 2, 2, 2), pads=((0, 1), (0, 1)))  # SAME_UPPER
    lower = block.conv("x", normal(rng, 2, 2, 2, 2), pads=((1, 0), (1, 0)))  # SAME_LOWER
    block.add(upper, lower)
    assert folded(block.region()).kernel.shape == (2, 2, 3, 3)


def test_pad_smaller_than_half_the_kernel(rng: np.random.Generator) -> None:
    """5x5 with pad 1 and 3x3 with pad 0: first taps at -1 and 0."""
    block = Block()
    large = block.conv("x", normal(rng, 2, 2, 5, 5), pads=1)
    block.add(large, block.conv("x", normal(rng, 2, 2, 3, 3)))
    conv = folded(block.region())
    assert (conv.kernel.shape[2:], conv.pads) == ((5, 5), ((1, 1), (1, 1)))


def test_static_size_settles_a_stride(rng: np.random.Generator) -> None:
    """Stride 2 over an even extent: 3x3 with pad 1 and 2x2 without give the same size, over an odd one they do not."""

    def block(extent: int | None) -> Region:
        b = Block(None if extent is None else (1, 2, extent, extent))
        b.add(b.conv("x", normal(rng, 2, 2, 3, 3), pads=1, strides=2), b.conv("x", normal(rng, 2, 2, 2, 2), strides=2))
        return b.region()

    folded(block(8), [(8, 8)])
    refused(block(7), Reason.SHAPE, "not provably equal")
    refused(block(None), Reason.SHAPE, "not provably equal")


# --- groups and dilations ------------------------------------------------------------------------------------------


def test_depthwise_stays_depthwise(rng: np.random.Generator) -> None:
    block = Block()
    large = block.norm(block.conv("x", normal(rng, 4, 1, 5, 5), pads=2, groups=4), 4, rng)
    small = block.norm(block.conv("x", normal(rng, 4, 1, 3, 3), pads=1, groups=4), 4, rng)
    block.add(large, small, "x")
    conv = folded(block.region())
    assert (conv.groups, conv.kernel.shape) == (4, (4, 1, 5, 5))


@pytest.mark.parametrize(("a", "b", "common"), [(4, 2, 2), (6, 4, 2), (2, 3, 1), (1, 12, 1), (12, 12, 12)])
def test_groups_meet_in_the_coarsest(rng: np.random.Generator, a: int, b: int, common: int) -> None:
    block = Block()
    first = block.conv("x", normal(rng, 24, 12 // a, 3, 1), pads=((1, 1), (0, 0)), groups=a)
    block.add(first, block.conv("x", normal(rng, 24, 12 // b, 1, 1), groups=b))
    assert folded(block.region()).groups == common


def test_identity_in_a_grouped_kernel(rng: np.random.Generator) -> None:
    block = Block()
    block.add(block.conv("x", normal(rng, 6, 2, 3, 3), pads=1, groups=3), "x")
    assert folded(block.region()).groups == 3


def test_equal_dilations_stay_and_others_become_dense(rng: np.random.Generator) -> None:
    block = Block()
    block.add(*(block.conv("x", normal(rng, 2, 2, 3, 3), pads=2, dilations=2) for _ in range(2)), "x")
    conv = folded(block.region())
    assert (conv.kernel.shape[2:], conv.dilations) == ((3, 3), (2, 2))
    block = Block()
    block.add(
        block.conv("x", normal(rng, 2, 2, 3, 3), pads=2, dilations=2), block.conv("x", normal(rng, 2, 2, 3, 3), pads=1)
    )
    conv = folded(block.region())
    assert (conv.kernel.shape[2:], conv.dilations) == ((5, 5), (1, 1))


def test_equal_dilations_out_of_step_become_dense(rng: np.random.Generator) -> None:
    block = Block()
    a = block.conv("x", normal(rng, 2, 2, 2), pads=((2, 0),), dilations=2)
    block.add(a, block.conv("x", normal(rng, 2, 2, 2), pads=((1, 1),), dilations=2))
    conv = folded(block.region())
    assert (conv.kernel.shape[2:], conv.dilations) == ((4,), (1,))


def test_windows_far_apart_are_refused(rng: np.random.Generator) -> None:
    far = 1 << 27
    block = Block()
    a = block.conv("x", normal(rng, 2, 2, 1), pads=((far, 1),))
    b = block.conv("x", normal(rng, 2, 2, 1), pads=((1, far),))
    block.add(a, b, block.conv("x", normal(rng, 2, 2, 1), pads=((0, far + 1),)))
    refused(block.region(), Reason.LIMIT, "elements")


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rng: np.random.Generator, rank: int) -> None:
    block = Block()
    y = block.norm(block.conv("x", normal(rng, 3, 3, *(3,) * rank), pads=1), 3, rng)
    block.add(y, block.conv("x", normal(rng, 3, 3, *(1,) * rank), rng.standard_normal(3)), block.norm("x", 3, rng))
    assert folded(block.region()).kernel.ndim == rank + 2


# --- norms and constants -------------------------------------------------------------------------------------------


def test_signs(rng: np.random.Generator) -> None:
    """FastViT's RepMixer: x + g * (mixer(x) - norm(x)), with a negation and `c - y` for good measure."""
    block = Block()
    mixed = block.sub(block.conv("x", normal(rng, 4, 1, 3, 3), pads=1, groups=4), block.norm("x", 4, rng))
    scaled = block.shift(block.neg(block.scale(mixed, rng.standard_normal((4, 1, 1)))), 0.5, sign=-1)
    block.add("x", scaled)
    assert folded(block.region()).groups == 4


def test_the_same_value_twice(rng: np.random.Generator) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 2, 2, 3, 3), pads=1)
    block.add(block.add(y, "x"), block.add("x", y))
    folded(block.region())


PER_CHANNEL = [(), (1,), (1, 1), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)]
NOT_PER_CHANNEL = [(4,), (4, 1), (1, 4), (1, 1, 4), (2, 4, 1, 1), (4, 1, 1, 1), (1, 1, 4, 1, 1), (4, 4, 1), (2, 1, 1)]


@pytest.mark.parametrize("op", ["scale", "shift"])
@pytest.mark.parametrize("shape", PER_CHANNEL)
def test_per_channel_constants(rng: np.random.Generator, op: str, shape: tuple[int, ...]) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 4, 4, 3, 3), pads=1)
    getattr(block, op)(y, rng.standard_normal(shape))
    folded(block.region())


@pytest.mark.parametrize("op", ["scale", "shift"])
@pytest.mark.parametrize("shape", NOT_PER_CHANNEL)
def test_constants_that_only_look_per_channel(rng: np.random.Generator, op: str, shape: tuple[int, ...]) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 4, 4, 3, 3), pads=1)
    getattr(block, op)(y, rng.standard_normal(shape))
    refused(block.region(), Reason.SHAPE, "not one number per 4 channels")


@pytest.mark.parametrize("op", ["scale", "shift"])
def test_a_constant_that_makes_channels(rng: np.random.Generator, op: str) -> None:
    block = Block()
    getattr(block, op)(block.conv("x", normal(rng, 1, 4, 3, 3), pads=1), rng.standard_normal((1, 4, 1, 1)))
    refused(block.region(), Reason.SHAPE, "not one number per 1 channels")


def test_norm_before_a_conv_without_pads(rng: np.random.Generator) -> None:
    block = Block()
    shifted = block.shift("x", rng.standard_normal((1, 4, 1, 1)))
    y = block.conv(block.norm(shifted, 4, rng), normal(rng, 6, 2, 3, 3), rng.standard_normal(6), groups=2)
    block.scale(y, rng.standard_normal((6, 1, 1)))
    assert folded(block.region()).groups == 2


def test_norm_before_a_padded_conv(rng: np.random.Generator) -> None:
    block = Block()
    block.conv(block.norm("x", 4, rng), normal(rng, 4, 4, 3, 3), pads=((1, 0), (0, 0)))
    refused(block.region(), Reason.EXACT, "border")
    block = Block()  # only its shift is what the border cannot see
    block.conv(block.scale("x", rng.standard_normal((4, 1, 1))), normal(rng, 4, 4, 3, 3), pads=1)
    folded(block.region())


# --- one after another ---------------------------------------------------------------------------------------------


def test_two_padded_convs_in_a_row_stay(rng: np.random.Generator) -> None:
    block = Block()
    block.conv(block.conv("x", normal(rng, 4, 4, 3, 3), pads=1), normal(rng, 4, 4, 3, 3), pads=1)
    refused(
        block.region(), Reason.EXACT, "still reads the image (spatial axis 0): at the border that would be wrong by"
    )


def test_a_padded_conv_then_one_without_pads(rng: np.random.Generator) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 4, 4, 3, 3), rng.standard_normal(4), pads=2, strides=2)
    block.conv(block.norm(y, 4, rng), normal(rng, 6, 2, 3, 2), rng.standard_normal(6), strides=(1, 2), groups=2)
    conv = folded(block.region(), [(9, 10), (12, 13)])
    assert (conv.kernel.shape, conv.strides) == ((6, 4, 7, 5), (2, 4))


def test_pointwise_then_padded(rng: np.random.Generator) -> None:
    """What a pointwise conv gives outside the image is its bias: with one, zeros are something else."""
    for bias, then in ((None, "folds"), (rng.standard_normal(6), "stays")):
        block = Block()
        block.conv(block.conv("x", normal(rng, 6, 4, 1, 1), bias), normal(rng, 4, 6, 3, 3), pads=1)
        if then == "folds":
            assert folded(block.region()).kernel.shape == (4, 4, 3, 3)
        else:
            refused(block.region(), Reason.EXACT, "gives its bias: at the border")


def test_expanded_and_squeezed(rng: np.random.Generator) -> None:
    """SESR and ExpandNets: 1x1, kxk, 1x1 with the padding in the first, or in a Pad before it."""
    for padded in (True, False):
        block = Block()
        x = "x" if padded else pad(block, "x", ((1, 1), (1, 1)))
        y = block.conv(x, normal(rng, 16, 4, 1, 1), pads=int(padded))
        y = block.conv(block.conv(y, normal(rng, 16, 16, 3, 3)), normal(rng, 4, 16, 1, 1), rng.standard_normal(4))
        block.add(y, "x")
        conv = folded(block.region())
        assert (conv.kernel.shape, conv.pads) == ((4, 4, 3, 3), ((1, 1), (1, 1)))


def test_separable_windows(rng: np.random.Generator) -> None:
    """1xk then kx1, each padded along its own axis: outside, the first gives its bias."""
    for biased in (False, True):
        block = Block()
        bias = rng.standard_normal(4) if biased else None
        y = block.conv("x", normal(rng, 4, 1, 1, 7), bias, pads=((0, 0), (3, 3)), groups=4)
        block.conv(y, normal(rng, 4, 1, 7, 1), rng.standard_normal(4), pads=((3, 3), (0, 0)), groups=4)
        if biased:
            refused(block.region(), Reason.EXACT, "gives its bias")
        else:
            assert folded(block.region()).kernel.shape == (4, 1, 7, 7)


@pytest.mark.parametrize(("extent", "k", "folds"), [(8, 2, True), (9, 2, False), (None, 2, False), (None, 1, True)])
def test_a_stride_may_leave_a_row_that_only_padding_shows(
    rng: np.random.Generator, extent: int | None, k: int, folds: bool
) -> None:
    """Windows of 2 with stride 2 leave the last column of an odd extent unread, until somebody pads behind them."""
    block = Block((1, 2, extent))
    block.conv(block.conv("x", normal(rng, 2, 2, k), strides=2), normal(rng, 2, 2, 3), pads=((1, 1),))
    if folds:
        folded(block.region(), [(extent,)] if extent else [(7,), (8,)])
    else:
        refused(block.region(), Reason.EXACT, "still reads the image (spatial axis 0)")


# --- pads and pools ------------------------------------------------------------------------------------------------


def pad(block: Block, x: str, pads: Pads, value: float = 0.0, mode: str = "constant", outer: int = 0) -> str:
    every = ((0, 0), (outer, 0), *pads)
    amount = max(abs(p) for ends in every for p in ends)
    return block.node("pad", [x], pads=every, value=value, mode=mode, amount=amount)


def test_a_pad_goes_into_the_conv_behind_it(rng: np.random.Generator) -> None:
    block = Block()
    y = pad(block, block.scale("x", rng.standard_normal((4, 1, 1))), ((1, 2), (0, 3)))
    block.conv(y, normal(rng, 4, 4, 3, 3), rng.standard_normal(4), pads=1)
    assert folded(block.region()).pads == ((2, 3), (1, 4))


def test_what_was_cut_off_is_not_zero(rng: np.random.Generator) -> None:
    for pads in (0, 1):
        block = Block()
        block.conv(pad(block, "x", ((0, 0), (-1, 0))), normal(rng, 4, 4, 1, 3), pads=((0, 0), (pads, 0)))
        if pads:
            refused(block.region(), Reason.EXACT, "still reads the image (spatial axis 1)")
        else:
            assert folded(block.region()).kernel.shape[2:] == (1, 4)


def test_a_border_of_the_bias(rng: np.random.Generator) -> None:
    """DBB's and ECB's: one channel, so that a Pad can write it."""
    for value in (0.75, 0.0):
        block = Block()
        y = block.conv("x", normal(rng, 1, 3, 1, 1), [0.75])
        block.conv(pad(block, y, ((1, 1), (1, 1)), value), normal(rng, 2, 1, 3, 3), rng.standard_normal(2))
        if value:
            assert folded(block.region()).pads == ((1, 1), (1, 1))
        else:
            refused(block.region(), Reason.EXACT, "pads with 0 where the map before it gives its bias")


@pytest.mark.parametrize(
    ("value", "mode", "outer", "code", "words"),
    [
        (1.0, "constant", 0, Reason.EXACT, "pads with 1 "),
        (0.0, "reflect", 0, Reason.EXACT, "reflect"),
        (0.0, "edge", 0, Reason.EXACT, "edge"),
        (0.0, "constant", 1, Reason.OP, "channels"),
    ],
)
def test_pads_that_stay(
    rng: np.random.Generator, value: float, mode: str, outer: int, code: Reason, words: str
) -> None:
    block = Block()
    y = pad(block, "x", ((1, 1), (1, 1)), value, mode, outer)
    block.conv(y, normal(rng, 2, 3 + outer, 3, 3))
    refused(block.region(), code, words)


def pool(block: Block, x: str, window: tuple[int, ...], strides: int, pads: int, **attrs: bool) -> str:
    axes = len(window)
    fixed = {"strides": (strides,) * axes, "pads": ((pads, pads),) * axes, "dilations": (1,) * axes}
    return block.node("avg_pool", [x], window=window, **fixed, **({"ceil": False, "include_pad": True} | attrs))


def test_an_average_is_a_depthwise_conv(rng: np.random.Generator) -> None:
    """QARepVGG's and DBB's: 1x1 then a pool; the pool of the image itself; both beside a conv."""
    block = Block()
    norm = block.norm("x", 4, rng)
    y = block.norm(pool(block, block.conv("x", normal(rng, 4, 4, 1, 1)), (3, 3), 2, 1), 4, rng)
    z = block.conv("x", normal(rng, 4, 4, 3, 3), rng.standard_normal(4), pads=1, strides=2)
    block.add(block.add(y, z), pool(block, block.sub(norm, norm), (3, 3), 2, 1))
    assert folded(block.region()).kernel.shape == (4, 4, 3, 3)


def test_averages_that_count_only_the_image(rng: np.random.Generator) -> None:
    for pads in (0, 1):
        block = Block()
        pool(block, block.scale("x", rng.standard_normal((4, 1, 1))), (3, 3), 1, pads, include_pad=False)
        block.conv(block.nodes[-1].output.name, normal(rng, 4, 4, 1, 1))
        if pads:
            refused(block.region(), Reason.EXACT, "leaves the padding out")
        else:
            assert folded(block.region()).groups == 1


def test_averages_that_round_up(rng: np.random.Generator) -> None:
    """Only where nothing is left over is there nothing to round."""
    for extent in (8, 9, None):
        block = Block((1, 4, extent, extent))
        block.conv(pool(block, "x", (2, 2), 2, 0, ceil=True), normal(rng, 4, 4, 1, 1))
        if extent == 8:
            folded(block.region(), [(8, 8)])
        else:
            refused(block.region(), Reason.EXACT, "rounds")


@pytest.mark.parametrize("role", ["scale", "bias", "mean", "var"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norm_constants_that_are_not_finite(rng: np.random.Generator, role: str, value: float) -> None:
    consts = {name: np.ones(4) for name in ("scale", "bias", "mean", "var")}
    consts[role][2] = value
    block = Block()
    block.bn(block.conv("x", normal(rng, 4, 4, 1, 1)), **consts)
    refused(block.region(), Reason.VALUE, f"its {role}")


@pytest.mark.parametrize(("var", "eps"), [(-1e-7, 1e-5), (0.0, 0.0), (1.0, float("nan")), (1e-6, -1e-5)])
def test_variance(rng: np.random.Generator, var: float, eps: float) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 2, 2, 1, 1))
    block.bn(y, np.ones(2), np.ones(2), np.ones(2), [1.0, var], eps)
    refused(block.region(), Reason.VALUE, "variance")


def test_variance_zero_is_fine_with_eps(rng: np.random.Generator) -> None:
    block = Block()
    block.bn(block.conv("x", normal(rng, 2, 2, 1, 1)), np.ones(2), np.ones(2), np.ones(2), np.zeros(2), 1e-5)
    folded(block.region())


@pytest.mark.parametrize("role", ["weight", "bias"])
def test_conv_constants_that_are_not_finite(rng: np.random.Generator, role: str) -> None:
    block = Block()
    weight, bias = normal(rng, 2, 2, 1, 1), np.zeros(2)
    (weight if role == "weight" else bias).flat[0] = -np.inf
    block.scale(block.conv("x", weight, bias), 2.0)
    refused(block.region(), Reason.VALUE, role)


@pytest.mark.parametrize("length", [1, 3])
def test_wrong_lengths(rng: np.random.Generator, length: int) -> None:
    block = Block()
    block.norm(block.conv("x", normal(rng, 2, 2, 1, 1)), length, rng)
    refused(block.region(), Reason.SHAPE, "where [2] is needed")
    block = Block()
    block.scale(block.conv("x", normal(rng, 2, 2, 1, 1), np.ones(length)), 2.0)
    refused(block.region(), Reason.SHAPE, "where [2] is needed")


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("known", [True, False])
def test_types_that_fold(rng: np.random.Generator, dtype: str, known: bool) -> None:
    block = Block(dtype=dtype, known=known)
    block.norm(block.conv("x", normal(rng, 2, 2, 3, 3), pads=1), 2, rng)
    assert folded(block.region()).dtype == dtype


def test_mixed_types(rng: np.random.Generator) -> None:
    block = Block(dtype="float16", known=False)
    y = block.conv("x", normal(rng, 2, 2, 1, 1))
    block.node("bn", [y], {r: (np.ones(2), "float32") for r in ("scale", "bias", "mean", "var")}, eps=1e-5)
    refused(block.region(), Reason.TYPE, "mixes")
    block = Block()
    block.outside("x", dtype="float16")
    block.conv("x", normal(rng, 2, 2, 1, 1))
    refused(block.region(), Reason.TYPE, "mixes")


def test_types_that_do_not_fold() -> None:
    block = Block(dtype="int8")
    block.conv("x", np.ones((2, 2, 1, 1)))
    refused(block.region(), Reason.TYPE, "int8")
    block = Block(known=False)
    block.add("x", "x")
    refused(block.region(), Reason.TYPE, "not known")


def test_casts(rng: np.random.Generator) -> None:
    block = Block()
    block.node("cast", [block.conv("x", normal(rng, 2, 2, 1, 1))], **{"to": "float32", "from": "float32"})
    folded(block.region())
    block = Block(known=False)
    block.node("cast", [block.conv("x", normal(rng, 2, 2, 1, 1))], **{"to": "float16", "from": "float32"})
    refused(block.region(), Reason.TYPE, "cast")


# --- what else stands in a region ----------------------------------------------------------------------------------


def test_ops_that_do_nothing(rng: np.random.Generator) -> None:
    block = Block()
    y = block.node("dropout", [block.node("identity", ["x"])])
    y = block.conv(block.node("pad", [y], amount=0), normal(rng, 2, 2, 3, 3), pads=1)
    block.add(block.node("leaky_relu", [y], slope=1.0), block.norm("x", 2, rng))
    folded(block.region())


@pytest.mark.parametrize(
    ("op", "attrs"), [("relu", {}), ("leaky_relu", {"slope": 0.1}), ("max_pool", {"window": (1, 1)}), ("mul", {})]
)
def test_other_ops(rng: np.random.Generator, op: str, attrs: dict[str, object]) -> None:
    block = Block()
    block.node(op, [block.conv("x", normal(rng, 2, 2, 1, 1))], **attrs)
    refused(block.region(), Reason.OP, op)


def test_a_node_with_a_problem(rng: np.random.Generator) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 2, 2, 1, 1))
    block.node("bn", [y], problem="its statistics come from the batch", eps=1e-5)
    refused(block.region(), Reason.VALUE, "its statistics come from the batch")


def test_negative_pads(rng: np.random.Generator) -> None:
    block = Block()
    block.conv("x", normal(rng, 2, 2, 3, 3), pads=((-1, 1), (0, 0)))
    refused(block.region(), Reason.VALUE, "negative")


def test_a_value_from_nowhere(rng: np.random.Generator) -> None:
    block = Block()
    block.add(block.conv("x", normal(rng, 2, 2, 1, 1)), block.outside("z"))
    refused(block.region(), Reason.ENTRY, "z")


def test_what_the_entry_says_of_itself(rng: np.random.Generator) -> None:
    def block(shape: tuple[int | str | None, ...] | None) -> Region:
        b = Block(shape)
        b.norm("x", 4, rng)
        return b.region()

    folded(block(("n", 4, None, 7)))
    folded(block((1, None, 5, 6)))
    refused(block(None), Reason.DYNAMIC, "not known")
    refused(block((1, 3, 5, 6)), Reason.SHAPE, "4 channels")
    refused(block((1, 4)), Reason.SHAPE, "spatial axes")


def test_rank_of_the_entry(rng: np.random.Generator) -> None:
    block = Block((1, 4, 9))
    block.conv("x", normal(rng, 4, 4, 3, 3), pads=1)
    refused(block.region(), Reason.SHAPE, "spatial axes")


# --- leftovers -----------------------------------------------------------------------------------------------------


def test_leftovers_are_read_as_zero(rng: np.random.Generator) -> None:
    block = Block()
    inner = block.sub(block.outside("r"), block.conv("x", normal(rng, 2, 2, 3, 3), pads=1))
    y = block.shift(block.scale(inner, -1.0), 0.25)
    block.add(y, "x", block.outside("q"))
    region = block.region(rest=[(-1, "r"), (1, "q")])
    conv = fold(region)
    assert isinstance(conv, ConvForm), conv
    x, r, q = (rng.standard_normal((2, 2, 5, 5)) for _ in "xrq")
    expected = judge.run(region, x, {"r": r, "q": q})
    assert np.allclose(judge.apply(conv, x) - r + q, expected, rtol=0, atol=1e-12)


def test_an_entry_that_is_left_over(rng: np.random.Generator) -> None:
    block = Block()
    block.add(block.conv("x", normal(rng, 2, 2, 3, 3), pads=1), "x", "x")
    region = block.region(rest=[(1, "x")])
    conv = fold(region)
    assert isinstance(conv, ConvForm), conv
    x = rng.standard_normal((2, 2, 5, 5))
    assert np.allclose(judge.apply(conv, x) + x, judge.run(region, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("op", ["bn", "scale", "conv"])
def test_nothing_goes_on_from_a_leftover(rng: np.random.Generator, op: str) -> None:
    block = Block()
    total = block.add(block.conv("x", normal(rng, 2, 2, 1, 1)), block.outside("r"))
    if op == "bn":
        block.norm(total, 2, rng)
    elif op == "scale":
        block.scale(total, 2.0)
    else:
        block.conv(total, normal(rng, 2, 2, 1, 1))
    refused(block.region(rest=[(1, "r")]), Reason.OP, "leftover")


def test_a_region_without_its_entry() -> None:
    block = Block(known=True)
    block.outside("r")
    block.add("r", "r")
    region = block.region(rest=[(1, "r"), (1, "r")])
    found = interpret(Region(block.values["x"], region.exit, region.nodes, region.rest))
    assert isinstance(found, Refusal)
