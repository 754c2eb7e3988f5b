"""Walking a program backward through the graph, over single nodes and over whole sums.

The one idea: an operand's producer may be consumed only when nobody else reads what it makes. A walk therefore yields,
for each value it may stop at (a possible *entry*), the nodes on the way; everything else follows from choosing entries.
Invariant: walks are bounded (`MAX_PATH` nodes) and use no recursion along the graph, only along the pattern's nesting.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Graph, Node, Value
from rewriter.language.syntax import OpAtom
from rewriter.matching import sums
from rewriter.matching.predicates import failed, is_transparent
from rewriter.matching.program import Program, Step, SumStep

MAX_PATH = 256
"""Nodes on one walk; longer chains fold over several rounds."""


@dataclass(frozen=True, slots=True)
class Trail:
    """The way from a start to `value`: a linked list, newest step first."""

    value: Value
    nodes: tuple[Node, ...] = ()  # of this step: one node, or all of a sum with its operands
    labels: tuple[tuple[str, Node], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    words: str = ""
    rest: tuple[tuple[int, Value], ...] = ()  # operands of the sum at the exit that stay
    parent: Trail | None = None
    length: int = 0


@dataclass(frozen=True, slots=True)
class Walk:
    """One way to read a value as a body over `entry`; `nodes` in walking order (exit first)."""

    entry: Value
    nodes: tuple[Node, ...]
    labels: tuple[tuple[str, Node], ...]
    counts: tuple[tuple[str, int], ...]
    words: str  # "conv->bn", in the direction of the data; "" for the bare entry
    rest: tuple[tuple[int, Value], ...] = ()


@dataclass(frozen=True, slots=True)
class Walked:
    """All readings of one value, by entry (greedy ones first), and what stopped the walk that got furthest."""

    walks: tuple[Walk, ...]
    near_miss: Refusal | None
    depth: int  # nodes that the furthest failing walk had consumed
    met_sum: bool  # some way led to a sum where the program wants one


def walk(graph: Graph, program: Program, start: Value, *, outermost: bool = False) -> Walked:
    """Every entry from which `start` can be read as the program's body.

    `outermost` says that `start` is the exit of the match: it may have any readers, and a sum standing directly at it
    may leave operands over.
    """
    walker = _Walker(graph, program, outermost)
    stack: list[tuple[int, Trail]] = [(program.start, Trail(start))]
    found: dict[str, Walk] = {}
    seen: set[tuple[int, str]] = set()
    while stack:
        state, trail = stack.pop()
        if (state, trail.value.name) in seen:
            continue
        seen.add((state, trail.value.name))
        if state == program.accept:
            found.setdefault(trail.value.name, _finished(trail))
        stack.extend(reversed(walker.onward(state, trail)))
    return Walked(tuple(found.values()), walker.near_miss, walker.depth, walker.met_sum)


def _finished(trail: Trail) -> Walk:
    nodes: list[Node] = []
    labels: list[tuple[str, Node]] = []
    counts: list[tuple[str, int]] = []
    words: list[str] = []
    rest: tuple[tuple[int, Value], ...] = ()
    step: Trail | None = trail
    while step is not None:  # from the entry's side to the exit's
        nodes.extend(step.nodes)
        rest += step.rest
        labels.extend(step.labels)
        counts.extend(step.counts)
        if step.words:
            words.append(step.words)
        step = step.parent
    return Walk(trail.value, tuple(reversed(nodes)), tuple(labels), tuple(counts), "->".join(words), rest)


class _Walker:
    """The moves of one walk; remembers what stopped the furthest one."""

    def __init__(self, graph: Graph, program: Program, outermost: bool) -> None:
        self.graph = graph
        self.program = program
        self.outermost = outermost
        self.depth = -1
        self.met_sum = False
        self._refusal: Refusal | None = None
        self._found = ""  # where the furthest walk met another operator: which one, and which were wanted
        self._wanted: list[str] = []

    def onward(self, state: int, trail: Trail) -> list[tuple[int, Trail]]:
        """The next states, preferred ones first."""
        moves: list[tuple[int, Trail]] = []
        transparent = self._over_transparent(trail)
        for edge in self.program.edges[state]:
            if edge.step is None:
                moves.append((edge.target, trail))
            else:
                moves += [(edge.target, onto) for onto in self._over(edge.step, edge.target, trail)]
        if transparent is not None:
            moves.append((state, transparent))
        return moves

    def _over(self, step: Step, target: int, trail: Trail) -> list[Trail]:
        node = self.graph.producer(trail.value)
        if node is None or trail.length >= MAX_PATH:
            return []
        if isinstance(step, SumStep):
            return self._over_sum(step, target, trail)
        onto = self._over_op(step, node, trail)
        return [onto] if onto else []

    def _over_op(self, atom: OpAtom, node: Node, trail: Trail) -> Trail | None:
        if node.op != atom.op:
            return self._unlike(trail, node.op, atom.op)
        if node.problem is not None:
            return self._missed(trail, Reason.VALUE, f"{node.op}: {node.problem}", 1)
        if (reason := failed(atom, node)) is not None:
            return self._missed(trail, reason[0], f"{node.op}: {reason[1]}", 1)
        if not self._free(trail):
            return self._missed(trail, Reason.ESCAPE, _escape(self.graph, trail.value), 1)
        if len(node.data) != 1 or len(node.outputs) < 1 or node.output is not trail.value:
            return None
        labels = ((atom.label, node),) if atom.label else ()
        return Trail(node.data[0], (node,), labels, ((node.op, 1),), node.op, (), trail, trail.length + 1)

    def _over_transparent(self, trail: Trail) -> Trail | None:
        node = self.graph.producer(trail.value)
        if node is None or trail.length >= MAX_PATH or not is_transparent(node) or not self._free(trail):
            return None
        if trail.parent is None and self.outermost:
            return None  # what stands behind the exit is not part of the match
        return Trail(node.data[0], (node,), (), (), "", (), trail, trail.length + 1)

    def _over_sum(self, step: SumStep, target: int, trail: Trail) -> list[Trail]:
        node = self.graph.producer(trail.value)
        if node is None or not sums.is_sum(node):
            self._unlike(trail, node.op if node else "an input", "a sum")
            return []
        self.met_sum = True
        if not self._free(trail):
            self._missed(trail, Reason.ESCAPE, _escape(self.graph, trail.value), 1)
            return []
        alone = self.outermost and trail.parent is None and target in self.program.accepting
        grouped = sums.group(self.graph, step, trail.value, leftovers=alone)
        if isinstance(grouped, Refusal):
            self._record(trail.length + 1, grouped)
            return []
        size = trail.length + len(grouped.nodes)
        g = grouped
        return [Trail(g.entry, g.nodes, g.labels, g.counts, g.words, g.rest, trail, size)]

    def _free(self, trail: Trail) -> bool:
        """May the producer of this value be consumed? The exit's may, whoever reads it."""
        return trail.value.private or (trail.parent is None and self.outermost)

    @property
    def near_miss(self) -> Refusal | None:
        if self._refusal is None or self._refusal.code is not Reason.OP:
            return self._refusal
        wanted = " or ".join(dict.fromkeys(self._wanted))
        return Refusal(Reason.OP, self._refusal.node, f"made by {self._found}, the pattern wants {wanted} here")

    def _unlike(self, trail: Trail, found: str, wanted: str) -> None:
        if trail.length > self.depth:
            self._wanted = []
            self._found = found
            self._missed(trail, Reason.OP, found)
        if trail.length == self.depth:
            self._wanted.append(wanted)

    def _missed(self, trail: Trail, code: Reason, detail: str, bonus: int = 0) -> None:
        self._record(trail.length + bonus, Refusal(code, trail.value.name, detail))

    def _record(self, depth: int, refusal: Refusal) -> None:
        if depth > self.depth:
            self.depth, self._refusal = depth, refusal


def _escape(graph: Graph, value: Value) -> str:
    if value.is_output:
        return "this value inside the match is an output of the model"
    if value.captured:
        return "this value inside the match is read by the body of an If, Loop or Scan"
    names = ", ".join(dict.fromkeys(reader.name or reader.op for reader in graph.readers(value)[:4]))
    return f"this value inside the match has {len(value.readers)} readers ({names})"
