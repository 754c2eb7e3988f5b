"""Patterns on an exported program: rewritten, rounded, compared.

Invariant: the program that came is not changed; where nothing was to do, it is what comes back.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rewriter.checking.record import Verdict, Verification
from rewriter.checkpoints import bytesource
from rewriter.checkpoints import program as archives
from rewriter.errors import UsageError
from rewriter.graph import measure
from rewriter.graph.view import Graph
from rewriter.language.library import LoadedPattern
from rewriter.reporting.record import FoldRecord, OutputInfo, Totals
from rewriter.rewriting.engine import Outcome, Progress, rewrite
from rewriter.rewriting.provenance import composed
from rewriter.torch_graphs import tracing
from rewriter.torch_graphs.draft import ProgramDraft, operators
from rewriter.torch_graphs.verification import verify

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

Program: TypeAlias = "ExportedProgram | nn.Module"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A program, what was done to it, and what it was and is in numbers."""

    program: Any
    outcome: Outcome
    before: Totals
    after: Totals
    folds: tuple[FoldRecord, ...]
    dead_before: tuple[str, ...]
    verification: Verification | None


def is_program(model: object) -> bool:
    """Whether it is an ExportedProgram; nobody has one without having imported torch."""
    torch: Any = sys.modules.get("torch")
    export = getattr(torch, "export", None)
    return export is not None and isinstance(model, export.ExportedProgram)


def is_module(model: object) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_archive(model: object) -> bool:
    """Whether it is the path of a .pt2 file."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() == ".pt2"


def opened(model: Any, example_inputs: Any, dynamic_shapes: Any) -> Any:
    """The program that is behind what was given: itself, in a .pt2 archive, or traced of a module."""
    if is_module(model):
        return tracing.export(model, example_inputs, dynamic_shapes)
    if example_inputs is not None or dynamic_shapes is not None:
        raise UsageError("example_inputs and dynamic_shapes are for modules; a program is traced already")
    if is_archive(model):
        return archives.load(bytesource.read(Path(model)))
    return model


def apply(
    program: Any,
    patterns: Sequence[LoadedPattern],
    *,
    keep_all: bool,
    compare: bool,
    max_rounds: int,
    progress: Progress | None,
) -> Rewritten:
    draft = ProgramDraft(program)
    graph = draft.view()
    shapes = {value.name: value.shape for value in graph.values.values() if value.shape is not None}
    before = _totals(draft, graph)
    outcome = rewrite(draft, patterns, keep_all=keep_all, max_rounds=max_rounds, progress=progress, shapes=shapes)
    made, left = draft.finish(), draft.view()
    after = _totals(draft, left) if draft.edited else before
    stored = {*program.state_dict, *program.constants}
    folds = _folds(outcome, left.values, stored)
    verification = None
    if compare:
        unchanged = Verification(Verdict.OK, "nothing was changed")
        verification = verify(program, made, _told(progress)) if draft.edited else unchanged
    return Rewritten(made, outcome, before, after, folds, draft.dead_before, verification)


def _folds(outcome: Outcome, present: Collection[str], stored: Collection[str]) -> tuple[FoldRecord, ...]:
    """The fold map: of numbers in the graph, which are in no checkpoint, it says nothing."""
    found = composed(outcome.matches, present)
    return tuple(FoldRecord(f.tensor, tuple(s for s in f.sources if s in stored)) for f in found)


def _totals(draft: ProgramDraft, graph: Graph) -> Totals:
    ops = Counter(operators(draft.graph))
    shapes = {value.name: value.shape for value in graph.values.values() if value.shape is not None}
    return Totals(
        nodes=sum(ops.values()),
        ops=tuple(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(measure.parameters(graph, graph.nodes).values()),
        multiply_adds=measure.multiply_adds(graph.nodes, shapes),
        bytes=measure.tensor_bytes(graph),
        outputs=tuple(OutputInfo(value.name, value.dtype or "unknown", value.shape) for value in graph.outputs),
    )


def _told(progress: Progress | None) -> Any:
    def told(text: str) -> None:
        if progress is not None:
            progress(f"verifying: {text}", None)

    return told
