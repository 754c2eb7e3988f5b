"""Attributes of nodes and comparisons with them."""

from __future__ import annotations

from typing import Any

import pytest

from rewriter.errors import Reason
from rewriter.graph.view import Node
from rewriter.graph.vocabulary import OPERATORS, AttributeKind
from rewriter.language.syntax import OpAtom, Predicate
from rewriter.matching.predicates import aligned, attribute, compare, failed, is_transparent
from tests.matching.sketches import Sketch


def node(sketch: Sketch, value: str) -> Node:
    graph = sketch.graph(value)
    found = graph.producer(graph.values[value])
    assert found is not None
    return found


def conv(**attrs: Any) -> Node:
    s = Sketch()
    return node(s, s.conv("x", **attrs))


def test_attributes_of_convs() -> None:
    plain = conv(k=(3, 5), out=8, strides=[2, 1], dilations=[2, 1], pads=[1, 2, 3, 4])
    expected = {
        "k": (3, 5), "stride": (2, 1), "dilation": (2, 1), "reach": (5, 5), "pad": (1, 3, 2, 4), "groups": 1,
        "out": 8, "in": 4, "depthwise": False, "pointwise": False, "computed": False,
    }  # fmt: skip
    assert {name: attribute(plain, name) for name in expected} == expected
    assert set(expected) == {a.name for a in OPERATORS["conv"].attributes}
    assert attribute(conv(k=1), "pointwise") is True
    assert attribute(conv(k=1, strides=[2, 2]), "pointwise") is False
    assert attribute(conv(k=3, groups=4), "depthwise") is True
    assert attribute(conv(k=3, groups=2), "depthwise") is False
    assert attribute(conv(k=3, groups=4, out=8), "depthwise") is True


def test_a_transposed_conv_counts_its_channels_the_other_way() -> None:
    s = Sketch()
    transposed = node(s, s.op("ConvTranspose", "x", s.const(4, 3, 2, 2), group=2))
    assert (attribute(transposed, "in"), attribute(transposed, "out")) == (4, 6)
    assert attribute(transposed, "depthwise") is False


def test_pools_have_a_window() -> None:
    s = Sketch()
    pool = node(s, s.op("AveragePool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 0], strides=[2, 2]))
    assert (attribute(pool, "k"), attribute(pool, "pad"), attribute(pool, "stride")) == ((3, 2), (1, 1, 0, 0), (2, 2))


def test_values_of_constants() -> None:
    s = Sketch()
    assert attribute(node(s, s.scale("x", 2.0, 1, 4, 1, 1)), "value") == 2
    assert attribute(node(s, s.op("Sub", "x", s.const(value=2.0))), "value") == -2
    assert attribute(node(s, s.op("Sub", s.const(value=2.0), "x")), "value") is None
    assert attribute(node(s, s.op("Div", "x", s.const(value=4.0))), "value") == 0.25
    assert attribute(node(s, s.scale("x", float("nan"))), "value") is None
    assert attribute(node(s, s.scale("x", 1.0, 0)), "value") is None


def test_every_attribute_of_the_table_reads() -> None:
    """Of nodes that carry nothing at all, too: unknown, never an error; and absent where the operator has none."""
    for name, operator in OPERATORS.items():
        bare = Node(0, name, "n", (), (), {}, {}, "", None)
        for other in OPERATORS.values():
            for asked in other.attributes:
                found = attribute(bare, asked.name)
                if operator.attribute(asked.name) is None:
                    assert found == ()
                elif asked.kind is not AttributeKind.FLAG and asked.name != "groups":
                    assert found is None
    assert attribute(Node(0, "com.custom.op", "n", (), (), {}, {"k": 3}, "", None), "k") == ()


@pytest.mark.parametrize(
    ("left", "op", "right", "truth"),
    [
        ((3, 3), "=", 3, True), ((3, 5), "=", 3, False), ((3, 5), "!=", 3, True), ((3, 3), "!=", 3, False),
        ((3, 5), ">=", (3, 5), True), ((3, 5), ">", (3, 4), False), (3, "<", (4, 5), True),
        ((1, 1, 2, 2), "=", (1, 2), True), ((1, 2, 2, 2), "=", (1, 2), False), ((1, 1), "=", (1,), True),
        ((1, 2, 3), "=", (1, 2), False), ((1, 2, 3), "!=", (1, 2), False),
        (None, "=", None, False), (None, "!=", 3, False), ((), "=", 3, True), ((), "!=", 3, True),
        ((), "=", None, False),
        ("float32", "=", "float32", True), ("float32", "!=", 3, True), ("float32", "<", 3, False),
    ],
)  # fmt: skip
def test_comparisons(left: Any, op: str, right: Any, truth: bool) -> None:
    assert compare(op, left, right) is truth


def test_axes_correspond_or_do_not() -> None:
    assert aligned(1, (2, 3)) == [(1, 2), (1, 3)]
    assert aligned((1, 2), (3, 4, 5, 6)) == [(1, 3), (1, 4), (2, 5), (2, 6)]
    assert aligned((1, 2, 3), (1, 2)) is None
    assert aligned((), 3) == []


def unmet(found: Node, name: str, op: str | None = None, value: Any = None) -> tuple[Reason, str] | None:
    return failed(OpAtom(found.op, (Predicate(name, op, value),)), found)


def test_predicates() -> None:
    depthwise = conv(groups=4)
    assert unmet(depthwise, "depthwise") is None
    assert unmet(depthwise, "groups", "=", "out") is None
    assert unmet(depthwise, "pad", "=", "dilation") is None
    assert unmet(conv(), "depthwise") == (Reason.WHERE, "it is not depthwise")
    assert unmet(conv(), "k", ">=", 7) == (Reason.WHERE, "its k is 3x3, the pattern wants k>=7")
    s = Sketch()
    cast = node(s, s.op("Cast", s.relu("x"), to=1))
    assert unmet(cast, "to", "=", "from") is None
    s = Sketch()
    unknown = node(s, s.op("Cast", s.op("Custom", "x", domain="com.custom"), to=1))
    assert unmet(unknown, "to", "=", "from") is not None
    assert unmet(unknown, "to", "!=", "from") is not None  # the type it reads is not known: neither is true
    assert unmet(unknown, "to", "=", "float32") is None
    half = unmet(cast, "to", "=", "float16")
    assert half == (Reason.TYPE, "its to is float32, the pattern wants to=float16")


@pytest.mark.parametrize(
    ("op_type", "value", "shape", "transparent"),
    [
        ("Mul", 1.0, (), True), ("Mul", 1.0, (1,), True), ("Mul", 1.0, (1, 4, 1, 1), False),
        ("Mul", 1.0, (1, 1), False),
        ("Mul", 2.0, (), False), ("Add", 0.0, (), True), ("Add", -0.0, (), True), ("Add", 1.0, (), False),
        ("Sub", 0.0, (), True), ("Div", 1.0, (), True),
    ],
)  # fmt: skip
def test_arithmetic_that_does_nothing(op_type: str, value: float, shape: tuple[int, ...], transparent: bool) -> None:
    s = Sketch()
    assert is_transparent(node(s, s.op(op_type, "x", s.const(*shape, value=value)))) is transparent


def test_the_difference_from_zero_changes_the_sign() -> None:
    s = Sketch()
    assert not is_transparent(node(s, s.op("Sub", s.const(value=0.0), "x")))


def test_others_that_do_nothing() -> None:
    s = Sketch()
    assert is_transparent(node(s, s.op("Identity", "x")))
    assert is_transparent(node(s, s.op("Dropout", "x")))
    assert is_transparent(node(s, s.op("Cast", "x", to=1)))
    assert is_transparent(node(s, s.op("LeakyRelu", "x", alpha=1.0)))
    assert not is_transparent(node(s, s.op("Cast", "x", to=10)))
    assert not is_transparent(node(s, s.op("LeakyRelu", "x", alpha=0.5)))
    assert not is_transparent(node(s, s.relu("x")))
    assert not is_transparent(node(s, s.add("x", "x")))
