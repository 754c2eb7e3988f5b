"""What can be said of a body without a graph: how deep and large it is, whether it may be empty, whether it repeats.

Invariant: chains are counted as if they were written out, but each is measured once, so a file in which every chain
doubles the one before it is refused instead of expanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rewriter.language.syntax import Body, Call, Group, Item, Junction, LinearRegion, OpAtom, Pass, Repeat, Seq

MAX_SIZE = 1000
"""Operators in one body, chains written out."""


@dataclass(frozen=True, slots=True)
class Measure:
    """`nullable`: it can match nothing at all; `repeats`: it contains * or +; `ops`: the operators that occur in it."""

    depth: int
    size: int
    nullable: bool
    repeats: bool
    ops: frozenset[str]


def measure(body: Body, chains: Mapping[str, Measure]) -> Measure:
    parts = [_sequence(seq, chains) for seq in body.alternatives]
    return _combine(parts, nullable=any(part.nullable for part in parts), deeper=1)


def measure_atom(item: Item, chains: Mapping[str, Measure]) -> Measure:
    """The measure of an item without its `?`, `*` or `+`."""
    match item.atom:
        case OpAtom(op=op):
            return Measure(0, 1, nullable=False, repeats=False, ops=frozenset({op}))
        case Call(chain=chain):
            return chains[chain]
        case Pass():
            return Measure(0, 0, nullable=True, repeats=False, ops=frozenset())
        case LinearRegion():
            return Measure(0, 1, nullable=False, repeats=True, ops=frozenset())
        case Group(body=body):
            return measure(body, chains)
        case Junction(kind=kind, branches=branches):
            inner = _combine((measure(branch.body, chains) for branch in branches), nullable=False, deeper=1)
            return Measure(inner.depth, inner.size + 1, nullable=False, repeats=inner.repeats, ops=inner.ops | {kind})


def _sequence(seq: Seq, chains: Mapping[str, Measure]) -> Measure:
    parts = [_item(item, chains) for item in seq.items]
    return _combine(parts, nullable=all(part.nullable for part in parts))


def _item(item: Item, chains: Mapping[str, Measure]) -> Measure:
    inner = measure_atom(item, chains)
    nullable = inner.nullable or item.repeat in (Repeat.OPTIONAL, Repeat.ANY)
    repeats = inner.repeats or item.repeat in (Repeat.ANY, Repeat.SOME)
    return Measure(inner.depth, inner.size, nullable, repeats, inner.ops)


def _combine(measures: Iterable[Measure], *, nullable: bool, deeper: int = 0) -> Measure:
    parts = list(measures)
    return Measure(
        max(part.depth for part in parts) + deeper,
        sum(part.size for part in parts),
        nullable,
        any(part.repeats for part in parts),
        frozenset(op for part in parts for op in part.ops),
    )
