"""An ONNX model under edit in numbers, as its report gives them.

Invariant: nothing that decides about a rewrite reads these; sizes that somebody said are for figures alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from onnx import ValueInfoProto

from rewriter.checking.sizes import bind, input_specs
from rewriter.graph import measure, shapes
from rewriter.graph.measure import Shapes
from rewriter.graph.proto import value_type
from rewriter.graph.view import Graph
from rewriter.reporting.record import OutputInfo, Totals
from rewriter.rewriting.onnx_draft import OnnxDraft


def sizes_at(draft: OnnxDraft, at: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The shapes of values where inputs have the sizes that somebody said; UsageError where those do not fit."""
    specs, symbols = bind(input_specs(draft.model.graph), at)
    given = {
        spec.name: tuple([symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.dims])
        for spec in specs
        if spec.dims is not None
    }
    return shapes.infer(draft.model, draft.nodes, given if at else {})


def totals(draft: OnnxDraft, graph: Graph, known: Shapes, at: Mapping[str, tuple[int, ...]]) -> Totals:
    """`known` are the sizes of values, where those of inputs are as `at` says."""
    ops = Counter(node.op_type for node in draft.nodes)
    return Totals(
        nodes=len(draft.nodes),
        ops=tuple(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(measure.parameters(graph, graph.nodes).values()),
        multiply_adds=measure.multiply_adds(graph.nodes, known),
        bytes=measure.tensor_bytes(graph),
        outputs=tuple(_output(info) for info in draft.model.graph.output),
        at=tuple(at.items()),
    )


def _output(info: ValueInfoProto) -> OutputInfo:
    dtype, shape = value_type(info)
    return OutputInfo(info.name, dtype or "unknown", shape)
