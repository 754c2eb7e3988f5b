"""Graphs of torch as plain values, beside which their tensors are written: what `.safetensors` and its JSON hold.

Invariant: nothing of the graph is lost. A call takes, for each argument of its schema in turn, what `attributes` has
under that name, else the next of `inputs`; where there is no schema, arguments go by their places. Tensors are named as
in the state dict and written once: `tied` names say of which other one they are, `constants` are in no state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from rewriter.checkpoints.structure import Stored
from rewriter.errors import UsageError
from rewriter.graph.tensors import shown
from rewriter.torch_graphs.calls import (
    FxNode,
    attribute,
    dtype_of,
    fake,
    is_node,
    is_tensor,
    items,
    operator_of,
    shape_of,
)
from rewriter.torch_graphs.signature import identity
from rewriter.torch_graphs.tensors import name_of

Plain: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True, slots=True)
class Described:
    """What the JSON says of a graph, and the tensors that go with it."""

    structure: Plain
    tensors: list[Stored]


def program(made: Any) -> Described:
    """An ExportedProgram; inputs and outputs are flat, as its graph has them."""
    signature, graph = made.graph_signature, made.graph
    held = {n: t for n, t in {**made.state_dict, **made.constants}.items() if is_tensor(t)}
    tensors, tied = _written(held)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    specs = dict(zip(placeholders, signature.input_specs, strict=True))
    stored = {n: tied.get(name, name) for n, s in specs.items() if (name := str(s.target)) in held}
    names = _named(graph, stored, held)
    given = [(n, s.arg) for n, s in specs.items() if s.kind.name == "USER_INPUT"]
    pairs = [*zip(signature.output_specs, items(graph.output_node().args[0]), strict=True)]
    structure = {
        **_versions("torch.export"),
        "inputs": [_input(names[n], n, argument) for n, argument in given],
        "outputs": [_value(node, names) for spec, node in pairs if spec.kind.name == "USER_OUTPUT"],
        "constants": [name for name in held if name not in made.state_dict],
        "mutations": {s.target: names[n] for s, n in pairs if s.kind.name != "USER_OUTPUT"},
        "tied": tied,
        "nodes": [_call(node, names) for node in graph.nodes if node.op not in ("placeholder", "output")],
    }
    return Described(structure, tensors)


def module(made: Any) -> Described:
    """A GraphModule, with the class and the settings of every layer that it calls."""
    graph = made.graph
    read = {n: attribute(made, n.target) for n in graph.nodes if n.op == "get_attr"}
    state: dict[str, Any] = {name: t for name, t in made.state_dict(keep_vars=True).items() if is_tensor(t)}
    held = {**state, **dict(made.named_buffers()), **{n.target: t for n, t in read.items() if is_tensor(t)}}
    tensors, tied = _written(held)
    stored = {n: tied.get(name, name) for n, t in read.items() if is_tensor(t) and (name := str(n.target))}
    names = _named(graph, stored, held)
    given = [n for n in graph.nodes if n.op == "placeholder"]
    called = dict.fromkeys(n.target for n in graph.nodes if n.op == "call_module")
    structure = {
        **_versions("torch.fx"),
        "training": made.training,
        "inputs": [{"name": names[n]} for n in given],
        "outputs": _plain(graph.output_node().args[0], names),
        "constants": [name for name in held if name not in state],
        "tied": tied,
        "modules": {path: _layer(made.get_submodule(path)) for path in called},
        "nodes": [_call(n, names) for n in graph.nodes if n.op not in ("placeholder", "output") and n not in stored],
    }
    return Described(structure, tensors)


# --- tensors ---------------------------------------------------------------------------------------------------------


def _written(held: Mapping[str, Any]) -> tuple[list[Stored], dict[str, str]]:
    """What is written, and under which name what is tied to it lies."""
    first: dict[object, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in held.items():
        there = first.setdefault(identity(tensor), name)
        if there != name:
            tied[name] = there
    return [_stored(name, tensor) for name, tensor in held.items() if name not in tied], tied


def _stored(name: str, tensor: Any) -> Stored:
    import torch

    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
        raise UsageError(f"{shown(name)} is no dense tensor with elements; write the model as .pt2")

    def read() -> memoryview:
        flat: Any = tensor.detach().cpu().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy())

    return Stored(name, name_of(tensor.dtype), tuple(tensor.shape), read)


# --- nodes -----------------------------------------------------------------------------------------------------------


def _named(graph: Any, stored: Mapping[FxNode, str], held: Mapping[str, Any]) -> dict[FxNode, str]:
    """A name for all that nodes read: a tensor's own, or one that no tensor has."""
    taken = {*held, *[n.name for n in graph.nodes]}
    names: dict[FxNode, str] = dict(stored)
    for node in graph.nodes:
        if node not in names:
            name = node.name
            if name in held:
                name = next(made for number in range(1, len(taken) + 2) if (made := f"{name}_{number}") not in taken)
                taken.add(name)
            names[node] = name
    return names


def _call(node: FxNode, names: Mapping[FxNode, str]) -> Plain:
    if node.op == "get_attr" or any(n.op == "get_attr" and n not in names for n in node.all_input_nodes):
        raise UsageError(f"node {shown(node.name)} has a body; write the model as .pt2")
    inputs: list[Any] = []
    attributes: Plain = {}
    for name, value, reads in _arguments(node):
        if reads and is_node(value):
            inputs.append(names[value])
        elif reads and any(map(is_node, items(value))):
            inputs.append([None if item is None else names[item] for item in items(value)])
        else:
            attributes[name] = _plain(value, names)
    where = {"module": node.target} if node.op == "call_module" else {}
    return {
        "op": _operator(node),
        "name": node.name,
        **where,
        "inputs": inputs,
        "outputs": [names[node]],
        "attributes": attributes,
    }


def _arguments(node: FxNode) -> Iterator[tuple[str, Any, bool]]:
    """Every argument, with its name (or place) and whether tensors are what it takes; defaults are written out."""
    if operator_of(node) is None:
        for place, value in enumerate(node.args):
            yield str(place), value, all(map(is_node, items(value)))
        yield from ((name, value, False) for name, value in node.kwargs.items())
        return
    for place, argument in enumerate(node.target._schema.arguments):
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        yield argument.name, value, "Tensor" in str(argument.type)


def _operator(node: FxNode) -> str:
    if node.op == "call_module":
        return "module"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    if operator_of(node) is not None:
        return str(node.target)
    return f"{getattr(node.target, '__module__', None) or 'torch'}.{getattr(node.target, '__name__', node.target)}"


def _plain(value: Any, names: Mapping[FxNode, str]) -> Any:
    if is_node(value):
        return {"value": names[value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, names) for item in cast("Sequence[Any]", value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, names) for key, item in cast("Mapping[Any, Any]", value).items()}
    if type(value) is slice:
        return {"slice": [_plain(getattr(value, part), names) for part in ("start", "stop", "step")]}
    if value is Ellipsis:
        return {"slice": "..."}
    if type(value).__module__ == "torch" and type(value).__name__ in _WORDS:
        return str(value)
    raise UsageError(f"an argument of type {type(value).__name__} has no form in JSON; write the model as .pt2")


_WORDS = frozenset({"dtype", "device", "layout", "memory_format"})


# --- inputs, outputs, layers -----------------------------------------------------------------------------------------


def _versions(kind: str) -> Plain:
    import torch

    return {"graph": kind, "opset": {"torch": str(torch.__version__)}}


def _input(name: str, node: FxNode, argument: Any) -> Plain:
    fixed = {"value": argument.value} if hasattr(argument, "value") else {}
    return {"name": name, **_type(node), **fixed}


def _value(node: Any, names: Mapping[FxNode, str]) -> Plain:
    return {"name": names[node], **_type(node)} if is_node(node) else {"name": None, "value": _plain(node, names)}


def _type(node: FxNode) -> Plain:
    if not is_tensor(fake(node)):
        return {"dtype": None, "shape": None}
    return {"dtype": dtype_of(node), "shape": [*(shape_of(node) or ())]}


def _layer(part: Any) -> Plain:
    """The class of a module and, where it lists them as those of torch do, the settings that it was built with."""
    named: Sequence[str] = sorted(getattr(part, "__constants__", ()))
    settings = {name: value for name in named if _is_plain(value := getattr(part, name, None))}
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", "settings": settings}


def _is_plain(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and all(map(_is_plain, cast("Sequence[Any]", value)))
    return whole or value is None or isinstance(value, bool | int | float | str)
