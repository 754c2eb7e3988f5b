"""Looking without touching: where a model's parameters are, and what patterns would do to it.

Invariant: everything here works on views and on paper; no model is edited, and the figures of different patterns are
each of that pattern alone on the model as it is, so they do not add up.
"""

from __future__ import annotations

from dataclasses import replace

from rewriter.algebra.cost import NO_SHAPES
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
from rewriter.rewriting.reroot import reroot


def on_paper(graph: Graph, loaded: LoadedPattern, shapes: Shapes = NO_SHAPES) -> list[MatchRecord | RefusalRecord]:
    """Every rewrite that a pattern alone would do in its first round, folded and proved, then every near miss."""
    found = Round(graph, lambda hint: hint, 1, shapes=shapes).run([query_of_loaded(loaded)])
    return [*found.matches, *dict.fromkeys(found.refusals)]


def outlook(graph: Graph, loaded: LoadedPattern, shapes: Shapes = NO_SHAPES) -> PatternOutlook:
    """What one pattern would save on the model as it is."""
    if not isinstance(loaded.pattern.match, BodyMatch):
        return _outputs_outlook(graph, loaded, shapes)
    matches = [record for record in on_paper(graph, loaded, shapes) if isinstance(record, MatchRecord)]
    pairs = [(m.before, m.after) for m in matches if m.before and m.after]
    saved = sum(match.saved_parameters for match in matches)
    whole = all(not before.per_pixel and not after.per_pixel for before, after in pairs)
    less = sum(int(before.multiply_adds - after.multiply_adds) for before, after in pairs) if whole else None
    return PatternOutlook(loaded.name, len(matches), saved, less)


def _outputs_outlook(graph: Graph, loaded: LoadedPattern, shapes: Shapes) -> PatternOutlook:
    params = {p.name: loaded.value(p.name) for p in loaded.pattern.params}
    try:
        decision = outputs.decide(graph, loaded.pattern, params)
    except ChoiceError as choice:
        return PatternOutlook(loaded.name, 0, 0, note=f"needs --keep: {str(choice).splitlines()[0]}")
    if isinstance(decision, Refusal):
        return PatternOutlook(loaded.name, 0, 0, note=decision.detail)
    if not decision.removed:
        return PatternOutlook(loaded.name, 0, 0, note=decision.how)
    names = ", ".join(value.name for value in decision.removed)
    stays, stayed = (
        _needed_by(graph, {value.name for value in graph.outputs}),
        _needed_by(graph, {v.name for v in decision.kept}),
    )
    nodes = [node for node in graph.nodes if stays[node.index]]
    left = [node for node in nodes if stayed[node.index]]
    saved = sum(measure.parameters(graph, nodes).values()) - sum(measure.parameters(graph, left).values())
    less = measure.multiply_adds([node for node in nodes if not stayed[node.index]], shapes)
    return PatternOutlook(loaded.name, len(decision.removed), saved, less, f"removes {names}")


def _needed_by(graph: Graph, names: set[str]) -> bytearray:
    """The nodes that outputs cannot do without, with sizes read elsewhere where that is possible."""
    moved = {edit.node.index: edit.old for edit in reroot(graph, names).edits}  # to what is needed anyway
    needed = bytearray(len(graph.nodes))
    for node in reversed(graph.nodes):
        needed[node.index] = any(
            value.name in names or any(needed[r] and moved.get(r) != value.name for r in value.readers)
            for value in node.outputs
        )
    return needed


def needs(graph: Graph, shapes: Shapes) -> tuple[tuple[OutputNeeds, ...], Share, tuple[str, ...]]:
    """What each output needs, alone and with others; what all of them need; and the nodes that none needs.

    A tensor that nodes of two outputs read belongs to both, even where no node does: the shares of two outputs and
    what they share add up to the whole. What is read for its size alone is needed only where nothing else has it.
    """
    cones = _with_sizes_elsewhere(Cones.of(graph))
    everyone = cones.mask(cones.outputs)

    def share(wanted: int, among: int) -> Share:
        nodes = [n for n, mask in zip(graph.nodes, cones.needed, strict=True) if mask and mask & among == wanted]
        parameters, stored = cones.parameters_of(wanted, among), cones.bytes_of(wanted, among)
        return Share(len(nodes), parameters, measure.multiply_adds(nodes, shapes), stored)

    per_output = tuple(
        OutputNeeds(output.name, needed=share(bit, bit), exclusive=share(bit, everyone))
        for output in cones.outputs
        for bit in [cones.bit(output)]
    )
    dead = tuple(n.name or n.op for n, mask in zip(graph.nodes, Cones.of(graph).needed, strict=True) if not mask)
    return per_output, share(everyone, everyone) if everyone else Share(0, 0, 0, 0), dead


def _with_sizes_elsewhere(cones: Cones) -> Cones:
    """Cones in which a node that gives one output nothing but a size is not needed by it."""
    needed = [0] * len(cones.graph.nodes)
    for output in cones.outputs:
        bit = cones.bit(output)
        for index, mine in enumerate(_needed_by(cones.graph, {output.name})):
            needed[index] |= bit if mine else 0
    return replace(cones, needed=needed)
