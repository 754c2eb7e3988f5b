"""torch's own checkpoint files as symbols: the zip archive, the old format, and a bare pickle.

Invariant: every tensor that a `TorchFile` holds lies within bytes that are there, and no element is stored twice over
(an expanded tensor of 2^60 elements needs four bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rewriter.checkpoints.archive import Archive, examine
from rewriter.checkpoints.bytesource import Kind, Source
from rewriter.checkpoints.contents import ATTRIBUTED, SIZES, check_extents, tensors
from rewriter.checkpoints.pickles import Name, Symbol, walk
from rewriter.errors import InputError
from rewriter.graph.tensors import shown

_LEGACY_HEADER: Final = 3  # the magic number, the protocol version and facts about the machine: a pickle each
_PLAIN: Final = frozenset(
    {("collections", "OrderedDict"), ("collections", "Counter"), ("builtins", "set"), ("torch", "Size")}
    | {("torch._utils", f"_rebuild_{what}") for what in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
    | {("torch", name) for name in SIZES}
    | {(ATTRIBUTED.module, ATTRIBUTED.name), ("torch", "Tensor")}
)


@dataclass(frozen=True, slots=True, eq=False)
class TorchFile:
    """The value that the file would give, the names it would import, and how many bytes each storage has."""

    source: Source
    value: Symbol
    names: tuple[Name, ...]
    storages: Mapping[str, int]
    extra: tuple[str, ...]  # members that a checkpoint does not need

    @property
    def code(self) -> tuple[str, ...]:
        """The names beyond tensors and dicts: what only trusted files may import."""
        return tuple(str(name) for name in self.names if not _is_plain(name))


def open_torch(source: Source) -> TorchFile:
    """Examine a checkpoint; InputError where it is damaged or its tensors are not what it has bytes for."""
    what = shown(source.path)
    if source.kind is Kind.TORCH:
        return _open_archive(source, examine(source.data, str(source.path)))
    start = 0
    if source.kind is Kind.LEGACY:
        for _ in range(_LEGACY_HEADER):
            start = walk(source.data, what, start).end
    found = walk(source.data, what, start)
    storages: dict[str, int] = {}
    rest = len(source.data) - found.end
    for tensor in tensors(found.value):
        if tensor.key not in storages:
            rest -= tensor.stored
            storages[tensor.key] = tensor.stored
    if rest < 0:
        raise InputError(f"{what}: its tensors need {-rest:,} bytes more than the file has; it is cut off or made up")
    check_extents(tensors(found.value), storages, what)
    return TorchFile(source, found.value, found.names, storages, ())


def _open_archive(source: Source, archive: Archive) -> TorchFile:
    what = shown(source.path)
    if "data.pkl" not in archive.members:
        raise InputError(f"{what}: an archive without data.pkl, so no checkpoint of torch; save it again")
    order = bytes(archive.read("byteorder")) if "byteorder" in archive.members else b"little"
    if order != b"little":
        raise InputError(f"{what}: stored on a big-endian machine, which is not read; save it again on another one")
    found = walk(archive.read("data.pkl"), what)
    storages = {
        name.removeprefix("data/"): end - begin
        for name, (begin, end) in archive.members.items()
        if name.startswith("data/")
    }
    check_extents(tensors(found.value), storages, what)
    known = {"data.pkl", "byteorder", "version"}
    extra = [n for n in archive.members if n not in known and not n.startswith(("data/", "."))]
    return TorchFile(source, found.value, found.names, storages, tuple(extra))


def _is_plain(name: Name) -> bool:
    storage = name.name.endswith("Storage") and name.module in ("torch", "torch.storage")
    return storage or (name.module, name.name) in _PLAIN
