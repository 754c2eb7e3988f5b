"""Where output goes: reports and tables to stdout, everything about the run (progress, notes, errors) to stderr.

Invariant: a reader who closes the pipe changes neither the work nor the exit code; what the encoding of the terminal
lacks is written as an escape; progress is only for a terminal, and only after a second.
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from rewriter.commandline.guard import delivered
from rewriter.reporting import escape

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as Bar

_PIPE_WIDTH = 100
_MOST = 140  # longer lines are hard to read
_DELAY = 1.0


def table(content: RenderableType) -> None:
    """Prints a renderable to stdout."""
    from rich.console import Console

    width = min(_MOST, shutil.get_terminal_size((_PIPE_WIDTH, 40)).columns)
    page = io.StringIO()  # rich never writes to stdout itself: what can go wrong there is `text`'s to handle
    colour = sys.stdout.isatty()
    Console(file=page, force_terminal=colour, width=width, markup=False, highlight=False, emoji=False).print(content)
    # rich pads every line to the width, which a pipe has no use for
    text("\n".join(line.rstrip() for line in page.getvalue().split("\n")))


def text(content: str) -> None:
    """Writes text of ours, as it is, to stdout."""
    _tolerant(sys.stdout)
    with delivered():
        sys.stdout.write(content)
        sys.stdout.flush()


def note(message: str) -> None:
    """Tells the user something about the run, on stderr."""
    _tolerant(sys.stderr)
    sys.stderr.write(f"fxrewrite: {escape.lines(message)}\n")
    sys.stderr.flush()


def _tolerant(stream: object) -> None:
    """Text that the encoding lacks is written as an escape, not raised as an error."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")


class Progress:
    """A bar on stderr, which appears when the work has taken a second; nothing where stderr is no terminal.

    Call it with the name of a stage and how much of it is done (0 to 1, or None where nobody knows).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: tuple[str, float | None] = ("working", None)
        self._bar: Bar | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._timer = threading.Timer(_DELAY, self._appear)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __call__(self, stage: str, done: float | None = None) -> None:
        with self._lock:
            self._latest = (stage, done)
            self._show()

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _appear(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        with self._lock:
            console = Console(file=sys.stderr, markup=False, emoji=False)
            shown = TextColumn("{task.description}", markup=False)
            self._bar = Bar(SpinnerColumn(), shown, BarColumn(), TimeElapsedColumn(), console=console, transient=True)
            self._bar.add_task("", total=None)
            self._show()
            self._bar.start()

    def _show(self) -> None:
        if self._bar is not None:
            stage, done = self._latest
            task = self._bar.task_ids[0]
            self._bar.update(
                task, description=escape.name(stage), total=None if done is None else 1.0, completed=done or 0
            )
