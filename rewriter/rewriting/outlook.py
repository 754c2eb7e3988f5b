"""Looking without touching: where a model's parameters are, and what patterns would do to it.

Invariant: everything here works on views and on paper; no model is edited, and the figures of different patterns are
each of that pattern alone on the model as it is, so they do not add up.
"""

from __future__ import annotations

from rewriter.errors import ChoiceError, Refusal
from rewriter.graph import measure
from rewriter.graph.measure import Shapes
from rewriter.graph.view import Graph
from rewriter.language.library import LoadedPattern
from rewriter.language.syntax import BodyMatch
from rewriter.matching import outputs
from rewriter.matching.cones import Cones
from rewriter.reporting.record import MatchRecord, OutputNeeds, PatternOutlook, RefusalRecord, Share
from rewriter.rewriting.engine import Round, query_of_loaded


def on_paper(graph: Graph, loaded: LoadedPattern) -> list[MatchRecord | RefusalRecord]:
    """Every rewrite that a pattern alone would do in its first round, folded and proved, then every near miss."""
    found = Round(graph, lambda hint: hint, 1).run([query_of_loaded(loaded)])
    return [*found.matches, *dict.fromkeys(found.refusals)]


def outlook(graph: Graph, loaded: LoadedPattern) -> PatternOutlook:
    """What one pattern would save on the model as it is."""
    if not isinstance(loaded.pattern.match, BodyMatch):
        return _outputs_outlook(graph, loaded)
    matches = [record for record in on_paper(graph, loaded) if isinstance(record, MatchRecord)]
    saved = sum(m.before.parameters - m.after.parameters for m in matches if m.before and m.after)
    return PatternOutlook(loaded.name, len(matches), saved)


def _outputs_outlook(graph: Graph, loaded: LoadedPattern) -> PatternOutlook:
    params = {p.name: loaded.value(p.name) for p in loaded.pattern.params}
    try:
        decision = outputs.decide(graph, loaded.pattern, params)
    except ChoiceError as choice:
        return PatternOutlook(loaded.name, 0, 0, f"needs --keep: {str(choice).splitlines()[0]}")
    if isinstance(decision, Refusal):
        return PatternOutlook(loaded.name, 0, 0, decision.detail)
    if not decision.removed:
        return PatternOutlook(loaded.name, 0, 0, decision.how)
    names = ", ".join(value.name for value in decision.removed)
    return PatternOutlook(loaded.name, len(decision.removed), outputs.removal(graph, decision)[1], f"removes {names}")


def needs(graph: Graph, shapes: Shapes) -> tuple[tuple[OutputNeeds, ...], Share, tuple[str, ...]]:
    """What each output needs, alone and with others; what all of them need; and the nodes that none needs.

    A tensor that nodes of two outputs read belongs to both, even where no node does: the shares of two outputs and
    what they share add up to the whole.
    """
    cones = Cones.of(graph)
    everyone = cones.mask(cones.outputs)

    def share(wanted: int, among: int) -> Share:
        nodes = [n for n, mask in zip(graph.nodes, cones.needed, strict=True) if mask and mask & among == wanted]
        return Share(len(nodes), cones.parameters_of(wanted, among), measure.multiply_adds(nodes, shapes))

    per_output = tuple(
        OutputNeeds(output.name, needed=share(bit, bit), exclusive=share(bit, everyone))
        for output in cones.outputs
        for bit in [cones.bit(output)]
    )
    dead = tuple(n.name or n.op for n, mask in zip(graph.nodes, cones.needed, strict=True) if not mask)
    return per_output, share(everyone, everyone) if everyone else Share(0, 0, 0), dead
