"""Sizes as expressions: integer polynomials with floors, and an engine that carries them through a graph.

Invariant: two sizes are called equal only where they are, for every input that the graph runs on; unknown is a symbol
that equals nothing else.
"""

from rewriter.dims.engine import Sizes, sizes
from rewriter.dims.polynomials import Poly
from rewriter.dims.sizes import Assertion, Assumption, Elements, Size

__all__ = ["Assertion", "Assumption", "Elements", "Poly", "Size", "Sizes", "sizes"]
