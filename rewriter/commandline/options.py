"""Words of the command line as values.

Invariant: what cannot be read is a UsageError that names the option and shows a right form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from rewriter.commandline.guard import Settings
from rewriter.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
_SHAPE = re.compile(r"[0-9]+(x[0-9]+)*")
_MOST_DIM = 2**31


def names(values: Sequence[str]) -> tuple[str, ...]:
    """("a,b", "c") -> ("a", "b", "c"), each once, in order."""
    return tuple(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))


def keep(values: Sequence[str]) -> tuple[str, ...] | Literal["all"]:
    """The outputs to keep, or "all"."""
    found = names(values)
    if "all" not in found:
        return found
    if len(found) > 1:
        raise UsageError("--keep: either `all` or names of outputs, not both")
    return "all"


def renames(values: Sequence[str]) -> dict[str, str]:
    """("old=new",) -> {"old": "new"}."""
    found: dict[str, str] = {}
    for value in values:
        old, equals, new = value.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--rename: {value!r} is not OLD=NEW, for example --rename 3108=output0")
        if found.setdefault(old, new) != new:
            raise UsageError(f"--rename: {old!r} is renamed twice")
    return found


def settings(values: Sequence[str]) -> tuple[str, ...]:
    """Values of `--set`, whose names and types the patterns judge."""
    for value in values:
        if not value.partition("=")[0] or "=" not in value:
            raise UsageError(f"--set: {value!r} is not [PATTERN.]PARAM=VALUE, for example --set repconv.cost=off")
    return tuple(values)


def shapes(values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """("images=1x3x640x640",) -> {"images": (1, 3, 640, 640)}."""
    found: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, _, dims = value.rpartition("=")  # a shape holds no "=", a name may
        if not name or not _SHAPE.fullmatch(dims):
            raise UsageError(f"--shape: {value!r} is not NAME=DIMS, for example --shape images=1x3x640x640")
        shape = tuple(int(dim) for dim in dims.split("x"))
        if max(shape) >= _MOST_DIM:
            raise UsageError(f"--shape: {value!r} is too large")
        if found.setdefault(name, shape) != shape:
            raise UsageError(f"--shape: {name!r} is given twice")
    return found


def debug(command: F) -> F:
    """Adds `--debug`, which every command has."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
    )(command)


def _set_debug(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Settings).debug = True


def shape(command: F) -> F:
    """Adds `--shape`, which may be given for each input."""
    return click.option(
        "--shape",
        "shape",
        multiple=True,
        metavar="NAME=1x3x640x640",
        help="Size of an input that the model leaves open, to run it and to count multiply-adds.",
    )(command)


def inputs(command: F) -> F:
    """Adds `--inputs` and `--shape`, which say what a verification runs on."""
    return click.option(
        "--inputs",
        type=click.Path(path_type=Path),
        metavar="FILE.npz",
        help="Arrays to verify on, one for each input of the model.",
    )(shape(command))


def complete_patterns(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names for shell completion, after the last comma."""
    from rewriter.language.library import PRESETS, find_pattern_files

    done, comma, begun = incomplete.rpartition(",")
    known = [*PRESETS, *(path.stem for path in find_pattern_files())]
    return [f"{done}{comma}{name}" for name in known if name.startswith(begun)]
