"""Running models of torch on tensors of our own.

Invariant: a model that is run is never changed, nor is a tensor of it: what a run might change is a copy. Guards are
not asked; the inputs are made for the sizes that the model says.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

from rewriter.checking import samples
from rewriter.checking.samples import Case
from rewriter.checking.sizes import InputSpec
from rewriter.graph.tensors import dtype_enum
from rewriter.torch_graphs.structures import as_called
from rewriter.torch_graphs.tensors import name_of, tensor_of


@dataclass(frozen=True, slots=True)
class Program:
    """An exported program that can be run."""

    program: Any

    def run(self, inputs: Sequence[Any], change: Callable[[Any], Any] | None = None) -> dict[str, Any]:
        import torch
        from torch.fx import Interpreter

        given = [*_arguments(self.program, inputs, change)]
        args = [value.clone() if hasattr(value, "clone") else value for value in given]
        with torch.no_grad():
            found: Any = Interpreter(self.program.graph_module).run(*args)
        pairs = zip(self.program.graph_signature.output_specs, found, strict=True)
        return {spec.arg.name: value for spec, value in pairs if spec.kind.name == "USER_OUTPUT" and value is not None}

    def tensors(self) -> list[Any]:
        found = [*self.program.state_dict.values(), *self.program.constants.values()]
        return [t for t in found if hasattr(t, "untyped_storage")]

    def cases(self) -> list[tuple[Case, list[Any]]]:
        nodes, given = inputs_of(self.program), examples(self.program)
        made: list[tuple[Case, list[Any]]] = []
        for number, chosen in enumerate(sizes(self.program)):
            shapes: list[tuple[int, ...] | None] = []
            for node in nodes:
                tensor = hasattr(node.meta.get("val"), "untyped_storage")
                if not tensor and given is None:
                    raise ValueError(f"its input {node.name} is no tensor, and it holds no example inputs")
                shapes.append(shape_at(node, chosen) if tensor else None)
            wanted = [Wanted(n.name, s, n.meta.get("val")) for n, s in zip(nodes, shapes, strict=True)]
            made += cases(wanted, given, number)
        return made


@dataclass(frozen=True, slots=True)
class Module:
    """A GraphModule that can be run, with the inputs that it was traced with."""

    module: Any
    inputs: Sequence[Any]

    def run(self, inputs: Sequence[Any], change: Callable[[Any], Any] | None = None) -> dict[str, Any]:
        import torch
        import torch.utils._pytree as pytree

        tree: Any = pytree
        state: dict[str, Any] = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        if change is not None:
            state |= {n: change(p.detach()) for n, p in self.module.named_parameters() if p.is_floating_point()}
            state |= {n: change(b) for n, b in state.items() if b.is_floating_point()}
        args = tuple([value.clone() if hasattr(value, "clone") else value for value in inputs])
        with torch.no_grad(), redirect_stderr(io.StringIO()):  # a traced module that fails prints its code
            found: Any = torch.func.functional_call(self.module, state, *as_called(self.module, args))
        nodes = tree.tree_leaves(self.module.graph.output_node().args[0])
        pairs = zip(nodes, tree.tree_leaves(found), strict=True)
        return {node.name: value for node, value in pairs if hasattr(node, "users") and value is not None}

    def tensors(self) -> list[Any]:
        return [*self.module.parameters(), *self.module.buffers()]

    def cases(self) -> list[tuple[Case, list[Any]]]:
        """Noise of the sizes of the inputs, and of one more in the batch, where the model takes that."""
        made: list[tuple[Case, list[Any]]] = []
        for more in (0, 1):
            wanted: list[Wanted] = []
            for place, value in enumerate(self.inputs):
                tensor = hasattr(value, "untyped_storage")
                shape = tuple(value.shape) if tensor else None
                larger = (shape[0] + more, *shape[1:]) if shape and len(shape) > 1 else shape
                wanted.append(Wanted(f"input{place}", larger, value))
            made += cases(wanted, [*self.inputs], more)
        return made


@dataclass(frozen=True, slots=True)
class Wanted:
    """An input to be made up, of the type and on the device of `like`; one without a shape is what it was."""

    name: str
    shape: tuple[int, ...] | None
    like: Any


def cases(wanted: Sequence[Wanted], given: Sequence[Any] | None, number: int) -> list[tuple[Case, list[Any]]]:
    """The input sets of one size."""
    tensors = [w for w in wanted if w.shape is not None]
    specs = [InputSpec(w.name, dtype_enum(name_of(w.like.dtype)), w.shape) for w in tensors]
    return [
        (case, [_input(w, case, None if given is None else given[i]) for i, w in enumerate(wanted)])
        for case in samples.cases(specs, {}, number, {}, {})
    ]


def _input(wanted: Wanted, case: Case, example: Any) -> Any:
    """Noise where the user gives floats; whole numbers (ids, masks) as they were, where they fit."""
    array = case.feeds.get(wanted.name)
    if array is None:
        return example
    if array.dtype.kind in "biu" and example is not None and tuple(example.shape) == array.shape:
        return example
    return tensor_of(array, name_of(wanted.like.dtype)).to(wanted.like.device)


def _arguments(program: Any, inputs: Sequence[Any], change: Callable[[Any], Any] | None) -> list[Any]:
    waiting = iter(inputs)
    found: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            found.append(next(waiting))
            continue
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        floats = hasattr(value, "is_floating_point") and value.is_floating_point()
        found.append(change(value.detach()) if change is not None and floats else value)
    return found


def inputs_of(program: Any) -> list[Any]:
    """The placeholders of what the user gives."""
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    specs = program.graph_signature.input_specs
    return [n for n, spec in zip(placeholders, specs, strict=True) if spec.kind.name == "USER_INPUT"]


def examples(program: Any) -> list[Any] | None:
    """The inputs that the program was exported with, flat; None where it does not hold them."""
    import torch.utils._pytree as pytree

    given: Any = program.example_inputs
    if given is None:
        return None
    tree: Any = pytree
    flat = tree.tree_leaves(given)
    return flat if len(flat) == len(inputs_of(program)) else None


def sizes(program: Any) -> list[Mapping[Any, int]]:
    """Numbers for the symbols of the inputs' sizes: those of the export, then others that the program allows."""
    hints: dict[Any, int] = {}
    for node in inputs_of(program):
        for extent in getattr(node.meta.get("val"), "shape", ()):
            if not isinstance(extent, int):
                hints.update({s: _hint(extent, s) for s in extent.node.expr.free_symbols})
    if not hints:
        return [{}]
    other = {symbol: _another(program.range_constraints.get(symbol), hint) for symbol, hint in hints.items()}
    return [hints] if other == hints else [hints, other]


def _hint(extent: Any, symbol: Any) -> int:
    """What a symbol was in the export."""
    env = extent.node.shape_env
    known: Any = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val
    return int(known.get(symbol, 2))


def _another(allowed: Any, hint: int) -> int:
    lower, upper = (2, hint) if allowed is None else (max(2, _int(allowed.lower, 2)), _int(allowed.upper, hint + 1))
    return next((n for n in (hint + 1, hint - 1) if lower <= n <= upper), hint)


def _int(bound: Any, default: int) -> int:
    return int(bound) if getattr(bound, "is_Integer", isinstance(bound, int)) else default


def shape_at(node: Any, chosen: Mapping[Any, int]) -> tuple[int, ...]:
    """The extents of an input for chosen symbols."""
    return tuple(
        [extent if isinstance(extent, int) else int(extent.node.expr.subs(chosen)) for extent in node.meta["val"].shape]
    )
