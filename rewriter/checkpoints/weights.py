"""Weights out of a checkpoint, as torch tensors by name, or a module where the user trusts the file.

Invariant: without trust nothing is unpickled but by torch's weights_only reader, and that only in files whose every
name is plain. Where other entries of the file (arguments, a whole module) would import code, the tensors of the chosen
weights are read from their bytes, as the pickle walk describes them, and the note says so. Nothing falls back.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rewriter.checkpoints import safetensors, selection
from rewriter.checkpoints.archive import Archive, examine
from rewriter.checkpoints.bytesource import Kind, Source
from rewriter.checkpoints.contents import Tensor, is_module, named
from rewriter.checkpoints.lazytorch import quiet, require_torch
from rewriter.checkpoints.selection import Weights
from rewriter.checkpoints.torchfile import TorchFile, open_torch
from rewriter.errors import InputError, UsageError
from rewriter.graph.tensors import shown

if TYPE_CHECKING:
    import torch
    from torch import nn

_MOST_NAMES = 5


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Tensors by name, and the module that held them where it was loaded whole; `notes` say what was left behind."""

    state: Mapping[str, torch.Tensor]
    module: nn.Module | None
    key: str
    notes: tuple[str, ...]


def load(source: Source, *, key: str | None, trust: bool = False, code: Path | None = None, whole: bool) -> Loaded:
    """The weights of a checkpoint; `whole` says that a module is wanted, since no factory builds one."""
    require_torch()
    if code is not None and not trust:
        raise UsageError("--code: a folder of code is only looked at with --trust")
    if source.kind is Kind.SAFETENSORS:
        return _from_safetensors(source, key)
    if source.kind in (Kind.PT2, Kind.SCRIPT):
        raise InputError(f"{shown(source.path)} is a {source.kind}, a program and no weights; --model is not for it")
    file = open_torch(source)
    chosen = selection.choose(file.value, key, shown(source.path))
    if trust and file.code:
        return _unpickled(file, chosen, code)
    if not file.code:
        return _weights_only(file, chosen)
    return _as_data(file, chosen, whole=whole)


def _from_safetensors(source: Source, key: str | None) -> Loaded:
    if key is not None:
        raise UsageError("--key: a safetensors file has no entries, only tensors")
    require_torch("safetensors")
    safetensors.header(source)
    with quiet(f"{shown(source.path)} cannot be loaded"):
        from safetensors.torch import load as read

        return Loaded(read(source.data), None, "", ())


def _weights_only(file: TorchFile, chosen: Weights) -> Loaded:
    with quiet(f"{shown(file.source.path)} cannot be loaded by torch"):
        import torch

        found: Any = torch.load(io.BytesIO(file.source.data), map_location="cpu", weights_only=True)
        for name in chosen.path:
            found = found[name]
        state = {name: value for name, value in _flat(found) if isinstance(value, torch.Tensor)}
    return Loaded(state, None, chosen.key, _left(file, chosen))


def _flat(value: Any, prefix: str = "") -> Generator[tuple[str, Any]]:
    for name, part in cast("Mapping[str, Any]", value).items():
        if isinstance(part, Mapping):
            yield from _flat(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


def _as_data(file: TorchFile, chosen: Weights, *, whole: bool) -> Loaded:
    """Tensors read from their bytes; the names that the file would import stay words."""
    listed = ", ".join(file.code[:_MOST_NAMES]) + (", …" if len(file.code) > _MOST_NAMES else "")
    path = shown(file.source.path)
    found = dict(named(chosen.value))
    if whole or file.source.kind is not Kind.TORCH or not found:
        raise InputError(
            f"{path}: loading it would run code of others: it imports {listed}. A pickle can do anything that you can: "
            "read, send and delete files. Name what builds the model (--model pkg.mod:factory), so that its weights "
            "are read as data; or, only where you trust its origin as you would a program's, add --trust --code DIR "
            "with the source tree that it was made with. `fxrewrite inspect` shows what it holds and runs nothing"
        )
    archive = examine(file.source.data, str(file.source.path))
    with quiet(f"{path} cannot be read"):
        state = {name: _tensor(archive, tensor) for name, tensor in found.items()}
    note = f"its tensors were read as data; what the file would import was not ({listed})"
    return Loaded(state, None, chosen.key, (note, *_left(file, chosen)))


def _tensor(archive: Archive, found: Tensor) -> torch.Tensor:
    import torch

    data = bytearray(archive.read(f"data/{found.key}"))
    kind: Any = getattr(torch, found.dtype)
    if not data or not found.elements:
        return torch.empty(found.shape, dtype=kind)
    flat = torch.frombuffer(data, dtype=kind, count=len(data) // kind.itemsize)
    return flat.as_strided(found.shape, found.stride, found.offset)


def _unpickled(file: TorchFile, chosen: Weights, code: Path | None) -> Loaded:
    """The file as its author's code makes it: only after `--trust`."""
    if code is not None and not code.is_dir():
        raise UsageError(f"--code: {code} is no folder")
    with _importable(code), quiet(f"{shown(file.source.path)} cannot be loaded with its own code (--code)"):
        import torch

        found: Any = torch.load(io.BytesIO(file.source.data), map_location="cpu", weights_only=False)
        for name in chosen.path:
            found = found[name]
        module = found if isinstance(found, torch.nn.Module) else None
        state = {k: v for k, v in (_flat(found) if module is None else module.state_dict().items())}
        state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    where = f" with the code in {code}" if code is not None else ""
    note = f"--trust: the file was unpickled{where}, which ran what it names"
    return Loaded(state, module, chosen.key, (note, *_left(file, chosen)))


@contextmanager
def _importable(code: Path | None) -> Generator[None]:
    """`code` as the first place to import from, for as long as the block runs."""
    before = [*sys.path]
    if code is not None:
        sys.path.insert(0, str(code.resolve()))
    try:
        yield
    finally:
        sys.path[:] = before


def _left(file: TorchFile, chosen: Weights) -> tuple[str, ...]:
    """What was taken, what stayed behind."""
    from rewriter.checkpoints.contents import pairs_of

    pairs = pairs_of(file.value)
    kind = "averaged weights (EMA)" if chosen.averaged else "module" if is_module(chosen.value) else "weights"
    if not chosen.path:
        return ()
    others = [name for name in (pairs.names() if pairs is not None else []) if name != chosen.path[0]]
    more = f"; left behind: {', '.join(map(shown, others[:20]))}" if others else ""
    return (f"took the {kind} under {shown(chosen.key)}{more}",)
