"""Patterns on a model of torch: rewritten, rounded, compared.

Invariant: the model that came is not changed; where nothing was to do, it is what comes back.
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
from rewriter.errors import InputError, UsageError
from rewriter.graph import measure
from rewriter.graph.view import Graph
from rewriter.language.library import LoadedPattern
from rewriter.reporting.record import FoldRecord, OutputInfo, Totals
from rewriter.rewriting.engine import Outcome, Progress, rewrite
from rewriter.rewriting.provenance import composed
from rewriter.rewriting.scrub import Removed
from rewriter.torch_graphs import bodies, inside, modes, running, tracing
from rewriter.torch_graphs.body_draft import BodyDraft, body_drafts
from rewriter.torch_graphs.draft import FxDraft
from rewriter.torch_graphs.module_draft import ModuleDraft
from rewriter.torch_graphs.program_draft import ProgramDraft
from rewriter.torch_graphs.verification import verify

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

Program: TypeAlias = "ExportedProgram | nn.Module"


@dataclass(frozen=True, slots=True)
class Opened:
    """An ExportedProgram, or a GraphModule with the `inputs` that it is called with; `notes` say how it came."""

    model: Any
    inputs: Sequence[Any] | None = None
    notes: tuple[str, ...] = ()
    dynamic_shapes: Any = None  # which a traced module keeps open when it is exported after all
    path: Path | None = None  # of the archive
    problem: InputError | None = None  # why a module was not exported


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A model, what was done to it, and what it was and is in numbers."""

    model: Any
    outcome: Outcome
    before: Totals
    after: Totals
    folds: tuple[FoldRecord, ...]
    dead_before: tuple[str, ...]
    verification: Verification | None
    notes: tuple[str, ...]
    scrubbed: tuple[Removed, ...] = ()

    def of_the_kind_of(self, given: object) -> Any:
        """The model as the user gets it: a module for a module."""
        return tracing.shown(self.model) if is_module(given) and is_program(self.model) else self.model


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


def opened(model: Any, example_inputs: Any, dynamic_shapes: Any) -> Opened:
    """What is rewritten: a traced module as it is, or the program that is given, in an archive, or traced."""
    if is_module(model):
        return _of_module(model, example_inputs, dynamic_shapes)
    if example_inputs is not None or dynamic_shapes is not None:
        raise UsageError("example_inputs and dynamic_shapes are for modules; a program is traced already")
    if is_archive(model):
        return Opened(archives.load(bytesource.read(Path(model))), path=Path(model))
    return Opened(model)


def _of_module(module: Any, example_inputs: Any, dynamic_shapes: Any) -> Opened:
    """A GraphModule is traced; any other module is exported, or traced by its symbols where it cannot be."""
    if tracing.is_traced(module):
        return Opened(module, tracing.bound(module, example_inputs), dynamic_shapes=dynamic_shapes)
    try:
        return Opened(tracing.export(module, example_inputs, dynamic_shapes))
    except InputError as problem:
        traced = None if dynamic_shapes is not None else tracing.traced(module)
        if traced is None:
            raise
        notes = (f"traced by torch.fx: {problem}",)
        return Opened(traced, tracing.bound(traced, example_inputs), notes, problem=problem)


def apply(
    given: Opened,
    patterns: Sequence[LoadedPattern],
    *,
    keep_all: bool,
    compare: bool,
    scrub: bool,
    max_rounds: int,
    progress: Progress | None,
) -> Rewritten:
    draft = _draft(given)
    graph = draft.view()
    shapes = {value.name: value.shape for value in graph.values.values() if value.shape is not None}
    inner = body_drafts(draft) if isinstance(draft, ProgramDraft) else []
    before = inside.summed(_totals(draft, graph), [_totals(body, body.view()) for body in inner])
    stored = {name for name, v in graph.values.items() if v.constant is not None}
    outcome = rewrite(draft, patterns, keep_all=keep_all, max_rounds=max_rounds, progress=progress, shapes=shapes)
    looked: list[tuple[BodyDraft, Outcome]] = []
    if isinstance(draft, ProgramDraft):
        left = [body for body in inner if body.runner in draft.graph.nodes]
        looked = inside.rewritten(draft, left, patterns, max_rounds=max_rounds, progress=progress)
        outcome = inside.joined(outcome, looked)
    scrubbed = draft.scrub() if scrub else ()
    folds = composed(outcome.matches, {t.tensor for match in outcome.matches for t in match.tensors})
    made, after = draft.finish({fold.tensor: fold.sources for fold in folds}), before
    if draft.edited:
        after = inside.summed(_totals(draft, draft.view()), [_totals(body, body.view()) for body, _ in looked])
    verification = None
    if compare:
        verification = Verification(Verdict.OK, "nothing was changed")
        if draft.edited:
            verification = verify(_runnable(given.model, given), _runnable(made, given), _told(progress))
    unseen = bodies.notes(draft.graph, draft.dialect.root, [body.runner for body, _ in looked])
    notes = (*given.notes, *modes.notes(draft.graph, draft.dialect), *unseen)
    folds = tuple(_stored(fold, stored) for fold in folds if fold.tensor in draft.view().values)
    return Rewritten(made, outcome, before, after, folds, draft.dead_before, verification, notes, scrubbed)


def _draft(given: Opened) -> FxDraft:
    if given.inputs is None:
        return ProgramDraft(given.model)
    try:
        return ModuleDraft(given.model, given.inputs)
    except InputError as problem:
        raise (given.problem or problem) from problem  # what is wrong with a model, export says with its line


def _runnable(model: Any, given: Opened) -> running.Program | running.Module:
    return running.Program(model) if given.inputs is None else running.Module(model, given.inputs)


def _stored(fold: FoldRecord, stored: Collection[str]) -> FoldRecord:
    """Without numbers of the graph, which are in no checkpoint."""
    return FoldRecord(fold.tensor, tuple(source for source in fold.sources if source in stored))


def _totals(draft: FxDraft, graph: Graph) -> Totals:
    ops = Counter(draft.operators())
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
