"""What `fxrewrite inspect` and `fxrewrite verify` print.

Invariant: as in `text`, names are escaped and never markup.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from rewriter.checking.record import Verification
from rewriter.reporting import escape, figures
from rewriter.reporting.record import Inspection, Share
from rewriter.reporting.text import add, heading, indent, name, table, verification


class InspectionText:
    """Totals, what each output needs, what the shipped patterns would save."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = self.inspection
        totals = found.totals
        macs = "unknown" if totals.multiply_adds is None else figures.short(totals.multiply_adds)
        yield Text.assemble(
            (name(found.model), "bold"),
            f": {figures.plural(totals.parameters, 'parameter')}, {figures.plural(totals.nodes, 'node')}, "
            f"{macs} multiply-adds, {figures.size(totals.bytes)}",
        )
        yield from _outputs(found)
        yield from _patterns(found)
        yield heading("Operators")
        operators = (f"{name(op)} {figures.count(number)}" for op, number in totals.ops)
        yield indent(Text(", ".join(operators)))
        if found.dead:
            shown = ", ".join(map(name, found.dead[:3])) + (", …" if len(found.dead) > 3 else "")
            yield Text(f"\n{figures.plural(len(found.dead), 'node')} that no output needs: {shown}", style="yellow")


class VerificationText:
    """A comparison of two models."""

    def __init__(self, found: Verification) -> None:
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from verification(self.found)
        if self.found.inputs:
            yield indent(Text("inputs: " + ", ".join(map(escape.plain, self.found.inputs)), style="dim"))


def _outputs(found: Inspection) -> Iterator[RenderableType]:
    numeric = ("nodes", "parameters", "multiply-adds")
    rows = table("output", "", *numeric, numeric=numeric)
    shapes = {info.name: f"{info.dtype}{figures.shape(info.shape)}" for info in found.totals.outputs}
    for output in found.outputs:
        add(rows, Text(name(output.name), style="bold"), "needs", *_share(output.needed))
        add(rows, Text(escape.plain(shapes.get(output.name, "")), style="dim"), "alone", *_share(output.exclusive))
    if len(found.outputs) > 1:
        add(rows, "every output", "needs", *_share(found.shared))
    yield heading("Outputs")
    yield indent(rows)


def _share(share: Share) -> tuple[str, str, str]:
    return figures.count(share.nodes), figures.count(share.parameters), figures.short(share.multiply_adds)


def _patterns(found: Inspection) -> Iterator[RenderableType]:
    if not found.patterns:
        return
    rows = table("pattern", "matches", "parameters saved", "", numeric=("matches", "parameters saved"))
    for outlook in found.patterns:
        saved = figures.count(outlook.saved_parameters)
        add(rows, Text(name(outlook.pattern)), figures.count(outlook.matches), saved, Text(escape.plain(outlook.note)))
    yield heading("What the patterns would do, each alone")
    yield indent(rows)
