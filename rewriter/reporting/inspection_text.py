"""What `fxrewrite inspect` and `fxrewrite verify` print.

Invariant: as in `text`, names are escaped and never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from rewriter.checking.record import Verification
from rewriter.reporting import escape, figures, summary
from rewriter.reporting.record import Inspection, OutputInfo, PatternOutlook, Share
from rewriter.reporting.text import add, comparison, heading, indent, name, table, verdict

_MOST_OUTPUTS = 12


class InspectionText:
    """What could go, then totals, what each output needs, and what each pattern would do."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = self.inspection
        yield Text(escape.name(found.model), style="bold")
        yield indent(Text(f"{summary.sizes(found.totals)}, {figures.size(found.totals.bytes)}", style="bold"))
        yield from _counted(found)
        yield from _what_goes(found)
        yield from _outputs(found)
        yield from _patterns(found)
        yield heading("Operators")
        operators = (f"{name(op)} {figures.count(number)}" for op, number in found.totals.ops)
        yield indent(Text(", ".join(operators)))
        if found.hidden:
            yield Text(f"\nnot counted, layers inside of bodies and functions: {_few(found.hidden)}", style="yellow")
        if found.dead:
            count = figures.plural(len(found.dead), "node")
            yield Text(f"\n{count} that no output needs: {_few(found.dead)}", style="yellow")


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(name, names[:3])) + (", …" if len(names) > 3 else "")


class VerificationText:
    """A comparison of two models."""

    def __init__(self, found: Verification) -> None:
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield verdict(self.found)
        yield from comparison(self.found)
        if self.found.inputs:
            yield indent(Text("inputs: " + ", ".join(map(escape.plain, self.found.inputs)), style="dim"))


def _counted(found: Inspection) -> Iterator[RenderableType]:
    """For which sizes multiply-adds are counted where the model leaves them open, or how to say that."""
    if at := summary.counted_at(found.totals):
        yield indent(Text(escape.plain(f"multiply-adds{at}"), style="dim"))
    elif found.totals.multiply_adds is None and any(_is_open(output) for output in found.totals.outputs):
        yield indent(Text("no multiply-adds, since sizes are open; --shape NAME=1x3x640x640 says them", style="dim"))


def _is_open(output: OutputInfo) -> bool:
    return output.shape is None or any(not isinstance(extent, int) for extent in output.shape)


def _what_goes(found: Inspection) -> Iterator[RenderableType]:
    """The answer to "why is it that large": what the shipped patterns would take away, the largest first."""
    saving = sorted((p for p in found.patterns if p.saved_parameters > 0), key=lambda p: -p.saved_parameters)
    waiting = [p for p in found.patterns if not p.saved_parameters and p.note.startswith("needs")]
    whole = found.totals.parameters
    shares = [figures.change(whole, whole - p.saved_parameters) for p in saving]
    lost = [f"−{figures.short(p.saved_parameters)} parameters ({s})" for p, s in zip(saving, shares, strict=True)]
    for outlook, words in zip(saving, lost, strict=True):
        shown = words.ljust(max(map(len, lost)))
        yield indent(Text.assemble((shown, "green"), f"  {name(outlook.pattern)} {_does(outlook)}"))
    for outlook in waiting:
        yield indent(Text(f"{name(outlook.pattern)} {escape.plain(outlook.note)}", style="yellow"))
    if not saving and not waiting:
        yield indent(Text("no shipped pattern would take parameters away"))


def _does(outlook: PatternOutlook) -> str:
    return escape.plain(outlook.note) or f"folds {figures.plural(outlook.matches, 'place')}"


def _outputs(found: Inspection) -> Iterator[RenderableType]:
    numeric = ("nodes", "parameters", "share", "multiply-adds", "size")
    rows = table("", *numeric, numeric=numeric)
    whole = found.totals.parameters
    shapes = {info.name: f"{info.dtype}{figures.shape(info.shape)}" for info in found.totals.outputs}
    shown = sorted(found.outputs, key=lambda output: -output.exclusive.parameters)[:_MOST_OUTPUTS]
    several = len(found.outputs) > 1
    for output in shown:
        label = Text.assemble((name(output.name), "bold"), (f" {escape.plain(shapes.get(output.name, ''))}", "dim"))
        add(rows, label, *_share(output.needed, whole))
        if several:
            add(rows, "  and no other output", *_share(output.exclusive, whole))
    if several:
        add(rows, "every output", *_share(found.shared, whole))
    yield heading("Needed by")
    yield indent(rows)
    if hidden := len(found.outputs) - len(shown):
        yield indent(Text(f"… and {figures.plural(hidden, 'more output')}, which --json lists", style="dim"))


def _share(share: Share, whole: int) -> tuple[str, ...]:
    percent = f"{100 * share.parameters / whole:.1f} %" if whole else ""
    macs, stored = figures.short(share.multiply_adds), figures.size(share.bytes)
    return figures.count(share.nodes), figures.count(share.parameters), percent, macs, stored


def _patterns(found: Inspection) -> Iterator[RenderableType]:
    """Those that fit somewhere or have something to say; the others are only counted."""
    if not found.patterns:
        return
    numeric = ("matches", "parameters saved", "multiply-adds saved")
    rows = table("pattern", *numeric, "", numeric=numeric)
    fitting = [outlook for outlook in found.patterns if outlook.matches or outlook.note]
    for outlook in fitting:
        saved = figures.count(outlook.saved_parameters)
        less = figures.short(outlook.saved_multiply_adds)
        note = Text(escape.plain(outlook.note), "dim")
        add(rows, name(outlook.pattern), figures.count(outlook.matches), saved, less, note)
    yield heading("What the patterns would do, each alone")
    if fitting:
        yield indent(rows)
    if (idle := len(found.patterns) - len(fitting)) > 0:
        others = "other " if fitting else ""
        yield indent(Text(f"{figures.plural(idle, f'{others}pattern')} would do nothing", style="dim"))
