"""Where an auxiliary head leaves the trunk, and heads beside each other that leave it nowhere."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from rewriter.graph.onnx import view
from rewriter.matching.cones import Cones
from rewriter.matching.tails import in_step, named_parts
from rewriter.matching.taps import Tap, tap
from tests.matching.heads import FINE, Net


def of(net: Net, aux: str, main: str) -> tuple[Tap | None, Tap | None]:
    """The tap of the first output, and of the second."""
    cones = Cones.of(view(net.model([(aux, FINE), (main, FINE)])))
    one, other = (cones.bit(value) for value in cones.outputs)
    return tap(cones, one, other), tap(cones, other, one)


def residual(net: Net, x: str) -> str:
    return net.add("Add", [net.convs(x, 2), x])


def test_a_head_half_way_along_the_trunk_is_tapped() -> None:
    net = Net()
    middle = residual(net, net.conv(net.image, 3))
    early, late = of(net, net.convs(middle, 2), net.convs(residual(net, residual(net, middle)), 2))
    assert early == Tap(middle, 2, 6, plain=True, trunk=True) and early.early
    assert late == Tap(middle, 6, 2, plain=False, trunk=False) and not late.early


def test_a_longer_chain_of_layers_is_no_trunk() -> None:
    net = Net()
    end = residual(net, net.conv(net.image, 3))
    early, late = of(net, net.convs(end, 2), net.convs(end, 8))
    assert early == Tap(end, 2, 8, plain=True, trunk=False) and not early.early
    assert late is not None and not late.early


def test_less_than_twice_as_long_is_not_half_way() -> None:
    net = Net()
    middle = net.conv(net.image, 3)
    early, _ = of(net, net.convs(middle, 2), net.conv(residual(net, middle)))
    assert early == Tap(middle, 2, 3, plain=True, trunk=True) and not early.early


def test_a_branch_that_joins_values_is_more_than_a_head() -> None:
    net = Net()
    middle = net.conv(net.image, 3)
    aux = net.conv(net.concat(net.conv(middle), middle), 16)
    early, _ = of(net, aux, net.convs(residual(net, residual(net, middle)), 2))
    assert early is not None and early.trunk and not early.plain and not early.early


def test_features_of_an_inner_block_are_no_head() -> None:
    net = Net()
    middle = residual(net, net.conv(net.image, 3))
    early, _ = of(net, net.add("Relu", [middle]), net.convs(residual(net, middle), 2))
    assert early == Tap(middle, 0, 4, plain=True, trunk=True) and not early.early


def test_every_value_where_it_leaves_counts() -> None:
    """A head that also reads the end of the trunk is not half way."""
    net = Net()
    middle = net.conv(net.image, 3)
    end = residual(net, residual(net, middle))
    aux = net.conv(net.add("Mul", [net.conv(middle), end]))
    early, _ = of(net, aux, net.conv(end))
    assert early is not None and not early.early and early.value == end


def test_sizes_are_no_way() -> None:
    net = Net()
    middle = net.conv(net.image, 3)
    size = net.add("Cast", [net.add("Size", [net.conv(middle)])], to=TensorProto.FLOAT)
    early, _ = of(net, net.conv(middle), net.add("Mul", [residual(net, middle), size]))
    assert early is not None and early.other == 2


def test_what_has_nothing_in_common_has_no_tap() -> None:
    net = Net()
    constant = helper.make_tensor("v", TensorProto.FLOAT, [1, 8, 16, 16], [0.0] * 2048)
    alone = net.add("Neg", [net.add("Constant", [], value=constant)])
    assert of(net, alone, net.conv(net.image, 3))[0] is None


# --- last layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "steps"),
    [
        (["Relu", "conv"], ["Relu", "conv"], 3),  # and the trunk's Sigmoid
        (["Relu", "conv"], ["Sigmoid", "conv"], 0),
        (["Relu", "conv", "Relu"], ["Relu", "conv", "Tanh"], 2),
        (["Identity", "Relu", "conv"], ["Relu", "Identity", "conv"], 3),
    ],
)
def test_steps_backward_until_operators_differ(first: list[str], second: list[str], steps: int) -> None:
    net = Net()
    stems = [net.add("Sigmoid", [net.image]), net.add("Sigmoid", [net.image])]
    ends: list[str] = []
    for x, operators in zip(stems, (first, second), strict=True):
        for operator in reversed(operators):
            x = net.conv(x, 3, 3) if operator == "conv" else net.add(operator, [x])
        ends.append(x)
    cones = Cones.of(view(net.model([(end, (1, 3, 32, 32)) for end in ends])))
    found = in_step(cones, *cones.outputs)
    assert found == steps
    assert found == in_step(cones, *reversed(cones.outputs))


def test_values_are_listed_by_module() -> None:
    net = Net()
    names = ["/head/m.0/Conv", "/head/m.1/Conv", "/head/m2.0/Conv", "/head/m2.1/Conv"]
    ends = [net.add("Relu", [net.conv(net.image, 3)]) for _ in names]
    for node, name in zip((n for n in net.nodes if n.op_type == "Conv"), names, strict=True):
        node.name = name
    cones = Cones.of(view(net.model([(end, FINE) for end in ends])))
    assert [[v.name for v in part] for part in named_parts(cones, cones.outputs)] == [ends[:2], ends[2:]]
    alone = cones.outputs[:2]
    assert named_parts(cones, alone) == [[value] for value in alone]
