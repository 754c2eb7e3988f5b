"""`verify`: the parent's side of a comparison. It checks what was asked for, starts the child and reads its answer.

Invariant: a child that dies, hangs or says nothing gives NOT_VERIFIED with the reason, never OK; what the user got
wrong is a UsageError before any child is started.
"""

from __future__ import annotations

import signal
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import ModelProto

from rewriter.checking import process, sizes, wire
from rewriter.checking.limits import Limits
from rewriter.checking.pack import pack
from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.checking.status import engine_status
from rewriter.checking.wire import Array, Blob, dtype_of
from rewriter.errors import UsageError


def verify(
    before: ModelProto,
    after: ModelProto,
    *,
    before_folder: Path | None = None,
    after_folder: Path | None = None,
    outputs: Mapping[str, str] | None = None,
    inputs: Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float | None = None,
    limits: Limits | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Run both models whole on the same inputs in a child process and judge every compared output (design.md, verify).

    `outputs` maps names in `before` to names in `after` (default: the names that both have); the folders are where
    external data lies. Neither model is changed.
    """
    started = time.monotonic()
    missing = engine_status()
    if missing is not None:
        return Verification(Verdict.NOT_VERIFIED, missing)
    limits = limits if limits is not None else Limits()
    shapes = shapes or {}
    pairs = _pairs(before, after, outputs)
    if tolerance is not None and not tolerance >= 0:
        raise UsageError(f"--tolerance: {tolerance} is not a number of 0 or more")
    specs = sizes.input_specs(before.graph)
    sizes.bind(specs, shapes)
    given = _given(inputs, specs, limits) if inputs is not None else {}
    if both := sorted(set(given) & set(shapes)):
        raise UsageError(f"--shape: {both[0]!r} is in the --inputs file too, which says its shape")
    header = {"pairs": pairs, "shapes": {name: list(shape) for name, shape in shapes.items()}, "tolerance": tolerance}
    header |= {"seconds": limits.seconds, "memory": limits.memory}

    def feed(stream: BinaryIO) -> None:
        wire.send_json(stream, header)
        wire.send_blobs(stream, [_as_blob(name, array) for name, array in given.items()])
        for model, folder, label in ((before, before_folder, "original"), (after, after_folder, "rewritten model")):
            packed = pack(model, folder, label)
            wire.send_bytes(stream, packed.proto)
            wire.send_blobs(stream, packed.weights)

    ending = process.converse(process.child_command(), feed, limits.seconds, progress)
    return _record(ending, limits, time.monotonic() - started, _left_out(before, after, pairs, outputs))


def _pairs(before: ModelProto, after: ModelProto, outputs: Mapping[str, str] | None) -> dict[str, str]:
    old = [value.name for value in before.graph.output]
    new = [value.name for value in after.graph.output]
    if outputs is None:
        pairs = {name: name for name in old if name in new}
        if not pairs:
            raise UsageError(f"no output has the same name in both models: {', '.join(old)} and {', '.join(new)}")
        return pairs
    for name, renamed in outputs.items():
        if name not in old:
            raise UsageError(f"the original has no output {name!r}; it has {', '.join(old)}")
        if renamed not in new:
            raise UsageError(f"the rewritten model has no output {renamed!r}; it has {', '.join(new)}")
    if not outputs:
        raise UsageError("no outputs to compare")
    return dict(outputs)


def _left_out(
    before: ModelProto, after: ModelProto, pairs: Mapping[str, str], outputs: Mapping[str, str] | None
) -> list[str]:
    """Outputs that exist and are not compared, in words."""
    old = [value.name for value in before.graph.output if value.name not in pairs]
    new = [value.name for value in after.graph.output if value.name not in pairs.values()]
    notes = [f"outputs of the original that were not compared: {', '.join(old)}"] if old and outputs is None else []
    if new:
        notes.append(f"outputs of the rewritten model that were not compared: {', '.join(new)}")
    return notes


def _given(path: Path, specs: tuple[sizes.InputSpec, ...], limits: Limits) -> dict[str, Array]:
    """The arrays of an .npz file, checked against what the original declares."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > limits.memory:
            raise UsageError(f"--inputs: {path.name!r} holds {size} bytes, more than the memory limit")
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"--inputs: {str(path)!r} cannot be read as an .npz file: {error}") from error
    if not arrays:
        raise UsageError(f"--inputs: {path.name!r} holds no arrays")
    sizes.bind(specs, {name: array.shape for name, array in arrays.items()}, "--inputs")
    for spec in specs:
        if spec.name in arrays and spec.elem_type and arrays[spec.name].dtype != dtype_of(spec.elem_type):
            wanted, found = dtype_of(spec.elem_type), arrays[spec.name].dtype
            raise UsageError(f"--inputs: {spec.name!r} is {wanted} in the model, and {found} in {path.name!r}")
    return arrays


def _as_blob(name: str, array: Array) -> Blob:
    data = np.ascontiguousarray(array).tobytes()
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return Blob(name, elem_type, array.shape, len(data), lambda: data)


def _record(ending: process.Ending, limits: Limits, seconds: float, notes: list[str]) -> Verification:
    if ending.result is None:
        reason = f"{_fate(ending, limits)}; --no-verify goes on without"
        return Verification(
            Verdict.NOT_VERIFIED, reason, seconds=seconds, peak_bytes=ending.peak_bytes, notes=tuple(notes)
        )
    result: Mapping[str, Any] = ending.result
    checks = [_check(check) for check in result.get("outputs", ())]
    return Verification(
        Verdict(result["verdict"]),
        result["reason"],
        result.get("engine", ""),
        tuple(checks),
        tuple(result.get("inputs", ())),
        seconds,
        ending.peak_bytes,
        (*notes, *result.get("notes", ())),
    )


def _check(told: Mapping[str, Any]) -> OutputCheck:
    fields: dict[str, Any] = {**told, "verdict": Verdict(told["verdict"])}
    return OutputCheck(**fields)


def _fate(ending: process.Ending, limits: Limits) -> str:
    """Why a child gave no answer, in words."""
    during = f" (during: {ending.last_progress})" if ending.last_progress else ""
    if ending.timed_out:
        return f"the comparison took longer than {limits.seconds:g} s{during}"
    if "bad_alloc" in ending.stderr or "MemoryError" in ending.stderr:
        return f"the comparison needs more than {limits.memory / (1 << 30):.3g} GiB of memory{during}"
    if ending.code < 0:
        name = signal.Signals(-ending.code).name
        hint = ", most likely because the system ran out of memory" if name == "SIGKILL" else ""
        return f"the engine was ended by {name}{hint}{during}"
    last = ending.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    printable = "".join(c if c.isprintable() else " " for c in last[0])
    return f"the engine stopped with exit status {ending.code}{during}: {printable}"
