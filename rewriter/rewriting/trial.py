"""The tests inside pattern files, run for real: rewrite the net, then compare what both compute.

Invariant: the comparison runs both nets in onnx's own reference evaluator, which shares nothing with the rewriting.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.reference import ReferenceEvaluator

from rewriter.errors import ChoiceError, Reason
from rewriter.graph.onnx import view
from rewriter.graph.proto import value_type
from rewriter.graph.view import Array
from rewriter.language.library import LoadedPattern
from rewriter.language.lint import UNCOUNTED
from rewriter.language.selftest import Outcome, TestResult, run_tests
from rewriter.rewriting.engine import rewrite
from rewriter.rewriting.onnx_draft import OnnxDraft

CLOSE = 1e-4
"""Of the largest element: float32 nets of a few layers stay below 1e-6, a wrong fold shows at 1e-2 and more."""


def run(loaded: LoadedPattern) -> list[TestResult]:
    """Every test and refusal that a pattern carries."""
    return run_tests(loaded, outcome)


def outcome(model: ModelProto, loaded: LoadedPattern) -> Outcome:
    """What applying one pattern to a net gives; the net itself stays as it is."""
    draft = OnnxDraft(_copy(model))
    try:
        done = rewrite(draft, [loaded])
    except ChoiceError:
        return Outcome(model, _histogram(model), frozenset({str(Reason.CHOICE)}), True, True)
    result = draft.finish()
    proved = all(match.proof is not None for match in done.matches if match.after is not None)
    codes = frozenset(refusal.code for refusal in done.refusals)
    return Outcome(result, _histogram(result), codes, proved, _same(model, result))


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _histogram(model: ModelProto) -> dict[str, int]:
    return dict(Counter(node.op for node in view(model).nodes if node.op not in UNCOUNTED))


def _same(before: ModelProto, after: ModelProto) -> bool:
    """Whether the outputs that both have agree on noise, which no padding and no sign survives by chance."""
    names = [output.name for output in after.graph.output]
    inputs = _inputs(before)
    with np.errstate(all="ignore"):  # what is not finite is not close
        pairs = zip(_outputs(before, names, inputs), _outputs(after, names, inputs), strict=True)
        return all(_close(a, b) for a, b in pairs)


def _outputs(model: ModelProto, names: list[str], inputs: dict[str, Array]) -> list[Array]:
    evaluator: Any = ReferenceEvaluator(model)  # its run() is untyped
    return [np.asarray(output) for output in evaluator.run(names, inputs)]


def _inputs(model: ModelProto) -> dict[str, Array]:
    random = np.random.default_rng(0)
    given = {tensor.name for tensor in model.graph.initializer}
    inputs: dict[str, Array] = {}
    for info in model.graph.input:
        if info.name not in given and info.type.tensor_type.elem_type == TensorProto.FLOAT:
            shape = [d if isinstance(d, int) else 2 for d in value_type(info)[1] or ()]
            inputs[info.name] = random.normal(size=shape).astype(np.float32)
    return inputs


def _close(a: Array, b: Array) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = float(np.abs(a).max(initial=0.0))
    return bool(np.abs(a - b).max(initial=0.0) <= CLOSE * scale)
