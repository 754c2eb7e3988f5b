"""Output extents that a model does not declare, from the sizes that its operators prove.

Invariant: what is declared as a number stays; an extent that is only a name is replaced by a number where it is one for
every input, else by a name that two outputs share exactly when their extents are proved equal.
"""

from __future__ import annotations

from dataclasses import replace

from rewriter.dims.engine import sizes
from rewriter.dims.polynomials import Poly
from rewriter.graph.view import Dim, Graph, Value


def with_output_sizes(graph: Graph) -> Graph:
    """`graph`, its outputs with proved extents; the same graph where every extent is declared as a number."""
    if all(v.shape is not None and all(isinstance(d, int) for d in v.shape) for v in graph.outputs):
        return graph
    known = sizes(graph)
    names: dict[Poly, str] = {}

    def extent(declared: Dim, proved: Poly) -> Dim:
        if isinstance(declared, int):
            return declared
        constant = proved.constant
        return constant if constant is not None else names.setdefault(proved, f"size {len(names)}")

    def sized(value: Value) -> Value:
        proved = known.dims.get(value.name)
        if proved is None or (value.shape is not None and len(value.shape) != len(proved)):
            return value
        declared = value.shape or (None,) * len(proved)
        return replace(value, shape=tuple(extent(d, p.expr) for d, p in zip(declared, proved, strict=True)))

    return replace(graph, outputs=tuple(sized(value) for value in graph.outputs))
