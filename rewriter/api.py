"""The public functions: apply, find, inspect, load, verify, on a path, a ModelProto or a gs.Graph.

`apply` takes torch's ExportedProgram as well, the path of a .pt2 file that holds one, and a module with example inputs.

Invariant: the argument is never changed and the result is of the argument's kind (a path gives a ModelProto). Nothing
is written before `Result.save`, and no verdict is better than what was compared.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from onnx import ModelProto

from rewriter.checking import verify as compare
from rewriter.checking.record import Verdict, Verification
from rewriter.checkpoints import structure
from rewriter.errors import UsageError
from rewriter.graph import files, saving, surgeon
from rewriter.graph.files import LoadedModel
from rewriter.graph.onnx import view
from rewriter.language.library import LoadedPattern, resolve, shipped
from rewriter.language.parameters import set_parameters
from rewriter.language.selftest import TestResult
from rewriter.language.syntax import BodyMatch
from rewriter.matching.outputs import EVERYTHING
from rewriter.reporting.record import (
    Inspection,
    MatchRecord,
    RefusalRecord,
    Report,
    ScrubRecord,
)
from rewriter.rewriting import account, outlook, trial
from rewriter.rewriting.account import versions
from rewriter.rewriting.counting import sizes_at, totals
from rewriter.rewriting.engine import Progress, rewrite
from rewriter.rewriting.onnx_draft import OnnxDraft
from rewriter.rewriting.provenance import composed
from rewriter.rewriting.scrub import Removed
from rewriter.torch_graphs import applying as torch_graphs
from rewriter.torch_graphs import saving as torch_files

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Model: TypeAlias = "str | Path | ModelProto | LoadedModel | gs.Graph"

ALL = EVERYTHING
"""As `keep`: every output is wanted."""

NOT_ASKED = Verification(Verdict.NOT_VERIFIED, "verification was turned off (--no-verify)")


def load(path: str | Path) -> LoadedModel:
    """Read a model file and check its structure; external data stays on disk.

    Raises InputError (exit 3), naming the file, the node and the remedy, where it is missing, damaged, not ONNX, or
    where its external data leaves its folder.
    """
    loaded = files.load(path)
    files.validate(loaded)
    return loaded


@dataclass(frozen=True, slots=True)
class Result:
    """What `apply` made: the model, of the argument's kind, and the report on it."""

    model: Any
    report: Report
    _made: ModelProto | torch_files.Savable = field(repr=False)
    _source: LoadedModel | None = field(repr=False)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the model atomically; external data goes beside it. The same bytes where nothing changed.

        `NAME.safetensors` holds the weights, and NAME.json beside it the graph and what was folded from what. A model
        of torch is written as .pt2 too, or exported to .onnx and held against torch unless `apply` was told not to.

        Raises OutputError (exit 2) where the file exists (unless `force`), is an input, or cannot be written, and
        LimitError (exit 6) where the disk is full.
        """
        target, source = Path(path), self._source
        if isinstance(self._made, torch_files.Savable):
            return torch_files.save(self._made, target, self.report.folds, force=force)
        if target.suffix.lower() == ".pt2":
            raise UsageError(f"{path}: an ONNX model cannot become a program of torch; write it as .onnx")
        if target.suffix.lower() == ".safetensors":
            folder = source.folder if source is not None else None
            return structure.save(self._made, folder, target, self.report.folds, force=force)
        if source is not None and source.path is not None and not self.report.changed:
            return saving.save_unchanged(source, target, force=force)
        return saving.save(self._made, target, source=source, force=force)


def apply(
    model: Model | torch_graphs.Program,
    patterns: Sequence[str] | str = ("all",),
    *,
    keep: Sequence[str] | str = (),
    set_: Sequence[str] | str = (),
    rename: Mapping[str, str] | None = None,
    scrub: bool = False,
    verify: bool = True,
    inputs: Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    max_rounds: int = 100,
    progress: Progress | None = None,
) -> Result:
    """Rewrite `model` by `patterns` until nothing is left to do, prove every rewrite, and compare the whole.

    `patterns` are names of shipped patterns, presets (`all`, `deploy`) or paths of .fxp files; `keep` names the outputs
    that are wanted where a pattern removes outputs, or is "all"; `set_` holds `[PATTERN.]PARAM=VALUE`. For each of them
    a text alone is a list of one. `rename` gives inputs and outputs other names, all at once, so that two may change
    places. `scrub` removes what exporters and training left and no runtime needs. `inputs` is an .npz with an array per
    input, `shapes` fixes input sizes (in elements, all axes) for the comparison and for counting multiply-adds; both
    speak of the inputs by their old names. A module of torch is traced in evaluation form by calling it with
    `example_inputs` (a tensor, a sequence of arguments or a dict of them), `dynamic_shapes` as torch.export has them;
    the result's model is a module again, which shares the tensors that no rewrite touched. Verification that fails is
    in the report, not an exception: see `Result.report.verification`.

    Raises InputError, UsageError, PatternError and ChoiceError; see `rewriter.errors` for their exit codes.
    """
    started = time.monotonic()
    if max_rounds < 0:
        raise UsageError(f"--max-rounds: {max_rounds} is less than 0")
    loaded_patterns = prepare(patterns, set_, keep)
    if torch_graphs.is_program(model) or torch_graphs.is_module(model) or torch_graphs.is_archive(model):
        if rename or inputs or shapes:
            raise UsageError("rename, inputs and shapes are for ONNX models; a program of torch has none of them")
        opened_graph = torch_graphs.opened(model, example_inputs, dynamic_shapes)
        made = torch_graphs.apply(
            opened_graph,
            loaded_patterns,
            keep_all=keep == ALL,
            compare=verify,
            scrub=scrub,
            max_rounds=max_rounds,
            progress=progress,
        )
        report, shown = _of_program(made, model, loaded_patterns, started)
        return Result(shown, report, torch_files.Savable(replace(opened_graph, model=made.model), verify), None)
    if example_inputs is not None or dynamic_shapes is not None:
        raise UsageError("example_inputs and dynamic_shapes are for modules of torch, which are traced with them")
    opened = _open(model)  # pyright: ignore[reportArgumentType]  # a program is no other kind of model
    draft = OnnxDraft(opened.proto, opened.folder)
    known = sizes_at(draft, {})
    at = shapes or {}
    before = totals(draft, draft.view(), sizes_at(draft, at) if at else known, at)
    outcome = rewrite(
        draft, loaded_patterns, keep_all=keep == ALL, max_rounds=max_rounds, progress=progress, shapes=known
    )
    renamed = _rename(draft, rename or {})
    scrubbed = draft.scrub() if scrub else ()
    finished = draft.finish()
    after = before
    if draft.edited:
        names = dict(renamed)
        at = {names.get(name, name): shape for name, shape in at.items()}
        after = totals(draft, draft.view(), sizes_at(draft, at), at)
    verification = NOT_ASKED
    if verify:
        verification = _verified(opened, finished, draft.edited, renamed, inputs, shapes, progress)
    report = account.report(opened.label, loaded_patterns, (before, after), outcome, verification)
    folds = composed(outcome.matches, draft.view().values) if outcome.matches else ()
    report = replace(report, renamed=renamed, dead_before=draft.dead_before, folds=folds)
    report = replace(report, scrubbed=_records(scrubbed), seconds=time.monotonic() - started)
    given = surgeon.from_proto(finished) if opened.kind == "gs.Graph" else finished
    return Result(given, report, finished, opened.source)


def _of_program(
    made: torch_graphs.Rewritten, given: Any, patterns: Sequence[LoadedPattern], started: float
) -> tuple[Report, Any]:
    label = str(given) if torch_graphs.is_archive(given) else type(given).__name__
    totals = made.before, made.after
    report = account.report(label, patterns, totals, made.outcome, made.verification or NOT_ASKED)
    report = replace(report, folds=made.folds, dead_before=made.dead_before, notes=made.notes)
    report = replace(report, scrubbed=_records(made.scrubbed))
    return replace(report, versions=versions("torch"), seconds=time.monotonic() - started), made.of_the_kind_of(given)


def _records(scrubbed: Sequence[Removed]) -> tuple[ScrubRecord, ...]:
    return tuple(ScrubRecord(r.kind, r.count, r.size, r.example) for r in scrubbed)


def find(
    model: Model, patterns: Sequence[str] | str = ("all",), *, set_: Sequence[str] | str = ()
) -> list[MatchRecord | RefusalRecord]:
    """Where patterns fit `model` as it is, each pattern by itself, folded and proved on paper; nothing is rewritten.

    A MatchRecord is a rewrite that `apply` could do, a RefusalRecord a near miss with its reason.
    """
    opened = _open(model)
    graph = view(opened.proto, folder=opened.folder)
    bodies = [p for p in prepare(patterns, set_) if isinstance(p.pattern.match, BodyMatch)]
    return [record for loaded in bodies for record in outlook.on_paper(graph, loaded)]


def inspect(model: Model, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Inspection:
    """Where the nodes, parameters and multiply-adds of `model` are, and what each shipped pattern would do.

    `shapes` fixes sizes of inputs (in elements, all axes), for which multiply-adds are counted.
    """
    opened = _open(model)
    draft = OnnxDraft(opened.proto, opened.folder)
    graph = draft.view().as_stored
    known = sizes_at(draft, shapes or {})
    outputs, shared, dead = outlook.needs(graph, known)
    return Inspection(
        model=opened.label,
        totals=totals(draft, graph, known, shapes or {}),
        outputs=outputs,
        shared=shared,
        patterns=tuple(outlook.outlook(graph, loaded, known) for loaded in shipped().values()),
        dead=dead,
        versions=versions(),
        hidden=tuple(node.name or node.op for node in graph.nodes if node.layered),
    )


def test_patterns(patterns: Sequence[str] | str = ("deploy",), *, progress: Progress | None = None) -> list[TestResult]:
    """Run the tests that the patterns carry: rewrite each net, prove it, and compare it with the original."""
    loaded = prepare(patterns)
    results: list[TestResult] = []
    for done, pattern in enumerate(loaded):
        if progress is not None:
            progress(f"testing {pattern.name}", done / len(loaded))
        results += trial.run(pattern)
    return results


def verify(
    before: Model,
    after: Model,
    *,
    inputs: Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run both models on the same inputs and compare the outputs that both have (design: Flow, verify).

    `tolerance` is absolute; without it the original's own rounding error decides.
    """
    old, new = _open(before), _open(after)
    return compare(
        old.proto,
        new.proto,
        before_folder=old.folder,
        after_folder=new.folder,
        inputs=inputs,
        shapes=shapes,
        tolerance=tolerance,
        progress=_told(progress),
    )


def prepare(
    patterns: Sequence[str] | str, settings: Sequence[str] | str = (), keep: Sequence[str] | str = ()
) -> list[LoadedPattern]:
    """The patterns behind names and presets, with their parameters and the outputs to keep set."""
    loaded = set_parameters(resolve(_several(patterns)), _several(settings))
    if not keep:
        return loaded
    if all(isinstance(p.pattern.match, BodyMatch) for p in loaded):
        raise UsageError("--keep needs a pattern that removes outputs: add aux-prune, or use the preset deploy")
    if keep == ALL:
        return loaded
    takers = [p.name for p in loaded if any(q.name == "keep" for q in p.pattern.params)]
    if not takers:
        raise UsageError("--keep: none of these patterns has a parameter `keep` that names the outputs to keep")
    wanted = _several(keep)
    return [replace(p, settings={**p.settings, "keep": wanted}) if p.name in takers else p for p in loaded]


def _several(given: Sequence[str] | str) -> tuple[str, ...]:
    """A text alone is a list of one: its letters are never meant."""
    return (given,) if isinstance(given, str) else tuple(given)


# --- opening ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model that is ours to edit, and how to see the original again."""

    kind: str
    label: str
    proto: ModelProto
    folder: Path | None
    source: LoadedModel | None
    original: ModelProto | None  # None: read the file again

    def again(self) -> ModelProto:
        if self.original is not None:
            return self.original
        assert self.source is not None and self.source.path is not None
        return files.load(self.source.path).proto


def _open(model: Model) -> _Opened:
    if isinstance(model, str | Path):
        loaded = load(model)
        return _Opened("path", str(model), loaded.proto, loaded.folder, loaded, None)
    if isinstance(model, LoadedModel):
        return _Opened("path", str(model.path or "LoadedModel"), _copy(model.proto), model.folder, model, model.proto)
    if isinstance(model, ModelProto):
        files.validate(LoadedModel(model, None, None, 0))
        return _Opened("ModelProto", "ModelProto", _copy(model), None, None, model)
    proto = surgeon.to_proto(model)
    files.validate(LoadedModel(proto, None, None, 0))
    return _Opened("gs.Graph", "gs.Graph", proto, None, None, _copy(proto))


def _copy(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _rename(draft: OnnxDraft, names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    interface = [v.name for v in (*draft.model.graph.input, *draft.model.graph.output)]
    for old in names:
        if old not in interface:
            raise UsageError(f"--rename: {old!r} is no input or output of the result; there are {', '.join(interface)}")
    wanted = {old: new for old, new in names.items() if old != new}
    if "" in wanted.values():
        raise UsageError("--rename: a name cannot be empty")
    twice = next((new for new, count in Counter(wanted.values()).items() if count > 1), None)
    clash = draft.rename_interface(wanted) if twice is None else twice
    if clash is not None:
        raise UsageError(f"--rename: the name {clash!r} is taken by another value of the result")
    return tuple(wanted.items())


# --- verification and report -----------------------------------------------------------------------------------------


def _verified(
    opened: _Opened,
    finished: ModelProto,
    edited: bool,
    renamed: tuple[tuple[str, str], ...],
    inputs: Path | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    progress: Progress | None,
) -> Verification:
    if not edited:
        return Verification(Verdict.OK, "nothing was changed")
    original = opened.again()
    names = dict(renamed)
    if any(i.name in names for i in original.graph.input):
        finished, names = _with_old_names(finished, names), {}
    old_names = {new: old for old, new in names.items()}
    return compare(
        original,
        finished,
        before_folder=opened.folder,
        after_folder=opened.folder,
        outputs={old_names.get(o.name, o.name): o.name for o in finished.graph.output},
        inputs=inputs,
        shapes=shapes,
        progress=_told(progress),
    )


def _with_old_names(finished: ModelProto, renamed: Mapping[str, str]) -> ModelProto:
    """A copy of the result with the interface of the original: the comparison feeds inputs by name."""
    draft = OnnxDraft(_copy(finished))
    if (clash := draft.rename_interface({new: old for old, new in renamed.items()})) is not None:
        raise UsageError(f"--rename: the name {clash!r} went to another value")
    return draft.finish()


def _told(progress: Progress | None) -> Callable[[str], None] | None:
    if progress is None:
        return None

    def told(text: str) -> None:
        progress(f"verifying: {text}", None)

    return told
