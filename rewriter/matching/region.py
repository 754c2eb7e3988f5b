"""What a match covers: the part of a graph between one entry and one exit value, as the algebra and the proof read it.

Invariant: every value produced inside but `exit` is read only inside; `rest` are values from outside that the outermost
sum adds (with their sign) and that stay: exit = f(entry) + sum(sign * rest).
"""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.graph.view import Node, Value


@dataclass(frozen=True, slots=True)
class Region:
    entry: Value
    exit: Value
    nodes: tuple[Node, ...]  # in topological order; the last one produces `exit`
    rest: tuple[tuple[int, Value], ...] = ()  # (sign, value), sign is +1 or -1

    @property
    def name(self) -> str:
        """The name a user finds in the file: that of the last node."""
        return self.nodes[-1].name or self.exit.name
