"""Ways of running a net: ONNX Runtime, the same with bfloat16 and float64 run as float32, and onnx's reference.

Invariant: an engine sees a model whose data is in memory, on the CPU, with optimisation off. What it raises arrives as
one of three: `CannotLoad`, `CannotRun`, or MemoryError.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from rewriter.checking.net import Net, whole
from rewriter.checking.pack import tensors
from rewriter.checking.wire import Array, dtype_of

_UPCAST = (TensorProto.BFLOAT16, TensorProto.DOUBLE)
_OUT_OF_MEMORY = re.compile(r"bad_alloc|failed to allocate|bad allocation|out of memory|allocation failed", re.I)
_NOT_FOR_THIS_ENGINE = re.compile(
    r"not implemented|NOT_IMPLEMENTED|could not find an implementation|is not a registered function|No Op registered"
    r"|under development|Unsupported model IR|Type 'tensor\((?:bfloat16|double)\)'|No opset import for domain",
    re.I,
)
_MAX_IR = re.compile(r"max supported IR version: (\d+)")


class CannotLoad(Exception):
    """The engine refuses the model; `lacking` says that the engine is at fault and not the model."""

    def __init__(self, reason: str, lacking: bool) -> None:
        super().__init__(reason)
        self.lacking = lacking


class CannotRun(Exception):
    """The model loads and does not run on these inputs."""


class Session(Protocol):
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Every output of the net by name."""
        ...


class Engine(Protocol):
    name: str
    unit: float  # the roundoff below which it cannot compute, whatever type the weights are stored in

    def open(self, net: Net) -> Session: ...


class OnnxRuntime:
    """ONNX Runtime, CPU provider, optimisation off, weights handed over from memory."""

    def __init__(self, upcast: bool = False) -> None:
        self._runtime: Any = importlib.import_module("onnxruntime")
        self._runtime.disable_telemetry_events()  # for Windows; elsewhere the environment has said so already
        self._upcast = upcast
        self.name = f"onnxruntime {self._runtime.__version__}, CPUExecutionProvider, optimisation off"
        self.unit = 2.0**-24 if upcast else 0.0
        if upcast:
            self.name += ", bfloat16 and float64 run as float32"

    def open(self, net: Net) -> Session:
        net = as_float32(net) if self._upcast else net
        try:
            return _RuntimeSession(self._session(net), net, self._runtime)
        except Exception as error:
            reason = _checked(error)
            newest = _MAX_IR.search(str(error))
            if newest is None or net.model.ir_version <= int(newest[1]):
                raise CannotLoad(reason, bool(_NOT_FOR_THIS_ENGINE.search(str(error)))) from error
            # The IR number says which fields a file may use, and the engine reads those it knows: lower it on our copy.
            model = ModelProto()
            model.CopyFrom(net.model)
            model.ir_version = int(newest[1])
            return self.open(Net(model, net.weights))

    def _session(self, net: Net) -> Any:
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        model = net.model
        if net.weights:
            model = ModelProto()
            model.CopyFrom(net.model)
            for tensor in model.graph.initializer:
                if tensor.name in net.weights:
                    _mark_external(tensor, net.weights[tensor.name].nbytes)
            values = [self._runtime.OrtValue.ortvalue_from_numpy(array) for array in net.weights.values()]
            options.add_external_initializers(list(net.weights), values)
        data = model.SerializeToString()
        return self._runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _mark_external(tensor: TensorProto, length: int) -> None:
    """The form in which ONNX Runtime expects a tensor that comes from memory; the location is never opened."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "in-memory"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


class _RuntimeSession:
    def __init__(self, session: Any, net: Net, runtime: Any) -> None:
        self._session = session
        self._names = [output.name for output in net.graph.output]
        self._inputs = {value.name: value.type.tensor_type.elem_type for value in net.graph.input}
        self._weights = net.weights  # the engine reads these in place
        self._options: Any = runtime.RunOptions()
        self._options.log_severity_level = 4

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        try:
            results = self._session.run(self._names, _cast(feeds, self._inputs), self._options)
        except Exception as error:
            raise CannotRun(_checked(error)) from error
        return dict(zip(self._names, results, strict=True))


def _cast(feeds: Mapping[str, Array], inputs: Mapping[str, int]) -> dict[str, Array]:
    """What the model reads, in the type its (possibly upcast) inputs have now."""
    return {
        name: np.ascontiguousarray(array.astype(dtype_of(inputs[name]))) if _widened(array, inputs[name]) else array
        for name, array in feeds.items()
        if name in inputs
    }


def _widened(array: Array, elem_type: int) -> bool:
    return elem_type == TensorProto.FLOAT and array.dtype in [dtype_of(kind) for kind in _UPCAST]


class Reference:
    """onnx's own evaluator: slow, plain numpy, and it knows every opset that the installed onnx knows."""

    def __init__(self) -> None:
        self.name = f"onnx reference evaluator {onnx.__version__}"
        self.unit = 0.0

    def open(self, net: Net) -> Session:
        module: Any = importlib.import_module("onnx.reference")
        try:
            return _ReferenceSession(module.ReferenceEvaluator(whole(net)), net)
        except Exception as error:
            raise CannotLoad(_checked(error), True) from error


class _ReferenceSession:
    def __init__(self, evaluator: Any, net: Net) -> None:
        self._evaluator = evaluator
        self._names = [output.name for output in net.graph.output]
        self._inputs = {value.name for value in net.graph.input}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        wanted = {name: array for name, array in feeds.items() if name in self._inputs}
        try:
            with np.errstate(all="ignore"):
                results: Sequence[Any] = self._evaluator.run(self._names, wanted)
        except Exception as error:
            raise CannotRun(_checked(error)) from error
        return dict(zip(self._names, results, strict=True))


def _checked(error: Exception) -> str:
    """The engine's words without its source paths; running out of memory is not the model's fault: MemoryError."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        raise MemoryError(text) from error
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", r"\1: ", text)
    text = re.sub(r"/onnxruntime_src/\S+ .*?\((?:[^()]|\([^()]*\))*\) ", "", text)
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text if len(text) <= 400 else text[:400] + "…"


def as_float32(net: Net) -> Net:
    """`net` with bfloat16 and float64 made float32 throughout: weights, constants, casts, inputs and outputs."""
    model = ModelProto()
    model.CopyFrom(net.model)
    arrays = {
        name: np.asarray(array, np.float32) if array.dtype in [dtype_of(kind) for kind in _UPCAST] else array
        for name, array in net.weights.items()
    }
    for tensor in tensors(model):
        if tensor.data_type in _UPCAST:
            if tensor.name in arrays and not _has_data(tensor):
                tensor.data_type = TensorProto.FLOAT
            else:
                array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _UPCAST:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            _retype(node)
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return Net(model, arrays)


def _has_data(tensor: TensorProto) -> bool:
    return tensor.HasField("raw_data") or bool(tensor.double_data or tensor.int32_data)


def _retype(node: NodeProto) -> None:
    """Attributes that name an element type."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype", "stash_type") and attribute.i in _UPCAST:
            attribute.i = TensorProto.FLOAT


def can_upcast(net: Net) -> bool:
    return net.has_type(*_UPCAST)
