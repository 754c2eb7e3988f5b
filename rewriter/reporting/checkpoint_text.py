"""What `fxrewrite inspect` prints of a checkpoint.

Invariant: as in `text`, every name and every text of the file is escaped and never markup.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from rewriter.reporting import escape, figures
from rewriter.reporting.checkpoint import CheckpointInspection, EntryRecord, TensorRecord
from rewriter.reporting.text import add, heading, indent, name, table

_STYLES = {"taken": "green", "left behind": "yellow", "on request": ""}
_MOST_TENSORS = 8
_MOST_ENTRIES = 40


class CheckpointText:
    """The kind of file, its entries, what is odd about them, and the first tensors of what `trace` would take."""

    def __init__(self, found: CheckpointInspection) -> None:
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = self.found
        yield Text(escape.name(found.model), style="bold")
        trust = "loading it whole can run code" if found.needs_trust else "loads without running anything"
        style = "bold yellow" if found.needs_trust else "bold"
        yield indent(Text(f"{found.kind}, {figures.size(found.bytes)}; {trust}", style=style))
        yield heading("Entries")
        yield indent(_entries(found.entries))
        if hidden := len(found.entries) - _MOST_ENTRIES:
            yield from [indent(Text(f"… and {hidden:,} more, which --json lists", style="dim"))] if hidden > 0 else []
        for note in found.notes:
            yield Text(f"\n{escape.lines(note)}", style="yellow")
        yield from _tensors(found.tensors)


def _entries(entries: tuple[EntryRecord, ...]) -> RenderableType:
    rows = table("key", "what", "tensors", "elements", "bytes", "", "trace", numeric=("tensors", "elements", "bytes"))
    for entry in entries[:_MOST_ENTRIES]:
        kinds = ", ".join(f"{kind} ×{number}" if len(entry.dtypes) > 1 else kind for kind, number in entry.dtypes)
        counts = (figures.count(entry.tensors), figures.count(entry.elements)) if entry.tensors else ("", "")
        size = figures.size(entry.bytes) if entry.bytes else ""
        detail = Text(name("; ".join(filter(None, (entry.detail, kinds)))) if entry.detail or kinds else "", "dim")
        key = name(entry.key) if entry.key else "(the whole file)"
        add(rows, key, escape.plain(entry.kind), *counts, size, detail, Text(entry.shipped, _STYLES[entry.shipped]))
    return rows


def _tensors(tensors: tuple[TensorRecord, ...]) -> Iterator[RenderableType]:
    if not tensors:
        return
    yield heading("Tensors that `trace` would take")
    rows = table("name", "type")
    for tensor in tensors[:_MOST_TENSORS]:
        add(rows, name(tensor.name), f"{tensor.dtype}{figures.shape(tensor.shape)}")
    yield indent(rows)
    if hidden := len(tensors) - _MOST_TENSORS:
        yield from [indent(Text(f"… and {hidden:,} more, which --json lists", style="dim"))] if hidden > 0 else []
