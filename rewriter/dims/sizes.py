"""What is known of sizes: an expression with the assumptions behind it, and the log of what operators assert.

Invariant: a size is right wherever the graph runs, whatever the assumptions; they only say which node would have failed
on inputs for which two expressions differ. An assumption is an unordered pair of expressions and exists once, however
many nodes assert it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rewriter.dims.polynomials import Poly, Symbol, atom, number, weight

Uses: TypeAlias = "frozenset[int]"
NO_USES: Uses = frozenset()


@dataclass(frozen=True, slots=True)
class Size:
    """An extent, or a whole number made of extents; `uses` are the assumptions that it rests on."""

    expr: Poly
    uses: Uses = NO_USES

    def joined(self, expr: Poly, *others: Size) -> Size:
        """Another expression that was computed from this one and from `others`."""
        return Size(expr, united([self, *others]))


Dims: TypeAlias = "tuple[Size, ...]"


@dataclass(frozen=True, slots=True)
class Elements:
    """The elements of a small tensor of whole numbers: a list, or where `scalar` one number without axes."""

    items: Dims
    scalar: bool = False


@dataclass(frozen=True, slots=True)
class Assumption:
    """Two expressions that some operator needs to be equal."""

    left: Poly
    right: Poly

    def __str__(self) -> str:
        return " = ".join(sorted((str(self.left), str(self.right)), key=lambda text: (len(text), text)))


@dataclass(frozen=True, slots=True)
class Assertion:
    """Node `node` fails unless assumption `assumption` holds; what it compares rests on `uses` itself."""

    assumption: int
    node: int
    uses: Uses


@dataclass(slots=True)
class Log:
    """Assumptions by number, who asserts them, and the symbols given so far."""

    assumptions: list[Assumption] = field(default_factory=list[Assumption])
    assertions: list[Assertion] = field(default_factory=list[Assertion])
    _numbers: dict[frozenset[Poly], int] = field(default_factory=dict[frozenset[Poly], int])
    _symbols: int = 0

    def symbol(self, label: str = "", *, signed: bool = False) -> Size:
        """A number that equals no other."""
        self._symbols += 1
        return Size(atom(Symbol(self._symbols, label, signed)))

    def equal(self, sizes: Sequence[Size], node: int) -> Size:
        """The smallest of sizes that are one by the contract of a node, first wins."""
        best = min(sizes, key=lambda size: weight(size.expr))
        uses = best.uses
        for other in sizes:
            if other.expr != best.expr:
                uses |= other.uses | {self._assert(best, other, node)}
        return best if uses is best.uses else Size(best.expr, uses)

    def _assert(self, left: Size, right: Size, node: int) -> int:
        key = frozenset((left.expr, right.expr))
        if key not in self._numbers:
            self._numbers[key] = len(self.assumptions)
            self.assumptions.append(Assumption(left.expr, right.expr))
        found = self._numbers[key]
        self.assertions.append(Assertion(found, node, left.uses | right.uses))
        return found


def fixed(value: int) -> Size:
    return Size(number(value))


def united(sizes: Iterable[Size]) -> Uses:
    found = NO_USES
    for size in sizes:
        if size.uses:
            found = found | size.uses if found else size.uses
    return found


def total(sizes: Iterable[Size]) -> Size:
    """The product of extents."""
    sizes = list(sizes)
    expr = number(1)
    for size in sizes:
        expr = expr * size.expr
    return Size(expr, united(sizes))


def ints(elements: Elements | None) -> tuple[int, ...] | None:
    """All elements as numbers, where all are."""
    if elements is None:
        return None
    found: list[int] = []
    for item in elements.items:
        constant = item.expr.constant
        if constant is None:
            return None
        found.append(constant)
    return tuple(found)
