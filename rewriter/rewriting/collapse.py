"""Collapse: which parts of a linear region become one operator each, found without a pattern written for the block.

The one idea: the values that every path of a field goes through are the only places to cut it, so the cheapest cutting
is a shortest path along them (dynamic programming: fewest multiply-adds, then fewest nodes), where an edge is either a
run of slots that composes exactly and passes the cost gate, or one slot left as it is. A sum that does not fold whole
is taken apart: operands from one entry whose kernels go together fold, the others stay beside them.
Invariant: what is planned here decides nothing about right and wrong: every match is folded, gated and proved like any
other. Where a cut is made, a refusal says what going on would have cost or why it would not be exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from rewriter.algebra import cost, placement
from rewriter.algebra.affine import Affine
from rewriter.algebra.cost import NO_SHAPES, TooDear, Work
from rewriter.algebra.interpret import maps
from rewriter.algebra.linear import Form
from rewriter.algebra.terms import Aside, ends_behind
from rewriter.errors import Reason, Refusal
from rewriter.graph.measure import Shapes
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching import linear
from rewriter.matching.find import Match, Query
from rewriter.matching.linear import Chain
from rewriter.matching.region import Region
from rewriter.matching.sums import is_sum, title
from rewriter.reporting.record import Cost
from rewriter.rewriting.apart import FURTHEST, apart, written
from rewriter.rewriting.sized import Sized

WINDOW = 3
"""Slots that are composed at first; twice as many each time as long as all of them compose."""

KERNELS = frozenset({"conv", "conv_transpose", "linear"})
"""A region without any of these stays: a bare scale and shift would become a depthwise conv."""


def plan(
    graph: Graph,
    query: Query,
    anchors: Iterable[int] | None = None,
    shapes: Shapes = NO_SHAPES,
    sized: Sized | None = None,
) -> list[Match | Refusal]:
    """The regions to fold, exits nearest to the outputs first, and why none of them is larger."""
    planner = _Planner(graph, query, shapes, sized or Sized(graph))
    for index in sorted(range(len(graph.nodes)) if anchors is None else anchors, reverse=True):
        node = graph.nodes[index]
        if (unread := _unread_ring(graph, node)) is not None:
            planner.found.append(unread)
        if index in planner.settled or not linear.is_affine(node):
            continue
        if len(node.outputs) == 1:
            planner.at(node.output)
        planner.settled.add(index)
    return planner.found


def _unread_ring(graph: Graph, node: Node) -> Refusal | None:
    """What writes into the room that a Pad has made, where that is known only when the model runs."""
    if node.op != "scatter_nd" or len(node.data) < 2:
        return None
    maker = graph.producer(node.data[0])
    while maker is not None and maker.op in placement.KEEPS:
        maker = graph.producer(maker.data[0])
    if maker is None or maker.op != "pad":
        return None
    detail = (
        "where or what it writes around an image is known only at run time (the exporter of TorchScript keeps the size "
        "of its example there); exported by torch's other exporter, or with a fixed height and width, it may fold"
    )
    return Refusal(Reason.DYNAMIC, node.name or node.output.name, node.problem or detail)


@dataclass(frozen=True, slots=True)
class _Fold:
    """A run of slots as one operator."""

    form: Form
    before: Cost
    after: Cost
    nodes: int


@dataclass(slots=True)
class _Planner:
    graph: Graph
    query: Query
    shapes: Shapes
    sized: Sized
    settled: set[int] = field(default_factory=set[int])
    found: list[Match | Refusal] = field(default_factory=list["Match | Refusal"])

    def at(self, exit_: Value) -> None:
        """Plan everything that only `exit_` needs; what stays as it is may be the exit of something else."""
        whole = linear.grow(self.graph, exit_, self.settled)
        if len(whole.nodes) < 2 or not _has_kernel(whole.nodes):
            self.settled.update(node.index for node in whole.nodes)
            return
        chain = linear.chain_of(whole)
        cut = _Cut(self, chain, cost.work_of(whole.nodes, self.shapes))
        path = cut.shortest()
        for start, stop in path:
            self._carry_out(cut, start, stop)
        stay = [(start, stop) for start, stop in path if (start, stop) not in cut.folds]
        neighbours = [(first, last) for (first, _), (_, last) in pairwise(path)]
        notes = (cut.why_not(first, last) for first, last in (*stay, *neighbours))
        self.found += dict.fromkeys(note for note in notes if note is not None)

    def _carry_out(self, cut: _Cut, start: int, stop: int) -> None:
        entry, exit_ = cut.chain.values[start], cut.chain.values[stop]
        assert exit_ is not None and exit_.producer is not None
        if (start, stop) in cut.folds:
            assert entry is not None
            self._match(Region(entry, exit_, cut.nodes(start, stop)))
        elif not is_sum(self.graph.nodes[exit_.producer]) or not self._sum(exit_, cut.work):
            self.settled.add(exit_.producer)

    def _match(self, region: Region) -> None:
        self.settled.update(node.index for node in region.nodes)
        self.found.append(Match(self.query, region, {}, Counter(n.op for n in region.nodes), _words(region)))

    def _sum(self, root: Value, work: Work) -> bool:
        """Fold the operands of a sum that go together and leave the others; True where some do."""
        found = apart(self.graph, root, work, self.sized, self.settled, gated=self.query.cost_gate)
        self.found += found.refused
        if found.region is None:
            self.settled.update(found.looked_at)
            return False
        self._match(found.region)
        return True

    def accepts(self, before: Cost, after: Cost, bias: int, at: str) -> TooDear | None:
        return cost.gate(before, after, at=at, bias=bias) if self.query.cost_gate else None

    def worth(self, spent: Cost, nodes: int) -> tuple[float, float]:
        """What a cutting is judged by, the less the better."""
        return (spent.multiply_adds, nodes) if self.query.cost_gate else (nodes, spent.multiply_adds)


def _has_kernel(nodes: Iterable[Node]) -> bool:
    return any(node.op in KERNELS for node in nodes)


def _words(region: Region) -> str:
    counts = Counter("sum" if is_sum(node) else node.op for node in region.nodes)
    return f"linear region of {', '.join(f'{count} {op}' for op, count in sorted(counts.items()))}"


# --- cutting a chain -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cut:
    """A chain with every fold that its slots allow. `stops` says per start where composing ended, and why."""

    planner: _Planner
    chain: Chain
    work: Work
    folds: dict[tuple[int, int], _Fold] = field(default_factory=dict[tuple[int, int], _Fold])
    dear: dict[tuple[int, int], TooDear] = field(default_factory=dict[tuple[int, int], TooDear])
    stops: dict[int, tuple[int, Refusal]] = field(default_factory=dict[int, tuple[int, Refusal]])

    def nodes(self, start: int, stop: int) -> tuple[Node, ...]:
        return tuple(sorted((n for slot in self.chain.slots[start:stop] for n in slot), key=lambda n: n.index))

    def shortest(self) -> list[tuple[int, int]]:
        """The slots in runs, from the entry on: each a fold of its own or a single slot that stays."""
        count = len(self.chain.slots)
        best: list[tuple[float, float]] = [(0.0, 0.0), *[(inf, inf)] * count]
        back = [0] * (count + 1)
        for start in range(count):
            slot = self.chain.slots[start]
            stays = self.planner.worth(cost.cost_of_part(slot, self.work), len(slot))
            ways = [(start + 1, stays)]
            ways += ((stop, self.planner.worth(fold.after, fold.nodes)) for stop, fold in self._from(start))
            for stop, way in ways:
                if (through := _plus(best[start], way)) < best[stop]:
                    best[stop], back[stop] = through, start
        path: list[tuple[int, int]] = []
        stop = count
        while stop:
            path.append((back[stop], stop))
            stop = back[stop]
        return path[::-1]

    def _from(self, start: int) -> Iterator[tuple[int, _Fold]]:
        """Every fold that starts at a cut."""
        for stop, affine, views in self._composed(start):
            nodes = self.nodes(start, stop)
            if len(nodes) < 2 or not _has_kernel(nodes):
                continue
            found = self._fold(affine, start, stop, nodes, views)
            if isinstance(found, _Fold):
                self.folds[start, stop] = found
                yield stop, found
            elif isinstance(found, TooDear):
                self.dear[start, stop] = found

    def _composed(self, start: int) -> Iterator[tuple[int, Affine, tuple[Node, ...]]]:
        """The map to each later cut, as far as composing is exact, and the views that stay behind it."""
        entry, count = self.chain.values[start], len(self.chain.slots)
        if entry is None:
            return
        stop, window = start, max(min(WINDOW, count - start), self._to_kernel(start))
        while stop < min(count, start + FURTHEST):
            last = min(count, start + window)
            found = maps(self._region(start, last))
            while stop < last:
                stop += 1
                value = self.chain.values[stop]
                affine = found.get(value.name) if value is not None else None
                views: tuple[Node, ...] = ()
                if isinstance(affine, Aside):
                    if not ends_behind(affine, value):
                        continue
                    affine, views = affine.map, affine.views or ()
                if affine is None or isinstance(affine, Refusal):
                    if affine is not None:
                        self.stops[start] = stop, affine
                    return
                yield stop, affine, views
            window *= 2

    def _to_kernel(self, start: int) -> int:
        """Slots up to the first kernel: what is before it may not tell which axis holds the channels."""
        slots = self.chain.slots[start : start + FURTHEST]
        return next((i for i, slot in enumerate(slots, 1) if _has_kernel(slot)), 0)

    def _fold(
        self, affine: Affine, start: int, stop: int, nodes: Sequence[Node], views: Sequence[Node]
    ) -> _Fold | Refusal:
        region = self._region(start, stop)
        form = written(affine, region)
        if isinstance(form, Refusal):
            return form
        before = cost.cost_of_part(nodes, self.work)
        after = cost.cost_of_form(form, self.work, region, views)
        if not cost.saves(before, after, len(nodes), form.nodes + len(views)):
            return Refusal(Reason.COST, region.name, "the fold would not save a node")
        bias = 0 if form.bias is None else form.bias.size
        dear = self.planner.accepts(before, after, bias, region.name)
        return dear if dear is not None else _Fold(form, before, after, form.nodes + len(views))

    def _region(self, start: int, stop: int) -> Region:
        entry, exit_ = self.chain.values[start], self.chain.values[stop]
        assert entry is not None and exit_ is not None
        return self.planner.sized.entered(Region(entry, exit_, self.nodes(start, stop)))

    def why_not(self, first: int, last: int) -> Refusal | None:
        """Why slots are not one operator: the figures, or where it would not have been exact."""
        dear = self.dear.get((first, last))
        if dear is not None:
            return dear
        exit_ = self.chain.values[last]
        name = "" if exit_ is None else title(self.planner.graph, exit_)
        fold = self.folds.get((first, last))
        if fold is not None:
            apart = cost.cost_of_part(self.nodes(first, last), self.work)
            words = cost.in_words(apart, fold.after)
            return TooDear(Reason.COST, name, f"in one it would cost more than apart: {words}", apart, fold.after)
        stop = self.stops.get(first)
        if stop is None or stop[0] > last or stop[1].code is Reason.OP:
            return None
        nodes = self.nodes(first, stop[0])
        return stop[1] if len(nodes) > 1 and _has_kernel(nodes) else None


def _plus(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]
