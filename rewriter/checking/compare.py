"""Two arrays to a few numbers, and numbers to a verdict.

Invariant: only finite values are subtracted; NaN and infinity have to stand at the same places, with the same sign.

One number for a whole output is not enough: a detector's [1, 84, N] holds pixels (490) beside scores (0.7), so pixels
set the scale and a class branch off by 1e-3 passes. So every index of axis 1 and of the last axis, where it holds
enough elements, is judged too, by the same rule: its own e and scale, and the largest e0 of the indices alike, those
whose e0 is at most 16 times its own. By index and not by the operands of the Concat that made the output, because that
needs no look at the graph and holds for any layout (a Concat behind Reshape or Sigmoid, a transposed output). With the
largest e0 of its like and not its own, because one element may rule an index where what follows is steep (softmax,
sigmoid, exp), and three runs may miss it: of 192 right folds of small random nets, judged each index by its own e0, 19
failed; as it is, none did; of 400 more one did, whose e0 of 0 now counts as unknown. Pixels and scores lie 200 times
apart, so nothing is lost there. Measured on YOLOv9 t (three export forms), s, m and c, error by what is allowed (over 1
fails), the whole output alone and with its indices:

    right folds, 7 inputs, every three of e0's seeds    at most 0.25         at most 0.38
    a class conv · (1 + 1e-3)                           0 of 18 caught       18 (43–73)
    one bias of a class conv off by 1e-3                0 of 36              35
    one weight of a class conv off by 1e-2              0 of 36              35
    a 1x1 conv anywhere, all weights off by 1e-4        72 of 84             84
    one bias anywhere off by 1e-3                       49 of 72             63
    one weight anywhere off by 1e-2                     40 of 72             58

No index is held to less than 2^-10 of what the whole may differ by: below that lie channels that ReLU, underflow or a
saturated softmax left nearly empty, where a difference means nothing. Where the model rounds to a coarse grid inside
(perturb.coarse), errors come in rare large steps that an index may meet in one run and miss in three: whole only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from rewriter.checking.record import OutputCheck, Verdict
from rewriter.checking.wire import Array

_ILL_CONDITIONED = 1e-2  # own error by largest value, above which a float comparison says nothing
_OWN_FACTOR = 4.0
_UNIT_FACTOR = 8.0
_ENOUGH = 64  # elements of a part, from which its own error is known well (folds in windows of 8 still passed)
_ALIKE = 16.0  # how far apart the own errors of indices of one kind may lie (4 to 16 gave equal figures)
_STRICTEST = 2.0**-10  # of the whole's limit, the least that a part is held to

_Axes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest |after − before| and |before|, of the whole first, then of each index of each axis in `axes`.

    `problem` says why they cannot be subtracted.
    """

    errors: Array
    scales: Array
    axes: _Axes = ()  # the axes judged by index, with their lengths
    problem: str = ""
    differing: int = 0  # elements that are not equal
    count: int = 0
    exact: bool = False  # integers, booleans and text: equal or not

    @property
    def error(self) -> float:
        return float(self.errors[0])

    @property
    def scale(self) -> float:
        return float(self.scales[0])

    def spans(self) -> Iterator[tuple[int, slice]]:
        """Each axis of `axes`, and where the parts lie that are its indices."""
        first = 1
        for axis, length in self.axes:
            yield axis, slice(first, first + length)
            first += length

    def span_of(self, part: int) -> tuple[int, slice]:
        return next(found for found in self.spans() if part < found[1].stop)

    def place(self, part: int) -> str:
        axis, parts = self.span_of(part)
        return f"index {part - parts.start} of axis {axis}"


def difference(before: Any, after: Any, parts: bool = False) -> Difference:
    """How far `after` is from `before`, by index too where `parts` says so."""
    # The reference evaluator gives numpy scalars too; what has no dtype is a list, a map or None.
    if hasattr(before, "dtype") and hasattr(after, "dtype"):
        return _of_arrays(np.asarray(before), np.asarray(after), parts)
    return _incomparable("not a tensor: sequences, maps and optionals are not compared")


def _incomparable(problem: str, error: float = 0.0, scale: float = 0.0) -> Difference:
    return Difference(np.array([error]), np.array([scale]), problem=problem)


def _of_arrays(before: Array, after: Array, parts: bool) -> Difference:
    if before.dtype != after.dtype:
        return _incomparable(f"type {after.dtype} where the original has {before.dtype}")
    if before.shape != after.shape:
        return _incomparable(f"shape {_words(after.shape)} where the original has {_words(before.shape)}")
    if before.dtype.kind in "OSUT":
        differing = int((before != after).sum())
        return Difference(np.array([float(differing > 0)]), np.zeros(1), (), "", differing, before.size, True)
    exact = before.dtype.kind in "biu"
    a, b = _wide(before), _wide(after)
    if not exact:
        finite = np.isfinite(a)
        if not _same_special(a, b, finite):
            return _incomparable("NaN or infinity at other places", np.inf, float(_largest(np.abs(a[finite]))))
        if not finite.all():
            a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    gap, size = np.abs(b - a), np.abs(a)
    axes = _axes(before.shape) if parts and not exact else ()
    differing = int(np.count_nonzero(gap))
    return Difference(_peaks(gap, axes), _peaks(size, axes), axes, "", differing, before.size, exact)


def _axes(shape: tuple[int, ...]) -> _Axes:
    """Axis 1 and the last, where these number kinds of values and not positions: few indices of many elements each."""
    total = prod(shape)
    found: list[tuple[int, int]] = []
    for axis in sorted({1, len(shape) - 1} & set(range(1, len(shape)))):
        length = shape[axis]
        if length > 1 and total >= length * max(length, _ENOUGH):
            found.append((axis, length))
    return tuple(found)


def _peaks(values: Array, axes: _Axes) -> Array:
    """The largest value of the whole, then of each index of `axes`."""
    each = [values.max(axis=tuple(a for a in range(values.ndim) if a != axis)) for axis, _ in axes]
    return np.concatenate([[_largest(values)], *each])


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


def own_error(found: Difference) -> Array:
    """The change of a perturbed run; where it cannot be subtracted rounding decides, and no number bounds that."""
    return np.array([np.inf]) if found.problem else found.errors


def larger(one: Array, other: Array) -> Array:
    """Two own errors to the larger, part by part; the whole alone where their shapes had other parts."""
    return np.maximum(one, other) if one.size == other.size else np.maximum(one[:1], other[:1])


@dataclass(frozen=True, slots=True)
class Measured:
    """One output on one input set. `own` is e0 of the whole and of each part (of the whole alone where parts could not
    be matched), None where it was not taken (a tolerance was given).
    """

    case: str
    found: Difference
    own: Array | None
    unit: float
    own_taken_here: bool = False  # e0 comes from this input set and not from another one of the same size

    def own_errors(self) -> Array:
        """e0 by part."""
        own = np.zeros(1) if self.own is None else self.own
        return own.copy() if own.size == self.found.errors.size else np.full(self.found.errors.shape, own[0])


def allowed(measured: Measured, tolerance: float | None) -> Array:
    """How far apart the two may be, by part: what the user said of the whole, or 4·e0 + 8·u·max|before|."""
    found = measured.found
    if found.exact:
        return np.zeros_like(found.errors)
    if tolerance is not None:
        return np.concatenate([[tolerance], np.full(found.errors.size - 1, np.inf)])
    own = measured.own_errors()
    for _, parts in found.spans():
        own[parts] = _pooled(own[parts])
    limits = _OWN_FACTOR * own + _UNIT_FACTOR * measured.unit * found.scales
    return np.maximum(limits, _STRICTEST * limits[0])


def _pooled(own: Array) -> Array:
    """For each e0 the largest that is at most `_ALIKE` times it: indices alike are judged alike.

    An e0 of 0 is no measurement (few elements on a grid that no run left) and counts as the least of the others.
    """
    rising = np.sort(own)
    least = rising[rising > 0].min(initial=np.inf)
    return rising[np.searchsorted(rising, _ALIKE * np.maximum(own, least), side="right") - 1]


def badness(measured: Measured) -> float:
    """Error by limit where that is largest."""
    return float(_ratios(measured, None).max())


def _ratios(measured: Measured, tolerance: float | None) -> Array:
    """Error by limit for the whole and each part; what is above 1 fails."""
    errors, limits = measured.found.errors, allowed(measured, tolerance)
    if measured.found.problem:
        return np.full(errors.shape, np.inf)
    # Not by dividing alone: a limit of 0 passes an error of 0, and one exactly at its limit passes.
    quotients = np.divide(errors, limits, out=np.where(errors > 0, np.inf, 0.0), where=limits > 0)
    return np.where(errors <= limits, np.minimum(quotients, 1.0), np.maximum(quotients, np.nextafter(1.0, 2.0)))


def passes(measured: Measured, tolerance: float | None) -> bool:
    return bool(_ratios(measured, tolerance).max() <= 1)


def ill_conditioned(sets: list[Measured]) -> bool:
    largest = max(m.found.scale for m in sets)
    return any(m.own is not None and float(m.own[0]) > _ILL_CONDITIONED * largest for m in sets)


def judge(name: str, renamed: str, sets: list[Measured], tolerance: float | None, note: str) -> OutputCheck:
    """One output over all its input sets.

    Its figures are those of the whole, on the set that comes closest to its limit or goes furthest past; those of the
    worst part where only a part fails. The note says which part, or which comes closest.
    """
    ratios = [_ratios(m, tolerance) for m in sets]
    at = max(range(len(sets)), key=lambda i: float(ratios[i][0]))
    part = 0
    verdict = Verdict.OK
    notes = [note] if note else []
    if sets[at].found.problem and not _rounding_decides(sets[at]):
        verdict = Verdict.FAILED
        notes.append(sets[at].found.problem)
    elif any(m.found.error > 0 for m in sets) and tolerance is None and ill_conditioned(sets):
        verdict = Verdict.INCONCLUSIVE
        notes.append("the original changes by over 1 % of its largest value when its weights are off by one rounding")
    elif ratios[at][0] > 1:
        verdict = Verdict.FAILED
        if sets[at].found.exact:
            notes.append(f"{sets[at].found.differing} of {sets[at].found.count} elements differ")
    else:
        at, part, verdict, words = _of_parts(sets, ratios, at)
        notes.extend(words)
    worst = sets[at]
    figures = (worst.found.errors, worst.own_errors(), worst.found.scales, allowed(worst, tolerance))
    error, own, scale, limit = (float(values[part]) for values in figures)
    return OutputCheck(name, renamed, error, own, scale, limit, verdict, worst.case, "; ".join(notes))


def _of_parts(sets: list[Measured], ratios: list[Array], at: int) -> tuple[int, int, Verdict, list[str]]:
    """Where the whole passes: whose figures to report (set and part; those of set `at` where every part passes too),
    the verdict, and words for the note.

    A part that rounding alone changes by over 1 % says nothing if it fails, as an output does not.
    """
    steady = [np.where(_unsteady(sets, m), np.minimum(r, 1.0), r) for m, r in zip(sets, ratios, strict=True)]
    for found, verdict, words in (
        (steady, Verdict.FAILED, ""),
        (ratios, Verdict.INCONCLUSIVE, ", which changes by over 1 % when the weights are off by one rounding"),
    ):
        worst = max(range(len(sets)), key=lambda i: float(found[i].max()))
        part = int(found[worst].argmax())
        if found[worst][part] > 1:
            beside = found[worst][sets[worst].found.span_of(part)[1]]
            failing = np.flatnonzero(beside > 1)
            others = (
                f"; {failing.size} of {beside.size} fail, {failing[0]} to {failing[-1]}" if failing.size > 1 else ""
            )
            return worst, part, verdict, [f"{sets[worst].found.place(part)}{words}{others}"]
    nearest = max(range(len(sets)), key=lambda i: float(ratios[i].max()))
    part = int(ratios[nearest].argmax())
    percent = 100 * float(ratios[nearest][part])
    words = [f"closest to its own limit: {sets[nearest].found.place(part)}, at {percent:.0f} %"] if part else []
    return at, 0, Verdict.OK, words


def _rounding_decides(measured: Measured) -> bool:
    """Whether the original's own NaN and infinities move when its weights are off by one rounding."""
    return measured.found.error == np.inf and measured.own_errors()[0] == np.inf


def _unsteady(sets: list[Measured], measured: Measured) -> Array:
    """Which parts change by over 1 % of their largest value on any input when the weights are off by one rounding."""
    same = [m.found.scales for m in sets if m.found.axes == measured.found.axes]
    return measured.own_errors() > _ILL_CONDITIONED * np.maximum.reduce(same)
