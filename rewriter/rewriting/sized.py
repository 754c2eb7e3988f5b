"""Entries with the axes that the graph proves, for operators that move or join axes and so have to know them.

The one idea: most regions never ask, and measuring a graph costs as much as matching it, so it is measured once, when
the first region asks. Invariant: an extent is a number only where it is that for every input the graph runs on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rewriter.dims import Sizes, sizes
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
        """The region, its entry with known axes where some operator needs them and nobody declared them."""
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
        return value if dims is None else replace(value, shape=tuple([size.expr.constant for size in dims]))


def fixed_sizes(graph: Graph) -> dict[str, Extents]:
    """The extents, as far as they are numbers, of values whose size a node reads or its padding follows from."""
    read = [
        node.data[0].name for node in graph.nodes if _asks(node) and graph.values[node.data[0].name].constant is None
    ]
    if not read:
        return {}
    dims = sizes(graph).dims
    return {name: tuple([size.expr.constant for size in dims[name]]) for name in read if name in dims}


def _asks(node: Node) -> bool:
    if node.op in ("shape", "size"):
        return len(node.data) == 1
    return node.op in ("conv", "avg_pool", "max_pool") and bool(node.data) and "pads" not in node.attrs
