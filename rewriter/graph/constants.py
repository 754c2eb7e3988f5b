"""What constants hold: the element types that are computed with, and short lists of whole numbers.

Invariant: nothing large is read, and nothing long computed, to find out that it is not what was asked for.
"""

from __future__ import annotations

from rewriter.graph.view import Constant

FEW = 64
"""Elements of a tensor that is read as a list of sizes, axes or pads; no value has as many axes."""

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"})


def integers(constant: Constant | None) -> tuple[int, ...] | None:
    """The elements of a short list of whole numbers (sizes, axes, pads); None where it is anything else."""
    if constant is None or constant.dtype not in ("int64", "int32"):
        return None
    if len(constant.shape) != 1 or constant.size > FEW or not at_hand(constant):
        return None
    return tuple(int(element) for element in constant.load())


def at_hand(constant: Constant) -> bool:
    """Whether nobody has to wait for the elements."""
    return constant.prompt is None or constant.prompt()
