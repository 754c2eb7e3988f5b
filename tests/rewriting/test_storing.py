"""Layers that share their tensors: what they fold to is stored once where it is the same, and the rest is counted."""

from __future__ import annotations

from onnx import ModelProto

from fixtures.judge import count_params
from tests.rewriting.small_models import CHANNELS, SmallNet, ops, rewritten

KERNEL = CHANNELS * CHANNELS * 9


def head(levels: int, *, norms: int = 1, dilations: tuple[int, ...] = (1,)) -> ModelProto:
    """One 3x3 on every level; norms and dilations take turns where there are several."""
    net = SmallNet()
    kernel = net.tensor(net.random.normal(size=(CHANNELS, CHANNELS, 3, 3)), "head.weight")
    held = [[net.tensor(row) for row in net.random.uniform(0.5, 1.5, size=(4, CHANNELS))] for _ in range(norms)]
    outputs: list[str] = []
    for level in range(levels):
        wide = dilations[level % len(dilations)]
        x = net.add("Conv", [net.add("Relu", ["x"]), kernel], pads=[wide] * 4, dilations=[wide] * 2)
        outputs.append(net.add("Sigmoid", [net.add("BatchNormalization", [x, *held[level % norms]])]))
    return net.model(*outputs)


def test_a_head_on_three_levels_stays_one_head() -> None:
    model = head(3)
    result, outcome = rewritten(model, ["conv-bn"])
    assert ops(result) == {"Relu": 3, "Conv": 3, "Sigmoid": 3}
    assert [list(n.input[1:]) for n in result.graph.node if n.op_type == "Conv"] == [
        ["head.weight.folded", "head.weight.folded.bias"]
    ] * 3
    assert count_params(result) == KERNEL + CHANNELS
    assert [match.tensors for match in outcome.matches] == [outcome.matches[0].tensors] * 3
    saved = sum(match.saved_parameters for match in outcome.matches)
    assert saved == count_params(model) - count_params(result) == CHANNELS


def test_levels_with_norms_of_their_own_get_kernels_of_their_own_which_the_figures_say() -> None:
    model = head(4, norms=2)
    result, outcome = rewritten(model, ["conv-bn"])
    kernels = [n.input[1] for n in result.graph.node if n.op_type == "Conv"]
    assert kernels == ["head.weight.folded", "head.weight.folded_1"] * 2
    assert count_params(result) == 2 * (KERNEL + CHANNELS)
    saved = sum(match.saved_parameters for match in outcome.matches)
    assert saved == count_params(model) - count_params(result) == -(KERNEL - 2 * CHANNELS)


def test_only_the_same_layer_is_one() -> None:
    """With another dilation it may be another module of torch, which has tensors of its own."""
    result, _ = rewritten(head(4, dilations=(1, 2)), ["conv-bn"])
    kernels = [n.input[1] for n in result.graph.node if n.op_type == "Conv"]
    assert kernels == ["head.weight.folded", "head.weight.folded_1"] * 2


def test_equal_tensors_of_different_layers_stay_two() -> None:
    """Whether they are equal by chance or by start, somebody may train them apart."""
    net = SmallNet()
    outputs: list[str] = []
    for _ in range(2):
        net.random = SmallNet().random
        outputs.append(net.add("Sigmoid", [net.norm(net.conv("x"))]))
    result, outcome = rewritten(net.model(*outputs), ["conv-bn"])
    assert count_params(result) == 2 * (KERNEL + CHANNELS)
    assert [match.saved_parameters for match in outcome.matches] == [CHANNELS] * 2


def test_what_stays_for_another_reader_is_not_counted_as_saved() -> None:
    net = SmallNet()
    kernel = net.tensor(net.random.normal(size=(CHANNELS, CHANNELS, 3, 3)))
    net.norm(net.conv("x", weight=kernel), "y")
    net.conv("x", "z", weight=kernel)
    model = net.model("y", "z")
    result, outcome = rewritten(model, ["conv-bn"])
    (match,) = outcome.matches
    assert match.saved_parameters == count_params(model) - count_params(result) == CHANNELS - KERNEL
