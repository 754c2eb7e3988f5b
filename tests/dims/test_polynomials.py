"""Polynomials with floors: every rewrite is held against plain arithmetic on whole numbers, negative ones too."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.dims.polynomials import (
    Floor,
    Poly,
    Symbol,
    atom,
    evaluated,
    floored,
    nonnegative,
    number,
    opaque,
    raised,
    shown,
    symbols,
    weight,
)

H, W = Symbol(1, "h"), Symbol(2, "w")
h, w = atom(H), atom(W)
NUMBERS = st.integers(-40, 40)


def value(poly: Poly, told: Mapping[Symbol, int]) -> int:
    return evaluated(poly, told.__getitem__, lambda _, arguments: sum(arguments))


# A tree of operations beside the polynomial that it becomes: the tree is computed by Python alone.
TREES = st.recursive(
    st.one_of(st.sampled_from(["h", "w"]), NUMBERS),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*"]), inner, inner),
        st.tuples(st.just("//"), inner, st.integers(1, 12)),
    ),
    max_leaves=8,
)


def plain(tree: object, told: Mapping[str, int]) -> int:
    match tree:
        case str():
            return told[tree]
        case int():
            return tree
        case ("//", inner, divisor):
            return plain(inner, told) // int(divisor)  # type: ignore[call-overload]
        case (operator, left, right):
            a, b = plain(left, told), plain(right, told)
            return a + b if operator == "+" else a - b if operator == "-" else a * b
    raise AssertionError(tree)


def built(tree: object) -> Poly:
    match tree:
        case str():
            return {"h": h, "w": w}[tree]
        case int():
            return number(tree)
        case ("//", inner, divisor):
            return floored(built(inner), int(divisor))  # type: ignore[call-overload]
        case (operator, left, right):
            a, b = built(left), built(right)
            return a + b if operator == "+" else a - b if operator == "-" else a * b
    raise AssertionError(tree)


@given(TREES, NUMBERS, NUMBERS)
def test_every_tree_of_operations_has_the_value_of_plain_arithmetic(tree: object, high: int, wide: int) -> None:
    assert value(built(tree), {H: high, W: wide}) == plain(tree, {"h": high, "w": wide})


@given(TREES, st.integers(0, 60), st.integers(0, 60))
def test_what_is_called_not_negative_is_not(tree: object, high: int, wide: int) -> None:
    poly = built(tree)
    if nonnegative(poly):
        assert value(poly, {H: high, W: wide}) >= 0


@given(TREES, NUMBERS, NUMBERS)
def test_a_symbol_that_is_raised_is_one_more(tree: object, high: int, wide: int) -> None:
    poly = built(tree)
    assert value(raised(poly, {H}), {H: high - 1, W: wide}) == value(poly, {H: high, W: wide})
    assert raised(poly, set()) == poly or not _comparable(poly)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(-20, 20), st.integers(-20, 20), NUMBERS)
def test_nested_floors_become_one(a: int, b: int, j: int, k: int, high: int) -> None:
    nested = floored(floored(h + j, a) + k, b)
    assert nested == floored(h + (j + k * a), a * b)
    assert value(nested, {H: high}) == ((high + j) // a + k) // b


@given(st.integers(1, 9), TREES, TREES, NUMBERS, NUMBERS)
def test_what_the_divisor_divides_leaves_the_floor(d: int, one: object, other: object, high: int, wide: int) -> None:
    p, q = built(one), built(other)
    assert floored(p * d + q, d) == p + floored(q, d) or not _comparable(p, q)
    assert value(floored(p * d + q, d), {H: high, W: wide}) == value(p + floored(q, d), {H: high, W: wide})


def _comparable(*polys: Poly) -> bool:
    """Where several floors meet, equal values may have several forms; then nothing is called equal."""
    return all(not isinstance(factor, Floor) for poly in polys for monomial, _ in poly.terms for factor, _ in monomial)


def test_a_chain_of_strides_is_one_floor() -> None:
    size = h
    for _ in range(5):  # 3x3, stride 2, padded by 1
        size = floored(size + 2 - 3, 2) + 1
    assert size == floored(h + 31, 32) and shown(size) == "floor((h + 31)/32)"
    for pixels in range(1, 200):
        wanted = pixels
        for _ in range(5):
            wanted = (wanted - 1) // 2 + 1
        assert value(size, {H: pixels}) == wanted


def test_equal_values_have_one_form() -> None:
    assert floored(h - 1, 2) + 1 == floored(h + 1, 2)
    assert floored(h * 4, 2) == h * 2 and floored(h * 3, 2) == h + floored(h, 2)
    assert floored(h * 2 + 1, 4) == floored(h, 2)
    assert floored(h * w * 6 + 5, 3) == h * w * 2 + 1
    assert (h + w) * (h - w) == h * h - w * w
    assert h - h == number(0) and (h - h).constant == 0 and number(7).constant == 7 and h.constant is None


def test_twice_a_floor_is_not_the_floor_of_half_the_divisor() -> None:
    assert floored(h, 32) * 2 != floored(h, 16)
    assert value(floored(h, 32) * 2, {H: 16}) != value(floored(h, 16), {H: 16})


def test_symbols_of_two_graphs_do_not_mix() -> None:
    named, nameless, signed = Symbol(7, "h"), Symbol(7), Symbol(7, signed=True)
    assert [shown(floored(atom(each), 2)) for each in (named, nameless)] == ["floor(h/2)", "floor(?7/2)"]
    assert nonnegative(floored(atom(nameless), 2)) and not nonnegative(floored(atom(signed), 2))


def test_opaque_terms_are_equal_where_function_and_arguments_are() -> None:
    def ceil(*settings: int, of: Poly) -> Poly:
        return opaque(("ceil", *settings), of)

    assert ceil(3, 2, of=h + 1) == ceil(3, 2, of=number(1) + h)
    assert ceil(3, 2, of=h) != ceil(2, 2, of=h) and ceil(3, 2, of=h) != ceil(3, 2, of=w)
    assert symbols(ceil(3, of=floored(h, 2)) * w) == {H, W}


def test_a_signed_symbol_may_be_negative() -> None:
    assert not nonnegative(atom(Symbol(9, signed=True))) and nonnegative(h) and not nonnegative(h - 1)
    assert nonnegative(floored(h - 1, 2) + 1)  # (h + 1) // 2
    assert not nonnegative(floored(h - 5, 2) + 1)


def test_what_is_known_is_smaller_than_what_is_not() -> None:
    unknown = atom(Symbol(9))
    assert weight(number(5000)) < weight(h) < weight(floored(h, 16)) < weight(floored(h, 32) * 2) < weight(unknown)


def test_a_divisor_is_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        floored(h, 0)


def test_words() -> None:
    assert shown(number(0)) == "0" and shown(number(-3)) == "-3"
    assert shown(h * -1 + 2) == "-h + 2"
    assert shown(floored(h, 2)) == "floor(h/2)"


def test_nested_terms_stay_cheap_and_end() -> None:
    def grown(levels: int) -> Poly:
        poly = h
        for _ in range(levels):
            poly = opaque(("broadcast",), opaque(("f",), poly), opaque(("g",), poly))
        return poly

    assert grown(16) == grown(16) and len(shown(grown(16))) < 1000
    with pytest.raises(ValueError, match="too deep"):
        grown(17)
    wide = h + w + 1
    with pytest.raises(ValueError, match="too many terms"):
        for _ in range(10):
            wide = wide * wide
