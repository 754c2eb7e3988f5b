"""Paths of a run: what is read, what is written, and that nothing is written over what is read.

Invariant: what can be refused before any work is refused before any work; reports appear whole, after the model, or not
at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rewriter.errors import InputError, LimitError, OutputError, UsageError

if TYPE_CHECKING:
    from rewriter.graph.drafts import Draft
    from rewriter.reporting.record import Report

REPORT_SUFFIXES = (".json", ".md")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def model_file(path: Path) -> Path:
    """`path`, if there is a file; its content is judged when it is loaded."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory; name the ONNX file in it")
        path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else "the path is not valid"
        raise InputError(f"{path} cannot be read: {reason.lower()}") from None
    return path


def arrays_file(path: Path | None) -> None:
    """Raises where `--inputs` names no file; what it holds is judged when it is read."""
    if path is not None and not path.is_file():
        what = "is not a file" if path.exists() else "there is no such file"
        raise UsageError(f"--inputs: {path}: {what}")


def default_output(model: Path) -> Path:
    """net.onnx -> net.rewritten.onnx, beside it."""
    stem = model.stem if model.suffix.lower() == ".onnx" else model.name
    return model.with_name(f"{stem}.rewritten.onnx")


def outputs(path: Path) -> tuple[Path, ...]:
    """Every file that is written for an output: weights alone have their structure beside them."""
    return (path, path.with_suffix(".json")) if path.suffix.lower() == ".safetensors" else (path,)


def check_target(path: Path, *, force: bool, inputs: Sequence[Path], option: str) -> None:
    """Raises OutputError where `path` is an input, exists without `force`, or lies where nothing can be written."""
    if any(_same(path, given) for given in inputs):
        raise OutputError(f"{path} is an input, which is never written to; choose another path with {option}")
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file in it: {option} {path / 'model.rewritten.onnx'}")
    if os.path.lexists(path) and not force:
        raise OutputError(f"{path} exists; replace it with --force, or choose another path with {option}")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: there is no such folder for {path.name}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path.parent}: no permission to write there; choose another path with {option}")


def check_reports(paths: Sequence[Path], *, force: bool, taken: Sequence[Path]) -> None:
    """Raises where a report cannot be rendered or written; `taken` are the model and its output."""
    seen = list(taken)
    for path in paths:
        if path.suffix.lower() not in REPORT_SUFFIXES:
            kinds = " or ".join(f"FILE{suffix}" for suffix in REPORT_SUFFIXES)
            raise UsageError(f"--report: {path} is of no kind that can be written; name it {kinds}")
        if any(_same(path, other) or path.resolve() == other.resolve() for other in seen):
            raise OutputError(f"--report: {path} is the model, its output or another report; choose another name")
        check_target(path, force=force, inputs=(), option="--report")
        seen.append(path)


@contextmanager
def staged(report: Report, paths: Sequence[Path], *, force: bool) -> Generator[None]:
    """Writes reports without names before the body runs (the full disk shows here), and names them after it."""
    from rewriter.graph.drafts import Draft, sweep

    drafts: list[tuple[Draft, Path]] = []
    done = False
    try:
        for path in paths:
            with _write_errors(path):
                sweep(path.parent)
                draft = Draft(path.parent, path.name)
                drafts.append((draft, path))
                draft.write(_renderers()[path.suffix.lower()](report).encode("utf-8", "backslashreplace"))
                draft.complete()
        yield
        for draft, path in drafts:
            with _write_errors(path):
                (draft.replace if force else draft.publish)(path)
        done = True
    finally:
        for draft, _ in drafts:
            draft.close(keep=done)


def _renderers() -> Mapping[str, Callable[[Report], str]]:
    from rewriter.reporting.json import dumps
    from rewriter.reporting.markdown import to_markdown

    return {".json": dumps, ".md": to_markdown}


@contextmanager
def _write_errors(path: Path) -> Generator[None]:
    try:
        yield
    except FileExistsError:
        raise OutputError(f"{path} exists; replace it with --force") from None
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        if problem.errno in _FULL:
            raise LimitError(f"{path}: {reason}") from None
        raise OutputError(f"{path} cannot be written: {reason}") from None


def _same(path: Path, other: Path) -> bool:
    """One file, whatever the two paths look like."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False
