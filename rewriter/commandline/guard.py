"""What the command returns, whatever happens: exit codes, one clear message, no traceback.

Invariant: `guarded` never lets an exception out. Codes are design's table, and 70 (EX_SOFTWARE) for a fault of
fxrewrite itself, which no result has.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from rewriter.errors import FxRewriteError, LimitError, OutputError
from rewriter.reporting import escape

LIMIT = LimitError.exit_code
INTERRUPTED = 130
TERMINATED = 143
FAULT = 70
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(slots=True)
class Settings:
    """What a run is told before it starts; one for each call of `main`."""

    debug: bool = False


class Terminated(BaseException):
    """SIGTERM, as an exception, so that what has begun is undone on the way out."""


def guarded(work: Callable[[], int], settings: Settings) -> int:
    """The exit code of `work`; every exception becomes a message and a code."""
    try:
        with _terminable():
            return work()
    except KeyboardInterrupt:
        return _said(settings, "interrupted", INTERRUPTED, prefix="")
    except Terminated:
        return _said(settings, "terminated", TERMINATED, prefix="")
    except FxRewriteError as problem:
        return _said(settings, str(problem), problem.exit_code)
    except MemoryError:
        return _said(settings, "not enough memory for this model", LIMIT)
    except RecursionError:
        return _said(settings, "the model is nested too deeply", LIMIT)
    except OSError as problem:
        return _said(settings, *_of_system(problem))
    except Exception as problem:
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
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside; the old handler comes back after."""

    def on_term(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, on_term)
    except ValueError:  # not the main thread, which alone may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def drop_stdout() -> None:
    """After a reader has closed the pipe: what is still buffered goes nowhere, so that exit says nothing about it."""
    with suppress(OSError, ValueError):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, sys.stdout.fileno())
        os.close(quiet)
