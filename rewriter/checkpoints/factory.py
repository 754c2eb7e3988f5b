"""`--model pkg.mod:factory` with its arguments: the user's own code, which builds the model that weights are laid in.

Invariant: only what the user names is imported, arguments are Python literals and never evaluated, and an error of
that code is one message that says where it was raised.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.errors import FxRewriteError, UsageError
from rewriter.graph.tensors import shown

if TYPE_CHECKING:
    from torch import nn


def arguments(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """("c", "nc=80") -> (["c"], {"nc": 80}): literals where they are some, texts where not."""
    ordered: list[Any] = []
    named: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.isidentifier():
            if name in named:
                raise UsageError(f"--arg: {name!r} is given twice")
            named[name] = _literal(value)
        else:
            ordered.append(_literal(word))
    return ordered, named


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text


def build(name: str, words: Sequence[str] = (), code: Path | None = None) -> nn.Module:
    """The module that a factory makes, in eval mode on the CPU; modules are looked for in `code` and where we stand."""
    module_name, colon, function_name = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *function_name.split("."))):
        raise UsageError(f"--model: {name!r} is not pkg.mod:factory, for example --model models.yolo:build")
    for place in (code.resolve() if code is not None else None, Path.cwd()):
        if place is not None and str(place) not in sys.path:
            sys.path.append(str(place))  # and stays: what the factory imports later lies there too
    ordered, named = arguments(words)
    made = _called(name, module_name, function_name, ordered, named)
    import torch

    if not isinstance(made, torch.nn.Module):
        raise UsageError(f"--model: {name} gave a {type(made).__name__}, not a torch.nn.Module")
    return made.to("cpu").eval()


def _called(name: str, module_name: str, function: str, ordered: list[Any], named: dict[str, Any]) -> object:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        raise UsageError(
            f"--model: {shown(problem.name or module_name)} cannot be imported from here ({os.getcwd()}); go to the "
            "folder that holds it, or name that folder with --code"
        ) from problem
    except Exception as problem:
        raise UsageError(f"--model: importing {module_name} failed: {_where(problem)}") from problem
    for part in function.split("."):
        if not hasattr(found, part):
            raise UsageError(f"--model: {module_name} has no {function}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"--model: {name} cannot be called")
    try:
        return found(*ordered, **named)
    except FxRewriteError:
        raise
    except Exception as problem:
        raise UsageError(f"--model: {name} failed: {_where(problem)}") from problem


def _where(problem: Exception) -> str:
    """An exception with the last line of the user's code that it went through."""
    frames = traceback.extract_tb(problem.__traceback__)
    said = f"{type(problem).__name__}: {problem}"
    return f"{said} ({frames[-1].filename}:{frames[-1].lineno})" if frames else said
