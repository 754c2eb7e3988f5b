"""Which stored tensors a new one was made of: the fold map.

The one idea: a region's kernel is made of everything in it that multiplies, its bias of everything. Invariant: the
sources in a map are tensors of the original, whatever the number of rounds in between, and a map names no tensor that
a later fold used up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from rewriter.graph.view import Node
from rewriter.reporting.record import FoldRecord, MatchRecord
from rewriter.rewriting.edits import AddConstant, Edit

ADDED = frozenset({"bias", "mean", "term"})
"""Roles of constants that are only ever added: they move a bias and never a kernel."""


def folded(nodes: Sequence[Node], edits: Iterable[Edit]) -> tuple[FoldRecord, ...]:
    """The tensors that a plan adds, each with those that the nodes it replaces read."""
    constants = [(role, constant) for node in nodes for role, constant in node.consts.items()]
    everything = _names(constant.stored for _, constant in constants)
    scaling = _names(constant.stored for role, constant in constants if role not in ADDED)
    return tuple(
        FoldRecord(edit.name, scaling if edit.array.ndim > 1 else everything)
        for edit in edits
        if isinstance(edit, AddConstant)
    )


def composed(matches: Iterable[MatchRecord], present: Collection[str]) -> tuple[FoldRecord, ...]:
    """The map over all rounds: of each new tensor that is `present` in the result, the tensors of the original."""
    made: dict[str, tuple[str, ...]] = {}
    for match in matches:
        made.update({fold.tensor: _traced(fold.sources, made) for fold in match.tensors})
    return tuple(FoldRecord(name, sources) for name, sources in made.items() if name in present)


def _traced(sources: Sequence[str], made: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return _names(made.get(name, (name,)) for name in sources)


def _names(several: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Each once, in order."""
    return tuple(dict.fromkeys(name for names in several for name in names))
