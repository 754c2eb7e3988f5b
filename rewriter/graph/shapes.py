"""Sizes of every value, by onnx's own inference on a copy without weights.

Invariant: nothing that decides whether a rewrite is right reads these (a file's declared sizes may be stale); they serve
figures in reports only. Weights are never copied or serialised: the inference sees their types and extents.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ModelProto, NodeProto, TensorProto, shape_inference

from rewriter.graph.onnx import value_type
from rewriter.graph.view import Dim

SMALL = 1024
"""Elements up to which an integer tensor may tell a shape and is kept."""


def infer(model: ModelProto, nodes: Sequence[NodeProto]) -> dict[str, tuple[Dim, ...]]:
    """Shapes by value name; values whose rank is unknown are absent."""
    shell = ModelProto(ir_version=model.ir_version)
    shell.opset_import.extend(model.opset_import)
    shell.functions.extend(model.functions)
    graph = shell.graph
    graph.name = "shapes"
    graph.node.extend(nodes)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    given = {i.name for i in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64 and _size(tensor) <= SMALL and not tensor.external_data:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        inferred = shape_inference.infer_shapes(shell, data_prop=True).graph
    except Exception:  # whatever inference dislikes, a figure less is no reason to fail
        inferred = graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    return {info.name: shape for info in infos if (shape := value_type(info)[1]) is not None}


def _size(tensor: TensorProto) -> int:
    size = 1
    for extent in tensor.dims:
        size *= extent
    return size
