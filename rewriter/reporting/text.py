"""A report as a person sees it in a terminal: what it was, what it is, what went and why, and how far that is sure.

Invariant: every name goes through `escape`, and text reaches rich as `Text`, never as markup; the same report at the
same width without colour gives the same characters.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rewriter.checking.record import Verdict, Verification
from rewriter.reporting import escape, figures, summary
from rewriter.reporting.record import MatchRecord, OutputsDecision, Report

VERDICT_STYLES = {
    Verdict.OK: "green",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.FAILED: "bold red",
    Verdict.NOT_VERIFIED: "bold yellow",
}
_NAME_LIMIT = 60  # in a table; JSON holds names whole
_MOST_OPS = 12
_MOST_VOTES = 30
_MOST_REFUSALS = 8  # groups
_MOST_OUTPUTS = 12


class ReportText:
    """The whole report; print it with a rich console."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self.report
        written = f" → {escape.name(report.output)}" if report.output is not None else ""
        yield Text(escape.name(report.model) + written, style="bold")
        yield indent(Text(summary.headline(report), style="bold"))
        yield indent(verdict(report.verification))
        yield from _decisions(report)
        if report.changed:
            yield heading("Totals")
            yield _totals(report)
        yield from _operators(report)
        yield from _matches(report)
        yield from _scrubbed(report)
        yield from _refusals(report)
        yield from _remarks(report)
        yield heading("How sure")
        if proof := summary.proof_line(report):
            yield indent(Text(proof))
        yield from comparison(report.verification)
        yield indent(Text(summary.end_line(report), style="" if report.end == "fixpoint" else "bold yellow"))
        yield from _origin(report)


def name(text: str) -> str:
    return escape.name(text, _NAME_LIMIT)


def heading(title: str) -> Text:
    return Text(f"\n{title}", style="bold cyan")


def indent(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, 2))


def table(*columns: str, numeric: tuple[str, ...] = ()) -> Table:
    """A table without vertical lines; the columns named in `numeric` are aligned to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for column in columns:
        made.add_column(Text(column), justify="right" if column in numeric else "left", overflow="fold")
    return made


def add(rows: Table, *cells: str | Text) -> None:
    """A row of plain text: a `str` given to rich itself would be read as markup."""
    rows.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _decisions(report: Report) -> Iterator[RenderableType]:
    for decision in report.decisions:
        yield heading(f"Outputs ({name(decision.pattern)}, {escape.name(decision.how)})")
        yield indent(_outputs(report, decision))
        if decision.removed_nodes:
            gone = figures.plural(decision.removed_nodes, "node")
            lost = figures.plural(decision.removed_parameters, "parameter")
            yield indent(Text(f"only the removed outputs needed {gone} with {lost}"))
        yield from _sizes(decision)
        for line in (*map(summary.stack_line, decision.stacks), *decision.notes):
            yield indent(Text(escape.plain(line)))
        if decision.votes:
            votes = table("vote on (main, aux)", "says", "counts", "evidence")
            for vote in decision.votes[:_MOST_VOTES]:
                counts = "yes" if vote.counts else "no"
                add(votes, name(vote.name), vote.value, counts, escape.plain(vote.detail))
            yield indent(votes)
            if (hidden := len(decision.votes) - _MOST_VOTES) > 0:
                yield indent(Text(f"… and {hidden:,} more, which --json lists", style="dim"))


def _scrubbed(report: Report) -> Iterator[RenderableType]:
    if report.scrubbed:
        yield heading("Scrubbed")
        for line in map(summary.scrub_line, report.scrubbed):
            yield indent(Text(escape.plain(line)))


def _outputs(report: Report, decision: OutputsDecision) -> RenderableType:
    lines: list[Text] = []
    width = max((len(name(output)) for output in (*decision.removed, *decision.kept)), default=0)
    for said, style, names in (("removed", "red", decision.removed), ("kept", "green", decision.kept)):
        for output in names:
            info = summary.output_info(report, output)
            kind = f"  {escape.plain(info.dtype)}{escape.plain(figures.shape(info.shape))}" if info else ""
            lines.append(Text.assemble((f"{said:<8}", style), name(output).ljust(width), (kind, "dim")))
    return Group(*lines)


def _sizes(decision: OutputsDecision) -> Iterator[RenderableType]:
    """Sizes that were read from what went, and what they are read from now."""
    moved, stayed = summary.sizes_moved(decision)
    for title, sizes in ((summary.moved_line(moved), moved), (summary.stayed_line(stayed), stayed)):
        if not sizes:
            continue
        yield indent(Text(title, style="" if sizes is moved else "yellow"))
        for size in sizes[: summary.EXAMPLES]:
            became = "" if size.new is None else f"{name(size.old)} → {name(size.new)}, "
            why = escape.plain(size.because) + summary.given(size, escape.plain)
            yield Padding(Text.assemble(f"{name(size.node)}: {became}", (why, "dim")), (0, 0, 0, 4))
        if (hidden := len(sizes) - summary.EXAMPLES) > 0:
            yield Padding(Text(f"… and {hidden:,} more", style="dim"), (0, 0, 0, 4))


def _totals(report: Report) -> RenderableType:
    rows = table("", "before", "after", "change", numeric=("before", "after", "change"))
    for row in summary.totals_rows(report.before, report.after):
        add(rows, row.name + escape.plain(row.at), row.before, row.after, row.change)
    return indent(rows)


def _operators(report: Report) -> Iterator[RenderableType]:
    rows, same = summary.changed_ops(report.before, report.after)
    if not rows:
        return
    yield heading("Operators")
    shown = table("operator", "before", "after", "change", numeric=("before", "after", "change"))
    for row in rows[:_MOST_OPS]:
        change = figures.signed(row.after - row.before)
        add(shown, name(row.op), figures.count(row.before), figures.count(row.after), change)
    yield indent(shown)
    rest = ", ".join(f"{name(row.op)} {figures.signed(row.after - row.before)}" for row in rows[_MOST_OPS:])
    if rest:
        yield indent(Text(f"and {rest}", style="dim"))
    if same:
        yield indent(Text(f"{figures.plural(same, 'other operator')} as before", style="dim"))


def _matches(report: Report) -> Iterator[RenderableType]:
    groups = summary.match_groups(report)
    if not groups:
        return
    yield heading("Rewrites")
    for group in groups:
        saved = summary.saved_words(group)
        became = f"{figures.plural(group.nodes, 'node')} → {figures.count(group.made)}"
        yield indent(
            Text.assemble((name(group.pattern), "bold"), f"  {group.count:,} ×, {became}{saved and f', {saved}'}")
        )
        for example in group.examples:
            yield Padding(_example(example), (0, 0, 0, 4))
        kinds = len(group.examples)
        if kinds < group.count:
            yield Padding(Text(f"… and {group.count - kinds:,} more", style="dim"), (0, 0, 0, 4))


def _example(match: MatchRecord) -> Text:
    left = f" (stays: {', '.join(map(name, match.leftovers))})" if match.leftovers else ""
    cost = summary.cost_line(match.before, match.after)
    said = escape.plain(match.summary) + left + (f"; {cost}" if cost else "")
    return Text.assemble(f"{name(match.exit)}: ", (said, "dim"))


def _refusals(report: Report) -> Iterator[RenderableType]:
    groups = summary.refusal_groups(report)
    if not groups and not report.shadowed and not report.covered:
        return
    yield heading("Left as it was")
    if groups:
        rows = table("pattern", "reason", "×", "for example", numeric=("×",))
        for group in groups[:_MOST_REFUSALS]:
            example = Text.assemble(name(group.node), (f": {escape.plain(group.detail)}", "dim"))
            add(rows, name(group.pattern), escape.plain(group.code), figures.count(group.count), example)
        yield indent(rows)
        if hidden := sum(group.count for group in groups[_MOST_REFUSALS:]):
            yield indent(Text(f"… and {figures.count(hidden)} of other kinds, which --json lists", style="dim"))
    dear = summary.too_dear(report)
    if dear:
        folds = figures.plural(len(dear), "exact fold")
        yield indent(Text(f"{folds} left alone for the cost; --set cost=off does them all the same"))
    for refusal in dear[: summary.EXAMPLES]:
        line = Text.assemble(f"{name(refusal.node)}: ", (summary.cost_line(refusal.before, refusal.after), "dim"))
        yield Padding(line, (0, 0, 0, 4))
    for shadow in report.shadowed[: summary.EXAMPLES]:
        by = f"covered by {name(shadow.by)} at {name(shadow.by_exit)}"
        yield indent(Text(f"{name(shadow.pattern)} at {name(shadow.exit)}: {by}"))
    if (more := len(report.shadowed) - summary.EXAMPLES) > 0:
        yield indent(Text(f"… and {more:,} more covered by another match", style="dim"))
    if report.covered:
        covered = figures.plural(report.covered, "match", "matches")
        yield indent(Text(f"{covered} wholly inside a larger one", style="dim"))


def _remarks(report: Report) -> Iterator[RenderableType]:
    """What a user has to know to use the file: names that changed, and what was dead before and still is."""
    if report.renamed:
        yield heading("Renamed")
        for old, new in report.renamed:
            yield indent(Text(f"{name(old)} → {name(new)}"))
    if report.sizes:
        yield Text(f"\n{summary.unhooked_line(report.sizes)}")
    if report.notes:
        yield heading("Notes")
        for note in report.notes:
            yield indent(Text(escape.plain(note)))
    if report.dead_before:
        shown = ", ".join(name(node) for node in report.dead_before[: summary.EXAMPLES])
        more = ", …" if len(report.dead_before) > summary.EXAMPLES else ""
        dead = figures.plural(len(report.dead_before), "node")
        yield Text(f"\n{dead} that nothing read before any edit left in place: {shown}{more}", style="dim")


def verdict(found: Verification) -> Text:
    """The outcome of the comparison in one line."""
    return Text(escape.plain(summary.verdict_line(found)), style=VERDICT_STYLES[found.verdict])


def comparison(found: Verification) -> Iterator[RenderableType]:
    """The figures that the verdict rests on, for each output, the failed ones first."""
    if found.outputs:
        rows = table("output", "error", "own error", "tolerance", "largest", "verdict", numeric=_CHECKED)
        shown = sorted(found.outputs, key=lambda check: check.verdict is not Verdict.FAILED)[:_MOST_OUTPUTS]
        for check in shown:
            label = name(check.name) + (f" → {name(check.renamed)}" if check.renamed not in ("", check.name) else "")
            numbers = (check.error, check.own_error, check.tolerance, check.scale)
            add(rows, label, *map(figures.error, numbers), Text(check.verdict.value, VERDICT_STYLES[check.verdict]))
        yield indent(rows)
        if hidden := len(found.outputs) - len(shown):
            yield indent(Text(f"… and {figures.plural(hidden, 'more output')}, which --json lists", style="dim"))
        for check in shown:
            where = f"{check.inputs}{f'; {check.note}' if check.note else ''}"
            if where:
                yield indent(Text(f"{name(check.name)}: worst on {escape.plain(where)}", style="dim"))
    for said in (*found.notes, found.engine):
        if said:
            yield indent(Text(escape.plain(said), style="dim"))


_CHECKED = ("error", "own error", "tolerance", "largest")


def _origin(report: Report) -> Iterator[RenderableType]:
    """What made this: enough to run it again; the other reports also name the patterns that had nothing to do."""
    yield heading("Made with")
    used, unused = summary.patterns_used(report)
    named = [f"{name(p.name)} ({name(p.path)} {escape.plain(p.sha256[:12])})" for p in used]
    settings = [f"{name(key)} = {name(value)}" for key, value in report.parameters]
    idle = [f"{figures.plural(unused, 'other pattern')} without a match"] if unused else []
    tools = ", ".join(f"{name(tool)} {name(version)}" for tool, version in report.versions)
    for said in (", ".join(named + settings + idle), tools):
        yield indent(Text(said, style="dim"))
