"""A child process on a leash: bytes in, JSON lines out, a deadline, and nothing of it left afterwards.

Invariant: when `converse` returns or raises, whatever the reason, the child and its whole process group are gone. It
raises nothing about the child's own fate: how a child ended is data (`Ending`), since a crashed engine is an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

_STDERR_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended. `result` is its last word if it had one; `code` its exit status, negative for a signal."""

    result: Mapping[str, Any] | None
    code: int
    timed_out: bool
    stderr: str
    last_progress: str
    peak_bytes: int


def child_command() -> list[str]:
    """`-P` keeps the working folder off the import path: a model's folder may hold an `onnx.py`."""
    return [sys.executable, "-P", "-m", "rewriter.checking.child"]


def converse(
    command: Sequence[str],
    feed: Callable[[BinaryIO], None],
    seconds: float,
    progress: Callable[[str], None] | None,
) -> Ending:
    """Start `command`, let `feed` write its stdin from a thread, pass its progress on, and end it at the deadline."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,  # so that a Ctrl-C reaches us alone, and killing reaches all of it
    )
    feeder = _Feeder(process, feed)
    lines: queue.Queue[bytes | None] = queue.Queue()
    errors: list[bytes] = []
    threads = [
        threading.Thread(target=feeder.run, daemon=True),
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True),
        threading.Thread(target=_keep_tail, args=(process.stderr, errors), daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        result, last, peak, timed_out = _listen(lines, time.monotonic() + seconds, progress)
        if not timed_out:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
    finally:
        _kill(process)
        for thread in threads:
            thread.join(timeout=5)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError, ValueError):
                cast(IO[bytes], stream).close()
    if feeder.error is not None and result is None:
        raise feeder.error
    return Ending(result, process.returncode, timed_out, b"".join(errors).decode("utf-8", "replace"), last, peak)


class _Feeder:
    """Writes the request; an error of ours (an unreadable weight) is kept, a child that hung up is not one."""

    def __init__(self, process: subprocess.Popen[bytes], feed: Callable[[BinaryIO], None]) -> None:
        self.error: Exception | None = None
        self._process = process
        self._feed = feed

    def run(self) -> None:
        stream = cast(BinaryIO, self._process.stdin)
        try:
            self._feed(stream)
            stream.close()
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            self.error = error
            _kill(self._process)


def _listen(
    lines: queue.Queue[bytes | None], deadline: float, progress: Callable[[str], None] | None
) -> tuple[Mapping[str, Any] | None, str, int, bool]:
    """Result, last progress, peak memory, and whether the deadline came first."""
    last, peak = "", 0
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None, last, peak, True
        if line is None:
            return None, last, peak, False
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a library that prints; the child sends its stdout elsewhere, so this is not ours
        peak = max(peak, int(message.get("peak", 0)))
        if "result" in message:
            return message["result"], last, peak, False
        last = str(message.get("progress", ""))
        if progress is not None and last:
            progress(last)


def _pump(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            lines.put(line)
    lines.put(None)


def _keep_tail(stream: IO[bytes], kept: list[bytes]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            kept[:] = [(b"".join(kept) + line)[-_STDERR_KEPT:]]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child and what it started. The group is killed even when the child is gone but not yet waited for."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    path = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "MALLOC_ARENA_MAX": "2",  # arenas reserve address space per thread, which the memory limit would count
        "PYTHONUNBUFFERED": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # else it reports models to its makers, and leaves files behind
        "ORT_LOAD_CONFIG_FROM_MODEL": "0",  # a model must not bring options for its own session
    }
