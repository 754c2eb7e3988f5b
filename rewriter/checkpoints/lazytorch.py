"""torch as a guest: imported late, kept quiet, its errors turned into ours.

Invariant: whatever torch raises on a file of others leaves as one message of ours, without a traceback.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from typing import Final

from rewriter.errors import FxRewriteError, InputError, LimitError, UsageError

MISSING: Final = 'this needs PyTorch: pip install "fxrewrite[torch]"'
_LOGGERS: Final = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx", "torch._subclasses")
_MOST_TEXT: Final = 600
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_WRAPPED: Final = "Next steps:"


def require_torch(also: str = "torch") -> None:
    """Raises UsageError with the line to type where torch (or what comes with it) is not installed."""
    if find_spec("torch") is None or find_spec(also) is None:
        raise UsageError(MISSING)


@contextmanager
def quiet(what: str) -> Generator[None]:
    """Around calls of torch: no warnings, no log, and an InputError that begins with `what` for any failure."""
    try:
        with silenced():
            yield
    except (FxRewriteError, MemoryError, RecursionError):
        raise
    except Exception as problem:
        raise _ours(what, problem) from problem


@contextmanager
def silenced() -> Generator[None]:
    """Around calls of torch: no warnings and no log."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # torch prints graphs that it cannot trace
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _ours(what: str, problem: Exception) -> FxRewriteError:
    cause: BaseException = problem
    while _WRAPPED in str(cause) and cause.__cause__ is not None:  # advice to file an issue with torch, and no reason
        cause = cause.__cause__
    text = " ".join(_COLOURS.sub("", str(cause)).split())
    said = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
    if "can't allocate memory" in text or "out of memory" in text:
        return LimitError(f"{what}: not enough memory ({said})")
    return InputError(f"{what}: {type(cause).__name__}: {said}" if said else f"{what}: {type(cause).__name__}")
