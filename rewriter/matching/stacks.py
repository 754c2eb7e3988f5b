"""Heads that run on several values joined along an axis, of which slices are taken afterwards.

DETR stacks the outputs of its decoder layers, runs its heads on the stack, and takes one layer's result; others run one
head on a batch of two and cut the result apart. The one idea: from the Concat on, follow the operators that compute
every slice along its axis from the same slice alone (`matching.slicewise`), and see which slices are taken at the end.
Extents are expressions, so that a batch of open size is followed too. Invariant: an operator that is not in the table
ends the way, and what it reads counts as read whole; so does a cut of which it cannot be told between which operands it
lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from rewriter.dims.engine import Pass
from rewriter.dims.polynomials import Poly, number
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.cones import SIZE_ONLY
from rewriter.matching.measuring import extents_read
from rewriter.matching.slicewise import Place, gathered, results


@dataclass(frozen=True, slots=True)
class Taken:
    """A node that takes the slices of `place` of the value `name`; only those of `picked`, where that is not None."""

    node: Node
    name: str
    place: Place
    picked: tuple[Poly, ...] | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """A Concat, how many slices each of its operands gives, where they lie in what is computed of them by slices, the
    nodes that compute so, what is taken in the end, and the nodes that read how many slices there are.
    """

    concat: Node
    counts: tuple[Poly, ...]
    places: Mapping[str, Place]
    nodes: tuple[Node, ...]
    taken: tuple[Taken, ...]
    counting: tuple[Node, ...]
    sizes: Pass

    def start(self, operand: int) -> Poly:
        return _sum(self.counts[:operand])

    def operands(self, taken: Taken) -> range:
        """The operands that what is taken lies in."""
        if taken.picked is None:
            return self.covered(taken.place)
        found = [self._at(index, index + 1) for index in taken.picked]
        return range(min(each.start for each in found), max(each.stop for each in found)) if found else range(0)

    def wanted(self) -> set[int]:
        """The operands of which anything is taken."""
        wanted: set[int] = set()
        for taken in self.taken:
            ways = [(p, p + 1) for p in taken.picked] if taken.picked is not None else [_ends(taken.place)]
            wanted.update(*(self._at(*way) for way in ways))
        return wanted

    @property
    def is_cut(self) -> bool:
        """Whether anything takes of a part of the operands alone."""
        every = len(self.counts)
        return len(self.wanted()) < every or any(len(self.operands(taken)) < every for taken in self.taken)

    def operand(self, taken: Taken) -> int | None:
        """The one operand that all of the slices taken lie in."""
        found = self.operands(taken)
        return found.start if len(found) == 1 else None

    def covered(self, place: Place) -> range:
        return self._at(*_ends(place))

    def _at(self, start: Poly, end: Poly) -> range:
        """The operands that lie between, in part or whole; all of them where that cannot be told."""
        everything = range(len(self.counts))
        first = next((k for k in everything if self._between(k, start, last=False)), None)
        last = next((k for k in everything if self._between(k, end, last=True)), None)
        return everything if first is None or last is None else range(first, last + 1)

    def _between(self, operand: int, place: Poly, *, last: bool) -> bool:
        """Whether an element at `place` (or, of an end, the one before it) is one of the operand."""
        start = self.start(operand)
        below, above = place - start, start + self.counts[operand] - place
        least = (below - 1, above) if last else (below, above - 1)
        return all(map(self.sizes.nonnegative, least))

    def without(self, gone: set[int], place: Poly) -> Poly | None:
        """Where a place of the stack lies once these operands are gone; None where that cannot be told."""
        start = number(0)
        for operand, count in enumerate(self.counts):
            if place == self.start(operand):
                return start
            inside = self._between(operand, place, last=False)
            if inside:
                return start if operand in gone else start + (place - self.start(operand))
            start = start if operand in gone else start + count
        return start if place == _sum(self.counts) else None


def _ends(place: Place) -> tuple[Poly, Poly]:
    return place.first, place.end


def _sum(counts: Sequence[Poly]) -> Poly:
    total = number(0)
    for count in counts:
        total = total + count
    return total


def stacks(graph: Graph, sizes: Pass) -> list[Stack]:
    """The stacks of `graph` from which slices are taken; `sizes` are those of its values."""
    found: list[Stack] = []
    readers = reading(graph)
    for node in graph.nodes:
        if node.op == "concat" and not node.captures and len({v.name for v in node.data}) > 1:
            walk = walked(graph, node, sizes, readers)
            if walk is not None and walk.is_cut:
                found.append(walk)
    return found


def reading(graph: Graph) -> Mapping[str, Sequence[int]]:
    """The nodes that read each value, in order, those among them that read a size which is known and count as none."""
    found: dict[str, list[int]] = {}
    for node in graph.nodes:
        for name in {value.name for value in (*node.data, *node.captures)}:
            found.setdefault(name, []).append(node.index)
    return found


def walked(graph: Graph, concat: Node, sizes: Pass, reading: Mapping[str, Sequence[int]]) -> Stack | None:
    """What becomes of the values that a Concat joins; None where their extents are not known."""
    whole, axis = sizes.dims.get(concat.output.name), concat.attrs.get("axis")
    operands = [sizes.dims_of(value) for value in concat.data]
    if whole is None or not isinstance(axis, int) or concat.consts:
        return None
    axis %= len(whole)
    counts = tuple(given[axis].expr for given in operands if given is not None)
    if len(counts) < len(operands) or concat.output.is_output or concat.output.captured:
        return None
    walk = _Walk(graph, sizes, {concat.output.name: Place(axis, len(whole), number(0), _sum(counts))})
    walk.run(concat.output, reading)
    return Stack(concat, counts, walk.places, tuple(walk.nodes), tuple(walk.taken), tuple(walk.counting), sizes)


@dataclass(slots=True)
class _Walk:
    graph: Graph
    sizes: Pass
    places: dict[str, Place]
    nodes: list[Node] = field(default_factory=list[Node])
    taken: list[Taken] = field(default_factory=list[Taken])
    counting: list[Node] = field(default_factory=list[Node])

    def run(self, whole: Value, reading: Mapping[str, Sequence[int]]) -> None:
        """Every node that reads something with a place, each behind those that make what it reads."""
        waiting = list(reading.get(whole.name, ()))
        seen = set(waiting)
        while waiting:
            node = self.graph.nodes[heappop(waiting)]
            self.step(node)
            for value in node.outputs:
                for reader in reading.get(value.name, ()) if value.name in self.places else ():
                    if reader not in seen:
                        seen.add(reader)
                        heappush(waiting, reader)

    def step(self, node: Node) -> None:
        read = _placed(self.places, node.data)
        captured = _placed(self.places, node.captures)
        name, place = next(iter((read or captured).items()))
        if node.op in SIZE_ONLY:
            if node.op == "size" or place.axis in extents_read(self.graph, node, place.rank):
                self.counting.append(node)
            return
        alone = all(value.constant is not None for value in node.data[1:]) and not captured
        picked = gathered(node, place, self.sizes) if alone else None
        if picked is not None:
            self.taken.append(Taken(node, name, place, picked))
            return
        made = None if captured else results(node, self.places, self.sizes)
        if made is None or len(made) != len(node.outputs) or any(value.captured for value in node.outputs):
            self.taken += [Taken(node, name, place) for name, place in (read | captured).items()]
            return
        self.nodes.append(node)
        for value, place in zip(node.outputs, made, strict=True):
            self.places[value.name] = place
            if value.is_output:
                self.taken.append(Taken(node, value.name, place))


def _placed(places: Mapping[str, Place], values: Sequence[Value]) -> dict[str, Place]:
    return {value.name: places[value.name] for value in values if value.name in places}
