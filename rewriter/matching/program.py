"""Pattern bodies compiled for matching: small automata that walk from a value backward to where it comes from.

Invariant: compiling loses nothing and decides nothing; a `Program` accepts exactly the sequences its body describes,
read from the exit towards the entry. Earlier edges of a state are preferred, so repetition is greedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from rewriter.errors import UsageError
from rewriter.language.syntax import (
    Atom,
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

MAX_READINGS = 64
"""Ways to read one sum, with each inner sum that may end bare closed or opened; patterns have one to four."""

SIGNS: Mapping[str, int] = {"": 1, "-": -1, "±": 0}


@dataclass(frozen=True, slots=True)
class Arm:
    """A branch of a sum: its sign (+1, -1, or 0 for both), its bounds and the program of one operand.

    `within` are the branches whose sums were opened to reach it, outermost first.
    """

    name: str
    sign: int
    least: int
    most: int | None
    program: Program
    within: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SumStep:
    """A sum to step over. `readings` are alternative sets of arms: the sum as written, and with inner sums opened."""

    readings: tuple[tuple[Arm, ...], ...]


Step: TypeAlias = OpAtom | SumStep


@dataclass(frozen=True, slots=True)
class Edge:
    """From a state to `target`: over `step`, or over nothing where it is None.

    What is stepped over goes by the names in `labels`; `mark` is the label of a chain that is entered here.
    """

    step: Step | None
    target: int
    labels: tuple[str, ...] = ()
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """States are indices into `edges`; `start` stands at the exit, `accept` at the entry.

    `resting` are the states that a walk can be in between two steps: something is stepped over from there, or accepted.
    `firsts` are the operators one of which must stand at the exit ("sum" for a sum); `sums` says whether there is a sum
    anywhere outside other sums.
    """

    edges: tuple[tuple[Edge, ...], ...]
    start: int
    accept: int
    resting: frozenset[int]
    firsts: frozenset[str]
    sums: bool


def is_linear_region(body: Body) -> bool:
    """Whether a body is `linear-region`, which no automaton matches: rewriting plans it."""
    return all(isinstance(item.atom, LinearRegion) for seq in body.alternatives for item in seq.items)


NOTHING = Program(((),), 0, 0, frozenset({0}), frozenset(), sums=False)
"""The program of a linear region."""


def compile_body(body: Body, chains: Mapping[str, Chain]) -> Program:
    """The automaton of a body; raises UsageError for what this version cannot match yet."""
    compiler = _Compiler(chains)
    accept = compiler.state()
    start = compiler.body(body, accept)
    edges = tuple(tuple(found) for found in compiler.edges)
    resting = {state for state, found in enumerate(edges) if any(edge.step is not None for edge in found)}
    sums = any(isinstance(edge.step, SumStep) for found in edges for edge in found)
    return Program(edges, start, accept, frozenset({*resting, accept}), _firsts(edges, start), sums)


def _firsts(edges: Sequence[Sequence[Edge]], start: int) -> frozenset[str]:
    ops: set[str] = set()
    seen: set[int] = set()
    stack = [start]
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        for edge in edges[state]:
            if edge.step is None:
                stack.append(edge.target)
            else:
                ops.add(edge.step.op if isinstance(edge.step, OpAtom) else "sum")
    return frozenset(ops)


@dataclass(slots=True)
class _Compiler:
    """`labels` are the labels of the chains that are being written out."""

    chains: Mapping[str, Chain]
    edges: list[list[Edge]] = field(default_factory=list[list[Edge]])
    labels: tuple[str, ...] = ()

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
            return self.atom(item.atom, after)
        loop = self.state()
        target = after if item.repeat is Repeat.OPTIONAL else loop
        first = self.atom(item.atom, target)
        self.edges[loop] = [Edge(None, first), Edge(None, after)]
        return first if item.repeat is Repeat.SOME else loop

    def atom(self, atom: Atom, after: int) -> int:
        match atom:
            case Pass():
                return after
            case Group(body):
                return self.body(body, after)
            case Call():
                return self.call(atom, after)
            case OpAtom():
                return self.step(atom, after, atom.label)
            case Junction("sum", branches):
                return self.step(SumStep(tuple(self.readings(branches))), after)
            case Junction(kind):
                raise UsageError(f"this version of fxrewrite cannot match '{kind}' yet (line {atom.pos.line})")
            case LinearRegion():
                raise UsageError(
                    f"'linear-region' is the whole of a pattern's match, not a part (line {atom.pos.line})"
                )

    def call(self, call: Call, after: int) -> int:
        """A chain written out. Its label counts how often it is entered, and stands for every node in it."""
        body = self.chains[call.chain].body
        if call.label is None:
            return self.body(body, after)
        outer, self.labels = self.labels, (*self.labels, call.label)
        first = self.body(body, after)
        self.labels = outer
        enter = self.state()
        self.edges[enter] = [Edge(None, first, mark=call.label)]
        return enter

    def step(self, step: Step, after: int, label: str | None = None) -> int:
        state = self.state()
        labels = self.labels if label is None else (*self.labels, label)
        self.edges[state] = [Edge(step, after, labels, mark=label)]
        return state

    def readings(self, branches: Sequence[Branch]) -> list[tuple[Arm, ...]]:
        """The arms of a sum, as written and with inner sums opened.

        The view flattens sums of sums, so `sum { a: sum { b: … } -> scale? }` also means `sum { b: … }`; where nothing
        can follow the inner sum, it means only that.
        """
        ways: list[tuple[Arm, ...]] = [()]
        for branch in branches:
            ways = [(*way, *option) for option in self.options(branch) for way in ways]
            if len(ways) > MAX_READINGS:
                raise UsageError(
                    f"a sum with more than {MAX_READINGS} readings of its inner sums (line {branch.pos.line})"
                )
        return ways

    def options(self, branch: Branch) -> list[tuple[Arm, ...]]:
        """One branch as arms of the outer sum."""
        sign = SIGNS[branch.sign]
        closed = Arm(branch.name, sign, branch.least, branch.most, compile_body(branch.body, self.chains))
        if branch.most != 1:
            return [(closed,)]
        inner = [self.inner_sum(seq) for seq in branch.body.alternatives]
        opened = [
            tuple(replace(arm, sign=arm.sign * sign, within=(branch.name, *arm.within)) for arm in way)
            for found in inner
            if found is not None
            for way in self.readings(found[0].branches)
        ]
        if any(found is None or found[1] for found in inner):
            return [(closed,), *opened]
        return [*opened, ()] if branch.least == 0 else opened

    def inner_sum(self, seq: Seq) -> tuple[Junction, bool] | None:
        """The sum that a branch is, where it may end bare, and whether something may follow it."""
        first, *rest = seq.items
        if first.repeat is not Repeat.ONCE or not all(self.nullable(item) for item in rest):
            return None
        atom = first.atom
        body = (
            self.chains[atom.chain].body if isinstance(atom, Call) else atom.body if isinstance(atom, Group) else None
        )
        if body is not None and len(body.alternatives) == 1:
            found = self.inner_sum(body.alternatives[0])
            return None if found is None else (found[0], found[1] or bool(rest))
        return (atom, bool(rest)) if isinstance(atom, Junction) and atom.kind == "sum" else None

    def nullable(self, item: Item) -> bool:
        if item.repeat in (Repeat.OPTIONAL, Repeat.ANY):
            return True
        match item.atom:
            case Pass():
                return True
            case Group(body):
                return self.nullable_body(body)
            case Call(chain):
                return self.nullable_body(self.chains[chain].body)
            case _:
                return False

    def nullable_body(self, body: Body) -> bool:
        return any(all(self.nullable(item) for item in seq.items) for seq in body.alternatives)
