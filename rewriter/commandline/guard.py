"""What the command returns, whatever happens: exit codes, one clear message, no traceback.

Invariant: `guarded` never lets an exception out. Codes are design's table, 128 + number for a signal, and 70
(EX_SOFTWARE) for a fault of fxrewrite itself, which no result has.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from rewriter.errors import FxRewriteError, LimitError, OutputError
from rewriter.reporting import escape

LIMIT = LimitError.exit_code
FAULT = 70
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "terminated: the terminal is gone"}


@dataclass(slots=True)
class Settings:
    """What a run is told before it starts; one for each call of `main`."""

    debug: bool = False


class Stopped(BaseException):
    """A signal, as an exception, so that what has begun is undone on the way out."""


@dataclass(slots=True)
class _Received:
    """The first signal that came: libraries may turn the exception it raised into one of their own."""

    number: int = 0


def guarded(work: Callable[[], int], settings: Settings) -> int:
    """The exit code of `work`; every exception becomes a message and a code."""
    received = _Received()
    try:
        with _stoppable(received):
            return work()
    except BaseException as problem:
        if received.number:
            return _said(settings, _SIGNALS[signal.Signals(received.number).name], 128 + received.number, prefix="")
        return _answered(problem, settings)


def _answered(problem: BaseException, settings: Settings) -> int:
    match problem:
        case KeyboardInterrupt():
            return _said(settings, _SIGNALS["SIGINT"], 128 + signal.SIGINT, prefix="")
        case FxRewriteError():
            return _said(settings, str(problem), problem.exit_code)
        case MemoryError():
            return _said(settings, "not enough memory for this model", LIMIT)
        case RecursionError():
            return _said(settings, "the model is nested too deeply", LIMIT)
        case BrokenPipeError():
            return 0  # whoever read the help or a table has read enough
        case OSError():
            if problem.filename is None:  # a stream, not a file: what it still holds would fail once more at exit
                drop_stdout()
            return _said(settings, *_of_system(problem))
        case _:
            what = f"internal error: {type(problem).__name__}: {problem}"
            return _said(
                settings, f"{what}\nThis is a fault of fxrewrite; please report it with what --debug shows.", FAULT
            )


def _of_system(problem: OSError) -> tuple[str, int]:
    where = f"{problem.filename}: " if problem.filename else ""
    what = (problem.strerror or str(problem)).lower()
    return f"{where}{what}", LIMIT if problem.errno in _FULL else OutputError.exit_code


def _said(settings: Settings, message: str, code: int, prefix: str = "error: ") -> int:
    with suppress(OSError, ValueError):  # nobody may be listening any more
        if settings.debug:
            traceback.print_exc()
        sys.stderr.write(f"fxrewrite: {prefix}{escape.lines(message)}\n")
        sys.stderr.flush()
    return code


@contextmanager
def _stoppable(received: _Received) -> Generator[None]:
    """The first signal raises `Stopped` inside, later ones are ignored while that is tidied up; then as before.

    A signal that the caller has set to be ignored (nohup) stays ignored.
    """
    before: dict[signal.Signals, signal.Handlers | Callable[[int, FrameType | None], object] | int | None] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        received.number = number
        for kind in before:
            signal.signal(kind, signal.SIG_IGN)
        raise Stopped

    try:
        for name in _SIGNALS:
            kind = getattr(signal, name, None)  # Windows has no SIGHUP
            if isinstance(kind, signal.Signals) and signal.getsignal(kind) not in (signal.SIG_IGN, None):
                before[kind] = signal.signal(kind, stop)
    except ValueError:  # not the main thread, which alone may set handlers
        before.clear()
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def open_streams() -> None:
    """A stream that the caller has closed (`>&-`) becomes the null device, so that no file of ours gets its number."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  # what Python does with a closed one
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def flushed() -> int:
    """Hands on what is buffered for stdout: 0, or the exit code where it went nowhere and that was said."""
    try:
        with delivered():
            sys.stdout.flush()
    except FxRewriteError as problem:
        return _said(Settings(), str(problem), problem.exit_code)
    return 0


@contextmanager
def delivered() -> Generator[None]:
    """Around what writes to stdout: a closed pipe ends the writing and is no error; a full disk is LimitError."""
    try:
        yield
    except BrokenPipeError:
        drop_stdout()
    except OSError as problem:
        drop_stdout()
        kind = LimitError if problem.errno in _FULL else OutputError
        raise kind(f"stdout cannot be written: {(problem.strerror or str(problem)).lower()}") from None


def drop_stdout() -> None:
    """After a reader has closed the pipe: what is still buffered goes nowhere, so that exit says nothing about it."""
    with suppress(OSError, ValueError):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, sys.stdout.fileno())
        os.close(quiet)
