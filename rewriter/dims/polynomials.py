"""Whole numbers that depend on sizes: integer polynomials over symbols, with floors of them as atoms.

Invariant: equal polynomials are equal whatever the symbols stand for, and every rewrite holds for all whole numbers,
negative ones too. Two rewrites do the work: what the divisor divides leaves a floor, so that coefficients inside lie
in 0 … divisor−1, and nested floors become one, floor((floor(p/a) + k)/b) = floor((p + k·a)/(a·b)). A function that is
not followed is an opaque atom, equal to another only where function and arguments are.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Symbol:
    """A number nobody knows; `signed` where it may be negative. Extents of graph inputs have a label, for people.

    All of it makes its identity: polynomials of several graphs share caches.
    """

    number: int
    label: str = ""
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Floor:
    """floor(numerator / divisor) in the form that `floored` gives; the divisor is at least two."""

    numerator: Poly
    divisor: int
    depth: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Opaque:
    """An unknown extent that `function` (a name and settings) makes of the arguments, the same for the same ones."""

    function: tuple[Hashable, ...]
    arguments: tuple[Poly, ...]
    depth: int = field(compare=False)


Atom: TypeAlias = "Symbol | Floor | Opaque"
Monomial: TypeAlias = "frozenset[tuple[Atom, int]]"
"""Atoms with their powers; the empty one stands for the number 1."""

ONE: Monomial = frozenset()

DEEPEST = 32
"""How deep floors and opaque terms may be nested; a chain of strides is one floor."""

MOST = 4096
"""Products of two monomials that one product of sums may take."""

UNORDERED = ("broadcast",)
"""The function whose arguments may stand in any order: theirs is by hash, which is not the same in every run."""

POSITIVE_PART = ("positive part",)
"""The function of a number that is 0 instead of negative."""

SHOWN = 4
"""How deep an expression is written out."""


@dataclass(frozen=True, slots=True)
class Poly:
    """A sum of monomials with whole coefficients, none of them zero."""

    terms: frozenset[tuple[Monomial, int]]

    def __add__(self, other: Poly | int) -> Poly:
        if isinstance(other, int):
            other = number(other)
        if not other.terms:
            return self
        return _sum([*self.terms, *other.terms]) if self.terms else other

    def __sub__(self, other: Poly | int) -> Poly:
        return self + (-other)

    def __neg__(self) -> Poly:
        return Poly(frozenset((monomial, -count) for monomial, count in self.terms))

    def __mul__(self, other: Poly | int) -> Poly:
        return product(self, number(other) if isinstance(other, int) else other)

    @property
    def constant(self) -> int | None:
        """The number it is, where it is one whatever the symbols."""
        if not self.terms:
            return 0
        if len(self.terms) > 1:
            return None
        ((monomial, count),) = self.terms
        return None if monomial else count

    def __str__(self) -> str:
        return shown(self)


@lru_cache(maxsize=4096)
def number(value: int) -> Poly:
    return Poly(frozenset(((ONE, value),)) if value else frozenset())


def atom(of: Atom) -> Poly:
    return Poly(frozenset(((frozenset(((of, 1),)), 1),)))


@lru_cache(maxsize=1 << 14)
def opaque(function: tuple[Hashable, ...], *arguments: Poly) -> Poly:
    """A term that is not followed. One object for equal ones, so that comparing nested ones stays cheap."""
    return atom(Opaque(function, arguments, _deeper(arguments)))


@lru_cache(maxsize=1 << 14)
def _floor(numerator: Poly, divisor: int) -> Poly:
    return atom(Floor(numerator, divisor, _deeper((numerator,))))


def _deeper(inner: Iterable[Poly]) -> int:
    factors = (factor for poly in inner for monomial, _ in poly.terms for factor, _ in monomial)
    depth = 1 + max((0 if isinstance(factor, Symbol) else factor.depth for factor in factors), default=0)
    if depth > DEEPEST:
        raise ValueError("an expression is nested too deep")
    return depth


def _sum(terms: Iterable[tuple[Monomial, int]]) -> Poly:
    counts: dict[Monomial, int] = {}
    for monomial, count in terms:
        counts[monomial] = counts.get(monomial, 0) + count
    return Poly(frozenset((monomial, count) for monomial, count in counts.items() if count))


@lru_cache(maxsize=1 << 14)
def product(left: Poly, right: Poly) -> Poly:
    if len(left.terms) * len(right.terms) > MOST:
        raise ValueError("a product has too many terms")
    return _sum((_times(a, b), m * n) for a, m in left.terms for b, n in right.terms)


def _times(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    powers = dict(left)
    for factor, power in right:
        powers[factor] = powers.get(factor, 0) + power
    return frozenset(powers.items())


@lru_cache(maxsize=1 << 14)
def floored(poly: Poly, divisor: int) -> Poly:
    """floor(poly / divisor), for a positive divisor."""
    if divisor < 1:
        raise ValueError("a floor has a positive divisor")
    while divisor > 1:
        whole = _sum((monomial, count // divisor) for monomial, count in poly.terms)
        rest = _sum((monomial, count % divisor) for monomial, count in poly.terms)
        if rest.constant is not None:  # less than the divisor
            return whole
        rest, divisor = _reduced(rest, divisor)
        nested = _only_floor(rest)
        if nested is None:
            return whole + (_floor(rest, divisor) if divisor > 1 else rest)
        outer = rest - atom(nested)
        poly = (whole * divisor + outer) * nested.divisor + nested.numerator
        divisor *= nested.divisor
    return poly


def _reduced(poly: Poly, divisor: int) -> tuple[Poly, int]:
    """floor((g·p + k)/(g·d)) = floor((p + floor(k/g))/d)."""
    common = divisor
    for monomial, count in poly.terms:
        if monomial:
            common = gcd(common, count)
    if common == 1:
        return poly, divisor
    return _sum((monomial, count // common) for monomial, count in poly.terms), divisor // common


def _only_floor(poly: Poly) -> Floor | None:
    """The floor that is a summand of its own, once, where no other floor occurs: with two, the order would matter."""
    found: Floor | None = None
    for monomial, count in poly.terms:
        for factor, power in monomial:
            if isinstance(factor, Floor):
                if found is not None or count != 1 or power != 1 or len(monomial) != 1:
                    return None
                found = factor
    return found


def nonnegative(poly: Poly) -> bool:
    """True where it cannot be negative as long as no extent is; False says nothing."""
    return all(
        count >= 0 and all(power % 2 == 0 or _nonnegative(a) for a, power in monomial) for monomial, count in poly.terms
    )


@lru_cache(maxsize=1 << 12)
def _nonnegative(of: Atom) -> bool:
    match of:
        case Symbol():
            return not of.signed
        case Floor():
            return nonnegative(of.numerator)
        case Opaque():
            return True


def raised(poly: Poly, least_one: Container[Atom]) -> Poly:
    """The number it is where those are one more: what holds of it for all that are not negative holds of `poly`."""
    total = number(0)
    for monomial, count in poly.terms:
        part = number(count)
        for factor, power in monomial:
            for _ in range(power):
                part = part * _raised(factor, least_one)
        total = total + part
    return total


def _raised(of: Atom, least_one: Container[Atom]) -> Poly:
    match of:
        case Symbol():
            return atom(of) + int(of in least_one)
        case Floor():
            return floored(raised(of.numerator, least_one), of.divisor)
        case Opaque():
            return opaque(of.function, *[raised(argument, least_one) for argument in of.arguments])


def weight(poly: Poly) -> tuple[int, int, int]:
    """How large an expression is: symbols without a label first, then atoms, then numbers; no name decides."""
    unknown = atoms = numbers = 0
    for monomial, count in poly.terms:
        numbers += abs(count)
        for factor, power in monomial:
            more = _weight(factor)
            unknown, atoms, numbers = unknown + power * more[0], atoms + power * more[1], numbers + power * more[2]
    return unknown, atoms, numbers


@lru_cache(maxsize=1 << 12)
def _weight(of: Atom) -> tuple[int, int, int]:
    match of:
        case Symbol():
            return int(not of.label), 1, 0
        case Floor():  # its numbers count little: a chain of strides is one floor with large ones
            unknown, atoms, _ = weight(of.numerator)
            return unknown, 1 + atoms, 1
        case Opaque():
            inner = [weight(argument) for argument in of.arguments]
            return sum(w[0] for w in inner), 1 + sum(w[1] for w in inner), 1 + sum(w[2] for w in inner)


def symbols(poly: Poly) -> frozenset[Symbol]:
    """Every symbol in it, at any depth."""
    found: set[Symbol] = set()
    for monomial, _ in poly.terms:
        for factor, _ in monomial:
            found |= _symbols(factor)
    return frozenset(found)


@lru_cache(maxsize=1 << 12)
def _symbols(of: Atom) -> frozenset[Symbol]:
    match of:
        case Symbol():
            return frozenset((of,))
        case Floor():
            return symbols(of.numerator)
        case Opaque():
            return frozenset[Symbol]().union(*(symbols(argument) for argument in of.arguments))


def evaluated(poly: Poly, told: Callable[[Symbol], int], function: Callable[[Opaque, tuple[int, ...]], int]) -> int:
    """The number it is, with `told` for symbols and `function` for opaque atoms and the numbers of their arguments."""

    def of(factor: Atom) -> int:
        match factor:
            case Symbol():
                return told(factor)
            case Floor():
                return evaluated(factor.numerator, told, function) // factor.divisor
            case Opaque():
                return function(factor, tuple(evaluated(a, told, function) for a in factor.arguments))

    total = 0
    for monomial, count in poly.terms:
        for factor, power in monomial:
            count *= of(factor) ** power
        total += count
    return total


def shown(poly: Poly) -> str:
    """In words for people, the same in every run: "floor((height + 31)/32)·batch + 1"."""
    parts = sorted((not monomial, _monomial(monomial), count) for monomial, count in poly.terms)
    text = ""
    for _, name, count in parts:
        size = abs(count)
        term = str(size) if not name else name if size == 1 else f"{size}·{name}"
        sign = ("-" if count < 0 else "") if not text else (" - " if count < 0 else " + ")
        text += sign + term
    return text or "0"


def _monomial(monomial: Monomial) -> str:
    names = sorted((_atom(factor), power) for factor, power in monomial)
    return "·".join(name if power == 1 else f"{name}^{power}" for name, power in names)


@lru_cache(maxsize=1 << 12)
def _atom(of: Atom) -> str:
    if not isinstance(of, Symbol) and of.depth > SHOWN:
        return "…"
    match of:
        case Symbol():
            return of.label or f"?{of.number}"
        case Floor():
            inner = shown(of.numerator)
            return f"floor({inner}/{of.divisor})" if len(of.numerator.terms) == 1 else f"floor(({inner})/{of.divisor})"
        case Opaque():
            listed = [shown(argument) for argument in of.arguments]
            return f"{of.function[0]}({', '.join(sorted(listed) if of.function == UNORDERED else listed)})"
