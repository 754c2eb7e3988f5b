"""Entries with the axes that the graph proves, for operators that move or join axes and so have to know them.

The one idea: most regions never ask, and measuring a graph costs as much as matching it, so it is measured once, when
the first region asks. Invariant: an extent is a number only where it is that for every input the graph runs on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

from rewriter.dims import Sizes, sizes
from rewriter.dims.declared import named_extents, opaque_number
from rewriter.dims.engine import Pass
from rewriter.dims.polynomials import Poly, atom, evaluated
from rewriter.dims.sizes import Dims
from rewriter.graph.raw import Extents
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.region import Region

KNOW_AXES = frozenset({"conv", "bn", "scale", "shift", "add", "sub", "sum", "neg", "identity", "dropout", "cast"})
"""Operators that are read without the axes of the entry, or say themselves how many there are."""


@dataclass(slots=True)
class Sized:
    graph: Graph
    _sizes: Sizes | None = field(default=None)

    def entered(self, region: Region) -> Region:
        """The region, its entry with known axes where some operator needs them and nobody declared them.

        What is open has the name of the input's extent that it is.
        """
        if region.entry.shape is not None or all(node.op in KNOW_AXES for node in region.nodes):
            return region
        return replace(region, entry=self._measured(region.entry))

    def same(self, left: Value, right: Value) -> bool:
        """True where two values are proved to have the same axes, for whatever inputs."""
        axes, others = self._dims(left), self._dims(right)
        return axes is not None and others is not None and [a.expr for a in axes] == [b.expr for b in others]

    def _dims(self, value: Value) -> Dims | None:
        if self._sizes is None:
            self._sizes = sizes(self.graph)
        return self._sizes.dims.get(value.name)

    def _measured(self, value: Value) -> Value:
        dims = self._dims(value)
        if dims is None or self._sizes is None:
            return value
        names = named_extents(self.graph, self._sizes.dims)
        known = [(size.expr.constant, names.get(size.expr)) for size in dims]
        return replace(value, shape=tuple([name if n is None else n for n, name in known]))


def fixed_sizes(graph: Graph) -> dict[str, Extents]:
    """The extents, as far as they are numbers, of values whose size a node reads or its padding follows from."""
    read = _asked(graph)
    if not read:
        return {}
    dims = sizes(graph).dims
    return {name: tuple([size.expr.constant for size in dims[name]]) for name in read if name in dims}


def sampled_sizes(sizes: Pass, turn: int) -> dict[str, Extents]:
    """The extents of all values where the inputs have one of two sizes; None where one does not follow from these.

    Their open extents are small, differ, and are what nets halve without a rest.
    """
    samples: dict[Poly, int] = {}
    for value in sizes.graph.inputs:
        for axis, size in enumerate(sizes.dims.get(value.name, ())):
            samples.setdefault(size.expr, SAMPLES[(turn + axis) % 2] if axis else 1 + turn)

    @cache
    def extent(of: Poly) -> int | None:
        try:
            return evaluated(of, lambda symbol: samples[atom(symbol)], opaque_number)
        except LookupError:
            return None

    return {name: tuple([extent(size.expr) for size in dims]) for name, dims in sizes.dims.items()}


SAMPLES = (32, 64)
"""Of the extents of an input beyond the first."""


def _asked(graph: Graph) -> list[str]:
    named = [node.data[0].name for node in graph.nodes if _asks(node)]
    return [name for name in named if graph.values[name].constant is None]


def _asks(node: Node) -> bool:
    if node.op in ("shape", "size"):
        return len(node.data) == 1
    return node.op in ("conv", "avg_pool", "max_pool") and bool(node.data) and "pads" not in node.attrs
