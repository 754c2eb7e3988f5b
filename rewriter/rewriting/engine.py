"""From patterns to a rewritten graph: outputs first, then rounds of disjoint matches until nothing is left to do.

The one idea: each round matches on a snapshot, plans and proves disjoint rewrites, and applies them together; a match
that is refused gives back what it shadowed in the same round. Every plan lowers the number of nodes, or keeps it and
lowers the multiply-adds, so the rounds end: at a fixpoint, or at the limit, and the outcome says which. Nodes that no
output needs are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rewriter.algebra.cost import NO_SHAPES, TooDear
from rewriter.errors import Reason, Refusal
from rewriter.graph import measure
from rewriter.graph.measure import Shapes
from rewriter.graph.view import Graph, Node, Value
from rewriter.language.library import LoadedPattern
from rewriter.language.syntax import LOST, BodyMatch
from rewriter.matching import outputs
from rewriter.matching.find import Match, Query, find, query_of, select
from rewriter.reporting.record import (
    FoldRecord,
    MatchRecord,
    OutputsDecision,
    RefusalRecord,
    ShadowRecord,
    SizeRecord,
    StackRecord,
)
from rewriter.rewriting.actions import Done, Fresh, act
from rewriter.rewriting.aligned import align
from rewriter.rewriting.draft import Draft
from rewriter.rewriting.edits import Edit, RemoveOutput, Rewire
from rewriter.rewriting.narrow import narrow
from rewriter.rewriting.provenance import folded
from rewriter.rewriting.regions import Regions
from rewriter.rewriting.reroot import Assumed, Rerooting, Status, reroot, told, unhook
from rewriter.rewriting.sized import Sized
from rewriter.rewriting.storing import Stock

Progress = Callable[[str, float | None], None]
"""Told what is being done and, where it is known, which share of it is behind (0 to 1)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the rewriting found and did; the draft holds the result.

    `refusals` are those of the last round: what was refused earlier and still stands is refused again. `rounds` counts
    that round too, which at a fixpoint changed nothing.
    """

    decisions: tuple[OutputsDecision, ...]
    matches: tuple[MatchRecord, ...]
    refusals: tuple[RefusalRecord, ...]
    shadowed: tuple[ShadowRecord, ...]
    covered: int
    rounds: int
    end: str
    sizes: tuple[SizeRecord, ...] = ()  # read elsewhere, since they kept values from being folded


def rewrite(
    draft: Draft,
    patterns: Sequence[LoadedPattern],
    *,
    keep_all: bool = False,
    max_rounds: int = 100,
    progress: Progress | None = None,
    shapes: Shapes = NO_SHAPES,
) -> Outcome:
    """Apply `patterns` to `draft`; the order in which they are given decides nothing but exact ties.

    `shapes` are sizes by value name: where known, costs are counted per image and not per output pixel.

    Raises ChoiceError where an outputs pattern cannot tell which outputs are wanted.
    """
    tell = progress or _silent
    decisions, refusals = _settle_outputs(draft, patterns, keep_all)
    queries = [query_of_loaded(p) for p in patterns if isinstance(p.pattern.match, BodyMatch)]
    matches: list[MatchRecord] = []
    shadowed: list[ShadowRecord] = []
    covered, number, end = 0, 0, "fixpoint"
    last: list[RefusalRecord] = []
    sizes: list[SizeRecord] = []
    while queries:
        if number == max_rounds:
            end = "limit"
            break
        number += 1
        found = Round(draft.view(), draft.fresh, number, tell, shapes).run(queries)
        last = found.refusals
        if not found.edits:
            hooked = unhook(draft.view(), _escaped(draft.view(), last))
            views = align(draft.view()) if any(query.linear for query in queries) else []
            if not hooked.edits and not views:
                break
            draft.apply(hooked.edits or views)
            sizes += size_records(hooked)
            continue
        draft.apply(found.edits)
        matches += found.matches
        shadowed += found.shadowed
        covered += found.covered
    done = {(match.pattern, match.exit) for match in matches}
    return Outcome(
        decisions=tuple(decisions),
        matches=tuple(matches),
        refusals=tuple(dict.fromkeys(refusals + last)),
        shadowed=tuple(s for s in dict.fromkeys(shadowed) if (s.pattern, s.exit) not in done),  # not: in a later round
        covered=covered,
        rounds=number,
        end=end,
        sizes=tuple(sizes),
    )


def _silent(text: str, share: float | None) -> None:
    del text, share


def query_of_loaded(loaded: LoadedPattern) -> Query:
    params = {p.name: loaded.value(p.name) for p in loaded.pattern.params}
    return query_of(loaded.pattern, loaded.chains, params, loaded.gated)


def _settle_outputs(
    draft: Draft, patterns: Sequence[LoadedPattern], keep_all: bool
) -> tuple[list[OutputsDecision], list[RefusalRecord]]:
    """Outputs patterns come first: what dies with an output need not be folded."""
    decisions: list[OutputsDecision] = []
    refusals: list[RefusalRecord] = []
    for loaded in patterns:
        if isinstance(loaded.pattern.match, BodyMatch):
            continue
        graph = draft.view().as_stored
        params = {p.name: loaded.value(p.name) for p in loaded.pattern.params}
        decision = outputs.decide(graph, loaded.pattern, params, keep_all=keep_all)
        if isinstance(decision, Refusal):
            refusals.append(refusal_record(loaded.name, decision))
            continue
        sizes = _remove_outputs(draft, decision, allow_lost=params.get(LOST) is True)
        needed_after = len(draft.view().nodes), _parameters(draft.view())
        stacks, stayed = _narrow_stacks(draft, allow_lost=params.get(LOST) is True)
        decisions.append(
            OutputsDecision(
                pattern=loaded.name,
                kept=tuple(value.name for value in decision.kept),
                removed=tuple(value.name for value in decision.removed),
                how=decision.how,
                votes=decision.votes,
                removed_nodes=len(graph.nodes) - needed_after[0],
                removed_parameters=_parameters(graph) - needed_after[1],
                sizes=sizes,
                stacks=stacks,
                notes=(*decision.notes, *stayed, *_uncut(graph, draft.view().as_stored)),
            )
        )
    return decisions, refusals


def _remove_outputs(draft: Draft, decision: outputs.Decision, *, allow_lost: bool) -> tuple[SizeRecord, ...]:
    """Take the outputs out, and let what only they needed die even where the others read its size."""
    if not decision.removed:
        return ()
    draft.apply([RemoveOutput(value.name) for value in decision.removed])
    edits, known = told(draft.view(), allow_lost=allow_lost)
    draft.apply(edits)
    found = reroot(draft.view(), allow_lost=allow_lost)
    draft.apply(found.edits)
    records = (*size_records(Rerooting(moved=known.moved)), *size_records(found))
    said = {record.node for record in records}
    left = tuple([stayed for stayed in known.stayed if stayed.node not in said])
    return (*records, *size_records(Rerooting(stayed=left)))


def _uncut(before: Graph, after: Graph) -> Iterator[str]:
    """What is said of nodes that still compute, in a body or function, something that nobody reads any more."""
    for node in after.nodes:
        for value in node.outputs if node.layered else ():
            old = before.values.get(value.name)
            if old is not None and _is_read(old) and not _is_read(value):
                yield (
                    f"{_name(node)} still computes {value.name}, which nothing reads any more: "
                    "what is inside of a Loop, a Scan or a function is not cut"
                )


def _is_read(value: Value) -> bool:
    return bool(value.readers) or value.is_output or value.captured


def _narrow_stacks(draft: Draft, *, allow_lost: bool) -> tuple[tuple[StackRecord, ...], tuple[str, ...]]:
    """Let heads on stacks run on what is wanted alone; and what keeps the others."""
    records: list[StackRecord] = []
    while True:
        found = narrow(draft.view(), draft.fresh, allow_lost=allow_lost)
        records += [StackRecord(n.stack, n.operands, n.places, n.among, n.taken, n.lost) for n in found.done]
        if not found.done:
            return tuple(records), found.stayed
        draft.apply(found.edits)


def size_records(found: Rerooting) -> tuple[SizeRecord, ...]:
    moved = [SizeRecord(m.node, m.old, m.new, m.because, *_equations(m.assumptions)) for m in found.moved]
    stayed = [SizeRecord(s.node, s.old, None, s.why, *_equations(s.assumptions)) for s in found.stayed]
    return (*moved, *stayed)


def _equations(assumed: Sequence[Assumed]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that a node asserts which stays, and the lost ones."""
    implied = tuple(a.equation for a in assumed if a.status is Status.IMPLIED)
    return implied, tuple(a.equation for a in assumed if a.status is Status.LOST)


def _escaped(graph: Graph, refusals: Sequence[RefusalRecord]) -> set[str]:
    """The values that kept a match from happening since others read them, too."""
    makers = {r.node for r in refusals if r.code == Reason.ESCAPE}
    return {value.name for node in graph.nodes if _name(node) in makers for value in node.outputs}


def _parameters(graph: Graph) -> int:
    return sum(measure.parameters(graph, graph.nodes).values())


@dataclass(slots=True)
class Round:
    """One round: what it decided so far. It edits nothing; its `edits` are applied together when it is over."""

    graph: Graph
    fresh: Fresh
    number: int
    tell: Progress = _silent
    shapes: Shapes = field(default_factory=lambda: NO_SHAPES)
    edits: list[Edit] = field(default_factory=list[Edit])
    matches: list[MatchRecord] = field(default_factory=list[MatchRecord])
    refusals: list[RefusalRecord] = field(default_factory=list[RefusalRecord])
    shadowed: list[ShadowRecord] = field(default_factory=list[ShadowRecord])
    covered: int = 0
    owners: dict[int, Match] = field(default_factory=dict[int, Match])
    rewired: set[str] = field(default_factory=set[str])
    tried: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])  # (pattern, exit) that were refused
    behind: float = 0.0  # the share of the work that is
    sized: Sized = field(init=False)
    regions: Regions = field(init=False)
    said: dict[str, str] = field(default_factory=dict[str, str])  # nodes with readers elsewhere, and who said so
    stock: Stock = field(init=False)

    def __post_init__(self) -> None:
        self.sized = Sized(self.graph)
        self.stock = Stock(self.graph)

    def run(self, queries: Sequence[Query]) -> Round:
        candidates: list[Match] = []
        anchors = needed(self.graph)
        self.regions = Regions(self.graph, self.shapes, self.sized, [query for query in queries if query.linear])
        for query in sorted(queries, key=lambda query: query.pattern.priority):  # who is the most general speaks first
            candidates += self._found(query, anchors)
        processed = 0
        while candidates:
            winners, losers = select(self.graph, candidates, self.owners)
            winners.sort(key=lambda match: match.region.nodes[-1].index)  # the order of the model, whatever was given
            refused: list[Match] = []
            for done, match in enumerate(winners):
                self.behind = max(self.behind, processed / (processed + len(winners) - done))
                self.tell(f"round {self.number}: folding and proving", self.behind)
                processed += 1
                if not self._carry_out(match):
                    refused.append(match)
            candidates = self._released(refused, losers)
        return self

    def _found(self, query: Query, anchors: Sequence[int]) -> list[Match]:
        results = self.regions.of(query, anchors) if query.linear else find(self.graph, query, anchors)
        refusals = [r for r in results if isinstance(r, Refusal)]
        if self.regions.everything and not query.linear:
            refusals = self._unsaid(query, refusals)
        self.refusals += [refusal_record(query.name, r) for r in refusals]
        matches = [m for m in results if isinstance(m, Match)]
        return [m for m in matches if (query.name, m.region.exit.name) not in self.tried]

    def _unsaid(self, query: Query, near_misses: Sequence[Refusal]) -> list[Refusal]:
        """What is worth saying beside a pattern that takes everything linear and says why that is not more.

        What no pattern matches is then not linear, unless a value inside is read elsewhere; one pattern says so.
        """
        escaped = [miss for miss in near_misses if miss.code is Reason.ESCAPE]
        return [miss for miss in escaped if self.said.setdefault(miss.node, query.name) == query.name]

    def _carry_out(self, match: Match) -> bool:
        done = act(self.graph, match, self.fresh, self.shapes, self.sized)
        if isinstance(done, Refusal):
            self.refusals.append(refusal_record(match.query.name, done))
            self.tried.add((match.query.name, match.region.exit.name))
            return False
        self.owners.update((node.index, match) for node in match.region.nodes)
        renamed = {edit.old for edit in done.plan.edits if isinstance(edit, Rewire)}
        if renamed & self.rewired:
            return True  # a value can get one name only: this one waits for the next round
        self.rewired |= renamed
        plan, tensors = self.stock.once(done.plan, folded(match.region.nodes, done.plan.edits))
        self.edits += plan.edits
        self.matches.append(match_record(match, done, self.number, tensors, self.stock.saved(plan.edits)))
        return True

    def _released(self, refused: Sequence[Match], losers: Sequence[tuple[Match, Match]]) -> list[Match]:
        """What the refused matches shadowed, and what else they cover, is free again."""
        free: list[Match] = []
        for match in refused:
            inner = [node.index for node in match.region.nodes[:-1]]
            free += self._found(match.query, inner)
        for loser, winner in losers:
            if any(winner is match for match in refused):
                free.append(loser)
            else:
                self._shadow(loser, winner)
        return free

    def _shadow(self, loser: Match, winner: Match) -> None:
        inside = {n.index for n in loser.region.nodes} <= {n.index for n in winner.region.nodes}
        if inside:
            self.covered += 1
        else:
            exits = loser.region.exit.name, winner.region.exit.name
            self.shadowed.append(ShadowRecord(loser.query.name, exits[0], winner.query.name, exits[1]))


def needed(graph: Graph) -> list[int]:
    """The indices of the nodes that an output of the model needs."""
    needs = bytearray(len(graph.nodes))
    for node in reversed(graph.nodes):
        needs[node.index] = any(v.is_output or any(needs[r] for r in v.readers) for v in node.outputs)
    return [index for index, need in enumerate(needs) if need]


def refusal_record(pattern: str, refusal: Refusal) -> RefusalRecord:
    figures = (refusal.before, refusal.after) if isinstance(refusal, TooDear) else (None, None)
    return RefusalRecord(pattern, refusal.node, str(refusal.code), refusal.detail, *figures)


def match_record(
    match: Match, done: Done, number: int, tensors: tuple[FoldRecord, ...], saved_parameters: int
) -> MatchRecord:
    region = match.region
    return MatchRecord(
        pattern=match.query.name,
        round=number,
        exit=region.exit.name,
        entry=region.entry.name,
        nodes=tuple(_name(node) for node in region.nodes),
        summary=match.words,
        made=done.plan.made,
        leftovers=tuple(value.name for _, value in region.rest),
        before=done.before,
        after=done.after,
        proof=done.proof,
        tensors=tensors,
        saved_parameters=saved_parameters,
    )


def _name(node: Node) -> str:
    return node.name or node.output.name
