"""Small models for the tests of verification, with the edits that they are compared after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Dims = Sequence[int | str | None]


def value(name: str, dims: Dims | None = None, elem_type: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, dims)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    stored: Mapping[str, Any] | None = None,
    *,
    ir: int = 10,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> ModelProto:
    """A model from its parts; `stored` holds its initializers as arrays."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (stored or {}).items()]
    graph = helper.make_graph(list(nodes), "net", list(inputs), list(outputs), tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, ir_version=ir, opset_imports=imports)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], f"/{output}", **attributes)


def convs(
    channels: Sequence[int] = (3, 16, 16, 8),
    dims: Dims = (1, 3, 16, 24),
    *,
    stride: int = 1,
    dtype: Any = np.float32,
    seed: int = 0,
    **kwargs: Any,
) -> ModelProto:
    """A plain chain of conv and ReLU, weights scaled so that activations keep their size."""
    rng = np.random.default_rng(seed)
    nodes: list[NodeProto] = []
    stored: dict[str, np.ndarray] = {}
    last = "x"
    for at, (before, after) in enumerate(pairwise(channels)):
        stored[f"w{at}"] = (rng.standard_normal((after, before, 3, 3)) * (2 / (9 * before)) ** 0.5).astype(dtype)
        stored[f"b{at}"] = (0.1 * rng.standard_normal(after)).astype(dtype)
        made = f"c{at}"
        strides = [stride, stride]
        nodes.append(node("Conv", [last, f"w{at}", f"b{at}"], made, pads=[1, 1, 1, 1], strides=strides))
        nodes.append(node("Relu", [made], f"r{at}"))
        last = f"r{at}"
    nodes[-1] = node("Identity", [made], "y")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(nodes, [value("x", dims, kind)], [value("y", None, kind)], stored, **kwargs)


def weight(net: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in net.graph.initializer if t.name == name)).copy()


def with_weight(net: ModelProto, name: str, array: np.ndarray) -> ModelProto:
    """A copy of `net` with another value for one initializer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(net)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy


def nudged(net: ModelProto, name: str, relative: float) -> ModelProto:
    """A copy in which the largest element of one weight is off by `relative`."""
    array = weight(net, name)
    flat = array.reshape(-1)
    flat[np.argmax(np.abs(flat))] *= 1 + relative
    return with_weight(net, name, array)
