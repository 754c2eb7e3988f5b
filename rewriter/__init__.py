"""fxrewrite turns a training-form graph into the graph to ship.

    import rewriter
    result = rewriter.apply("yolov9-c.onnx", patterns=["repconv", "aux-prune"], keep=["output0"])
    result.report; result.save("yolov9-c.rewritten.onnx")

Invariant: `import rewriter` loads neither numpy nor onnx; they come with the first function that is used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rewriter.version import __version__

if TYPE_CHECKING:
    from rewriter.api import apply, find, inspect, load, verify

__all__ = ["__version__", "apply", "find", "inspect", "load", "verify"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("rewriter.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
