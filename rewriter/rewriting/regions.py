"""Linear regions for several patterns: planned once, and handed to each pattern whose conditions they meet.

Invariant: a pattern that looks for linear regions gets those that it would get alone. Why regions are not larger is
said once, by the pattern with the fewest conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rewriter.errors import Reason, Refusal
from rewriter.graph.measure import Shapes
from rewriter.graph.view import Graph
from rewriter.language.printer import expression_text
from rewriter.matching.find import Match, Query
from rewriter.matching.where import holds
from rewriter.rewriting import collapse
from rewriter.rewriting.sized import Sized


@dataclass(slots=True)
class Regions:
    """The plans of one graph, by gate and anchors; `queries` are all that may ask."""

    graph: Graph
    shapes: Shapes
    sized: Sized
    queries: Sequence[Query]
    _plans: dict[tuple[bool, tuple[int, ...]], list[Match | Refusal]] = field(
        default_factory=dict[tuple[bool, tuple[int, ...]], list[Match | Refusal]]
    )

    @property
    def everything(self) -> bool:
        """Whether some pattern takes linear regions without conditions."""
        return any(not query.pattern.where for query in self.queries)

    def of(self, query: Query, anchors: Sequence[int]) -> list[Match | Refusal]:
        key = query.cost_gate, tuple(anchors)
        if key not in self._plans:
            self._plans[key] = collapse.plan(self.graph, query, anchors, self.shapes, self.sized)
        speaks = query is min(self.queries, key=lambda other: len(other.pattern.where))
        found = (_read(query, item) if isinstance(item, Match) else item for item in self._plans[key])
        return [item for item in found if isinstance(item, Match) or speaks]


def _read(query: Query, planned: Match) -> Match | Refusal:
    """A region as a match of the pattern, or the first of its conditions that is false."""
    match = Match(query, planned.region, planned.labels, planned.counts, planned.words)
    for clause in query.pattern.where:
        if not holds(clause, match.bindings):
            return Refusal(Reason.WHERE, match.region.name, f"{match.words}: {expression_text(clause)} is false")
    return match
