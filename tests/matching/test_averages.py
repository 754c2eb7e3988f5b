"""Outputs that are the mean of heads, and sums that are none."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from rewriter.graph.onnx import view
from rewriter.language.library import shipped
from rewriter.matching.outputs import Decision, decide
from tests.matching.heads import FINE, Net

AUX_PRUNE = shipped()["aux-prune"].pattern


def notes(net: Net, output: str) -> tuple[str, ...]:
    decision = decide(view(net.model([(output, FINE)])), AUX_PRUNE, {})
    assert isinstance(decision, Decision) and not decision.removed
    return decision.notes


@pytest.mark.parametrize(
    ("heads", "factor", "said"), [(2, 0.5, True), (3, 1 / 3, True), (3, 0.5, False), (2, 1.0, False)]
)
def test_a_mean_of_heads_is_said_to_hold_nothing_auxiliary(heads: int, factor: float, said: bool) -> None:
    net = Net()
    trunk = net.conv(net.image, 3)
    total = net.conv(trunk)
    for _ in range(heads - 1):
        total = net.add("Add", [total, net.conv(trunk)])
    constant = net.weight(np.array(factor, np.float32))
    output = net.add("Mul", [total, constant], "out")
    expected = (f"out is the mean of {heads} heads: none of them is auxiliary",) if said else ()
    assert notes(net, output) == expected


def test_a_residual_is_no_head() -> None:
    net = Net()
    trunk = net.add("Relu", [net.conv(net.image, 3)])
    assert (
        notes(net, net.add("Mul", [net.add("Add", [net.conv(trunk), trunk]), net.weight(np.array(0.5, np.float32))]))
        == ()
    )


@pytest.mark.parametrize(
    ("kind", "said"), [("heads", True), ("a head", True), ("features", False), ("channels", False)]
)
def test_a_mean_over_a_stack_is_one_of_heads_where_heads_made_it(kind: str, said: bool) -> None:
    net = Net()
    trunk = net.conv(net.image, 3)
    parts = [net.conv(trunk) if kind == "heads" else net.add("Relu", [net.conv(trunk)]) for _ in range(3)]
    if kind == "channels":
        axis = 1
        joined = net.concat(*parts)
    else:
        axis = 0
        net.weights.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
        joined = net.add("Concat", [net.add("Unsqueeze", [part, "zero"]) for part in parts], axis=0)
    if kind == "a head":
        joined = net.add("MatMul", [joined, net.weight(np.ones((16, 16), np.float32))])
    output = net.add("ReduceMean", [joined], "out", axes=[axis], keepdims=0)
    expected = (f"{output} is the mean of 3 heads: none of them is auxiliary",) if said else ()
    assert notes(net, output) == expected
