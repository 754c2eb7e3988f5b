"""Layers of torch.nn for the canonical operators that a rewrite writes, first without elements, then with them.

Invariant: a layer computes exactly the canonical operator; pads that differ on two sides are an operator beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.graph.view import Constant
from rewriter.rewriting.edits import AddNode
from rewriter.torch_graphs.calls import FxNode

Attrs = Mapping[str, Any]
Tensors = Mapping[str, Constant]


def _conv(attrs: Attrs, held: Tensors) -> Any:
    from torch import nn

    out, per_group, *window = held["weight"].shape
    kind: Any = getattr(nn, f"Conv{len(window)}d")
    groups = attrs["groups"]
    return kind(
        per_group * groups, out, tuple(window), tuple(attrs["strides"]), _common(attrs["pads"]),
        tuple(attrs["dilations"]), groups, "bias" in held, device="meta",
    )  # fmt: skip


def _conv_transpose(attrs: Attrs, held: Tensors) -> Any:
    from torch import nn

    inner, per_group, *window = held["weight"].shape
    kind: Any = getattr(nn, f"ConvTranspose{len(window)}d")
    groups, beyond = attrs["groups"], attrs.get("output_padding") or (0,) * len(window)
    return kind(
        inner, per_group * groups, tuple(window), tuple(attrs["strides"]), _common(attrs["pads"]), tuple(beyond),
        groups, "bias" in held, tuple(attrs["dilations"]), device="meta",
    )  # fmt: skip


def _linear(attrs: Attrs, held: Tensors) -> Any:
    from torch import nn

    del attrs
    out, inner = held["weight"].shape
    return nn.Linear(inner, out, "bias" in held, device="meta")


MODULES: Mapping[str, Callable[[Attrs, Tensors], Any]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _linear,
}


def _common(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple([min(pair) for pair in pads])


def called(graph: Any, path: str, edit: AddNode, x: FxNode) -> FxNode:
    """The call of a layer, with what pads of two different sides add before a conv or cut behind a transposed one."""
    pads: Sequence[tuple[int, int]] = edit.attrs.get("pads", ())
    rest = [(begin - both, end - both) for (begin, end), both in zip(pads, _common(pads), strict=True)]
    uneven = any(begin or end for begin, end in rest)
    if uneven and edit.op == "conv":
        import torch.nn.functional as functional

        x = graph.call_function(functional.pad, (x, [n for pair in reversed(rest) for n in pair]))
    made = graph.call_module(path, (x,))
    if uneven and edit.op == "conv_transpose":
        import operator

        cuts = [slice(begin, -end if end else None) for begin, end in rest]
        made = graph.call_function(operator.getitem, (made, (slice(None), slice(None), *cuts)))
    return made


def sum_of(graph: Any, op: str, inputs: list[FxNode]) -> FxNode:
    import operator

    return graph.call_function(operator.add if op == "add" else operator.sub, tuple(inputs))


# --- tensors ---------------------------------------------------------------------------------------------------------


def empty(constant: Constant) -> Any:
    import torch

    return torch.empty(constant.shape, dtype=getattr(torch, constant.dtype), device="meta")


def promise(module: Any, role: str, constant: Constant) -> None:
    """A parameter without elements, which come at the end."""
    import torch

    setattr(module, role, torch.nn.Parameter(empty(constant), requires_grad=False))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a new tensor lies, and whether it is trained: as what it was made of."""

    device: Any
    trains: bool

    @classmethod
    def of(cls, sources: Sequence[Any]) -> Place:
        """`sources` are tensors; a parameter made of several is trained where one of them is."""
        import torch

        device = sources[0].device if sources else torch.device("cpu")
        return cls(device, any(tensor.requires_grad for tensor in sources))

    def parameter(self, tensor: Any) -> Any:
        import torch

        return torch.nn.Parameter(tensor.to(self.device), requires_grad=self.trains)


def register(root: Any, name: str, tensor: Any, place: Place) -> None:
    """A tensor under a name of its own; one of whole numbers is a buffer."""
    path, _, last = name.rpartition(".")
    from torch import nn

    owner = root
    for part in path.split(".") if path else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if tensor.is_floating_point():
        owner.register_parameter(last, place.parameter(tensor))
    else:
        owner.register_buffer(last, tensor)
