"""New fx nodes for the canonical operators that a rewrite writes, and what export wants to know of them.

Invariant: a node computes exactly the canonical operator: pads that differ on two sides, which no conv of torch has,
become an operator of their own beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rewriter.rewriting.edits import AddNode
from rewriter.torch_graphs.calls import FxNode, fake, op_of

Maker: TypeAlias = "Callable[[Any, AddNode, list[FxNode]], FxNode]"

CARRIED = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "custom", "from_node")
"""What a node is told about where it comes from, which the one in its place goes on telling."""


def fresh(last: FxNode) -> list[FxNode]:
    """The nodes of one edit, which end with `last`: of what is not new it is known what it gives."""
    made: list[FxNode] = [last] if "val" not in last.meta else []
    while made and made[0].prev in made[0].all_input_nodes and "val" not in made[0].prev.meta:
        made.insert(0, made[0].prev)
    return made


def describe(node: FxNode, like: FxNode) -> None:
    """Say of a new node where it comes from."""
    node.meta.update({key: like.meta[key] for key in CARRIED if key in like.meta})


def revalue(node: FxNode) -> None:
    """Find anew what a node gives, from what its inputs are known to be."""
    from torch.fx.node import map_arg

    map_: Any = map_arg
    args, kwargs = map_(node.args, fake), map_(node.kwargs, fake)
    modes = [mode for n in node.all_input_nodes if (mode := getattr(fake(n), "fake_mode", None)) is not None]
    if modes:
        with modes[0]:
            node.meta["val"] = node.target(*args, **kwargs)
    node.meta.pop("tensor_meta", None)


def _aten() -> Any:
    import torch

    return torch.ops.aten


def _flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """(begin, end) from the last axis backwards."""
    return [number for pair in reversed(pads) for number in pair]


def _conv(graph: Any, edit: AddNode, inputs: list[FxNode]) -> FxNode:
    attrs, aten = edit.attrs, _aten()
    pads: Sequence[tuple[int, int]] = attrs["pads"]
    common = [min(pair) for pair in pads]
    rest = [(begin - both, end - both) for (begin, end), both in zip(pads, common, strict=True)]
    x, weight, *bias = inputs
    if any(begin or end for begin, end in rest):
        x = graph.call_function(aten.constant_pad_nd.default, (x, _flat(rest), 0))
    strides, dilations, groups = list(attrs["strides"]), list(attrs["dilations"]), attrs["groups"]
    target = getattr(aten, f"conv{len(pads)}d").default
    args = (x, weight, bias[0] if bias else None, strides, common, dilations, groups)
    if _decomposed(edit):
        target = aten.convolution.default
        args = (*args[:6], False, [0] * len(pads), groups)
    return graph.call_function(target, args)


def _conv_transpose(graph: Any, edit: AddNode, inputs: list[FxNode]) -> FxNode:
    """Pads cut its result; what they cut more on one side is cut behind it."""
    attrs, aten = edit.attrs, _aten()
    pads: Sequence[tuple[int, int]] = attrs["pads"]
    common = [min(pair) for pair in pads]
    beyond = list(attrs.get("output_padding") or [0] * len(pads))
    x, weight, *bias = inputs
    strides, dilations, groups = list(attrs["strides"]), list(attrs["dilations"]), attrs["groups"]
    one = bias[0] if bias else None
    if _decomposed(edit):
        args = (x, weight, one, strides, common, dilations, True, beyond, groups)
        made = graph.call_function(aten.convolution.default, args)
    else:
        name = f"conv_transpose{len(pads)}d"
        target = getattr(aten, name).default if len(pads) == 1 else getattr(aten, name).input
        made = graph.call_function(target, (x, weight, one, strides, common, beyond, groups, dilations))
    for axis, ((begin, end), both) in enumerate(zip(pads, common, strict=True), 2):
        if begin != end:
            cut = (made, axis, begin - both, both - end if end > both else (1 << 63) - 1)
            made = graph.call_function(aten.slice.Tensor, cut)
    return made


def _decomposed(edit: AddNode) -> bool:
    """Whether the program is written in core ATen, where there is one convolution for all."""
    native = getattr(edit.like or edit.at, "native", None)
    node = getattr(native, "node", None)
    return node is not None and op_of(node) == "convolution"


def _function(path: str) -> Maker:
    packet, overload = path.split(".")
    return lambda graph, edit, inputs: graph.call_function(getattr(getattr(_aten(), packet), overload), tuple(inputs))


MAKERS: Mapping[str, Maker] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _function("linear.default"),
    "matmul": _function("matmul.default"),
    "add": _function("add.Tensor"),
    "sub": _function("sub.Tensor"),
}
