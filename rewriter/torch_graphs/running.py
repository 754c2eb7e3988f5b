"""Running an exported program on tensors of our own.

Invariant: the program that is run is never changed, nor is a tensor of it: what a run might change is a copy. Guards
are not asked; the inputs are made for the sizes that the program says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def run(program: Any, inputs: Sequence[Any], change: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """What the user gets of flat `inputs`, by the names of the outputs; `change` is made of every stored tensor."""
    import torch
    from torch.fx import Interpreter

    module = program.graph_module
    args = [value.clone() if hasattr(value, "clone") else value for value in _arguments(program, inputs, change)]
    with torch.no_grad():
        found: Any = Interpreter(module).run(*args)
    specs = program.graph_signature.output_specs
    pairs = zip(specs, found, strict=True)
    return {spec.arg.name: value for spec, value in pairs if spec.kind.name == "USER_OUTPUT" and value is not None}


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
