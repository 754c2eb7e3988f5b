"""What the engine says about sizes against what ONNX Runtime gives, for every value of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from rewriter.dims import Poly, Sizes, sizes
from rewriter.dims.polynomials import Opaque, Symbol, evaluated, symbols
from rewriter.graph.onnx import view

Array = NDArray[Any]


class Unknown(Exception):
    """A symbol or term that has no number."""


@dataclass(frozen=True, slots=True)
class Score:
    """Extents of values, and elements of small tensors: right, wrong, and not known."""

    right: int
    wrong: tuple[str, ...]
    unknown: int


def all_values(model: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """Every value that a node makes, on ONNX Runtime with its optimisation off."""
    copy = ModelProto()
    copy.CopyFrom(model)
    there = {output.name for output in copy.graph.output}
    names = dict.fromkeys(name for node in copy.graph.node for name in node.output if name and name not in there)
    copy.graph.output.extend(ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [output.name for output in session.get_outputs()]
    return dict(zip(wanted, session.run(wanted, feeds), strict=True))


def score(model: ModelProto, feeds: dict[str, Array], known: Sizes | None = None) -> Score:
    """Hold everything that is said against one run."""
    graph = view(model)
    known = known or sizes(graph)
    told: dict[Symbol, int] = {}
    for value in graph.inputs:
        if value.name in feeds:
            for size, extent in zip(known.dims[value.name], feeds[value.name].shape, strict=True):
                told.update((symbol, extent) for symbol in symbols(size.expr))
    right, unknown, wrong = 0, 0, list[str]()
    for name, array in all_values(model, feeds).items():
        said = [size.expr for size in known.dims.get(name, ())]
        pairs = list(zip(said, array.shape, strict=True)) if name in known.dims else [(None, n) for n in array.shape]
        if name in known.elements:
            pairs += zip([s.expr for s in known.elements[name].items], array.reshape(-1).tolist(), strict=True)
        for expr, found in pairs:
            try:
                if expr is None:
                    raise Unknown
                if number_of(expr, told) == found:
                    right += 1
                else:
                    wrong.append(f"{name}: {expr} is not {found}")
            except Unknown:
                unknown += 1
    return Score(right, tuple(wrong), unknown)


def number_of(expr: Poly, told: dict[Symbol, int]) -> int:
    def of(symbol: Symbol) -> int:
        if symbol not in told:
            raise Unknown
        return told[symbol]

    return evaluated(expr, of, _function)


def _function(opaque: Opaque, numbers: tuple[int, ...]) -> int:
    match opaque.function[0]:
        case "broadcast":
            return numbers[1] if numbers[0] == 1 else numbers[0]
        case "positive part":
            return max(numbers[0], 0)
        case "slice":
            extent, start, end, step = numbers
            return len(range(*slice(start, end, step).indices(extent)))
        case "quotient":
            return numbers[0] // numbers[1]
        case _:
            raise Unknown


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
