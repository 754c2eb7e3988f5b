"""How a computed constant is loaded: a graph of steps, each evaluated once per load, within budgets.

Invariant: the work of a load is bounded when the step is made. The bound is the smaller of two: what the steps behind
it cost if nothing were shared, and what all steps cost that hang together with it through shared steps. Evaluation
keeps no more than it still needs, and the results that were asked for, up to a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from rewriter.graph.evaluation.calls import Shape, Unknown
from rewriter.graph.view import Array, Constant

BUDGET = 1 << 26
"""Elements that one computed constant may have (64 Mi; the largest conv kernels in use have 5 Mi)."""

WORK = 1 << 28
"""Elements that all the steps behind one constant may handle: two seconds."""

TOTAL = 1 << 32
"""The same for all the computed constants of a view, whether anybody asks for them or not."""

PROMPT = 1 << 27
"""The same for what is computed while a view is built: indices, sizes, divisors."""

PRODUCT = 16
"""Multiply-adds of a product of matrices that take the time of one element."""

STEP = 1 << 12
"""What a step costs beside its elements."""

KEPT = 1 << 26
"""Elements of results that a view holds on to."""


@dataclass(slots=True)
class Ledger:
    """The work that the constants of one view may take, and what of it is given away."""

    spent: int = 0
    prompt: int = 0
    kept: int = 0

    def spend(self, work: int) -> None:
        if self.spent + work > TOTAL:
            raise Unknown(f"all computed constants together take more than {TOTAL:.0e} elements")
        self.spent += work


@dataclass(slots=True, eq=False)
class Group:
    """Steps that hang together, and what they cost in all (a set of a union-find)."""

    work: int = 0
    parent: Group | None = None

    def root(self) -> Group:
        found = self
        while found.parent is not None:
            if found.parent.parent is not None:
                found.parent = found.parent.parent
            found = found.parent
        return found

    def join(self, other: Group) -> Group:
        mine, theirs = self.root(), other.root()
        if mine is not theirs:
            theirs.parent = mine
            mine.work += theirs.work
        return mine


@dataclass(slots=True, eq=False)
class Step:
    """A constant that is computed on demand: calling it gives the elements, which nobody may change."""

    compute: Callable[..., Array]
    sources: tuple[Constant, ...]
    size: int
    work: int
    behind: int  # the work of all steps that it takes, itself included, at most
    group: Group
    ledger: Ledger
    exact: bool
    readers: int = 0
    result: Array | None = field(default=None, repr=False)

    def __call__(self) -> Array:
        found = self.result if self.result is not None else _evaluated(self)
        self.keep(found)
        return found

    def prompt(self) -> bool:
        """Whether a view may wait for it; what it takes is then given away."""
        work = sum(step.work for step in _ordered(self))
        if work <= STEP:
            return True
        if self.ledger.prompt + work > PROMPT:
            return False
        self.ledger.prompt += work
        return True

    def inner(self) -> list[Step]:
        return [source.load for source in self.sources if isinstance(source.load, Step)]

    def keep(self, found: Array) -> None:
        if self.result is None and self.ledger.kept + self.size <= KEPT:
            self.ledger.kept += self.size
            self.result = found


def derived(
    sources: Sequence[Constant],
    name: str,
    shape: Shape,
    compute: Callable[..., Array],
    dtype: str,
    *,
    work: int | None = None,
    exact: bool = True,
    ledger: Ledger | None = None,
) -> Constant:
    """A constant that `compute` makes of the elements of `sources`; Unknown where that takes too much."""
    size, inner = prod(shape), [s.load for s in sources if isinstance(s.load, Step)]
    handled = max(size, work or 0) + sum(s.size for s in sources if not isinstance(s.load, Step))
    own = STEP + handled
    if size > BUDGET:
        raise Unknown(f"it has {size:,} elements, more than {BUDGET:,}")
    group = Group()
    for step in inner:
        group = group.join(step.group)
    group = group.root()
    behind = min(own + sum(step.behind for step in inner), own + group.work)
    if behind > WORK:
        raise Unknown(f"computing it takes {behind:.1e} elements, more than {WORK:.1e}")
    ledger = ledger or Ledger()
    ledger.spend(own)
    group.work += own
    for step in inner:
        step.readers += 1
    exact = exact and all(step.exact for step in inner)
    made_of = tuple(dict.fromkeys(name for source in sources for name in source.stored))
    made = Step(compute, tuple(sources), size, handled, behind, group, ledger, exact)
    return Constant(name, shape, dtype, made, made_of, made.prompt)


def is_exact(constant: Constant) -> bool:
    """Whether every runtime computes these very elements."""
    return not isinstance(constant.load, Step) or constant.load.exact


def _evaluated(root: Step) -> Array:
    """The elements of `root`: every step behind it once, and each result dropped when nothing waits for it."""
    order = _ordered(root)
    waiting: dict[int, int] = {}
    for step in order:
        for source in step.inner():
            waiting[id(source)] = waiting.get(id(source), 0) + 1
    values: dict[int, Array] = {}
    for step in order:
        arrays: list[Array] = []
        for source in step.sources:
            inner = source.load
            if not isinstance(inner, Step):
                arrays.append(source.load())
            else:
                arrays.append(values[id(inner)] if inner.result is None else inner.result)
        with np.errstate(all="ignore"):  # what is not finite is refused by name by whoever reads it
            found = np.asarray(step.compute(*arrays))
        found.flags.writeable = False
        values[id(step)] = found
        if step.readers > 1:
            step.keep(found)
        for source in step.inner():
            waiting[id(source)] -= 1
            if not waiting[id(source)]:
                values.pop(id(source), None)
    return values[id(root)]


def _ordered(root: Step) -> list[Step]:
    """The steps that `root` takes and that have no result yet, each behind those that it reads."""
    order: list[Step] = []
    seen: set[int] = set()
    stack: list[tuple[Step, bool]] = [(root, False)]
    while stack:
        step, entered = stack.pop()
        if entered:
            order.append(step)
        elif id(step) not in seen and step.result is None:
            seen.add(id(step))
            stack.append((step, True))
            stack += [(inner, False) for inner in step.inner()]
    return order
