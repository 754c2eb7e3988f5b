"""Patterns in the bodies that a program runs, and one account of the program and them.

Invariant: a node of a body is called by the name of its body and its own; tensors are called as in the state dict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rewriter.language.library import LoadedPattern
from rewriter.language.syntax import BodyMatch
from rewriter.reporting.record import MatchRecord, RefusalRecord, ShadowRecord, Totals
from rewriter.rewriting.engine import Outcome, Progress, rewrite
from rewriter.torch_graphs.body_draft import BodyDraft
from rewriter.torch_graphs.program_draft import ProgramDraft


def rewritten(
    outer: ProgramDraft,
    inner: Sequence[BodyDraft],
    patterns: Sequence[LoadedPattern],
    *,
    max_rounds: int,
    progress: Progress | None,
) -> list[tuple[BodyDraft, Outcome]]:
    """Rewrite bodies, put them into the program, and give those that may stand with what was found in them."""
    exact = [loaded for loaded in patterns if isinstance(loaded.pattern.match, BodyMatch)]
    found: list[tuple[BodyDraft, Outcome]] = []
    for body in inner:
        shapes = {value.name: value.shape for value in body.view().values.values() if value.shape is not None}
        outcome = rewrite(body, exact, max_rounds=max_rounds, progress=progress, shapes=shapes)
        if not body.edited or body.stands():
            found.append((body, outcome))
        if body.stands():
            made = body.finish({})
            outer.take(body.runner, body.leading, made, body.given())
    return found


def joined(whole: Outcome, parts: Sequence[tuple[BodyDraft, Outcome]]) -> Outcome:
    """What was found in the program and in its bodies, as one."""
    for body, found in parts:
        where = body.target
        whole = replace(
            whole,
            matches=(*whole.matches, *[_match(record, where) for record in found.matches]),
            refusals=(*whole.refusals, *[_refusal(record, where) for record in found.refusals]),
            shadowed=(*whole.shadowed, *[_shadow(record, where) for record in found.shadowed]),
            covered=whole.covered + found.covered,
            rounds=max(whole.rounds, found.rounds),
            end=found.end if whole.end == "fixpoint" else whole.end,
        )
    return whole


def _match(record: MatchRecord, where: str) -> MatchRecord:
    nodes, made = (tuple(f"{where}/{name}" for name in names) for names in (record.nodes, record.made))
    return replace(record, exit=f"{where}/{record.exit}", entry=f"{where}/{record.entry}", nodes=nodes, made=made)


def _refusal(record: RefusalRecord, where: str) -> RefusalRecord:
    return replace(record, node=f"{where}/{record.node}")


def _shadow(record: ShadowRecord, where: str) -> ShadowRecord:
    return replace(record, exit=f"{where}/{record.exit}", by_exit=f"{where}/{record.by_exit}")


def summed(whole: Totals, parts: Sequence[Totals]) -> Totals:
    """A program with its bodies; what is stored is the program's already."""
    for part in parts:
        known = whole.multiply_adds is not None and part.multiply_adds is not None
        ops = Counter(dict(whole.ops)) + Counter(dict(part.ops))
        whole = replace(
            whole,
            nodes=whole.nodes + part.nodes,
            ops=tuple(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
            parameters=whole.parameters + part.parameters,
            multiply_adds=(whole.multiply_adds or 0) + (part.multiply_adds or 0) if known else None,
        )
    return whole
