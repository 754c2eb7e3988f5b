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


def compare(prepared: Prepared, loaded: LoadedModel) -> Agreement:
    """Run the file with ONNX Runtime on the example inputs and hold it against torch's outputs."""
    if find_spec("onnxruntime") is None:
        return Agreement(False, None, 'no engine is installed: pip install "fxrewrite[cpu]"')
    if not prepared.outputs:
        return Agreement(False, None, "the program has no example inputs to run it on")
    outputs = [_array(value) for value in prepared.outputs]
    dtype = str(prepared.inputs[0].dtype).removeprefix("torch.") if prepared.inputs else "float32"
    try:
        found = _run(prepared, loaded)
    except Exception as problem:  # an engine's errors are of many types; each means that nothing was compared
        said = " ".join(str(problem).split())[:300]
        return Agreement(False, None, f"the exported model cannot be run: {said}")
    if len(found) != len(outputs) or any(a.shape != b.shape for a, b in zip(found, outputs, strict=True)):
        return Agreement(False, math.inf, "the exported model gives outputs of other numbers or sizes than torch")
    error = max((_relative(a, b) for a, b in zip(found, outputs, strict=True)), default=0.0)
    limit = LIMITS.get(dtype, LIMITS["float32"])
    words = f"largest difference from torch {error:.1e} of the largest value, {limit:.0e} allowed"
    return Agreement(error <= limit, error, words)


def _run(prepared: Prepared, loaded: LoadedModel) -> list[Any]:
    import onnxruntime

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = runtime.InferenceSession(str(loaded.path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, prepared.inputs, strict=True)}
    return session.run(None, feeds)


def _array(value: Any) -> Any:
    return value.detach().double().numpy() if hasattr(value, "detach") else np.asarray(value, np.float64)


def _relative(found: Any, wanted: Any) -> float:
    largest = float(np.abs(wanted).max(initial=0.0))
    error = float(np.abs(np.asarray(found, np.float64) - wanted).max(initial=0.0))
    if math.isnan(error) or math.isnan(largest):
        return math.inf
    return error / largest if largest else error
