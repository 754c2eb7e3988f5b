"""Matches of one pattern in one graph: anchors, the longest reading at each, and refusals where it nearly matched.

Invariant: matching changes nothing, keeps nothing and names nothing by position; a `Match` or a `Refusal` is a value,
and both are in reverse topological order of their anchors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Graph, Node, Value
from rewriter.language.printer import expression_text
from rewriter.language.syntax import BodyMatch, Chain, Pattern
from rewriter.matching import sums
from rewriter.matching.predicates import attribute
from rewriter.matching.program import NOTHING, Program, compile_body, is_linear_region
from rewriter.matching.region import Region
from rewriter.matching.sums import Walk, depths
from rewriter.matching.walk import Search
from rewriter.matching.where import Bindings, holds


@dataclass(frozen=True, slots=True)
class Query:
    """A pattern ready to match: its body compiled and its parameters set."""

    pattern: Pattern
    program: Program
    params: Mapping[str, Any]
    cost_gate: bool = True

    @property
    def linear(self) -> bool:
        """True for `linear-region`: what to fold is planned, not matched."""
        return self.program is NOTHING

    @property
    def name(self) -> str:
        return self.pattern.name


@dataclass(frozen=True, slots=True)
class Match:
    """A place where a pattern fits: what it covers, what its labels stand for, and the reading in words."""

    query: Query
    region: Region
    labels: Mapping[str, tuple[Node, ...]]
    counts: Mapping[str, int]
    words: str

    @property
    def bindings(self) -> Bindings:
        return Bindings(self.labels, self.counts, self.query.params, attribute)


def find(graph: Graph, query: Query, anchors: Iterable[int] | None = None) -> list[Match | Refusal]:
    """Every match of `query`, one per anchor, and why near misses are none.

    `anchors` restricts it to nodes of these indices. Nodes inside a match found further down are passed over: they are
    asked for again, by their indices, when that match turns out to be refused.
    """
    search = Search(graph, query.name)
    firsts = query.program.firsts
    wanted = (firsts - {"sum"}) | (sums.SUM_OPS if "sum" in firsts else frozenset[str]())
    indices = range(len(graph.nodes)) if anchors is None else sorted(anchors)
    covered: set[int] = set()
    results: list[_Found] = []
    for index in reversed(indices):
        node = graph.nodes[index]
        if node.op not in wanted or index in covered or not node.outputs:
            continue
        if node.op in sums.SUM_OPS and not sums.is_root(graph, node):
            continue
        found = _at(search, query, node)
        results.append(found)
        if isinstance(found.result, Match):
            covered.update(n.index for n in found.result.region.nodes)
    exits = {found.result.region.exit.name for found in results if isinstance(found.result, Match)}
    return [found.result for found in results if found.result is not None and not found.settled(exits)]


@dataclass(frozen=True, slots=True)
class _Found:
    """What one anchor gave, and the sum that it led to."""

    result: Match | Refusal | None
    sum_at: Value | None = None

    def settled(self, exits: set[str]) -> bool:
        """A refusal behind a sum which then matched by itself, leaving operands over, is none."""
        return isinstance(self.result, Refusal) and self.sum_at is not None and self.sum_at.name in exits


def at(graph: Graph, query: Query, node: Node) -> Match | Refusal | None:
    """The longest match whose exit `node` makes; None where nothing but its operator fits."""
    return _at(Search(graph, query.name), query, node).result


def _at(search: Search, query: Query, node: Node) -> _Found:
    walked = search.at_exit(query.program, node.output)
    near = walked.sum_at is not None if query.program.sums else walked.depth > 0
    refusal = walked.near_miss if near else None
    for reading in sorted(walked.walks, key=lambda w: -len(w.nodes)):
        match = _match(query, node.output, reading)
        if match is None:
            continue
        false = next((clause for clause in query.pattern.where if not holds(clause, match.bindings)), None)
        if false is None:
            return _Found(match, walked.sum_at)
        refusal = Refusal(Reason.WHERE, match.region.name, f"{match.words}: {expression_text(false)} is false")
    return _Found(refusal, walked.sum_at)


def _match(query: Query, exit_: Value, reading: Walk) -> Match | None:
    if not reading.nodes:
        return None
    unique = {n.index: n for n in reading.nodes}
    nodes = tuple(unique[i] for i in sorted(unique))
    labels: dict[str, dict[int, Node]] = {}
    for label, node in reading.labels:
        labels.setdefault(label, {})[node.index] = node
    counts = Counter(node.op for node in nodes)
    for name, count in reading.counts:
        counts[name] += count
    bound = {label: tuple(found[i] for i in sorted(found)) for label, found in labels.items()}
    region = Region(reading.entry, reading.root or exit_, nodes, reading.rest)
    return Match(query, region, bound, dict(counts), reading.words)


def query_of(pattern: Pattern, chains: Mapping[str, Chain], params: Mapping[str, Any], cost_gate: bool) -> Query:
    """Compile a pattern with a body; outputs patterns have none and are not for this room's automata."""
    assert isinstance(pattern.match, BodyMatch)
    body = pattern.match.body
    return Query(pattern, NOTHING if is_linear_region(body) else compile_body(body, chains), params, cost_gate)


def select(
    graph: Graph, matches: Sequence[Match], taken: Mapping[int, Match]
) -> tuple[list[Match], list[tuple[Match, Match]]]:
    """Disjoint matches, and each loser with the winner that covers it; `taken` are nodes that have an owner already.

    By priority, then interior size, then topological depth (nearest to the outputs first), then what was matched in
    words; the order in which patterns were given decides only between equal candidates (pattern-language.md, Semantics
    8). Depths are counted only where matches overlap.
    """
    claims = Counter(n.index for match in matches for n in match.region.nodes)
    disputed = any(count > 1 or index in taken for index, count in claims.items())
    depth = depths(graph) if disputed else [0] * len(graph.nodes)

    def urgency(match: Match) -> tuple[int, int, int, str]:
        region = match.region
        return -match.query.pattern.priority, -len(region.nodes), -depth[region.nodes[-1].index], match.words

    owner = dict(taken)
    winners: list[Match] = []
    losers: list[tuple[Match, Match]] = []
    for match in sorted(matches, key=urgency):
        rivals = [owner[n.index] for n in match.region.nodes if n.index in owner]
        if rivals:
            losers.append((match, min(rivals, key=urgency)))
            continue
        winners.append(match)
        owner.update((n.index, match) for n in match.region.nodes)
    return winners, losers
