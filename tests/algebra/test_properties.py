"""Random sums of branches, built to fold or broken in one known way, so that the right answer is known beforehand.

What has to fold must equal the region under the slow judge, on several sizes, and pass the proof; what is broken has to
be refused. The label comes from how the block was drawn and from counting output pixels, never from the algebra.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewriter.algebra import ConvForm, conv_of, interpret, prove, prove_stored
from rewriter.errors import Refusal
from rewriter.matching.region import Region
from rewriter.reporting.record import Proof
from tests.algebra import judge
from tests.algebra.regions import Block, normal


@dataclass
class Plan:
    """What all branches of one block share, and the random numbers of its constants."""

    rank: int
    inputs: int
    outputs: int
    strides: tuple[int, ...]
    growth: tuple[int, ...]  # of the extent: pads - dilation * (k - 1), the same for every branch
    rng: np.random.Generator
    block: Block = field(default_factory=Block)

    @property
    def skips(self) -> bool:
        """Whether the entry itself is an operand that fits."""
        plain = (1,) * self.rank, (0,) * self.rank
        return self.inputs == self.outputs and (self.strides, self.growth) == plain


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    inputs = draw(st.sampled_from([1, 2, 4, 6]))
    axes = st.tuples(*(st.integers(1, 2 if draw(st.booleans()) else 1) for _ in range(rank)))
    return Plan(
        rank=rank,
        inputs=inputs,
        outputs=draw(st.sampled_from([inputs, inputs, 2, 4, 12])),
        strides=draw(axes),
        growth=draw(st.just((0,) * rank) | st.tuples(*(st.integers(-2, 1) for _ in range(rank)))),
        rng=np.random.default_rng(draw(st.integers(0, 1 << 20))),
    )


def conv(
    draw: st.DrawFn, plan: Plan, *, growth: tuple[int, ...] | None = None, strides: tuple[int, ...] | None = None
) -> str:
    """A branch of the plan's growth: kernel and dilation first, then as much padding as that takes, on either side."""
    window: list[int] = []
    dilations: list[int] = []
    pads: list[tuple[int, int]] = []
    for grows in growth or plan.growth:
        k, d = draw(st.integers(1, 2 if plan.rank == 3 else 4)), draw(st.sampled_from([1, 1, 2, 3]))
        if d * (k - 1) + grows < 0:  # nothing to pad: a window that is just large enough
            k, d = 1 - grows, 1
        amount = grows + d * (k - 1)
        begin = draw(st.integers(0, amount))
        window.append(k)
        dilations.append(d)
        pads.append((begin, amount - begin))
    shared = [g for g in (1, 2, 3, 4, 6, 12) if plan.inputs % g == 0 and plan.outputs % g == 0]
    groups = draw(st.sampled_from(shared))
    weight = normal(plan.rng, plan.outputs, plan.inputs // groups, *window)
    bias = plan.rng.standard_normal(plan.outputs) if draw(st.booleans()) else None
    strides = strides or plan.strides
    return plan.block.conv("x", weight, bias, pads=pads, strides=strides, dilations=dilations, groups=groups)


def chain(draw: st.DrawFn, plan: Plan, y: str, channels: int) -> str:
    """Nothing, or norms in any of their disguises."""
    block, rng = plan.block, plan.rng
    for kind in draw(
        st.lists(st.sampled_from(["bn", "scale", "shift", "number", "neg", "minus", "identity"]), max_size=2)
    ):
        per_channel = rng.standard_normal((channels, *(1,) * plan.rank))
        match kind:
            case "bn":
                y = block.norm(y, channels, rng)
            case "scale":
                y = block.scale(y, per_channel[None] if draw(st.booleans()) else per_channel)
            case "shift":
                y = block.shift(y, per_channel, sign=draw(st.sampled_from([1, -1])))
            case "number":
                y = block.scale(block.shift(y, 0.0), rng.standard_normal((1,) * draw(st.integers(0, plan.rank + 2))))
            case "minus":
                y = block.scale(y, -1.0)
            case _:
                y = block.node(kind, [y])
    return y


def branch(draw: st.DrawFn, plan: Plan) -> str:
    if plan.skips and draw(st.integers(0, 3)) == 0:
        return chain(draw, plan, "x", plan.inputs)
    return chain(draw, plan, conv(draw, plan), plan.outputs)


def combine(draw: st.DrawFn, plan: Plan, operands: list[str]) -> str:
    """One sum of them all, nested and signed at random, with norms on the way."""
    waiting = list(operands)
    while len(waiting) > 1:
        waiting = draw(st.permutations(waiting))
        kind = draw(st.sampled_from(["add", "sub", "sum"]))
        taken = len(waiting) if kind == "sum" and len(waiting) > 2 else 2
        parts, waiting = waiting[:taken], waiting[taken:]
        total = plan.block.sub(*parts) if kind == "sub" else plan.block.add(*parts)
        waiting.append(chain(draw, plan, total, plan.outputs))
    return waiting[0]


@st.composite
def right(draw: st.DrawFn) -> Plan:
    plan = draw(plans())
    combine(draw, plan, [branch(draw, plan) for _ in range(draw(st.integers(1, 4)))])
    if not any(node.op == "conv" for node in plan.block.nodes):
        combine(draw, plan, [plan.block.nodes[-1].output.name if plan.block.nodes else "x", conv(draw, plan)])
    return plan


def stride_of(draw: st.DrawFn, plan: Plan, y: str) -> str:
    other = tuple(s + (axis == 0) for axis, s in enumerate(plan.strides))
    return plan.block.add(y, conv(draw, plan, strides=other))


def growth_of(draw: st.DrawFn, plan: Plan, y: str) -> str:
    other = tuple(g + (axis == 0) for axis, g in enumerate(plan.growth))
    return plan.block.add(y, conv(draw, plan, growth=other))


def looks_per_channel(draw: st.DrawFn, plan: Plan, y: str) -> str:
    """One number per pixel, row or image instead of one per channel."""
    axis = draw(st.sampled_from([0, *range(2, plan.rank + 2)]))
    shape = tuple(3 if a == axis else 1 for a in range(plan.rank + 2))
    return plan.block.shift(y, plan.rng.standard_normal(shape))


def activation(draw: st.DrawFn, plan: Plan, y: str) -> str:
    return plan.block.node(draw(st.sampled_from(["relu", "sigmoid", "mul", "softmax"])), [y])


def border(draw: st.DrawFn, plan: Plan, y: str) -> str:
    pads = [(0, 0)] * plan.rank
    axis = draw(st.integers(0, plan.rank - 1))
    pads[axis] = draw(st.sampled_from([(0, 1), (1, 0), (2, 2)]))
    window = (3,) * plan.rank
    shifted = plan.block.shift("x", 0.5)
    return plan.block.conv(shifted, normal(plan.rng, plan.outputs, plan.inputs, *window), pads=pads)


def unequal_channels(draw: st.DrawFn, plan: Plan, y: str) -> str:
    plan.outputs = 1 if plan.outputs > 1 else 2  # one channel would broadcast
    return plan.block.add(y, conv(draw, plan))


BREAKS = [stride_of, growth_of, looks_per_channel, activation, border, unequal_channels]


@st.composite
def wrong(draw: st.DrawFn) -> tuple[str, Region]:
    plan = draw(right())
    broken = draw(st.sampled_from(BREAKS))
    return broken.__name__, plan.block.region(broken(draw, plan, plan.block.nodes[-1].output.name))


calm = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@calm
@given(right())
def test_what_has_to_fold_does(plan: Plan) -> None:
    region = plan.block.region()
    affine = interpret(region)
    assert not isinstance(affine, Refusal), affine
    folded = conv_of(affine, "float32")
    assert isinstance(folded, ConvForm), folded
    shortest = max(judge_reach(plan, axis) for axis in range(plan.rank))
    sizes = [
        tuple(shortest + axis % 2 + more for axis in range(plan.rank)) for more in ((0,) if plan.rank == 3 else (0, 1))
    ]
    assert judge.same(region, folded, sizes)
    proof = prove(region, folded)
    assert isinstance(proof, Proof), proof
    assert proof.error < 1e-13
    assert prove_stored(folded, folded.weight(), folded.stored_bias(), at="") is None


def judge_reach(plan: Plan, axis: int) -> int:
    """The smallest extent on which every conv of the block gives a pixel."""
    convs = [node for node in plan.block.nodes if node.op == "conv"]
    return max(n.attrs["dilations"][axis] * (n.consts["weight"].shape[2 + axis] - 1) + 1 for n in convs)


@calm
@given(wrong())
def test_what_is_broken_is_refused(case: tuple[str, Region]) -> None:
    broken, region = case
    affine = interpret(region)
    assert isinstance(affine, Refusal), broken
    assert affine.node
    assert affine.detail


@calm
@given(right(), st.data())
def test_any_wrong_tap_is_caught(plan: Plan, data: st.DataObject) -> None:
    """A right fold with one weight moved, scaled or shifted off its place no longer passes."""
    region = plan.block.region()
    affine = interpret(region)
    assert not isinstance(affine, Refusal)
    folded = conv_of(affine, "float32")
    assert isinstance(folded, ConvForm)
    index = tuple(data.draw(st.integers(0, n - 1)) for n in folded.kernel.shape)
    kernel = folded.kernel.copy()
    kernel[index] += 1e-5 * max(abs(kernel[index]), float(np.abs(kernel).mean()), 1e-3)
    broken = ConvForm(kernel, folded.bias, folded.strides, folded.pads, folded.dilations, folded.groups, folded.dtype)
    assert isinstance(prove(region, broken), Refusal)


@calm
@given(st.integers(4, 11), st.integers(2, 3), st.data())
def test_a_known_extent_decides_a_sum_of_strides(extent: int, stride: int, data: st.DataObject) -> None:
    """Two convs whose growths differ add exactly where counting their output pixels gives the same number."""
    rng = np.random.default_rng(extent)
    block = Block((1, 2, extent))
    outs: list[int] = []
    names: list[str] = []
    for _ in range(2):
        k, pads = data.draw(st.integers(1, 4)), data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        names.append(block.conv("x", normal(rng, 2, 2, k), pads=[pads], strides=stride))
        outs.append(len(range(0, extent + sum(pads) - k + 1, stride)))
    block.add(*names)
    region = block.region()
    affine = interpret(region)
    if outs[0] != outs[1]:
        assert isinstance(affine, Refusal)
        return
    assert not isinstance(affine, Refusal), affine
    folded = conv_of(affine, "float32")
    assert isinstance(folded, ConvForm)
    assert judge.same(region, folded, [(extent,)])
    assert isinstance(prove(region, folded), Proof)
