"""The judge: right folds pass with room to spare, and every kind of wrong one is caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rewriter.algebra import ConvForm, conv_of, interpret, prove, prove_stored, round_to
from rewriter.errors import Reason, Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Block, normal, repvgg


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def fold(region: Region, dtype: str = "float32") -> ConvForm:
    affine = interpret(region)
    assert not isinstance(affine, Refusal), affine
    conv = conv_of(affine, dtype)
    assert isinstance(conv, ConvForm), conv
    return conv


def proved(region: Region, conv: ConvForm) -> Proof:
    proof = prove(region, conv)
    assert isinstance(proof, Proof), proof
    assert proof.limit == 1e-12
    assert proof.error < 1e-14
    return proof


def caught(region: Region, conv: ConvForm) -> None:
    found = prove(region, conv)
    assert isinstance(found, Refusal), found
    assert (found.code, found.node) == (Reason.EXACT, region.name)


def changed(conv: ConvForm, index: tuple[int, ...], change: float) -> ConvForm:
    kernel = conv.kernel.copy()
    kernel[index] += change
    return replace(conv, kernel=kernel)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("normed", [True, False])
def test_right_folds(rng: np.random.Generator, stride: int, normed: bool) -> None:
    region = repvgg(8, rng, stride=stride, normed=normed, skip=stride == 1 and normed).region()
    proof = proved(region, fold(region))
    assert proof.inputs == 5
    assert min(proof.size) >= 2 * 3 + stride


def test_the_judge_convolves_as_torch_does(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    for rank, groups, stride, dilation in [(1, 1, 2, 1), (2, 2, 1, 2), (2, 4, 3, 1), (3, 1, 2, 2)]:
        x, weight = rng.standard_normal((2, 4, *(9,) * rank)), rng.standard_normal((8, 4 // groups, *(3, 2, 1)[:rank]))
        y = judge.convolve(x, weight, (stride,) * rank, ((1, 1),) * rank, (dilation,) * rank, groups)
        function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        expected = function(
            torch.from_numpy(x),
            torch.from_numpy(weight),
            stride=stride,
            padding=(1,) * rank,
            dilation=dilation,
            groups=groups,
        )
        assert np.allclose(y, expected.numpy(), rtol=0, atol=1e-12)


# --- mutations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [(0, 0, 0, 0), (3, 2, 1, 1), (7, 7, 2, 2), (5, 0, 0, 2)])
def test_one_wrong_weight(rng: np.random.Generator, index: tuple[int, ...]) -> None:
    region = repvgg(8, rng).region()
    conv = fold(region)
    caught(region, changed(conv, index, 1e-5 * conv.kernel[index]))


def test_one_wrong_bias(rng: np.random.Generator) -> None:
    region = repvgg(8, rng).region()
    conv = fold(region)
    assert conv.bias is not None
    bias = conv.bias.copy()
    bias[4] *= 1 + 1e-5
    caught(region, replace(conv, bias=bias))
    caught(region, replace(conv, bias=None))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pads", [((0, 2), (1, 1)), ((2, 0), (1, 1)), ((1, 1), (0, 2))])
def test_an_offset_by_one(rng: np.random.Generator, stride: int, pads: tuple[tuple[int, int], ...]) -> None:
    region = repvgg(4, rng, stride=stride).region()
    caught(region, replace(fold(region), pads=pads))


@pytest.mark.parametrize("pads", [((0, 0), (1, 1)), ((1, 2), (1, 1)), ((1, 0), (1, 1)), ((1, 1), (1, 0))])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_another_extent(rng: np.random.Generator, stride: int, pads: tuple[tuple[int, int], ...]) -> None:
    """With a stride only some sizes show it."""
    region = repvgg(4, rng, stride=stride).region()
    caught(region, replace(fold(region), pads=pads))


def test_another_stride_dilation_or_groups(rng: np.random.Generator) -> None:
    region = repvgg(4, rng).region()
    conv = fold(region)
    caught(region, replace(conv, strides=(1, 2)))
    caught(region, replace(conv, dilations=(2, 2), pads=((2, 2), (2, 2))))
    caught(region, replace(conv, groups=2))


def test_a_missing_border(rng: np.random.Generator) -> None:
    """A shift before a padded conv, folded as if there were no border: wrong in its outermost pixels only."""
    block = Block()
    shifted = block.shift("x", rng.standard_normal((1, 4, 1, 1)))
    weight = normal(rng, 4, 4, 3, 3).astype(np.float32)
    block.conv(shifted, weight, pads=1)
    kernel = weight.astype(np.float64)
    bias = np.einsum("oihw,i->o", kernel, block.nodes[0].consts["term"].floats().reshape(-1))
    wrong = ConvForm(kernel, bias, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "float32")
    caught(block.region(), wrong)
    block.nodes[1].attrs["pads"] = ((0, 0), (0, 0))  # type: ignore[index]
    proved(block.region(), replace(wrong, pads=((0, 0), (0, 0))))


def test_a_border_that_is_not_the_bias(rng: np.random.Generator) -> None:
    """1x1 with bias, a Pad, 3x3: right with the bias as what is padded with, caught when that is off by 3e-6."""
    for value, right in ((0.5, True), (0.5 + 3e-6, False), (0.0, False)):
        block = Block()
        y = block.conv("x", normal(rng, 1, 2, 1, 1), [0.5])
        pads = ((0, 0), (0, 0), (1, 1), (1, 1))
        y = block.node("pad", [y], pads=pads, value=value, mode="constant", amount=1)
        weight = normal(rng, 2, 1, 3, 3).astype(np.float32)
        block.conv(y, weight)
        first = block.nodes[0].consts["weight"].floats()
        kernel = np.einsum("omhw,mi->oihw", weight.astype(np.float64), first[:, :, 0, 0])
        bias = 0.5 * weight.astype(np.float64).sum(axis=(1, 2, 3))
        conv = ConvForm(kernel, bias, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "float32")
        (proved if right else caught)(block.region(), conv)


def test_two_padded_convs_as_one(rng: np.random.Generator) -> None:
    """Right everywhere but at the border."""
    block = Block()
    first, second = (normal(rng, 1, 1, 3).astype(np.float32) for _ in range(2))
    block.conv(block.conv("x", first, pads=1), second, pads=1)
    kernel = np.convolve(first[0, 0].astype(np.float64), second[0, 0].astype(np.float64)).reshape(1, 1, 5)
    caught(block.region(), ConvForm(kernel, None, (1,), ((2, 2),), (1,), 1, "float32"))


@pytest.mark.parametrize("attrs", [{}, {"include_pad": False}, {"ceil": True}])
def test_averages(rng: np.random.Generator, attrs: dict[str, bool]) -> None:
    block = Block((1, 2, 9))
    fixed = {"strides": (2,), "pads": ((1, 1),), "dilations": (1,), "ceil": False, "include_pad": True}
    block.node("avg_pool", ["x"], window=(3,), **(fixed | attrs))
    weight = normal(rng, 2, 2, 1)
    block.conv(block.nodes[0].output.name, weight)
    kernel = np.repeat(block.nodes[1].consts["weight"].floats() / 3, 3, axis=2)
    conv = ConvForm(kernel, None, (2,), ((1, 1),), (1,), 1, "float32")
    if "include_pad" in attrs:
        caught(block.region(), conv)
    else:
        proved(block.region(), conv)
        caught(block.region(), replace(conv, kernel=1.00001 * kernel))


def test_a_flipped_sign(rng: np.random.Generator) -> None:
    block = Block()
    block.sub(block.conv("x", normal(rng, 4, 4, 3, 3), pads=1), block.conv("x", normal(rng, 4, 4, 1, 1)))
    region = block.region()
    conv = fold(region)
    proved(region, conv)
    kernel = conv.kernel.copy()
    kernel[:, :, 1, 1] += 2 * block.nodes[1].consts["weight"].floats()[:, :, 0, 0]
    caught(region, replace(conv, kernel=kernel))


def test_identity_at_the_wrong_channel_of_its_group(rng: np.random.Generator) -> None:
    block = Block()
    block.add(block.conv("x", normal(rng, 6, 3, 3, 3), pads=1, groups=2), "x")
    region = block.region()
    conv = fold(region)
    proved(region, conv)
    caught(region, changed(changed(conv, (4, 1, 1, 1), -1.0), (4, 0, 1, 1), 1.0))


def test_cancellation_is_no_error(rng: np.random.Generator) -> None:
    """W - W * (1 + 5e-8): what is left is 5e-8 of what was added up; the rounding is measured against the latter."""
    block = Block(dtype="float64")
    weight = normal(rng, 8, 8, 3, 3)
    block.sub(block.conv("x", weight, pads=1), block.conv("x", weight * (1 + 5e-8), pads=1))
    region = block.region()
    proved(region, fold(region, "float64"))


def test_nothing_at_all_is_zero(rng: np.random.Generator) -> None:
    """Where every branch is zero the conv has to be, whatever the size of the rest."""
    block = Block()
    weight = normal(rng, 4, 4, 3, 3)
    weight[2] = 0
    block.scale(block.conv("x", weight, pads=1), 2.0)
    region = block.region()
    conv = fold(region)
    proved(region, conv)
    caught(region, changed(conv, (2, 0, 0, 0), 1e-30))


def test_many_inputs(rng: np.random.Generator) -> None:
    block = Block()
    block.norm(block.conv("x", normal(rng, 2, 8192, 3, 3), pads=1), 2, rng)
    region = block.region()
    proved(region, fold(region))


def test_large_depthwise(rng: np.random.Generator) -> None:
    """In pieces: its unfolded input would not fit one product."""
    block = Block()
    large = block.conv("x", normal(rng, 6, 1, 17, 17), pads=8, groups=6)
    block.add(large, block.conv("x", normal(rng, 6, 1, 5, 5), pads=4, dilations=2, groups=6))
    region = block.region()
    conv = fold(region)
    proved(region, conv)
    caught(region, changed(conv, (3, 0, 0, 16), 1e-6))


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_static_phase(rng: np.random.Generator) -> None:
    """Sizes that agree only where the extent is even are proved on even extents."""
    block = Block((1, 2, 640, 642))
    a = block.conv("x", normal(rng, 2, 2, 3, 3), pads=1, strides=2)
    block.add(a, block.conv("x", normal(rng, 2, 2, 2, 2), strides=2))
    region = block.region()
    proof = proved(region, fold(region))
    assert all(n % 2 == 0 for n in proof.size)
    unknown = Region(replace(region.entry, shape=None), region.exit, region.nodes)
    caught(unknown, fold(region))


# --- leftovers -----------------------------------------------------------------------------------------------------


def test_leftovers_and_their_signs(rng: np.random.Generator) -> None:
    block = Block()
    inner = block.sub(block.outside("r"), block.conv("x", normal(rng, 2, 2, 3, 3), pads=1))
    block.add(block.neg(inner), "x", block.outside("q"))
    right = block.region(rest=[(-1, "r"), (1, "q")])
    proved(right, fold(right))
    for rest in ([(1, "r"), (1, "q")], [(-1, "r"), (-1, "q")], [(-1, "r"), (1, "q"), (1, "q")]):
        wrong = block.region(rest=rest)
        caught(wrong, fold(right))


def test_a_leftover_twice_and_the_entry_itself(rng: np.random.Generator) -> None:
    block = Block()
    r = block.outside("r")
    block.add(block.conv("x", normal(rng, 2, 2, 3, 3), pads=1), r, "x", r)
    region = block.region(rest=[(1, "r"), (1, "x"), (1, "r")])
    proved(region, fold(region))
    caught(block.region(rest=[(1, "r"), (1, "r")]), fold(region))


def test_a_leftover_that_is_scaled(rng: np.random.Generator) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 2, 2, 1, 1))
    conv = fold(block.region())
    block.scale(block.add(y, block.outside("r")), 2.0)
    kernel = 2 * conv.kernel
    caught(block.region(rest=[(1, "r")]), replace(conv, kernel=kernel))


# --- what cannot be run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "attrs"), [("relu", {}), ("cast", {"to": "float16", "from": "float32"}), ("pad", {"amount": 1})]
)
def test_ops_it_does_not_know(rng: np.random.Generator, op: str, attrs: dict[str, object]) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 2, 2, 1, 1))
    conv = fold(block.region())
    block.node(op, [y], **attrs)
    caught(block.region(), conv)


def test_operands_that_do_not_broadcast(rng: np.random.Generator) -> None:
    block = Block()
    y = block.conv("x", normal(rng, 2, 2, 3, 3), pads=1)
    conv = fold(block.region())
    block.add(y, block.conv("x", normal(rng, 2, 2, 2, 2)))
    caught(block.region(), conv)


def test_operands_that_do_broadcast(rng: np.random.Generator) -> None:
    """A judge that broadcasts as the model does sees what a fold of the narrow kernel would miss."""
    block = Block()
    y = block.conv("x", normal(rng, 4, 3, 1, 1))
    conv = fold(block.region())
    block.add(y, block.conv("x", normal(rng, 1, 3, 1, 1)))
    caught(block.region(), conv)


def test_a_window_too_large_to_prove(rng: np.random.Generator) -> None:
    block = Block()
    block.conv("x", normal(rng, 2, 2, 2, 2), dilations=1 << 20)
    region = block.region()
    found = prove(region, fold(region))
    assert isinstance(found, Refusal)
    assert found.code == Reason.LIMIT


# --- what is stored ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_stored(rng: np.random.Generator, dtype: str) -> None:
    region = repvgg(4, rng).region()
    conv = fold(region, dtype)
    weight, bias = conv.weight(), conv.stored_bias()
    assert bias is not None
    assert prove_stored(conv, weight, bias, at="n") is None
    one_off = weight.copy()
    up = 2.0**-8 if dtype == "bfloat16" else float(np.finfo(weight.dtype).eps)
    one_off[1, 2, 0, 1] *= 1 + 2 * up
    nan = bias.copy()
    nan[0] = np.nan
    wrong = [(one_off, bias), (weight, nan), (weight, None), (weight[:2], bias), (weight, -bias)]
    for stored, of_bias in wrong:
        found = prove_stored(conv, stored, of_bias, at="n")
        assert isinstance(found, Refusal)
        assert found.code == Reason.EXACT


def test_stored_bfloat16_is_rounded_once_and_to_even() -> None:
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-40, -(1 + 2**-8), 2.0**-133 * 1.5])
    conv = ConvForm(halves.reshape(5, 1, 1, 1), None, (1, 1), ((0, 0),) * 2, (1, 1), 1, "bfloat16")
    right = round_to(conv.kernel, "bfloat16")
    assert right.reshape(-1).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -1.0, 2.0**-132]
    assert prove_stored(conv, right, None, at="n") is None
    for index, value in ((0, 1 + 2**-7), (1, 1 + 2**-7), (2, 1.0), (4, 2.0**-133)):
        wrong = right.copy()
        wrong[index] = value
        assert isinstance(prove_stored(conv, wrong, None, at="n"), Refusal), index
