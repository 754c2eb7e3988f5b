"""The bytes of a checkpoint, read once, and what kind of file they look like.

Invariant: what is examined and what is loaded are the same bytes, whatever happens to the file in between.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from rewriter.errors import InputError, LimitError
from rewriter.graph.tensors import shown

MOST_BYTES: Final = 64 << 30
_LEGACY: Final = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the magic number that opens torch's old format, as a pickle
_PT2: Final = (b"/archive_format", b"serialized_exported_program", b"/models/")


class Kind(StrEnum):
    """What a file of weights is; the words are what a user reads."""

    TORCH = "torch checkpoint (zip archive)"
    LEGACY = "torch checkpoint (old format)"
    PICKLE = "Python pickle"
    PT2 = "torch.export archive (.pt2)"
    SCRIPT = "TorchScript archive"
    SAFETENSORS = "safetensors file"


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A file's bytes with its path, which messages name."""

    path: Path
    data: bytes
    kind: Kind


def read(path: Path) -> Source:
    """The bytes of a checkpoint; InputError where it is missing, no regular file, or no checkpoint."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else "the path is not valid"
        raise InputError(f"{shown(path)} cannot be read: {reason.lower()}") from None
    with open(fd, "rb", buffering=0) as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{shown(path)} is a directory, a pipe or a device; name a file")
        if info.st_size > MOST_BYTES:
            raise LimitError(f"{shown(path)}: {info.st_size:,} bytes are more than the {MOST_BYTES:,} that are read")
        data = file.readall()
    kind = kind_of(data)
    if kind is None:
        raise InputError(
            f"{shown(path)} is no checkpoint: neither a torch file (.pt, .pth, .ckpt, .pt2) nor safetensors; "
            "download or save it again"
        )
    return Source(path, data, kind)


def is_checkpoint(path: Path) -> bool:
    """True for a regular file that begins like one of `Kind`, and like no ONNX model."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            head = file.read(64 << 10)
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 20)))
            return kind_of(head + file.read()) is not None
    except (OSError, ValueError):
        return False


def kind_of(data: bytes) -> Kind | None:
    """What bytes look like; nothing is believed of them yet."""
    if data[:4] == b"PK\x03\x04":
        tail = data[-(1 << 20) :]  # the names of the members are in the directory at the end
        if any(word in tail for word in _PT2):
            return Kind.PT2
        if b"/constants.pkl" in tail or b"/code/" in tail:
            return Kind.SCRIPT
        return Kind.TORCH if b"data.pkl" in tail else None
    if len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return Kind.SAFETENSORS
    if len(data) > 16 and data[0] == 0x80 and 2 <= data[1] <= 5:
        return Kind.LEGACY if data[2:14].startswith(_LEGACY[:2]) and _LEGACY in data[:20] else Kind.PICKLE
    return None
