"""Two arrays to one number, and numbers to a verdict.

Invariant: only finite values are subtracted; NaN and infinity have to stand at the same places, with the same sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rewriter.checking.record import OutputCheck, Verdict
from rewriter.checking.wire import Array

_ILL_CONDITIONED = 1e-2  # own error by largest value, above which a float comparison says nothing
_OWN_FACTOR = 4.0
_UNIT_FACTOR = 8.0


@dataclass(frozen=True, slots=True)
class Difference:
    """`error` is max |after − before|, `scale` max |before|; `problem` says why they cannot be subtracted."""

    error: float
    scale: float
    problem: str = ""
    differing: int = 0  # elements that are not equal
    count: int = 0
    exact: bool = False  # integers, booleans and text: equal or not


def difference(before: Any, after: Any) -> Difference:
    # The reference evaluator gives numpy scalars too; what has no dtype is a list, a map or None.
    if hasattr(before, "dtype") and hasattr(after, "dtype"):
        return _of_arrays(np.asarray(before), np.asarray(after))
    return Difference(0.0, 0.0, "not a tensor: sequences, maps and optionals are not compared")


def _of_arrays(before: Array, after: Array) -> Difference:
    if before.dtype != after.dtype:
        return Difference(0.0, 0.0, f"type {after.dtype} where the original has {before.dtype}")
    if before.shape != after.shape:
        return Difference(0.0, 0.0, f"shape {_words(after.shape)} where the original has {_words(before.shape)}")
    if before.dtype.kind in "OSUT":
        differing = int((before != after).sum())
        return Difference(float(differing > 0), 0.0, "", differing, before.size, True)
    exact = before.dtype.kind in "biu"
    a, b = _wide(before), _wide(after)
    if not exact:
        finite = np.isfinite(a)
        if not _same_special(a, b, finite):
            return Difference(np.inf, _largest(np.abs(a[finite])), "NaN or infinity at other places")
        a, b = a[finite], b[finite]
    gap = np.abs(b - a)
    return Difference(_largest(gap), _largest(np.abs(a)), "", int((gap > 0).sum()), before.size, exact)


def _wide(values: Array) -> Array:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _same_special(a: Array, b: Array, finite: Array) -> bool:
    if not np.array_equal(finite, np.isfinite(b)):
        return False
    return bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))


def _largest(values: Array) -> float:
    return float(values.max()) if values.size else 0.0


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


@dataclass(frozen=True, slots=True)
class Measured:
    """One output on one input set. `own` is e0, None where it was not taken (a tolerance was given)."""

    case: str
    found: Difference
    own: float | None
    unit: float
    own_taken_here: bool = False  # e0 comes from this input set and not from another one of the same size


def allowed(measured: Measured, tolerance: float | None) -> float:
    """How far apart the two may be: what the user said, or 4·e0 + 8·u·max|before|."""
    if measured.found.exact:
        return 0.0
    if tolerance is not None:
        return tolerance
    return _OWN_FACTOR * (measured.own or 0.0) + _UNIT_FACTOR * measured.unit * measured.found.scale


def passes(measured: Measured, tolerance: float | None) -> bool:
    return not measured.found.problem and measured.found.error <= allowed(measured, tolerance)


def ill_conditioned(sets: list[Measured]) -> bool:
    largest = max(m.found.scale for m in sets)
    return any(m.own is not None and m.own > _ILL_CONDITIONED * largest for m in sets)


def judge(name: str, renamed: str, sets: list[Measured], tolerance: float | None, note: str) -> OutputCheck:
    """One output over all its input sets; reported by the set that comes closest to its limit or goes furthest past."""
    worst = max(sets, key=lambda m: _badness(m, tolerance))
    verdict = Verdict.OK
    notes = [note] if note else []
    if worst.found.problem:
        verdict = Verdict.FAILED
        notes.append(worst.found.problem)
    elif any(m.found.error > 0 for m in sets) and tolerance is None and ill_conditioned(sets):
        verdict = Verdict.INCONCLUSIVE
        notes.append("the original changes by over 1 % of its largest value when its weights are off by one rounding")
    elif not passes(worst, tolerance):
        verdict = Verdict.FAILED
        if worst.found.exact:
            notes.append(f"{worst.found.differing} of {worst.found.count} elements differ")
    found, own = worst.found, worst.own or 0.0
    limit = allowed(worst, tolerance)
    return OutputCheck(name, renamed, found.error, own, found.scale, limit, verdict, worst.case, "; ".join(notes))


def _badness(measured: Measured, tolerance: float | None) -> float:
    limit = allowed(measured, tolerance)
    if measured.found.problem:
        return np.inf
    if measured.found.error == 0:
        return 0.0
    return measured.found.error / limit if limit > 0 else np.inf
