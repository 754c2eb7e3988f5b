"""Running and comparing models by an independent hand; nothing here imports `rewriter`.

Invariant: models run as they are stored, with every optimisation of the engine off, or in float64 on onnx's reference
evaluator with torch's convolution; the two share no code with the rewrites that they judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fixtures.judge import bodies, op_histogram

Array = NDArray[Any]
Feeds = Mapping[str, Array]

# Inputs that the operator wants in float32 whatever the type of the data.
SINGLE = {"Resize": (1, 2), "Upsample": (1,)}
TO_DOUBLE = {TensorProto.FLOAT: TensorProto.DOUBLE}


def run(model: ModelProto | Path, feeds: Feeds, *, threads: int = 1) -> dict[str, Array]:
    """Every output, by name, of the model or file on ONNX Runtime with its optimisation off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


class Conv(OpRun):
    """Convolution by torch: onnx's own takes minutes for a whole detector."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        axes = x.ndim - 2
        window = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations or [1] * axes, strict=True)]
        steps = list(strides or [1] * axes)
        first, last = _pads(auto_pad or "NOTSET", list(pads or [0] * 2 * axes), x.shape[2:], window, steps)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(first, last, strict=True)])
        function = (torch.conv1d, torch.conv2d, torch.conv3d)[axes - 1]
        bias = None if b is None else torch.tensor(b)
        y = function(torch.tensor(padded), torch.tensor(w), bias, steps, 0, list(dilations or [1] * axes), group or 1)
        return (y.numpy(),)


class AveragePool(OpRun):
    """Mean over windows by torch, without ceil_mode: onnx's own counts the windows of some pads wrongly."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        assert kernel_shape and auto_pad in (None, "NOTSET") and not ceil_mode and set(dilations or [1]) == {1}
        axes = len(kernel_shape)
        ends = list(pads or [0] * 2 * axes)
        ring = [(0, 0), (0, 0), *zip(ends[:axes], ends[axes:], strict=True)]
        pool = (torch.nn.functional.avg_pool1d, torch.nn.functional.avg_pool2d, torch.nn.functional.avg_pool3d)[
            axes - 1
        ]

        def means(values: Array) -> Array:
            return pool(torch.tensor(np.pad(values, ring)), kernel_shape, list(strides or [1] * axes)).numpy()

        return (means(x) if count_include_pad else means(x) / means(np.ones_like(x)),)


def _pads(
    mode: str, pads: list[int], sizes: tuple[int, ...], window: list[int], strides: list[int]
) -> tuple[list[int], list[int]]:
    """Pads before and after each axis, by the text of the operator's specification."""
    if mode in ("NOTSET", ""):
        return pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if mode == "VALID":
        return [0] * len(window), [0] * len(window)
    totals = [max((-(-n // s) - 1) * s + w - n, 0) for n, s, w in zip(sizes, strides, window, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def run_double(model: ModelProto, feeds: Feeds) -> dict[str, Array]:
    """Every output of a model whose floats are float64 already (see `doubled`)."""
    evaluator = ReferenceEvaluator(model, new_ops=[Conv, AveragePool])
    outputs = evaluator.run(None, dict(feeds))
    return dict(zip((output.name for output in model.graph.output), outputs, strict=True))


def doubled(model: ModelProto) -> ModelProto:
    """The same model with every float32 tensor and type as float64: each stored number stays what it is exactly."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _double_graph(copy.graph)
    return copy


def _double_graph(graph: GraphProto) -> None:
    single = _single(graph)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name not in single:
            tensor = value.type.tensor_type
            tensor.elem_type = TO_DOUBLE.get(tensor.elem_type, tensor.elem_type)
    for tensor in graph.initializer:
        if tensor.name not in single:
            _double_tensor(tensor)
    for node in graph.node:
        if not single.isdisjoint(node.output):
            if node.op_type not in ("Constant", "Concat"):
                raise ValueError(f"{node.name}: {node.op_type} makes a float32 operand, which is not known here")
            continue
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _double_tensor(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TO_DOUBLE.get(attribute.i, attribute.i)
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                raise ValueError(f"{node.name}: a Constant with {attribute.name}")
        for body in bodies(node):
            _double_graph(body)


def _single(graph: GraphProto) -> set[str]:
    """Values that have to stay float32: what an operator wants so, and what that is joined from."""
    found: set[str] = set()
    for node in reversed(graph.node):
        places = SINGLE.get(node.op_type, ())
        found |= {node.input[place] for place in places if place < len(node.input) and node.input[place]}
        if node.op_type == "Concat" and not found.isdisjoint(node.output):
            found |= set(node.input)
    return found


def _double_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def noise(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def relative(found: Array, wanted: Array) -> float:
    """Largest difference over the largest wanted value; infinite where shapes, types or the places of NaN differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    exact = (found == wanted) | (np.isnan(found.astype(np.float64)) & np.isnan(wanted.astype(np.float64)))
    if exact.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.where(exact, 0.0, np.abs(found.astype(np.float64) - wanted.astype(np.float64)))
    scale = np.abs(wanted[np.isfinite(wanted.astype(np.float64))].astype(np.float64)).max(initial=0.0)
    worst = float(difference.max())
    return worst / float(scale) if np.isfinite(worst) and scale else float("inf")


def node_count(model: ModelProto) -> int:
    """Nodes of the graph, Constant nodes and those of bodies included."""
    return sum(op_histogram(model).values())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
