"""Whole-model numeric comparison: run the original and the rewritten model on the same inputs and judge the difference.

Entry points: `verify` and `engine_status`. The path of a comparison: `verify` packs both models (pack, wire) and hands
them to a child on a leash (process, limits); the child (child, trial) cuts them to what is compared (net, discrete),
makes inputs (sizes, samples), runs them (engines), measures the original's own error (perturb) and judges (compare).

Invariant: the parent never imports an inference engine, and loading this package imports neither onnx nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rewriter.checking.limits import Limits
from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.checking.status import engine_status

if TYPE_CHECKING:
    from rewriter.checking.verification import verify

__all__ = ["Limits", "OutputCheck", "Verdict", "Verification", "engine_status", "verify"]


def __getattr__(name: str) -> object:
    if name == "verify":
        return import_module("rewriter.checking.verification").verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
