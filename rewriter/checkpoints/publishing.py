"""Files out: each whole or not at all, several of them together.

Invariant: nothing has its name before everything is written and synced; what fails on the way leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from rewriter.errors import LimitError, OutputError
from rewriter.graph.drafts import Draft, refused_type, sweep, sync_folder
from rewriter.graph.tensors import shown

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Pieces = Iterable[bytes | bytearray | memoryview]


def publish(files: Mapping[Path, Pieces], *, force: bool) -> None:
    """Write several files. OutputError where one exists (without `force`) or cannot be written, LimitError if full."""
    drafts: list[tuple[Draft, Path]] = []
    done = False
    try:
        for path, pieces in files.items():
            if os.path.lexists(path) and not force:
                raise OutputError(f"{shown(path)} exists; replace it with --force or choose another name")
            if path.exists() and not path.is_file():
                raise OutputError(refused_type(path, path.stat().st_mode))
            sweep(path.parent)
            draft = Draft(path.parent, path.name)
            drafts.append((draft, path))
            for piece in pieces:
                draft.write(piece)
            draft.complete()
        for draft, path in drafts:
            (draft.replace if force else draft.publish)(path)
            sync_folder(path.parent)
        done = True
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        kind = LimitError if problem.errno in _FULL else OutputError
        raise kind(f"{', '.join(map(shown, files))} cannot be written: {reason}; nothing was written") from None
    finally:
        for draft, _ in drafts:
            draft.close(keep=done)
