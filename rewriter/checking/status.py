"""Whether there is an engine to verify with, found out without loading it, so that it can be said before any work."""

from __future__ import annotations

from importlib.util import find_spec

MISSING = (
    'verification needs ONNX Runtime, which is not installed: pip install "fxrewrite[cpu]" '
    "(or pass --no-verify; the result then says NOT VERIFIED)"
)


def engine_status() -> str | None:
    """None if ONNX Runtime can be imported, else what to tell the user."""
    return None if find_spec("onnxruntime") is not None else MISSING
