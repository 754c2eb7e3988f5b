"""A rewritten model of torch as a file: a program (.pt2), an ONNX model, or weights with their structure beside them.

Invariant: a traced module has no form of its own among these but weights, so it is exported for the others, in
evaluation form, with the inputs that it came with. An ONNX file that gives other numbers than torch is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewriter.checkpoints import agreement, structure
from rewriter.checkpoints import program as archives
from rewriter.checkpoints import tracing as exporters
from rewriter.checkpoints.requests import TraceRequest
from rewriter.errors import InputError, OutputError, UsageError, VerificationError
from rewriter.graph import saving
from rewriter.graph.tensors import shown
from rewriter.reporting.record import FoldRecord
from rewriter.torch_graphs import described, tracing
from rewriter.torch_graphs.applying import Opened

SUFFIXES = (".pt2", ".onnx", ".safetensors")


@dataclass(frozen=True, slots=True)
class Savable:
    """A model, and how it came; `compared` says whether models are to be held against each other."""

    made: Opened
    compared: bool


def save(given: Savable, path: Path, folds: Sequence[FoldRecord], *, force: bool) -> Path:
    """Write `made` in the form that the name of the file says."""
    made, suffix = given.made, path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{shown(path)}: a model of torch is written as {', '.join(SUFFIXES)}")
    if made.path is not None and path.exists() and path.samefile(made.path):
        raise OutputError(f"{shown(path)} is an input, which is never written to; choose another name")
    if suffix == ".safetensors":
        found = described.module(made.model) if made.inputs is not None else described.program(made.model)
        return structure.write(path, found.structure, found.tensors, folds, force=force)
    if suffix == ".pt2":
        archives.save(_program(made), path, force=force)
        return path
    return _save_onnx(given, path, force=force)


def _program(made: Opened) -> Any:
    if made.inputs is None:
        return made.model
    try:
        return tracing.export(made.model, [*made.inputs], made.dynamic_shapes)
    except InputError as problem:
        raise InputError(f"{problem}; its weights can be written as .safetensors all the same") from problem


def _save_onnx(given: Savable, path: Path, *, force: bool) -> Path:
    prepared = exporters.of_program(_program(given.made))
    with exporters.to_onnx(prepared, TraceRequest(None, ())) as loaded:
        if given.compared and prepared.outputs and agreement.can_run():
            found = agreement.compare(prepared, loaded)
            if not found.passed:
                raise VerificationError(f"{shown(path)}: the export: {found.words}; nothing was written")
        return saving.save(loaded.proto, path, source=loaded, force=force)
