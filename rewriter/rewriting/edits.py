"""The seven edits that a rewrite may consist of, and the plan that holds them.

Invariant: an edit speaks of values by name and of nodes by the view's `Node`, so any kind of graph can carry it out.
A plan keeps the exit value's name, so that its readers stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rewriter.graph.view import Array, Node


@dataclass(frozen=True, slots=True, eq=False)
class AddConstant:
    """A new tensor: float64 until the end, then rounded once to `dtype`."""

    name: str
    array: Array
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class AddNode:
    """A new node of canonical operator `op`, in the place of `at` (so that order stays topological).

    `like` is a removed node whose documentation and metadata it takes over.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    at: Node
    attrs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    like: Node | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rewire:
    """Whoever read or made `old` reads or makes `new` from now on."""

    old: str
    new: str


@dataclass(frozen=True, slots=True, eq=False)
class RemoveNode:
    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class RemoveOutput:
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Reread:
    """`node` reads `new` wherever it read `old`; nobody else does."""

    node: Node
    old: str
    new: str


@dataclass(frozen=True, slots=True, eq=False)
class Undeclare:
    """What the model declares of the value `name` inside it, its size above all, holds no more."""

    name: str


Edit: TypeAlias = "AddConstant | AddNode | Rewire | RemoveNode | RemoveOutput | Reread | Undeclare"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    edits: tuple[Edit, ...]

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the nodes that come."""
        return tuple(edit.name for edit in self.edits if isinstance(edit, AddNode))


def ends(rewires: Mapping[str, str]) -> dict[str, str]:
    """Where each name ends when rewires follow on each other: neighbours that both go rewire one after the other."""
    ends: dict[str, str] = {}
    for old in rewires:
        path: list[str] = []
        name = old
        while name in rewires and name not in ends:
            path.append(name)
            name = rewires[name]
        ends.update(dict.fromkeys(path, ends.get(name, name)))
    return ends
