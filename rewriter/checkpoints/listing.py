"""What a checkpoint holds, for `fxrewrite inspect`: weights and everything that came along with them.

Invariant: everything is found on symbols and headers; no name of the file is imported and nothing in it is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from rewriter.checkpoints import program, safetensors, selection
from rewriter.checkpoints.archive import examine
from rewriter.checkpoints.bytesource import Kind, Source
from rewriter.checkpoints.contents import SIZES, Tensor, is_module, named, pairs_of, tensor_of, tensors
from rewriter.checkpoints.pickles import Call, Name, Pairs, Symbol
from rewriter.checkpoints.selection import Weights
from rewriter.checkpoints.torchfile import TorchFile, open_torch
from rewriter.errors import FxRewriteError
from rewriter.graph.tensors import shown
from rewriter.reporting.checkpoint import CheckpointInspection, EntryRecord, TensorRecord

TAKEN, LEFT, ASKED = "taken", "left behind", "on request"
_MOST_ENTRIES: Final = 500
_MOST_NAMES: Final = 8
_MOST_TEXT: Final = 60
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
_ARGUMENTS: Final = frozenset(
    {"args", "arg", "opt", "opts", "options", "hparams", "hyper_parameters", "hyp", "cfg", "config", "train_args"}
)
_TRAINING: Final = frozenset(
    {"optimizer", "optimizer_states", "optimizers", "optim", "scheduler", "lr_scheduler", "lr_schedulers", "scaler"}
    | {"amp_scaler", "loops", "callbacks", "updates", "best_fitness", "train_results", "train_metrics"}
)


def inspect(source: Source, key: str | None = None) -> CheckpointInspection:
    """The record of a checkpoint of any kind."""
    match source.kind:
        case Kind.SAFETENSORS:
            return _of_safetensors(source)
        case Kind.PT2 | Kind.SCRIPT:
            return _of_program(source)
        case _:
            return _of_torch(open_torch(source), key)


def _of_torch(file: TorchFile, key: str | None) -> CheckpointInspection:
    try:
        chosen: Weights | None = selection.choose(file.value, key, shown(file.source.path))
        undecided = ""
    except FxRewriteError as problem:
        chosen, undecided = None, str(problem)
    pairs = pairs_of(file.value)
    if pairs is None or (chosen is not None and not chosen.path):
        entries = [_entry("", file.value, chosen)]
    else:
        first = pairs.items[:_MOST_ENTRIES]
        entries = [_entry(_text(k), part, chosen) for k, part in first]
    found = list(named(chosen.value)) if chosen is not None else []
    notes = [*_notes(file, entries, chosen, found), *([undecided] if undecided else [])]
    if pairs is not None and len(pairs.items) > len(entries) > 1:
        notes.append(f"{len(pairs.items) - len(entries):,} more entries are not listed")
    return CheckpointInspection(
        model=str(file.source.path),
        kind=file.source.kind.value,
        bytes=len(file.source.data),
        entries=tuple(entries),
        notes=tuple(notes),
        needs_trust=bool(file.code),
        code=file.code,
        tensors=tuple(TensorRecord(name, tensor.dtype, tensor.shape) for name, tensor in found),
    )


def _entry(key: str, value: Symbol, chosen: Weights | None) -> EntryRecord:
    found = tensors(value)
    kind, detail = _kind(key, value)
    weights = kind.endswith(("state dict", "module"))
    mine = chosen is not None and (not chosen.path or chosen.path[0] == key)
    return EntryRecord(
        key=key,
        kind=kind,
        detail=detail,
        tensors=len(found),
        elements=sum(tensor.elements for tensor in found),
        bytes=sum({tensor.key: tensor.stored for tensor in found}.values()),
        dtypes=tuple(Counter(tensor.dtype for tensor in found).most_common()),
        shipped=TAKEN if mine else ASKED if weights else LEFT,
    )


def _kind(key: str, value: Symbol) -> tuple[str, str]:
    """What an entry is, and in words what it says."""
    low, pairs = key.casefold(), pairs_of(value)
    averaged = "EMA " if low in selection.EMA else ""
    if is_module(value):
        return f"{averaged}module", str(value.function) if isinstance(value.function, Name) else ""
    if selection.is_optimizer(value) or low in _TRAINING:
        return ("optimizer state" if "optim" in low or pairs is not None else "training state"), _brief(value)
    if tensor_of(value) is not None:
        return "tensor", ""
    if isinstance(value, str) and ("date" in low or _DATE.match(value)):
        return "date", _brief(value)
    if low in _ARGUMENTS or (isinstance(value, Call) and str(value.function) == "argparse.Namespace"):
        return "arguments", _brief(value)
    if pairs is not None:
        return (f"{averaged}state dict" if tensors(value) else "settings"), "" if tensors(value) else _brief(value)
    if isinstance(value, Call):
        return "object", str(value.function) if isinstance(value.function, Name) else ""
    kinds: Mapping[Symbol, str] = {str: "text", bytes: "bytes", list: "list", tuple: "list", type(None): "nothing"}
    return kinds.get(type(value), "number"), _brief(value)


def _brief(value: Symbol) -> str:
    """A value in a few words; texts of the file are cut and never trusted with more room."""
    inner: Symbol = value.state if isinstance(value, Call) and isinstance(value.state, Pairs) else value
    pairs = pairs_of(inner)
    if pairs is not None:
        names = pairs.names()
        return ", ".join(map(_text, names[:_MOST_NAMES])) + (", …" if len(names) > _MOST_NAMES else "")
    if isinstance(inner, list | tuple):
        return f"{len(inner):,} items"  # pyright: ignore[reportUnknownArgumentType]
    return "" if isinstance(inner, Call) else _text(inner)


def _text(value: Symbol) -> str:
    if not isinstance(value, str | int | float | bytes | bool | None):
        return type(value).__name__
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a very large number"
    text = (
        value[: _MOST_TEXT + 1]
        if isinstance(value, str)
        else str(value[:_MOST_TEXT] if type(value) is bytes else value)
    )
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"


def _notes(
    file: TorchFile, entries: Sequence[EntryRecord], chosen: Weights | None, found: Sequence[tuple[str, Tensor]]
) -> Iterator[str]:
    if file.code:
        listed = ", ".join(file.code[:_MOST_NAMES]) + (", …" if len(file.code) > _MOST_NAMES else "")
        yield (
            f"loading it whole would run code of others ({listed}): without --trust --code DIR, `trace` reads its "
            "tensors as data and imports nothing; listing it here ran nothing"
        )
    training = [entry for entry in entries if entry.kind in ("optimizer state", "training state")]
    if training:
        size = sum(entry.bytes for entry in training)
        share = f" ({size:,} of {len(file.source.data):,} bytes)" if size else ""
        yield f"{_keys(training)}: state of the training{share}, which nothing that is shipped needs"
    if chosen is not None:
        yield from _duplicates(file, chosen, found)
    private = [entry for entry in entries if entry.kind in ("arguments", "date")]
    if private:
        yield f"{_keys(private)}: facts about the training that are shipped by mistake; `trace` leaves them behind"
    halves = sorted({tensor.dtype for _, tensor in found} & {"float16", "bfloat16"})
    if halves:
        yield f"the weights are {' and '.join(halves)}; `trace` casts them to float32"
    if file.extra:
        yield f"members that a checkpoint does not need: {', '.join(map(_text, file.extra[:_MOST_NAMES]))}"


def _duplicates(file: TorchFile, chosen: Weights, found: Sequence[tuple[str, Tensor]]) -> Iterator[str]:
    """Other weights with the names and shapes of the chosen ones: the averaged or the last ones, shipped along."""
    shapes = {_stem(name): tensor.shape for name, tensor in found}
    for other in selection.candidates(file.value):
        if other.path == chosen.path:
            continue
        theirs = list(named(other.value))
        if {_stem(name): tensor.shape for name, tensor in theirs} == shapes:
            size = sum({tensor.key: tensor.stored for _, tensor in theirs}.values())
            which = "averaged" if chosen.averaged else "chosen"
            yield f"`{other.key}` repeats the tensors of `{chosen.key}` ({size:,} bytes); the {which} ones are taken"


def _stem(name: str) -> str:
    for prefix in ("_orig_mod.", "module."):
        name = name.removeprefix(prefix)
    return name


def _keys(entries: Iterable[EntryRecord]) -> str:
    return ", ".join(f"`{entry.key}`" for entry in entries)


def _of_safetensors(source: Source) -> CheckpointInspection:
    found = safetensors.header(source)
    kinds = Counter(record.dtype for record in found.tensors).most_common()
    elements = sum(size // SIZES.get(r.dtype, 1) for r, size in zip(found.tensors, found.bytes.values(), strict=True))
    weights = EntryRecord(
        "", "state dict", "", len(found.tensors), elements, sum(found.bytes.values()), tuple(kinds), TAKEN
    )
    told = [EntryRecord(_text(k), "text", _text(v), 0, 0, len(v), (), LEFT) for k, v in found.metadata[:_MOST_ENTRIES]]
    return CheckpointInspection(
        str(source.path), source.kind.value, len(source.data), (weights, *told), (), False, (), found.tensors
    )


def _of_program(source: Source) -> CheckpointInspection:
    """A .pt2 or TorchScript archive: its members, and whether it can be loaded without trust."""
    archive = examine(source.data, str(source.path))
    groups: dict[str, list[int]] = {}
    for name, (begin, end) in archive.members.items():
        groups.setdefault(name.rpartition("/")[0] or name, []).append(end - begin)
    entries = [
        EntryRecord(name, "members", f"{len(sizes)} members", 0, 0, sum(sizes), (), TAKEN)
        for name, sizes in sorted(groups.items())[:_MOST_ENTRIES]
    ]
    problem = _PROBLEMS[source.kind](source)
    notes = () if problem is None else (problem,)
    return CheckpointInspection(
        str(source.path), source.kind.value, len(source.data), tuple(entries), notes, problem is not None, (), ()
    )


def _script_problem(source: Source) -> str | None:
    del source
    return "TorchScript archives hold code; export the model to ONNX or save its state dict instead"


_PROBLEMS: Final[Mapping[Kind, Callable[[Source], str | None]]] = {
    Kind.PT2: program.problem_of,
    Kind.SCRIPT: _script_problem,
}
