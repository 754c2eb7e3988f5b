"""What every rendering of a report says, as plain values: the headline, what changed by operator, and the groups.

Invariant: nothing here is formatted for a medium and nothing is escaped; renderers do both, so a terminal, a Markdown
file and later a page cannot disagree about a figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rewriter.checking.record import Verdict, Verification
from rewriter.reporting import figures
from rewriter.reporting.record import (
    Cost,
    MatchRecord,
    OutputInfo,
    OutputsDecision,
    PatternSource,
    Proof,
    RefusalRecord,
    Report,
    ScrubRecord,
    SizeRecord,
    StackRecord,
    Totals,
)

Number = TypeVar("Number", int, float)

EXAMPLES = 3  # of every group; the JSON report holds them all


@dataclass(frozen=True, slots=True)
class TotalsRow:
    name: str
    before: str
    after: str
    change: str
    at: str = ""  # for which sizes it is counted, where the model leaves them open


@dataclass(frozen=True, slots=True)
class OpRow:
    op: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class MatchGroup:
    pattern: str
    count: int
    nodes: int  # that went
    made: int  # that came
    saved_parameters: int  # that the model stores less; fewer than 0: more
    examples: tuple[MatchRecord, ...]


@dataclass(frozen=True, slots=True)
class RefusalGroup:
    pattern: str
    code: str
    count: int
    node: str  # of the example: the first of the model
    detail: str


@dataclass(frozen=True, slots=True)
class ProofSummary:
    proved: int
    unproved: int  # matches that needed no proof: nothing was computed
    worst: Proof | None
    worst_exit: str


def headline(report: Report) -> str:
    """One line: what it was, what it is."""
    before, after = report.before, report.after
    if not report.changed:
        return "nothing to rewrite: " + sizes(before)
    parts = [_moved(before.parameters, after.parameters, "parameters", figures.short)]
    parts.append(_moved(before.nodes, after.nodes, "nodes", figures.count))
    if before.multiply_adds is not None and after.multiply_adds is not None:
        parts.append(_moved(before.multiply_adds, after.multiply_adds, "multiply-adds", figures.short))
    return ", ".join(parts)


def sizes(totals: Totals) -> str:
    """A model in one line."""
    macs = "" if totals.multiply_adds is None else f", {figures.short(totals.multiply_adds)} multiply-adds"
    parameters = "1 parameter" if totals.parameters == 1 else f"{figures.short(totals.parameters)} parameters"
    return f"{parameters}, {figures.plural(totals.nodes, 'node')}{macs}"


def _moved(before: int, after: int, what: str, shown: Callable[[int], str]) -> str:
    """ "51.2M → 25.3M parameters"; whole numbers where the short ones would look alike."""
    if before == after:
        return f"{shown(before)} {what} as before"
    if shown(before) == shown(after):
        shown = figures.count
    return f"{shown(before)} → {shown(after)} {what}"


def totals_rows(before: Totals, after: Totals) -> tuple[TotalsRow, ...]:
    return (
        TotalsRow(
            "parameters",
            figures.count(before.parameters),
            figures.count(after.parameters),
            figures.change(before.parameters, after.parameters),
        ),
        TotalsRow(
            "multiply-adds",
            figures.short(before.multiply_adds),
            figures.short(after.multiply_adds),
            figures.change(before.multiply_adds, after.multiply_adds),
            counted_at(before),
        ),
        TotalsRow(
            "nodes",
            figures.count(before.nodes),
            figures.count(after.nodes),
            figures.change(before.nodes, after.nodes),
        ),
        TotalsRow(
            "size", figures.size(before.bytes), figures.size(after.bytes), figures.change(before.bytes, after.bytes)
        ),
        TotalsRow("outputs", str(len(before.outputs)), str(len(after.outputs)), ""),
    )


def counted_at(totals: Totals) -> str:
    """ " at images 1x3x640x640"; "" where the model says all sizes itself."""
    said = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in totals.at)
    return f" at {said}" if said else ""


def changed_ops(before: Totals, after: Totals) -> tuple[tuple[OpRow, ...], int]:
    """Operators whose count changed, by falling change, and how many operators did not change."""
    old, new = dict(before.ops), dict(after.ops)
    rows = [OpRow(op, old.get(op, 0), new.get(op, 0)) for op in sorted(old.keys() | new.keys())]
    moved = sorted((row for row in rows if row.before != row.after), key=lambda row: -abs(row.before - row.after))
    return tuple(moved), len(rows) - len(moved)


def output_info(report: Report, name: str) -> OutputInfo | None:
    return next((info for info in report.before.outputs if info.name == name), None)


def sizes_moved(decision: OutputsDecision) -> tuple[tuple[SizeRecord, ...], tuple[SizeRecord, ...]]:
    """Shapes that read elsewhere now, and those that could not."""
    moved = tuple(size for size in decision.sizes if size.new is not None)
    return moved, tuple(size for size in decision.sizes if size.new is None)


def given(size: SizeRecord, escaped: Callable[[str], str]) -> str:
    """What the equality rests on: what a node that stays checks, and what nobody checks any more."""
    said = (("given", size.assumptions), ("no longer checked:", size.lost))
    return "".join(f"; {word} {', '.join(map(escaped, equations))}" for word, equations in said if equations)


def stack_line(stack: StackRecord) -> str:
    """What became of heads that ran on a stack."""
    takers, kept = ", ".join(stack.taken), ", ".join(stack.kept)
    numbers = ", ".join(f"{place + 1}" for place in stack.places)
    part = "one part" if len(stack.kept) == 1 else "some parts"
    lost = f"; no longer checked: {', '.join(stack.lost)}" if stack.lost else ""
    which = f"{kept} (number {numbers} of {stack.operands})"
    return f"{stack.stack}: {takers} took {part} of the stack, so the heads run on {which} alone{lost}"


def scrub_line(scrubbed: ScrubRecord) -> str:
    """ "stack traces: 992, 1.2 MB (the first: pkg.torch.onnx.stack_trace)"."""
    size = figures.size(scrubbed.bytes)
    return f"{scrubbed.kind}: {scrubbed.count:,}, {size} (the first: {scrubbed.example})"


def unhooked_line(sizes: Sequence[SizeRecord]) -> str:
    """Sizes that kept values from being folded, and what they are read from."""
    first = sizes[0]
    count = figures.plural(len(sizes), "size")
    return f"{count} read of values that could be folded, now of equal ones: {first.node}: {first.old} → {first.new}"


def moved_line(moved: Sequence[SizeRecord]) -> str:
    return f"{figures.plural(len(moved), 'size')} read from what stays, proved equal"


def stayed_line(stayed: Sequence[SizeRecord]) -> str:
    return f"{figures.plural(len(stayed), 'size')} still read from what only the removed outputs needed, so that stays"


def match_groups(report: Report) -> tuple[MatchGroup, ...]:
    """Matches by pattern, in the order in which the patterns first matched."""
    by_pattern: dict[str, list[MatchRecord]] = {}
    for match in report.matches:
        by_pattern.setdefault(match.pattern, []).append(match)
    return tuple(_match_group(pattern, found) for pattern, found in by_pattern.items())


def _match_group(pattern: str, found: list[MatchRecord]) -> MatchGroup:
    seen: set[str] = set()
    examples: list[MatchRecord] = []
    for match in found:
        if match.summary not in seen and len(examples) < EXAMPLES:  # one of each kind tells more than three alike
            seen.add(match.summary)
            examples.append(match)
    nodes = sum(len(match.nodes) for match in found)
    made = sum(len(match.made) for match in found)
    saved = sum(match.saved_parameters for match in found)
    return MatchGroup(pattern, len(found), nodes, made, saved, tuple(examples))


def patterns_used(report: Report) -> tuple[tuple[PatternSource, ...], int]:
    """Those that decided about outputs or matched, and how many others there were."""
    names = {match.pattern for match in report.matches} | {decision.pattern for decision in report.decisions}
    used = tuple(pattern for pattern in report.patterns if pattern.name in names)
    return used, len(report.patterns) - len(used)


def saved_words(group: MatchGroup) -> str:
    """What the folds of a group together store less; "" where that is nothing."""
    saved = group.saved_parameters
    if saved < 0:
        return f"{figures.plural(-saved, 'parameter')} more, since layers shared a weight and fold differently"
    return f"{figures.plural(saved, 'parameter')} saved" if saved else ""


def cost_line(before: Cost | None, after: Cost | None) -> str:
    """What a fold costs before and after; "" where nothing is known."""
    if before is None or after is None:
        return ""
    unit = "multiply-adds per output pixel" if before.per_pixel else "multiply-adds"
    parts = [
        _became(before.multiply_adds, after.multiply_adds, lambda n: f"{n:,.0f}", unit),
        _became(before.parameters, after.parameters, figures.count, "parameters"),
        _became(before.bytes, after.bytes, figures.size, ""),
    ]
    return ", ".join(parts)


def _became(before: Number, after: Number, shown: Callable[[Number], str], what: str) -> str:
    figures_ = shown(before) if before == after else f"{shown(before)} → {shown(after)}"
    return f"{figures_} {what}".rstrip()


def too_dear(report: Report) -> tuple[RefusalRecord, ...]:
    """What would have been exact and was left alone for its cost."""
    return tuple(refusal for refusal in report.refusals if refusal.before is not None)


def refusal_groups(report: Report) -> tuple[RefusalGroup, ...]:
    """Refusals by pattern and reason, the most frequent first, each with one example: there may be thousands."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for refusal in report.refusals:
        groups.setdefault((refusal.pattern, refusal.code), []).append((refusal.node, refusal.detail))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(RefusalGroup(pattern, code, len(found), *found[0]) for (pattern, code), found in ordered)


def proof_summary(report: Report) -> ProofSummary:
    worst: Proof | None = None
    worst_exit = ""
    proved = 0
    for match in report.matches:
        if match.proof is None:
            continue
        proved += 1
        if worst is None or _badness(match.proof) > _badness(worst):
            worst, worst_exit = match.proof, match.exit
    return ProofSummary(proved, len(report.matches) - proved, worst, worst_exit)


def _badness(proof: Proof) -> tuple[bool, float]:
    """To be compared: a nan is worse than any number."""
    return (True, 0.0) if math.isnan(proof.error) else (False, proof.error)


def proof_line(report: Report) -> str:
    """How many regions were proved and the worst figure; "" where nothing was computed."""
    proof = proof_summary(report)
    if proof.worst is None:
        return ""
    return (
        f"{figures.plural(proof.proved, 'region')} proved in float64, worst error {figures.error(proof.worst.error)} "
        f"of {figures.error(proof.worst.limit)} allowed"
    )


def verdict_line(verification: Verification) -> str:
    """The whole-model comparison in one line, loud where it is not OK."""
    outputs = figures.plural(len(verification.outputs), "output")
    match verification.verdict:
        case Verdict.OK:
            if not verification.outputs:
                return f"verified: {verification.reason or 'there was nothing to compare'}"
            return f"verified: {outputs} equal within tolerance"
        case Verdict.INCONCLUSIVE:
            return f"INCONCLUSIVE: {verification.reason or 'the original is too inexact in itself to compare with'}"
        case Verdict.FAILED:
            return f"VERIFICATION FAILED: {verification.reason or outputs}"
        case Verdict.NOT_VERIFIED:
            return f"NOT VERIFIED: {verification.reason or 'no reason was given'}"


def end_line(report: Report) -> str:
    rounds = figures.plural(report.rounds, "round")
    if report.end == "fixpoint":
        return f"{rounds}, fixpoint: applying the same patterns again changes nothing"
    return f"{rounds}, LIMIT reached: more may be left to rewrite; raise --max-rounds"
