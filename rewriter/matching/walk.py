"""Walking a program backward through the graph, over single nodes and over whole sums.

The one idea: an operand's producer may be consumed only when nobody else reads what it makes. A walk therefore yields,
for each value it may stop at (a possible *entry*), the nodes on the way; the entry that most operands of a sum share
makes their group, and everything else follows.
Invariant: walks are bounded (`MAX_PATH` steps) and recurse along the pattern's nesting only, never along the graph. An
operand that is the entry itself is an identity branch; one that has another entry, or broadcasts, is a residual.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Graph, Node, Value
from rewriter.language.syntax import OpAtom
from rewriter.matching.predicates import failed, is_transparent
from rewriter.matching.program import Arm, Edge, Program, Step, SumStep
from rewriter.matching.sums import (
    SHOWN,
    Candidate,
    Flat,
    Reading,
    Walk,
    assign,
    behind_entry,
    depths,
    described,
    flatten,
    is_sum,
    of_one_width,
    operand_order,
    size,
    title,
)

MAX_PATH = 256
"""Steps of one walk; longer chains fold over several rounds."""

Spot: TypeAlias = tuple[int, str, bool]
"""Where a walk stands: the state, the value, and whether what makes the value may be stepped over (`Trail.closed`)."""


@dataclass(frozen=True, slots=True)
class Trail:
    """The way from a start to `value`: a linked list, newest step first. `length` counts steps; a sum is one.

    `closed`: everything that reads `value` has been stepped over, so that its producer may be, too.
    """

    step: Walk
    closed: bool
    parent: Trail | None = None
    length: int = 0

    @property
    def value(self) -> Value:
        return self.step.entry

    def over(self, step: Walk, *, closed: bool) -> Trail:
        return Trail(step, closed, self, self.length + 1)


@dataclass(frozen=True, slots=True)
class Walked:
    """All readings of one value, by entry (greedy ones first), and what stopped the walk that got furthest."""

    walks: tuple[Walk, ...]
    near_miss: Refusal | None
    depth: int  # steps that the furthest failing walk had taken
    sum_at: Value | None  # the first sum that some way led to where the program wants one


@dataclass(slots=True)
class Search:
    """One pattern looked for in one graph: what its walks share.

    `dead` are spots of the pattern's own program from which an earlier walk found no entry, and no later one will;
    `passed` are the nodes it stepped over. A walk from one of those stops at dead spots and refuses nothing anew: so a
    chain that leads nowhere is walked once and refused once. `steps` counts the spots visited.
    """

    graph: Graph
    name: str
    dead: set[Spot] = field(default_factory=set[Spot])
    passed: set[int] = field(default_factory=set[int])
    steps: int = 0
    _depths: list[int] | None = None
    _transparent: dict[int, bool] = field(default_factory=dict[int, bool])

    def depth(self, value: Value) -> int:
        """Of a value, the nodes on the longest path to it."""
        if self._depths is None:
            self._depths = depths(self.graph)
        return 0 if value.producer is None else self._depths[value.producer]

    def transparent(self, node: Node) -> bool:
        """Whether a path may step over the node; its constants are read once."""
        if node.index not in self._transparent:
            self._transparent[node.index] = is_transparent(node)
        return self._transparent[node.index]

    def at_exit(self, program: Program, exit_: Value) -> Walked:
        """Every entry from which `exit_` can be read as the body of the pattern.

        It may have any readers, and a sum standing directly at it may leave operands over.
        """
        walker = _Walker(self, program, outermost=True)
        inside = exit_.producer in self.passed
        walks, seen = walker.run(exit_, self.dead if inside else set())
        if not walks:  # the second half of a walk that was cut short is walked again, by one that gets further
            limit = MAX_PATH // 2 if walker.cut else MAX_PATH
            over = [(spot, trail) for spot, trail in seen.items() if 0 < trail.length <= limit]
            self.dead.update(spot for spot, _ in over)
            self.passed.update(node.index for _, trail in over for node in trail.step.nodes)
        return Walked(walks, None if inside else walker.near_miss, walker.depth, walker.sum_at)

    def operand(self, program: Program, start: Value) -> Walked:
        """The same of an operand, which nothing but its sum may read."""
        walker = _Walker(self, program, outermost=False)
        walks, _ = walker.run(start, set())
        return Walked(walks, walker.near_miss, walker.depth, walker.sum_at)

    def group(self, step: SumStep, root: Value, *, leftovers: bool) -> Walk | Refusal:
        """The largest group of operands under one entry that fits the arms, by the reading that takes most operands.

        `leftovers` allows operands that are in no arm: they stay, as `rest`.
        """
        found = self._group(step, root, leftovers)
        if isinstance(found, Refusal) or all(value is not found.entry for _, value in found.rest):
            return found
        below = behind_entry(self.graph, root, found.entry, found.rest)
        narrow = found if below is None else self._group(step, below, leftovers)
        return found if isinstance(narrow, Refusal) else narrow

    def _group(self, step: SumStep, root: Value, leftovers: bool) -> Walk | Refusal:
        flat = flatten(self.graph, root)
        best: Walk | None = None
        refusal: Refusal | None = None
        for arms in step.readings:
            found = _Grouping(self, flat, self._read(flat, arms), leftovers).choose()
            if isinstance(found, Refusal):
                refusal = refusal or found
            elif best is None or len(found.rest) < len(best.rest):
                best = found
        return best or refusal or Refusal(Reason.COUNT, title(self.graph, root), "the sum has no branches")

    def _read(self, flat: Flat, arms: tuple[Arm, ...]) -> Reading:
        candidates: list[Candidate] = []
        stopped: list[tuple[int, Refusal]] = []
        for index, operand in enumerate(flat.operands):
            furthest: tuple[int, Refusal] | None = None
            for position, arm in enumerate(arms):
                if arm.sign not in (0, operand.sign):
                    continue
                walked = self.operand(arm.program, operand.value)
                candidates.extend(Candidate(index, position, w) for w in walked.walks)
                if walked.near_miss is not None and (furthest is None or walked.depth > furthest[0]):
                    furthest = walked.depth, walked.near_miss
            if furthest is not None:
                stopped.append(furthest)
        stopped.sort(key=lambda miss: -miss[0])
        return Reading(arms, tuple(candidates), tuple(refusal for _, refusal in stopped))


# --- one walk --------------------------------------------------------------------------------------------------------


class _Walker:
    """The moves of one walk; remembers what stopped the furthest one."""

    def __init__(self, search: Search, program: Program, outermost: bool) -> None:
        self.search = search
        self.graph = search.graph
        self.program = program
        self.outermost = outermost
        self.depth = -1
        self.sum_at: Value | None = None
        self.cut = False
        self._refusal: Refusal | None = None
        self._found = ""  # where the furthest walk met another operator: which one, and which were wanted
        self._wanted: list[str] = []

    def run(self, start: Value, dead: set[Spot]) -> tuple[tuple[Walk, ...], dict[Spot, Trail]]:
        """The walks by entry, and the spots that were visited with the way to each."""
        stack: list[tuple[int, Trail]] = [(self.program.start, Trail(Walk(start), self.outermost or start.private))]
        found: dict[str, Walk] = {}
        seen: dict[Spot, Trail] = {}
        while stack:
            state, trail = stack.pop()
            spot = state, trail.value.name, trail.closed
            if spot in seen or (spot in dead and trail.length):
                continue
            self.search.steps += 1
            seen[spot] = trail
            if state == self.program.accept:
                found.setdefault(trail.value.name, _finished(trail))
            stack.extend(reversed(self._onward(state, trail)))
        return tuple(found.values()), seen

    def _onward(self, state: int, trail: Trail) -> list[tuple[int, Trail]]:
        """The next states, preferred ones first."""
        moves: list[tuple[int, Trail]] = []
        node = self.graph.producer(trail.value)
        for edge in self.program.edges[state]:
            if edge.step is not None:
                onto = self._over(edge, edge.step, node, trail)
            elif edge.mark is not None:
                onto = Trail(Walk(trail.value, counts=((edge.mark, 1),)), trail.closed, trail, trail.length)
            else:
                onto = trail
            if onto is not None:
                moves.append((edge.target, onto))
        if state in self.program.resting and (over := self._over_transparent(node, trail)) is not None:
            moves.append((state, over))
        return moves

    def _over(self, edge: Edge, step: Step, node: Node | None, trail: Trail) -> Trail | None:
        if node is None:
            return self._unlike(trail, "nothing: it is an input", step.op if isinstance(step, OpAtom) else "a sum")
        if trail.length >= MAX_PATH:
            self.cut = True
            return self._missed(
                trail, Reason.LIMIT, f"more than {MAX_PATH} nodes in a row are left to a later round", 1
            )
        return self._over_op(step, edge, node, trail) if isinstance(step, OpAtom) else self._over_sum(step, node, trail)

    def _over_op(self, atom: OpAtom, edge: Edge, node: Node, trail: Trail) -> Trail | None:
        if node.op != atom.op:
            return self._unlike(trail, node.op, atom.op)
        if node.problem is not None:
            return self._missed(trail, Reason.VALUE, f"{node.op}: {node.problem}", 1)
        if (reason := failed(atom, node)) is not None:
            return self._missed(trail, reason[0], f"{node.op}: {reason[1]}", 1)
        if not trail.closed:
            return self._missed(trail, Reason.ESCAPE, _escape(self.graph, trail.value), 1)
        if len(node.data) != 1 or node.output is not trail.value:
            return None
        labels = tuple((label, node) for label in edge.labels)
        counts = ((edge.mark, 1),) if edge.mark else ()
        return trail.over(Walk(node.data[0], (node,), labels, counts, node.op), closed=node.data[0].private)

    def _over_transparent(self, node: Node | None, trail: Trail) -> Trail | None:
        if node is None or not trail.closed or trail.length >= MAX_PATH or not self.search.transparent(node):
            return None
        if (trail.length == 0 and self.outermost) or node.output is not trail.value:
            return None  # what stands behind the exit is not part of the match
        return trail.over(Walk(node.data[0], (node,)), closed=node.data[0].private)

    def _over_sum(self, step: SumStep, node: Node, trail: Trail) -> Trail | None:
        if not is_sum(node):
            return self._unlike(trail, node.op, "a sum")
        self.sum_at = self.sum_at or trail.value
        if not trail.closed:
            return self._missed(trail, Reason.ESCAPE, _escape(self.graph, trail.value), 1)
        alone = self.outermost and trail.length == 0
        found = self.search.group(step, trail.value, leftovers=alone)
        if isinstance(found, Refusal):
            self._record(trail.length + 1, found)
            return None
        return trail.over(found, closed=_closed(found))

    @property
    def near_miss(self) -> Refusal | None:
        if self._refusal is None or not self._wanted:
            return self._refusal
        wanted = " or ".join(dict.fromkeys(self._wanted))
        return Refusal(Reason.OP, self._refusal.node, f"made by {self._found}, the pattern wants {wanted} here")

    def _unlike(self, trail: Trail, found: str, wanted: str) -> None:
        if trail.length > self.depth:
            self._found = found
            self._missed(trail, Reason.OP, found)
        if trail.length == self.depth:
            self._wanted.append(wanted)

    def _missed(self, trail: Trail, code: Reason, detail: str, bonus: int = 0) -> None:
        self._record(trail.length + bonus, Refusal(code, title(self.graph, trail.value), detail))

    def _record(self, depth: int, refusal: Refusal) -> None:
        if depth > self.depth:
            self.depth, self._refusal, self._wanted = depth, refusal, []


def _finished(trail: Trail) -> Walk:
    """All steps of a way as one."""
    steps = [trail.step]
    while trail.parent is not None:
        trail = trail.parent
        steps.append(trail.step)
    steps.reverse()  # exit first
    return Walk(
        steps[-1].entry,
        tuple(node for step in steps for node in step.nodes),
        tuple(label for step in steps for label in step.labels),
        tuple(count for step in steps for count in step.counts),
        "->".join(step.words for step in reversed(steps) if step.words),
        tuple(left for step in steps for left in step.rest),
        next((step.root for step in steps if step.nodes), None),
    )


def _closed(found: Walk) -> bool:
    """Whether nothing but the group reads its entry, so that the way may go on through it."""
    entry = found.entry
    if entry.is_output or any(value is entry for _, value in found.rest):
        return False
    inside = {node.index for node in found.nodes}
    return all(reader in inside for reader in entry.readers)


def _escape(graph: Graph, value: Value) -> str:
    if value.is_output:
        return "this value inside the match is an output of the model"
    if value.captured:
        return "this value inside the match is read by the body of an If, Loop or Scan"
    readers = list(dict.fromkeys(reader.name or reader.output.name for reader in graph.readers(value)))
    more = ", …" if len(readers) > SHOWN else ""
    return f"this value inside the match has {len(value.readers)} readers ({', '.join(readers[:SHOWN])}{more})"


# --- groups ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Grouping:
    """One sum under one set of arms."""

    search: Search
    flat: Flat
    reading: Reading
    leftovers: bool

    def choose(self) -> Walk | Refusal:
        by_entry: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in self.reading.candidates:
            by_entry[candidate.walk.entry.name].append(candidate)
        sets = [of_one_width(found) for found in by_entry.values()]
        shared = [found for found in sets if size(found) > 1]
        order = operand_order(self.flat, self.reading.candidates)
        refusal: Refusal | None = None
        for found in self._ranked(shared):
            assigned = assign(self.reading.arms, found, order)
            if isinstance(assigned, str):
                refusal = refusal or self._refused(Reason.COUNT, assigned)
            elif len(assigned) < len(self.flat.operands) and not self.leftovers:
                every = len(self.flat.operands)
                needs = f"{self.search.name} needs all {every} operands from one entry, as this sum is not its end"
                refusal = refusal or self._refused(Reason.ENTRY, needs)
            else:
                return self._grouped(assigned)
        return refusal or self._no_entry()

    def _ranked(self, sets: list[list[Candidate]]) -> list[list[Candidate]]:
        """Most operands first, then the entry nearest to the exit, then the order of operands."""

        def rank(found: Sequence[Candidate]) -> tuple[int, int, int]:
            return -size(found), -self.search.depth(found[0].walk.entry), min(c.index for c in found)

        return sorted(sets, key=rank) if len(sets) > 1 else sets

    def _grouped(self, assigned: Sequence[Candidate]) -> Walk:
        arms = self.reading.arms
        taken = {c.index for c in assigned}
        nodes = list(self.flat.nodes)
        labels: list[tuple[str, Node]] = []
        counts: list[tuple[str, int]] = []
        parts: Counter[str] = Counter()
        for c in sorted(assigned, key=lambda c: (c.arm, c.walk.words)):
            arm = arms[c.arm]
            nodes += c.walk.nodes
            labels += c.walk.labels
            labels += ((name, node) for name in (arm.name, *arm.within) for node in c.walk.nodes)
            counts += [*c.walk.counts, (arm.name, 1)]
            sign = "-" if self.flat.operands[c.index].sign < 0 else ""
            parts[f"{sign}{arm.name} ({c.walk.words or 'bare'})"] += 1
        opened = dict.fromkeys(name for c in assigned for name in arms[c.arm].within)
        counts += ((name, 1) for name in opened)
        listed = ", ".join(part if count == 1 else f"{count} {part}" for part, count in parts.items())
        rest = tuple((o.sign, o.value) for i, o in enumerate(self.flat.operands) if i not in taken)
        entry = assigned[0].walk.entry
        return Walk(entry, tuple(nodes), tuple(labels), tuple(counts), f"sum of {listed}", rest, self.flat.root)

    def _no_entry(self) -> Refusal:
        """Why no two operands make a group: one is read elsewhere or made by something else, or entries differ."""
        stopped = self.reading.stopped
        escape = next((r for r in stopped if r.code is Reason.ESCAPE), None)
        if escape is not None:
            return escape
        if stopped and not any(c.walk.words for c in self.reading.candidates):
            return stopped[0]
        return self._refused(Reason.ENTRY, f"{self.search.name} needs 2 operands from one entry")

    def _refused(self, code: Reason, needs: str) -> Refusal:
        detail = f"{described(self.search.graph, self.flat, self.reading.candidates)}; {needs}"
        return Refusal(code, title(self.search.graph, self.flat.root), detail)
