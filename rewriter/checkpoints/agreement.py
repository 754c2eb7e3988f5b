"""Does an exported ONNX file compute what the torch model computed?

Invariant: the two are run on the same inputs, and the largest difference is given, relative to the largest value; an
exporter that changed the function is told, and "not compared" is never called agreement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model

from rewriter.checking.engines import CannotLoad, CannotRun, OnnxRuntime, can_upcast
from rewriter.checking.net import Net, input_names
from rewriter.checking.wire import dtype_of
from rewriter.checkpoints.tracing import Prepared
from rewriter.graph.files import LoadedModel

LIMITS: Final = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Relative: far above rounding of deep nets, far below what another function gives."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """`error` is None where nothing was compared; `words` say what was found."""

    passed: bool
    error: float | None
    words: str


def can_run() -> bool:
    """Whether there is an engine to run ONNX files with."""
    return find_spec("onnxruntime") is not None


def compare(prepared: Prepared, loaded: LoadedModel) -> Agreement:
    """Run the file with ONNX Runtime on the example inputs and hold it against torch's outputs."""
    if not can_run():
        return Agreement(False, None, 'no engine is installed: pip install "fxrewrite[cpu]"')
    if not prepared.outputs:
        return Agreement(False, None, "the program has no example inputs to run it on")
    outputs = [_array(value) for value in prepared.outputs]
    try:
        found, run_as = _run(prepared, loaded)
    except (CannotLoad, CannotRun, MemoryError) as problem:
        return Agreement(False, None, f"the exported model cannot be run: {' '.join(str(problem).split())[:300]}")
    if len(found) != len(outputs) or any(a.shape != b.shape for a, b in zip(found, outputs, strict=True)):
        return Agreement(False, math.inf, "the exported model gives outputs of other numbers or sizes than torch")
    error = max((_relative(a, b) for a, b in zip(found, outputs, strict=True)), default=0.0)
    types = [str(tensor.dtype).removeprefix("torch.") for tensor in prepared.inputs]
    limit = max(LIMITS.get(dtype, LIMITS["float32"]) for dtype in (*types, *run_as) or ("float32",))
    words = f"largest difference from torch {error:.1e} of the largest value, {limit:.0e} allowed"
    return Agreement(error <= limit, error, words + "".join(f" (run as {dtype})" for dtype in run_as))


def _run(prepared: Prepared, loaded: LoadedModel) -> tuple[list[Any], tuple[str, ...]]:
    """The outputs in order, and the type that the engine ran instead of one that it lacks."""
    model = ModelProto()
    model.CopyFrom(loaded.proto)
    load_external_data_for_model(model, str(loaded.folder or ""))
    net = Net(model, {})
    names = input_names(net.graph)
    feeds = {name: _elements(tensor) for name, tensor in zip(names, prepared.inputs, strict=True)}
    try:
        made = OnnxRuntime().open(net).run(feeds)
    except CannotLoad as problem:
        if not (problem.lacking and can_upcast(net)):
            raise
        return [*OnnxRuntime(upcast=True).open(net).run(feeds).values()], ("float32",)
    return [*made.values()], ()


def _elements(tensor: Any) -> Any:
    """As numpy has them, which knows bfloat16 only by name."""
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(dtype_of(TensorProto.BFLOAT16))
    return tensor.numpy()


def _array(value: Any) -> Any:
    return value.detach().double().numpy() if hasattr(value, "detach") else np.asarray(value, np.float64)


def _relative(found: Any, wanted: Any) -> float:
    largest = float(np.abs(wanted).max(initial=0.0))
    error = float(np.abs(np.asarray(found, np.float64) - wanted).max(initial=0.0))
    if math.isnan(error) or math.isnan(largest):
        return math.inf
    return error / largest if largest else error
