"""Entries with the axes that the graph proves, for operators that move or join axes and so have to know them.

The one idea: most regions never ask, and measuring a graph costs as much as matching it, so it is measured once, when
the first region asks. Invariant: an extent is a number only where it is that for every input the graph runs on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rewriter.dims import Sizes, sizes
from rewriter.graph.view import Graph, Value
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

    def _measured(self, value: Value) -> Value:
        if self._sizes is None:
            self._sizes = sizes(self.graph)
        dims = self._sizes.dims.get(value.name)
        return value if dims is None else replace(value, shape=tuple([size.expr.constant for size in dims]))
