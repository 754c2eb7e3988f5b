"""What a whole-model comparison found: one record that reports carry and that the command line turns into exit codes.

Invariant: `verdict` is OK only when every output was compared and passed; anything not compared says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"  # every output was compared and lies within tolerance
    INCONCLUSIVE = "inconclusive"  # the original's own error is too large to tell; rests on the per-region proof
    FAILED = "failed"  # an output differs by more than the tolerance
    NOT_VERIFIED = "not verified"  # could not be, or was asked not to be; `reason` says which and why


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output compared: `error` is max |after - before|, `own_error` e0, `scale` max |before|, all absolute.

    `inputs` names the input set that came closest to the limit ("gaussian 1x3x320x320"). Passes when
    error <= tolerance = 4 * own_error + 8 * unit * scale (design: Flow, verify), for the output as a whole and for each
    index of its axis 1 and last axis. Where only an index fails, the figures are that index's and `note` names it.
    """

    name: str
    renamed: str
    error: float
    own_error: float
    scale: float
    tolerance: float
    verdict: Verdict
    inputs: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    verdict: Verdict
    reason: str = ""  # why it is not OK, with the remedy; empty where it is
    engine: str = ""  # "onnxruntime 1.31.1, CPUExecutionProvider, optimisation off"
    outputs: tuple[OutputCheck, ...] = ()
    inputs: tuple[str, ...] = ()  # the input sets that were run, in words
    seconds: float = 0.0
    peak_bytes: int = 0  # of the child that ran the models
    notes: tuple[str, ...] = ()  # what a reader should know whatever the verdict: what was cut, skipped, not enforced
