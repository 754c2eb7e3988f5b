"""An operator of ONNX to be: what the rules of ATen operators answer with.

Invariant: inputs are by position as in the definition of the operator at `OPSET`, None where an optional one is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from rewriter.graph.raw import Attrs, Canonical
from rewriter.graph.view import Value

OPSET = 18


@dataclass(frozen=True, slots=True)
class Onnx:
    op: str
    inputs: tuple[Value | None, ...]
    attrs: Attrs


Reading: TypeAlias = "Onnx | Canonical"


def onnx(op: str, *inputs: Value | None, **attrs: Any) -> Onnx:
    return Onnx(op, inputs, attrs)
