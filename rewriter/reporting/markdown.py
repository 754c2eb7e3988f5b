"""A report as Markdown (GFM tables), for pull requests and model cards.

Invariant: names are code spans and everything else that comes from a model is escaped, so a name can add neither a
link, an image, a tag, a table cell nor a heading; the text holds the same figures as the one for the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rewriter.checking.record import Verification
from rewriter.reporting import figures, summary
from rewriter.reporting.escape import code, markdown
from rewriter.reporting.record import OutputsDecision, Report


def to_markdown(report: Report) -> str:
    """The whole report as one Markdown document, ending in a line break."""
    return "\n".join(_document(report)).rstrip("\n") + "\n"


def _document(report: Report) -> Iterator[str]:
    yield f"# {code(report.model)}"
    yield ""
    yield f"**{summary.headline(report)}**"
    yield ""
    if report.output is not None:
        yield f"Written to {code(report.output)}."
        yield ""
    yield _verdict(report.verification)
    yield ""
    for decision in report.decisions:
        yield from _decision(report, decision)
    yield "## Totals"
    yield ""
    figures_ = summary.totals_rows(report.before, report.after)
    rows = [(row.name + markdown(row.at), row.before, row.after, row.change) for row in figures_]
    yield from _table(("", "before", "after", "change"), rows, numeric=(1, 2, 3))
    yield from _operators(report)
    yield from _rewrites(report)
    if report.sizes:
        yield markdown(summary.unhooked_line(report.sizes))
        yield ""
    if report.scrubbed:
        yield "## Scrubbed"
        yield ""
        yield from (f"- {markdown(line)}" for line in map(summary.scrub_line, report.scrubbed))
        yield ""
    yield from _refusals(report)
    yield from _certainty(report)
    yield from _origin(report)


def _verdict(found: Verification) -> str:
    line = markdown(summary.verdict_line(found))
    return line if found.verdict == "ok" else f"> **{line}**"


def _decision(report: Report, decision: OutputsDecision) -> Iterator[str]:
    yield f"## Outputs ({code(decision.pattern)}, {markdown(decision.how)})"
    yield ""
    for said, names in (("removed", decision.removed), ("kept", decision.kept)):
        for name in names:
            info = summary.output_info(report, name)
            kind = f" {markdown(info.dtype + figures.shape(info.shape))}" if info else ""
            yield f"- {said} {code(name)}{kind}"
    if decision.removed_nodes:
        nodes = figures.plural(decision.removed_nodes, "node")
        lost = figures.plural(decision.removed_parameters, "parameter")
        yield f"- only the removed outputs needed {nodes} with {lost}"
    moved, stayed = summary.sizes_moved(decision)
    for title, sizes in ((summary.moved_line(moved), moved), (summary.stayed_line(stayed), stayed)):
        if not sizes:
            continue
        yield f"- {title}"
        for size in sizes[: summary.EXAMPLES]:
            became = "" if size.new is None else f"{code(size.old)} → {code(size.new)}, "
            yield f"  - {code(size.node)}: {became}{markdown(size.because)}{summary.given(size, markdown)}"
        yield from _more(len(sizes) - summary.EXAMPLES)
    for line in (*map(summary.stack_line, decision.stacks), *decision.notes):
        yield f"- {markdown(line)}"
    yield ""
    votes = [(code(v.name), v.value, "yes" if v.counts else "no", markdown(v.detail)) for v in decision.votes]
    if votes:
        yield from _table(("vote on (main, aux)", "says", "counts", "evidence"), votes)


def _operators(report: Report) -> Iterator[str]:
    rows, same = summary.changed_ops(report.before, report.after)
    if not rows:
        return
    yield "## Operators"
    yield ""
    cells = [
        (code(row.op), figures.count(row.before), figures.count(row.after), figures.signed(row.after - row.before))
        for row in rows
    ]
    yield from _table(("operator", "before", "after", "change"), cells, numeric=(1, 2, 3))
    if same:
        yield f"{figures.plural(same, 'other operator')} as before."
        yield ""


def _rewrites(report: Report) -> Iterator[str]:
    groups = summary.match_groups(report)
    if not groups:
        return
    yield "## Rewrites"
    yield ""
    for group in groups:
        saved = summary.saved_words(group)
        became = f"{figures.plural(group.nodes, 'node')} → {figures.count(group.made)}"
        yield f"- {code(group.pattern)} {group.count:,} ×, {became}{saved and f', {saved}'}"
        for example in group.examples:
            left = f" (stays: {', '.join(map(code, example.leftovers))})" if example.leftovers else ""
            cost = summary.cost_line(example.before, example.after)
            yield f"  - {code(example.exit)}: {markdown(example.summary)}{left}{f'; {cost}' if cost else ''}"
        yield from _more(group.count - len(group.examples))
    yield ""


def _refusals(report: Report) -> Iterator[str]:
    groups = summary.refusal_groups(report)
    if not groups and not report.shadowed and not report.covered:
        return
    yield "## Left as it was"
    yield ""
    for group in groups:
        example = f"{code(group.node)}: {markdown(group.detail)}"
        yield f"- {code(group.pattern)}, {markdown(group.code)}, {group.count:,} ×, for example {example}"
    dear = summary.too_dear(report)
    if dear:
        folds = figures.plural(len(dear), "exact fold")
        yield f"- {folds} left alone for the cost; `--set cost=off` does them all the same"
    for refusal in dear[: summary.EXAMPLES]:
        yield f"  - {code(refusal.node)}: {summary.cost_line(refusal.before, refusal.after)}"
    for shadow in report.shadowed[: summary.EXAMPLES]:
        by = f"{code(shadow.by)} at {code(shadow.by_exit)}"
        yield f"- {code(shadow.pattern)} at {code(shadow.exit)}: covered by {by}"
    if (hidden := len(report.shadowed) - summary.EXAMPLES) > 0:
        yield f"- … and {hidden:,} more covered by another match"
    if report.covered:
        yield f"- {figures.plural(report.covered, 'match', 'matches')} wholly inside a larger one"
    yield ""


def _more(hidden: int) -> Iterator[str]:
    if hidden > 0:
        yield f"  - … and {hidden:,} more"


def _certainty(report: Report) -> Iterator[str]:
    yield "## How sure"
    yield ""
    if proof := summary.proof_line(report):
        yield f"- {proof}"
    yield f"- {markdown(summary.verdict_line(report.verification))}"
    yield f"- {summary.end_line(report)}"
    for note in report.verification.notes:
        yield f"- {markdown(note)}"
    if report.verification.engine:
        yield f"- {markdown(report.verification.engine)}"
    yield ""
    header = ("output", "error", "own error", "tolerance", "largest", "verdict", "worst input")
    rows: list[tuple[str, ...]] = []
    for check in report.verification.outputs:
        label = code(check.name) if check.renamed in ("", check.name) else f"{code(check.name)} → {code(check.renamed)}"
        numbers = map(figures.error, (check.error, check.own_error, check.tolerance, check.scale))
        note = f" ({markdown(check.note)})" if check.note else ""
        rows.append((label, *numbers, check.verdict.value, markdown(check.inputs) + note))
    if rows:
        yield from _table(header, rows, numeric=(1, 2, 3, 4))


def _origin(report: Report) -> Iterator[str]:
    """What made this: enough to run it again."""
    yield "## How it was made"
    yield ""
    for old, new in report.renamed:
        yield f"- renamed {code(old)} → {code(new)}"
    yield from (f"- {markdown(note)}" for note in report.notes)
    if report.dead_before:
        yield f"- {figures.plural(len(report.dead_before), 'node')} that nothing read before any edit left in place"
    for pattern in report.patterns:
        yield f"- pattern {code(pattern.name)} from {code(pattern.path)}, sha256 {code(pattern.sha256)}"
    for key, value in report.parameters:
        yield f"- set {code(key)} = {code(value)}"
    yield f"- {', '.join(f'{markdown(tool)} {markdown(version)}' for tool, version in report.versions)}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> Iterator[str]:
    yield _line(header)
    yield _line(["---:" if column in numeric else "---" for column in range(len(header))])
    for row in rows:
        yield _line(row)
    yield ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
