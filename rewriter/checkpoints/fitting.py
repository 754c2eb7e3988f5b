"""Tensors of a checkpoint laid into a model: names brought together, and every difference told.

Invariant: a model comes out only when every one of its parameters and buffers came from the checkpoint, under one name
at least (but counters of batches, which inference does not read); what the checkpoint has beyond that is listed and
left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rewriter.checkpoints.lazytorch import quiet
from rewriter.errors import InputError
from rewriter.graph.tensors import shown

if TYPE_CHECKING:
    import torch
    from torch import nn

_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.", "teacher.", "student.")
_INSIDE: Final = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_UNREAD: Final = ("num_batches_tracked", "n_averaged")
_MOST_LISTED: Final = 10
_MOST_WRAPPERS: Final = 3


@dataclass(frozen=True, slots=True)
class Fit:
    """How names of a checkpoint and of a model meet: the name in the model -> the name in the file."""

    names: Mapping[str, str]
    stripped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def fit(model: Iterable[str], stored: Sequence[str]) -> Fit:
    """Take off what wrappers put before names, as far as that brings most names together."""
    wanted = {*model}
    best: tuple[tuple[str, ...], Mapping[str, str]] = ((), {name: name for name in stored})
    for option in _unwrappings(best[1]):
        if len(wanted & option[1].keys()) > len(wanted & best[1].keys()):
            best = option
    stripped, names = best
    missing = sorted(name for name in wanted - names.keys() if not name.endswith(_UNREAD))
    unexpected = sorted(name for name in names.keys() - wanted if not name.endswith(_UNREAD))
    return Fit({name: names[name] for name in names if name in wanted}, stripped, tuple(missing), tuple(unexpected))


def _unwrappings(names: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], Mapping[str, str]]]:
    """The names (as they then are -> in the file) less one wrapper, less two, …; what no name has is not tried."""
    waiting: list[tuple[tuple[str, ...], Mapping[str, str]]] = [((), names)]
    for taken, left in waiting:
        if len(taken) < _MOST_WRAPPERS:
            tries = [(prefix, {now.removeprefix(prefix): name for now, name in left.items()}) for prefix in _PREFIXES]
            tries.append(("_orig_mod", {_unwrapped(now): name for now, name in left.items()}))
            # two names that become one would be a loss
            fresh = [((*taken, word), made) for word, made in tries if made.keys() != left.keys()]
            waiting += [option for option in fresh if len(option[1]) == len(left)]
        if taken:
            yield taken, left


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def lay(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> tuple[str, ...]:
    """Copy the tensors into `model`; the notes say what was stripped and left. InputError lists what does not fit."""
    own = model.state_dict()
    found = _with_ties(fit(own.keys(), [*state]), own)
    shapes = [
        f"{name}: {_dims(state[stored])} in the file, {_dims(own[name])} in the model"
        for name, stored in found.names.items()
        if state[stored].shape != own[name].shape
    ]
    if found.missing or shapes:
        raise InputError(
            f"{what} does not fit the model that --model builds: {len(found.names)} of {len(own)} tensors fit"
            + _listed("missing in the file", found.missing)
            + _listed("of another shape", shapes)
            + _listed("in the file and not in the model", found.unexpected)
            + "\nIs it another variant, or another entry (--key)?"
        )
    with quiet(f"{what} cannot be laid into the model"):
        model.load_state_dict({name: state[stored] for name, stored in found.names.items()}, strict=False)
    notes = [f"stripped from names: {', '.join(found.stripped)}"] if found.stripped else []
    if found.unexpected:
        notes.append(f"left behind{_listed('in the file and not in the model', found.unexpected)}")
    return tuple(notes)


def _with_ties(found: Fit, own: Mapping[str, torch.Tensor]) -> Fit:
    """A tensor that the model has under two names may be stored under one, as safetensors has it."""
    there = {_place(own[name]) for name in found.names}
    return replace(found, missing=tuple([name for name in found.missing if _place(own[name]) not in there]))


def _place(tensor: torch.Tensor) -> object:
    if not tensor.numel() or tensor.device.type == "meta":
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _dims(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f"\n    … and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"\n  {title} ({len(names)}):" + "".join(f"\n    {shown(name)}" for name in names[:_MOST_LISTED]) + more
