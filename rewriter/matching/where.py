"""Evaluating the expressions of pattern files (`where`, `cost`, `vote`) over what a match bound.

Invariant: evaluation is total. A name under a count means "for all", a comparison on something absent is true, tuples
compare per axis, and a number that is not known makes its comparison false (pattern-language.md, Semantics 12).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

from rewriter.language.syntax import Apply, Attribute, Binary, Expr, Name, Not, Number
from rewriter.matching.predicates import Reading, compare

Operand: TypeAlias = "Reading | Fraction"


class Scope(Protocol):
    """What the names of an expression mean; `choice` fixes which one of several things under a label is meant."""

    def sizes(self, owner: str) -> int | None:
        """How many things stand under a label or branch; None where the name is no label."""
        ...

    def attribute(self, owner: str, index: int, name: str) -> Reading:
        """The attribute of the index-th thing under `owner`."""
        ...

    def apply(self, function: str, argument: str) -> Reading:
        """`count(pool)`, `params(after)`, …"""
        ...

    def name(self, name: str) -> Reading:
        """A parameter."""
        ...


def holds(expr: Expr, scope: Scope) -> bool:
    """The truth of an expression."""
    match expr:
        case Binary("and", left, right):
            return holds(left, scope) and holds(right, scope)
        case Binary("or", left, right):
            return holds(left, scope) or holds(right, scope)
        case Not(operand):
            return not holds(operand, scope)
        case Binary(op, left, right) if op in ("=", "!=", "<", "<=", ">", ">="):
            return all(
                compare(op, _evaluate(left, scope, choice), _evaluate(right, scope, choice))  # type: ignore[arg-type]
                for choice in _choices(expr, scope)
            )
        case _:
            return all(_evaluate(expr, scope, choice) is True for choice in _choices(expr, scope))


def _choices(expr: Expr, scope: Scope) -> Iterator[Mapping[str, int]]:
    """Every way to pick one thing per label that the expression reads; none where a label is absent."""
    owners = sorted({a.owner for a in _attributes(expr)})
    ranges = [range(scope.sizes(owner) or 0) for owner in owners]
    for picks in itertools.product(*ranges):
        yield dict(zip(owners, picks, strict=True))


def _attributes(expr: Expr) -> Iterator[Attribute]:
    match expr:
        case Attribute():
            yield expr
        case Binary(_, left, right):
            yield from _attributes(left)
            yield from _attributes(right)
        case Not(operand):
            yield from _attributes(operand)
        case _:
            return


def _evaluate(expr: Expr, scope: Scope, choice: Mapping[str, int]) -> Any:
    match expr:
        case Number(value):
            return value
        case Name(name):
            return scope.name(name)
        case Attribute(owner, name):
            return scope.attribute(owner, choice[owner], name)
        case Apply(function, argument):
            return scope.apply(function, argument)
        case Binary(op, left, right) if op in ARITHMETIC:
            return _arithmetic(op, _evaluate(left, scope, choice), _evaluate(right, scope, choice))
        case _:
            return holds(expr, scope)


ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: Fraction(a) / Fraction(b) if b else None,
}


def _arithmetic(op: str, left: Any, right: Any) -> Any:
    """Per axis where an operand is per axis; unknown where either is."""
    if left is None or right is None or isinstance(left, str) or isinstance(right, str):
        return None
    if isinstance(left, tuple) or isinstance(right, tuple):
        width = len(left if isinstance(left, tuple) else right)
        lefts = left if isinstance(left, tuple) else (left,) * width
        rights = right if isinstance(right, tuple) else (right,) * width
        return tuple(_arithmetic(op, a, b) for a, b in zip(lefts, rights, strict=False))
    return ARITHMETIC[op](left, right)


@dataclass(frozen=True, slots=True)
class Bindings:
    """The scope of a `where`: labelled nodes, how often branches, labels and operators occur, and parameters."""

    labels: Mapping[str, tuple[Any, ...]]
    counts: Mapping[str, int]
    params: Mapping[str, Any]
    read: Callable[[Any, str], Reading]

    def sizes(self, owner: str) -> int | None:
        return len(self.labels.get(owner, ()))

    def attribute(self, owner: str, index: int, name: str) -> Reading:
        return self.read(self.labels[owner][index], name)

    def apply(self, function: str, argument: str) -> Reading:
        present = len(self.labels.get(argument, ())) or self.counts.get(argument, 0)
        return present if function == "count" else present > 0

    def name(self, name: str) -> Reading:
        return self.params.get(name)
