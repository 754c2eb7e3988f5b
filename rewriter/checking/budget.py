"""Whether a net is small enough for an engine that is a thousand times slower than a good one."""

from __future__ import annotations

from math import prod

import onnx
from onnx import ModelProto, NodeProto

from rewriter.checking.net import Net
from rewriter.checking.sizes import InputSpec, Sizes

_MOST_NODES = 3000
_MOST_MULTIPLY_ADDS = 300_000_000  # of one run: about a second in numpy
_COUNTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def too_large(net: Net, specs: tuple[InputSpec, ...], sizes: Sizes) -> str:
    """Why the reference evaluator is not to be used on `net` at these sizes; empty if it may."""
    nodes = len(net.graph.node)
    if nodes > _MOST_NODES:
        return f"{nodes} nodes are more than the {_MOST_NODES} that the reference evaluator is given"
    try:
        spent = _multiply_adds(net, specs, sizes)
    except Exception as error:  # inference refuses what it does not know; without sizes there is no budget to keep to
        return f"its cost is not known ({type(error).__name__})"
    if spent is None:
        return "its cost is not known"
    if spent > _MOST_MULTIPLY_ADDS:
        return (
            f"{spent:.1e} multiply-adds are more than the {_MOST_MULTIPLY_ADDS:.0e} that the reference evaluator gets"
        )
    return ""


def _multiply_adds(net: Net, specs: tuple[InputSpec, ...], sizes: Sizes) -> int | None:
    model = ModelProto()
    model.CopyFrom(net.model)
    shapes = {spec.name: spec.shape(sizes) for spec in specs if spec.dims is not None}
    for value in model.graph.input:
        if value.name in shapes:
            declared = value.type.tensor_type.shape
            declared.ClearField("dim")
            for size in shapes[value.name]:
                declared.dim.add(dim_value=size)
    known: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in net.graph.initializer}
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            known[value.name] = tuple(dim.dim_value for dim in dims)
    total = 0
    for node in net.graph.node:
        if node.op_type in _COUNTED:
            cost = _cost(node, known)
            if cost is None:
                return None
            total += cost
    return total


def _cost(node: NodeProto, known: dict[str, tuple[int, ...]]) -> int | None:
    """Multiply-adds of one node: every output element takes one row of the weight (every input one, transposed)."""
    data, weight, output = (known.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if data is None or weight is None or output is None:
        return None
    if node.op_type == "Conv":
        return prod(output) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(data) * prod(weight[1:])
    return prod(output) * max(data[-1], weight[0]) if data and weight else 0
