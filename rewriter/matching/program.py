"""Pattern bodies compiled for matching: small automata that walk from a value backward to where it comes from.

Invariant: compiling loses nothing and decides nothing; a `Program` accepts exactly the sequences its body describes, read
from the exit towards the entry. Earlier edges of a state are preferred, so repetition is greedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from rewriter.errors import UsageError
from rewriter.language.syntax import (
    Body,
    Branch,
    Call,
    Chain,
    Group,
    Item,
    Junction,
    LinearRegion,
    OpAtom,
    Pass,
    Repeat,
    Seq,
)


@dataclass(frozen=True, slots=True)
class Arm:
    """A branch of a sum: its sign (+1, -1, or 0 for both), its bounds and the program of one operand."""

    name: str
    sign: int
    least: int
    most: int | None
    program: Program


@dataclass(frozen=True, slots=True)
class SumStep:
    """A sum to step over. `readings` are alternative sets of arms: the sum as written, and with inner sums opened."""

    readings: tuple[tuple[Arm, ...], ...]


Step: TypeAlias = OpAtom | SumStep


@dataclass(frozen=True, slots=True)
class Edge:
    """From a state to `target`: over `step`, or over nothing where it is None."""

    step: Step | None
    target: int


@dataclass(frozen=True, slots=True)
class Program:
    """States are indices into `edges`; `start` stands at the exit, `accept` at the entry."""

    edges: tuple[tuple[Edge, ...], ...]
    start: int
    accept: int

    @property
    def accepting(self) -> frozenset[int]:
        """The states from which nothing more needs to stand on the way to the entry."""
        reaching = {self.accept}
        while True:
            more = {s for s, edges in enumerate(self.edges) if any(e.step is None and e.target in reaching for e in edges)}
            if more <= reaching:
                return frozenset(reaching)
            reaching |= more

    def first_ops(self) -> frozenset[str]:
        """The operators one of which must stand at the exit ("sum" for a sum)."""
        ops: set[str] = set()
        seen: set[int] = set()
        stack = [self.start]
        while stack:
            state = stack.pop()
            if state in seen:
                continue
            seen.add(state)
            for edge in self.edges[state]:
                if edge.step is None:
                    stack.append(edge.target)
                else:
                    ops.add(edge.step.op if isinstance(edge.step, OpAtom) else "sum")
        return frozenset(ops)


def compile_body(body: Body, chains: Mapping[str, Chain]) -> Program:
    """The automaton of a body; raises UsageError for what this version cannot match yet."""
    compiler = _Compiler(chains)
    accept = compiler.state()
    start = compiler.body(body, accept)
    return Program(tuple(tuple(edges) for edges in compiler.edges), start, accept)


@dataclass(slots=True)
class _Compiler:
    chains: Mapping[str, Chain]
    edges: list[list[Edge]] = field(default_factory=list[list[Edge]])

    def state(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def body(self, body: Body, after: int) -> int:
        """The state from which walking `body` backward leads to `after`."""
        starts = [self.sequence(seq, after) for seq in body.alternatives]
        if len(starts) == 1:
            return starts[0]
        fork = self.state()
        self.edges[fork] = [Edge(None, start) for start in starts]
        return fork

    def sequence(self, seq: Seq, after: int) -> int:
        for item in seq.items:  # the first item stands nearest the entry, so it is walked last
            after = self.item(item, after)
        return after

    def item(self, item: Item, after: int) -> int:
        if item.repeat is Repeat.ONCE:
            return self.atom(item, after)
        loop = self.state()
        target = after if item.repeat is Repeat.OPTIONAL else loop
        first = self.atom(item, target)
        self.edges[loop] = [Edge(None, first), Edge(None, after)]
        return first if item.repeat is Repeat.SOME else loop

    def atom(self, item: Item, after: int) -> int:
        match item.atom:
            case Pass():
                return after
            case Group(body):
                return self.body(body, after)
            case Call(chain):
                return self.body(self.chains[chain].body, after)
            case OpAtom():
                return self.step(item.atom, after)
            case Junction("sum", branches):
                return self.step(SumStep(tuple(self.arms(b) for b in opened(branches))), after)
            case Junction() | LinearRegion():
                kind = item.atom.kind if isinstance(item.atom, Junction) else "linear-region"
                raise UsageError(f"this version of fxrewrite cannot match '{kind}' yet (line {item.atom.pos.line})")

    def step(self, step: Step, after: int) -> int:
        state = self.state()
        self.edges[state] = [Edge(step, after)]
        return state

    def arms(self, branches: tuple[Branch, ...]) -> tuple[Arm, ...]:
        signs = {"": 1, "-": -1, "±": 0}
        return tuple(Arm(b.name, signs[b.sign], b.least, b.most, compile_body(b.body, self.chains)) for b in branches)


def opened(branches: tuple[Branch, ...]) -> list[tuple[Branch, ...]]:
    """A sum's branches, and the same with each inner sum that may end bare opened into the outer one.

    The view flattens sums of sums, so `sum { a: sum { b: … } -> scale? }` also means `sum { b: … }`.
    """
    readings = [branches]
    for branch in branches:
        inner = _bare_inner_sum(branch)
        if inner is None:
            continue
        lifted = tuple(replace(b, sign=_combined(branch.sign, b.sign)) for b in inner.branches)
        readings += [tuple(x for b in reading for x in (lifted if b is branch else (b,))) for reading in readings]
    return readings


def _bare_inner_sum(branch: Branch) -> Junction | None:
    if (branch.least, branch.most) != (1, 1) or len(branch.body.alternatives) != 1:
        return None
    first, *rest = branch.body.alternatives[0].items
    ends_bare = all(item.repeat in (Repeat.OPTIONAL, Repeat.ANY) for item in rest)
    is_sum = isinstance(first.atom, Junction) and first.atom.kind == "sum" and first.repeat is Repeat.ONCE
    return first.atom if is_sum and ends_bare and isinstance(first.atom, Junction) else None


def _combined(outer: str, inner: str) -> str:
    if "±" in (outer, inner):
        return "±"
    return "" if outer == inner else "-"
