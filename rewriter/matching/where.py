"""Evaluating the expressions of pattern files (`where`, `cost`, `vote`) over what a match bound.

Invariant: evaluation is total and recurses into parts of the expression only. A condition that names something under a
count has to hold for every choice of it, a comparison on something absent is true, tuples compare per axis, and a
number that is not known makes its comparison false (pattern-language.md, Semantics 12).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

from rewriter.language.syntax import Apply, Attribute, Binary, Expr, Name, Not, Number
from rewriter.matching.predicates import COMPARISONS, Reading, aligned, compare

Choice: TypeAlias = "Mapping[str, Mapping[str, Reading]]"
"""One thing under every label that an expression asks, as what it answers by attribute."""


class Scope(Protocol):
    """What the names of an expression mean."""

    def sizes(self, owner: str) -> int | None:
        """How many things stand under a label or branch; None where the name is no label."""
        ...

    def attribute(self, owner: str, index: int, name: str) -> Reading:
        """The attribute of the index-th thing under `owner`; () where that thing has no such attribute."""
        ...

    def apply(self, function: str, argument: str) -> Reading:
        """`count(pool)`, `params(after)`, …"""
        ...

    def name(self, name: str) -> Any:
        """A parameter: a number, a string, or a tuple of strings."""
        ...


def holds(expr: Expr, scope: Scope) -> bool:
    """The truth of an expression: for every choice of the things that it asks."""
    if isinstance(expr, Binary) and expr.op == "and":  # apart, they choose apart
        return holds(expr.left, scope) and holds(expr.right, scope)
    return all(_truth(expr, scope, choice) for choice in _choices(expr, scope))


def _truth(expr: Expr, scope: Scope, choice: Choice) -> bool:
    match expr:
        case Binary("and", left, right):
            return _truth(left, scope, choice) and _truth(right, scope, choice)
        case Binary("or", left, right):
            return _truth(left, scope, choice) or _truth(right, scope, choice)
        case Not(operand):
            return not _truth(operand, scope, choice)
        case Binary("~", left, right):
            return _fits(_evaluate(left, scope, choice), _evaluate(right, scope, choice))
        case Binary(op, left, right) if op in COMPARISONS:
            return compare(op, _evaluate(left, scope, choice), _evaluate(right, scope, choice))
        case Binary():
            return False  # a number is no condition
        case Number() | Name() | Attribute() | Apply():
            found = _evaluate(expr, scope, choice)
            return found is True or found == ()


def _choices(expr: Expr, scope: Scope) -> Iterator[Choice]:
    """Every way to pick one thing per label that the expression reads; things that answer alike count once.

    A thing that has none of the attributes asked for is passed over (the norms under `dense`, asked for `k`); where no
    other is there, the label is absent.
    """
    asked: dict[str, dict[str, None]] = {}
    for attribute in _attributes(expr):
        asked.setdefault(attribute.owner, {})[attribute.name] = None
    answers: list[list[Mapping[str, Reading]]] = []
    for owner, names in asked.items():
        things = range(scope.sizes(owner) or 0)
        found = dict.fromkeys(tuple(scope.attribute(owner, i, name) for name in names) for i in things)
        present = [row for row in found if any(value != () for value in row)] or [((),) * len(names)]
        answers.append([dict(zip(names, row, strict=True)) for row in present])
    for picks in itertools.product(*answers):
        yield dict(zip(asked, picks, strict=True))


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


def _evaluate(expr: Expr, scope: Scope, choice: Choice) -> Any:
    match expr:
        case Number(value):
            return value
        case Name(name):
            return scope.name(name)
        case Attribute(owner, name):
            return choice[owner][name]
        case Apply(function, argument):
            return scope.apply(function, argument)
        case Binary(op, left, right) if op in ARITHMETIC:
            return _arithmetic(op, _evaluate(left, scope, choice), _evaluate(right, scope, choice))
        case Binary() | Not():
            return _truth(expr, scope, choice)


def _fits(texts: Any, globs: Any) -> bool:
    """Whether a text, or one of several, fits a glob."""
    listed = [(item,) if isinstance(item, str) else item for item in (texts, globs)]
    if not all(isinstance(item, tuple) for item in listed):
        return False
    return any(fnmatchcase(str(text), str(glob)) for text in listed[0] for glob in listed[1])


def _divided(left: Any, right: Any) -> Any:
    return Fraction(left) / Fraction(right)


ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divided,
}


def _arithmetic(op: str, left: Any, right: Any) -> Any:
    """Per axis where an operand is per axis; unknown where either is, where widths differ, or without result."""
    if isinstance(left, tuple) or isinstance(right, tuple):
        pairs = aligned(left, right)
        if pairs is None:
            return None
        results = tuple(_arithmetic(op, a, b) for a, b in pairs)
        return None if None in results else results
    if not isinstance(left, int | float | Fraction) or not isinstance(right, int | float | Fraction):
        return None
    try:
        return ARITHMETIC[op](left, right)
    except (ZeroDivisionError, OverflowError, ValueError):  # of infinities and what is no number, too
        return None


@dataclass(frozen=True, slots=True)
class Bindings:
    """The scope of a `where`: the nodes under labels and branches, counts of those and of operators, and parameters."""

    labels: Mapping[str, tuple[Any, ...]]
    counts: Mapping[str, int]
    params: Mapping[str, Any]
    read: Callable[[Any, str], Reading]

    def sizes(self, owner: str) -> int | None:
        return len(self.labels.get(owner, ()))

    def attribute(self, owner: str, index: int, name: str) -> Reading:
        return self.read(self.labels[owner][index], name)

    def apply(self, function: str, argument: str) -> Reading:
        present = self.counts.get(argument, 0)
        if function == "count":
            return present
        return present > 0 if function == "has" else None

    def name(self, name: str) -> Any:
        return self.params.get(name)
