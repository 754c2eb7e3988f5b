"""Expressions: total, for all, per axis, absent and unknown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.language.syntax import Apply, Attribute, Binary, Expr, Name, Not, Number
from rewriter.matching.where import Bindings, holds

THINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "big": ({"k": (7, 5), "pad": (3, 3, 2, 2), "groups": 4, "depthwise": True},),
    "part": (
        {"k": (3, 3), "pad": (1, 1, 1, 1), "groups": 4, "depthwise": True},
        {"k": (3, 5), "pad": (1, 1, 2, 2), "groups": 1, "depthwise": False},
    ),
    "odd": ({"k": None, "value": float("inf"), "groups": 1},),
    "mixed": ({"eps": 1e-5}, {"k": (3, 3)}),
}
COUNTS = {"big": 1, "part": 2, "conv": 3}
PARAMS = {"limit": 5, "names": ("aux_head", "main"), "globs": ("aux*",), "word": "aux1", "flag": True}


def bindings(**params: Any) -> Bindings:
    return Bindings(THINGS, COUNTS, {**PARAMS, **params}, lambda thing, name: thing.get(name, ()))


def attribute(text: str) -> Attribute:
    owner, _, name = text.partition(".")
    return Attribute(owner, name)


def check(left: Expr, op: str, right: Expr) -> bool:
    return holds(Binary(op, left, right), bindings())


@pytest.mark.parametrize(
    ("left", "op", "right", "truth"),
    [
        ("part.k", "<=", "big.k", True),  # for all of part, on every axis
        ("part.k", "<", "big.k", False),  # 5 < 5 on one axis of one
        ("big.k", "<=", "part.k", False),
        ("part.k", "!=", "big.k", True),  # any axis
        ("part.pad", "<=", "big.pad", True),
        ("part.pad", "<", "part.k", True),  # two sides of every axis
        ("big.k", ">", "big.pad", True),
        ("nobody.k", "=", "big.k", True),  # absent
        ("big.nothing", "<", "big.k", True),
        ("odd.k", "=", "odd.k", False),  # unknown
        ("odd.k", "!=", "big.k", False),
        ("mixed.k", "<", "big.k", True),  # the norm has no k and is passed over
        ("mixed.k", ">", "big.k", False),
    ],
)
def test_attributes(left: str, op: str, right: str, truth: bool) -> None:
    assert check(attribute(left), op, attribute(right)) is truth


def test_numbers_spread_over_axes() -> None:
    assert check(attribute("big.k"), ">=", Number(5))
    assert not check(attribute("big.k"), ">", Number(5))
    assert check(attribute("big.k"), "!=", Number(5))


def test_one_thing_is_chosen_for_the_whole_condition() -> None:
    """Each part has k 3 everywhere or groups 1: true of each, though neither comparison is true of all."""
    square = Binary("=", attribute("part.k"), Number(3))
    plain = Binary("=", attribute("part.groups"), Number(1))
    assert holds(Binary("or", square, plain), bindings())
    assert not holds(square, bindings())
    assert not holds(plain, bindings())


def test_not_is_of_each_choice() -> None:
    assert holds(Not(Binary(">", attribute("part.k"), Number(5))), bindings())
    assert not holds(Not(Binary("=", attribute("part.groups"), Number(4))), bindings())
    assert not holds(Not(Binary("=", attribute("nobody.k"), Number(4))), bindings())  # a comparison on it is true


def test_flags() -> None:
    assert holds(attribute("big.depthwise"), bindings())
    assert not holds(attribute("part.depthwise"), bindings())
    assert not holds(Not(attribute("part.depthwise")), bindings())
    assert holds(attribute("nobody.depthwise"), bindings())
    assert holds(Name("flag"), bindings())


def test_counts_and_presence() -> None:
    assert check(Apply("count", "part"), "=", Number(2))
    assert check(Apply("count", "pool"), "=", Number(0))
    assert check(Binary("+", Apply("count", "part"), Apply("count", "big")), ">=", Number(3))
    assert holds(Apply("has", "conv"), bindings())
    assert not holds(Apply("has", "pool"), bindings())


def test_globs() -> None:
    assert check(Name("names"), "~", Name("globs"))
    assert check(Name("word"), "~", Name("globs"))
    assert not holds(Binary("~", Name("names"), Name("globs")), bindings(globs=("stem*",)))
    assert not holds(Binary("~", Name("names"), Name("globs")), bindings(names=()))
    assert not check(Number(1), "~", Name("globs"))
    assert not check(Name("names"), "~", Name("unknown"))
    assert not check(Name("names"), "~", Number(3))


def test_arithmetic_per_axis() -> None:
    """(k - 1) / 2 = pad, for every side."""
    half = Binary("/", Binary("-", attribute("part.k"), Number(1)), Number(2))
    assert check(half, "=", attribute("part.pad"))
    assert check(Binary("*", attribute("part.pad"), Number(2)), "=", Binary("-", attribute("part.k"), Number(1)))
    assert check(Binary("+", attribute("nobody.k"), Number(1)), "=", Number(0))  # still absent
    assert check(Binary("/", Number(1), Number(3)), "!=", Number(1 / 3))  # quotients are exact


@pytest.mark.parametrize(
    "value",
    [
        Binary("/", Number(1), Number(0)),
        Binary("/", attribute("odd.value"), Number(2)),
        Binary("*", Number(10**400), Number(0.5)),
        Binary("+", Name("word"), Number(1)),
        Binary("+", attribute("odd.k"), Number(1)),
        Binary("/", attribute("big.k"), Number(0)),
    ],
)
def test_without_a_result_a_comparison_is_false(value: Expr) -> None:
    assert not check(value, "=", value)
    assert not check(value, "!=", value)


def test_axes_that_do_not_correspond() -> None:
    things = Bindings(
        {"a": ({"k": (1, 2, 3)},), "b": ({"k": (1, 2)},)}, {}, {}, lambda thing, name: thing.get(name, ())
    )
    for op in ("=", "!=", "<", ">="):
        assert not holds(Binary(op, attribute("a.k"), attribute("b.k")), things)
        assert not holds(Binary(op, Binary("+", attribute("a.k"), attribute("b.k")), Number(0)), things)


leaves = st.one_of(
    st.builds(Number, st.one_of(st.integers(-3, 3), st.floats())),
    st.builds(Name, st.sampled_from(["limit", "names", "globs", "word", "flag", "unknown"])),
    st.builds(Attribute, st.sampled_from([*THINGS, "nobody"]), st.sampled_from(["k", "pad", "value", "depthwise"])),
    st.builds(Apply, st.sampled_from(["count", "has", "params"]), st.sampled_from(["part", "conv", "pool"])),
)
operators = st.sampled_from(["+", "-", "*", "/", "=", "!=", "<", "<=", ">", ">=", "~", "and", "or", "?"])
trees = st.recursive(leaves, lambda inner: st.builds(Binary, operators, inner, inner) | st.builds(Not, inner))


@given(trees)
def test_evaluation_is_total(expr: Expr) -> None:
    """Whatever the tree, well typed or not: an answer, and the opposite of its negation for one choice."""
    things = Bindings({"part": THINGS["part"][:1]}, COUNTS, PARAMS, lambda thing, name: thing.get(name, ()))
    assert holds(Not(expr), things) is not holds(expr, things)
    assert isinstance(holds(expr, bindings()), bool)


def test_alike_things_are_asked_once() -> None:
    asked: list[int] = []

    def read(thing: int, name: str) -> tuple[int, ...]:
        asked.append(thing)
        return (thing % 2, 3)

    many = Bindings({"a": tuple(range(2000)), "b": tuple(range(2000))}, {}, {}, read)
    assert holds(Binary("<", attribute("a.k"), Binary("+", attribute("b.k"), Number(2))), many)
    assert len(asked) == 4000
