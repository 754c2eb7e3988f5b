"""Extents of inputs and outputs as numbers: those declared, and those that operators prove, at sample input sizes.

Invariant: what is declared as a number stays. An extent that is proved as an expression of the sizes of inputs becomes
the number it is when no two free extents are alike and each is divisible by what nets halve it by: equal expressions
give equal numbers, and two levels of a pyramid give numbers in their ratio. What is not followed stays a name, which
two extents share exactly when they are proved equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from rewriter.dims.engine import sizes
from rewriter.dims.polynomials import POSITIVE_PART, UNORDERED, Opaque, Poly, Symbol, evaluated, symbols
from rewriter.dims.sizes import Dims
from rewriter.graph.view import Dim, Graph, Value

HALVED = 128
"""What the sample of an extent beyond the batch is a multiple of."""

PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def at_sample_sizes(graph: Graph) -> Graph:
    """`graph`, its inputs and outputs with numbers; the same graph where every extent is declared as a number."""
    if all(v.shape is not None and all(isinstance(d, int) for d in v.shape) for v in (*graph.inputs, *graph.outputs)):
        return graph
    known = sizes(graph)
    samples: dict[Symbol, int] = {}
    for value in graph.inputs:
        for axis, size in enumerate(known.dims.get(value.name, ())):
            for symbol in sorted(symbols(size.expr) - samples.keys(), key=lambda s: s.number):
                samples[symbol] = PRIMES[len(samples) % len(PRIMES)] * (HALVED if axis else 1)
    names: dict[Poly, str] = {}

    def extent(declared: Dim, proved: Poly) -> Dim:
        if isinstance(declared, int):
            return declared
        try:
            return evaluated(proved, samples.__getitem__, opaque_number)
        except LookupError:
            return names.setdefault(proved, f"size {len(names)}")

    def sized(value: Value) -> Value:
        proved = known.dims.get(value.name)
        if proved is None or (value.shape is not None and len(value.shape) != len(proved)):
            return value
        declared = value.shape or (None,) * len(proved)
        return replace(value, shape=tuple(extent(d, p.expr) for d, p in zip(declared, proved, strict=True)))

    inputs, outputs = (tuple(map(sized, values)) for values in (graph.inputs, graph.outputs))
    return replace(graph, inputs=inputs, outputs=outputs)


def opaque_number(of: Opaque, arguments: tuple[int, ...]) -> int:
    """Operands that broadcast have one extent, or 1; what is cut off leaves nothing at the least."""
    if of.function == POSITIVE_PART:
        return max(0, *arguments)
    extents = set(arguments) - {1}
    if of.function != UNORDERED or len(extents) > 1:
        raise LookupError(of.function)
    return extents.pop() if extents else 1


def named_extents(graph: Graph, dims: Mapping[str, Dims]) -> Mapping[Poly, str]:
    """The open extents of inputs by the names that they are declared with, each of one axis alone."""
    names = Counter(extent for value in graph.inputs for extent in value.shape or () if isinstance(extent, str))
    found: dict[Poly, str] = {}
    for value in graph.inputs:
        for declared, size in zip(value.shape or (), dims.get(value.name, ()), strict=False):
            if isinstance(declared, str) and names[declared] == 1:
                found[size.expr] = declared
    return found
