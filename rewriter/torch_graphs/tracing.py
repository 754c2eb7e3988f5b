"""A module of the user's, traced by torch.export.

Invariant: the module is as it was when the trace is over, whether it succeeded or not; where it failed, the message
names the line of the model's own code that could not be traced, and what to do.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, cast

from rewriter.checkpoints.lazytorch import silenced
from rewriter.errors import InputError, UsageError
from rewriter.torch_graphs.structures import leaves_info

_MOST_TEXT = 300


def export(module: Any, inputs: Any, dynamic_shapes: Any = None) -> Any:
    """The program of a module in evaluation form, called with `inputs`: a tensor, a list of arguments, or a dict."""
    import torch

    if inputs is None:
        raise UsageError("example_inputs: a module is traced by calling it; give the inputs that it is called with")
    args, kwargs = _arguments(inputs)
    with evaluating(module), torch.no_grad(), silenced():
        try:
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
        except Exception as problem:
            raise InputError(_words(module, problem)) from problem


def shown(program: Any) -> Any:
    """A program as the module that a user gets. What it computes is evaluation already, so `eval()` has nothing to do;
    torch refuses it, as it refuses `train()`, for programs of which it does not know that."""
    module = program.module()
    module.eval = MethodType(_evaluated, module)
    return module


def _evaluated(module: Any) -> Any:
    return module


def is_traced(module: Any) -> bool:
    from torch.fx import GraphModule

    return isinstance(module, GraphModule)


def traced(module: Any) -> Any:
    """The module traced by its symbols, which asks for no inputs; None where that fails too."""
    from torch.fx import symbolic_trace

    with evaluating(module), silenced():
        try:
            return symbolic_trace(module)
        except Exception:  # what a model does may fail in any way; the export has said why it cannot be traced
            return None


def bound(module: Any, inputs: Any) -> list[Any]:
    """A value for every placeholder of a traced module, in their order."""
    if inputs is None:
        raise UsageError("example_inputs: a traced module is run on them; give the inputs that it is called with")
    args, kwargs = _arguments(inputs)
    if leaves_info(module) is not None:
        return _leaves(module, args, kwargs)
    waiting, found = list(args), list[Any]()
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        if waiting:
            found.append(waiting.pop(0))
        elif node.target in kwargs:
            found.append(kwargs.pop(node.target))
        elif node.args:
            found.append(node.args[0])
        else:
            raise UsageError(f"example_inputs: the module is called with {node.target!r}, too")
    if waiting or kwargs:
        raise UsageError("example_inputs: there are more than the module is called with")
    return found


def _leaves(module: Any, args: Any, kwargs: Any) -> list[Any]:
    import torch.utils._pytree as pytree

    tree: Any = pytree
    found = tree.tree_leaves((args, kwargs))
    wanted = sum(node.op == "placeholder" for node in module.graph.nodes)
    if len(found) != wanted:
        raise UsageError(f"example_inputs: the module is called with {wanted} values, and {len(found)} are given")
    return found


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), {**cast("Mapping[str, Any]", inputs)}
    return tuple(cast("Sequence[Any]", inputs)) if isinstance(inputs, Sequence) else (inputs,), {}


@contextmanager
def evaluating(module: Any) -> Generator[None]:
    """Every part in evaluation mode, as what is shipped is, and back in the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _words(module: Any, problem: Exception) -> str:
    name = type(module).__name__
    text = " ".join(str(problem).split())
    said = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
    where = _line(problem)
    return (
        f"torch.export cannot trace {name}{f' at {where}' if where else ''}: {type(problem).__name__}: {said}\n"
        f"{_remedy(module, text)}"
    )


def _remedy(module: Any, text: str) -> str:
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript is no longer traced; give the module that it was made from"
    if "data-dependent" in text:
        remedy = "Change that line so that it does not depend on the values of tensors"
    else:
        remedy = "Does the model run on these inputs by itself? Then change that line"
    return f"{remedy}, or export the part that can be traced"


def _line(problem: BaseException) -> str | None:
    """The innermost line that is not torch's own, of the error or of what it was raised from."""
    import torch

    theirs, ours = Path(torch.__file__).parent, Path(__file__).parent.parent
    chain: list[BaseException] = []
    found: BaseException | None = problem
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    for each in chain:
        for frame in reversed(traceback.extract_tb(each.__traceback__)):
            path = Path(frame.filename)
            if path.is_file() and theirs not in path.parents and ours not in path.parents:
                code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
                return f"{path.name}:{frame.lineno}: `{code}`"
    return None
