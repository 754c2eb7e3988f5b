"""What `fxrewrite inspect` finds in a checkpoint: a frozen record of plain data, as the report is.

Invariant: it was found without running, importing or building anything that the file names.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.reporting.record import SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class TensorRecord:
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One entry of a checkpoint. `shipped` says whether `trace` would take it, leave it, or has to be told."""

    key: str
    kind: str  # "state dict", "module", "optimizer state", "date", "arguments", …
    detail: str
    tensors: int
    elements: int
    bytes: int
    dtypes: tuple[tuple[str, int], ...]  # dtype -> tensors
    shipped: str  # "taken", "left behind", "on request"


@dataclass(frozen=True, slots=True)
class CheckpointInspection:
    """What a file of weights holds. `code` are the names that loading it whole would import and could run."""

    model: str
    kind: str
    bytes: int
    entries: tuple[EntryRecord, ...]
    notes: tuple[str, ...]
    needs_trust: bool
    code: tuple[str, ...]
    tensors: tuple[TensorRecord, ...]  # of the entry that `trace` would take
    schema: int = SCHEMA_VERSION
