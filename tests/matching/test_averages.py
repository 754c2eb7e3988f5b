"""Outputs that are the mean of heads, and sums that are none."""

from __future__ import annotations

import numpy as np
import pytest

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


def _number(value: float):
    import numpy as np

    return np.array(value, np.float32)
