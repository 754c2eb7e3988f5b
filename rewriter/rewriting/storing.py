"""What the folds of a round store anew and what they free.

The one idea: a module that is called at several places, as the head on all levels of a pyramid is, folds at each of
them to the same numbers made of the same tensors, and those are stored once, as before. Invariant: the savings of the
folds of a round add up to what the model stores less, since a tensor is freed by the last fold that takes a reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from rewriter.graph import measure
from rewriter.graph.constants import FLOATS
from rewriter.graph.view import Graph
from rewriter.reporting.record import FoldRecord
from rewriter.rewriting.edits import AddConstant, AddNode, Edit, Plan, RemoveNode

Kind: TypeAlias = tuple[object, ...]
"""What two plans must have in common to store the same, but for the numbers themselves."""


class Stock:
    """The tensors of a graph while the folds of one round take readers from them and bring new ones."""

    def __init__(self, graph: Graph) -> None:
        self._read = {node.index: read for node, read in measure.parameters_by_node(graph, graph.nodes) if read}
        self._readers = Counter(name for read in self._read.values() for name in read)
        self._made: dict[Kind, list[tuple[AddConstant, ...]]] = {}

    def once(self, plan: Plan, records: Sequence[FoldRecord]) -> tuple[Plan, tuple[FoldRecord, ...]]:
        """The plan and where its tensors come from, with those in place of its own that an equal fold made before."""
        own = tuple(edit for edit in plan.edits if isinstance(edit, AddConstant))
        same = self._same(plan, own, records)
        if same is None:
            return plan, tuple(records)
        names = {mine.name: theirs.name for mine, theirs in zip(own, same, strict=True)}
        edits = [_reading(edit, names) for edit in plan.edits if not isinstance(edit, AddConstant)]
        return Plan(tuple(edits)), tuple(replace(record, tensor=names[record.tensor]) for record in records)

    def _same(
        self, plan: Plan, own: tuple[AddConstant, ...], records: Sequence[FoldRecord]
    ) -> tuple[AddConstant, ...] | None:
        if not own:
            return None
        before = self._made.setdefault(_kind(plan, own, records), [])
        for made in before:
            if all(np.array_equal(one.array, other.array) for one, other in zip(own, made, strict=True)):
                return made
        before.append(own)
        return None

    def saved(self, edits: Sequence[Edit]) -> int:
        """Parameters that the model stores less for a plan, which may be fewer than 0: what others read stays."""
        freed = 0
        for edit in edits:
            for name, size in self._read.pop(edit.node.index, {}).items() if isinstance(edit, RemoveNode) else ():
                self._readers[name] -= 1
                freed += size if not self._readers[name] else 0
        return freed - sum(e.array.size for e in edits if isinstance(e, AddConstant) and e.dtype in FLOATS)


def _kind(plan: Plan, own: Sequence[AddConstant], records: Sequence[FoldRecord]) -> Kind:
    """The operators that come with their settings, and of each tensor its type, size and sources."""
    places = {edit.name: place for place, edit in enumerate(own)}
    layers = tuple(
        (edit.op, _settings(edit), tuple(places.get(name) for name in edit.inputs))
        for edit in plan.edits
        if isinstance(edit, AddNode)
    )
    sources = {record.tensor: record.sources for record in records}
    return layers, tuple((edit.dtype, edit.array.shape, sources[edit.name]) for edit in own)


def _settings(edit: AddNode) -> str:
    return repr(sorted(edit.attrs.items()))


def _reading(edit: Edit, names: Mapping[str, str]) -> Edit:
    if not isinstance(edit, AddNode):
        return edit
    return replace(edit, inputs=tuple([names.get(name, name) for name in edit.inputs]))
