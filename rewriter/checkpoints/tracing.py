"""From a checkpoint to a graph: the weights chosen and loaded safely, laid into the model, traced by torch's exporters.

Invariant: what comes out holds the graph and the chosen weights and nothing else of the checkpoint, and every step that
left something behind, changed names or types, or ran code, is in the notes.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from rewriter.checkpoints import bytesource, factory, fitting, program, weights
from rewriter.checkpoints.lazytorch import quiet, require_torch
from rewriter.checkpoints.requests import TraceRequest
from rewriter.errors import InputError, UsageError
from rewriter.graph import files
from rewriter.graph.files import LoadedModel
from rewriter.graph.tensors import shown

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

Tell = Callable[[str], None]
DEFAULT_OPSET: Final = {"dynamo": 18, "legacy": 17}
_INLINE: Final = 1 << 30  # bytes of weights from which on the exporter writes them beside the model


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What is exported (a module with its weights, or a program), what it is called with and gave, and the notes."""

    model: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Any, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(path: Path, request: TraceRequest, tell: Tell) -> Prepared:
    """Load, build, lay in, cast, and run once: sizes that a model remembers are those of the inputs then."""
    require_torch()
    tell(f"reading {path}")
    source = bytesource.read(path)
    if source.kind is bytesource.Kind.PT2:
        return _prepare_program(source, request)
    loaded = weights.load(source, key=request.key, trust=request.trust, code=request.code, whole=request.model is None)
    if not request.inputs:
        raise UsageError(
            f"{shown(path)} is a checkpoint: name the inputs that its model is called with, "
            "for example --input images=1x3x640x640"
        )
    notes = [*loaded.notes]
    model = loaded.module
    if request.model is not None:
        tell("building the model")
        model = factory.build(request.model, request.arguments, request.code)
        notes += fitting.lay(model, loaded.state, shown(path))
    if model is None:
        raise UsageError(
            f"{shown(path)} holds weights and no model: name what builds it, --model pkg.mod:factory [--arg NAME=VALUE]"
        )
    notes += _cast(model, loaded, request.dtype)
    model.eval()
    given = _examples(model, request)
    outputs = _run(model, given)
    names = tuple(item.name or "" for item in request.inputs)
    return Prepared(model, given, outputs, names, tuple(notes))


def _prepare_program(source: bytesource.Source, request: TraceRequest) -> Prepared:
    """A .pt2 file is traced already; its own example inputs, where it has some, are what it is run on."""
    if request.model or request.inputs or request.dynamic or request.key or request.arguments:
        raise UsageError("a .pt2 file is traced already: --model, --arg, --key, --input and --dynamic are not for it")
    return of_program(program.load(source, trust=request.trust))


def of_program(loaded: ExportedProgram) -> Prepared:
    """A program, run on copies of the inputs that it was exported with and of the buffers that a run may change."""
    import torch
    import torch.utils._pytree as pytree

    examples: Any = loaded.example_inputs
    given = tuple(_leaves(examples)) if examples is not None else ()
    if not given or not all(hasattr(value, "shape") for value in given):
        return Prepared(loaded, given, (), (), ())
    copies: Any = copy.deepcopy(examples)
    module: Any = loaded.module()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with quiet("the program cannot be run on its own example inputs"), torch.no_grad():
        found: Any = torch.func.functional_call(module, buffers, *copies)
    tree: Any = pytree
    return Prepared(loaded, given, tuple([leaf for leaf in tree.tree_leaves(found) if leaf is not None]), (), ())


def _cast(model: nn.Module, loaded: weights.Loaded, dtype: str) -> list[str]:
    """The model in one float type; what the checkpoint stored is said where that is another."""
    import torch

    stored = sorted({str(t.dtype).removeprefix("torch.") for t in loaded.state.values() if t.is_floating_point()})
    if dtype == "keep" and len(stored) == 1:
        model.to(getattr(torch, stored[0]))
    elif dtype != "keep":
        model.to(getattr(torch, dtype))
    now = dtype if dtype != "keep" else "as the model has them"
    return [f"weights stored as {', '.join(stored)}, cast to {now}"] if stored != [dtype] and dtype != "keep" else []


def _examples(model: nn.Module, request: TraceRequest) -> tuple[Tensor, ...]:
    """Noise for floats, zeros for whole numbers; an open axis has two elements at least, or it would be fixed."""
    import torch

    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    chance = torch.Generator().manual_seed(0)
    made: list[Tensor] = []
    for place, item in enumerate(request.inputs):
        axes = request.dynamic.get(place, {})
        shape = [max(size, 2 * axes[axis].times) if axis in axes else size for axis, size in enumerate(item.shape)]
        dtype: Any = floats if item.dtype is None else getattr(torch, item.dtype)
        noise = torch.randn(shape, generator=chance) if dtype.is_floating_point else torch.zeros(shape)
        made.append(noise.to(dtype))
    return tuple(made)


def _run(model: nn.Module, given: tuple[Tensor, ...]) -> tuple[Any, ...]:
    import torch

    with quiet("the model cannot be run on inputs of these sizes (--input)"), torch.no_grad():
        return tuple(_leaves(model(*given)))


def _leaves(found: Any) -> Iterator[Any]:
    """The tensors in what a model gives, in the order in which exporters write them."""
    if isinstance(found, Mapping):
        found = [*cast("Mapping[Any, Any]", found).values()]
    if isinstance(found, list | tuple):
        for part in cast("Sequence[Any]", found):
            yield from _leaves(part)
    elif found is not None:
        yield found


def to_program(prepared: Prepared, request: TraceRequest) -> ExportedProgram:
    """The traced program, for a .pt2 file or to be rewritten."""
    import torch

    if isinstance(prepared.model, torch.export.ExportedProgram):
        return prepared.model
    with quiet("torch.export cannot trace the model"), torch.no_grad():
        return torch.export.export(prepared.model, prepared.inputs, dynamic_shapes=_dims(request))


@contextmanager
def to_onnx(prepared: Prepared, request: TraceRequest) -> Generator[LoadedModel]:
    """The traced model as a file of ours to read, for as long as the block runs; large weights lie beside it."""
    with tempfile.TemporaryDirectory(prefix="fxrewrite-") as folder:
        path = Path(folder) / "model.onnx"
        with quiet("torch cannot export the model to ONNX; another exporter may (--exporter)"):
            _EXPORTS[request.exporter](prepared, request, path)
        if not path.is_file():
            raise InputError("torch's exporter wrote no model")
        loaded = files.load(path)
        files.validate(loaded)
        yield loaded


def _dynamo(prepared: Prepared, request: TraceRequest, path: Path) -> None:
    torch = _torch()
    with torch.no_grad():
        torch.onnx.export(
            prepared.model,
            () if _is_program(prepared) else prepared.inputs,
            str(path),
            dynamo=True,
            opset_version=request.opset or DEFAULT_OPSET["dynamo"],
            input_names=[*prepared.names] if prepared.names and all(prepared.names) else None,
            output_names=[*request.output_names] or None,
            external_data=_bytes(prepared.model.state_dict) > _INLINE,
            optimize=True,
            verbose=False,
            dynamic_shapes=_dims(request),
        )


def _legacy(prepared: Prepared, request: TraceRequest, path: Path) -> None:
    torch = _torch()
    if _is_program(prepared):
        raise UsageError("--exporter legacy traces modules; a .pt2 file goes through dynamo")
    names = [name or f"input{place}" for place, name in enumerate(prepared.names)]
    axes = {names[place]: {axis: item.name for axis, item in found.items()} for place, found in request.dynamic.items()}
    with torch.no_grad():
        torch.onnx.export(
            prepared.model,
            prepared.inputs,
            str(path),
            dynamo=False,
            opset_version=request.opset or DEFAULT_OPSET["legacy"],
            input_names=names,
            output_names=[*request.output_names] or None,
            dynamic_axes=axes or None,
        )


def _torch() -> Any:
    """Untyped: the types of the exporters are only partly known."""
    import torch

    return torch


_EXPORTS: Final[dict[str, Callable[[Prepared, TraceRequest, Path], None]]] = {"dynamo": _dynamo, "legacy": _legacy}


def _dims(request: TraceRequest) -> tuple[dict[int, Any] | None, ...] | None:
    """The open axes as torch.export has them; one word is one size, wherever it stands."""
    if not request.dynamic:
        return None
    import torch

    words = {axis.name for found in request.dynamic.values() for axis in found.values()}
    known: dict[str, Any] = {word: torch.export.Dim(word, min=2) for word in sorted(words)}

    def dims(place: int) -> dict[int, Any] | None:
        found = request.dynamic.get(place)
        if found is None:
            return None
        return {
            axis: known[item.name] if item.times == 1 else item.times * known[item.name] for axis, item in found.items()
        }

    return tuple(dims(place) for place in range(len(request.inputs)))


def _is_program(prepared: Prepared) -> bool:
    return isinstance(prepared.model, _torch().export.ExportedProgram)


def _bytes(state: Any) -> int:
    """Of a module's or a program's state dict, which is a method of the one and a property of the other."""
    tensors = cast("Mapping[str, Tensor]", state() if callable(state) else state)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
