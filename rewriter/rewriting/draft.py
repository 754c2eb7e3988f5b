"""What the engine asks of a model under edit, whatever kind of graph it is.

Invariant: between two calls of `apply` the draft is a whole graph, and `view` shows it; the engine knows no file format
and no framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rewriter.graph.view import Graph
from rewriter.rewriting.edits import Edit


class Draft(Protocol):
    def view(self) -> Graph:
        """The draft as it stands."""
        ...

    def fresh(self, hint: str) -> str:
        """A name that nothing in the model has, near `hint`; it is taken from now on."""
        ...

    def apply(self, edits: Sequence[Edit]) -> None:
        """Carry out edits that do not depend on each other's order, then remove what they made dead."""
        ...
