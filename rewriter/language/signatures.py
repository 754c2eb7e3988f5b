"""The operators that nets (tests, `replace with`) may be written with, and their arguments.

Invariant: a table; what the parser accepts is what the builder builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from rewriter.language.syntax import Literal


class ArgumentKind(StrEnum):
    COUNT = "whole number of at least 1"
    INT = "whole number"
    NUMBER = "number"
    WINDOW = "whole number or a list of them, one per axis"
    PADS = "whole number or a list: one per axis, or all begins and then all ends"
    INTS = "list of whole numbers"
    SWITCH = "yes or no"
    TYPE = "element type"


@dataclass(frozen=True, slots=True)
class NetArgument:
    """`default` None: has to be given, unless `optional`."""

    name: str
    kind: ArgumentKind
    default: Literal | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """`positional` of the arguments may stand without a name; `weights`: the builder makes up tensors for it."""

    op: str
    arguments: tuple[NetArgument, ...] = ()
    positional: int = 0
    weights: bool = False

    def argument(self, name: str) -> NetArgument | None:
        return next((a for a in self.arguments if a.name == name), None)

    def __str__(self) -> str:
        """As the reference page and hints show it: `conv(out, k=1, pad=0, …)`."""
        shown = [
            f"{a.name}?" if a.optional else a.name if a.default is None else f"{a.name}={a.default}"
            for a in self.arguments
        ]
        return f"{self.op}({', '.join(shown)})" if shown else self.op


def _window(name: str, default: int | None = None) -> NetArgument:
    return NetArgument(name, ArgumentKind.WINDOW, default)


_OUT = NetArgument("out", ArgumentKind.COUNT)
_PAD = NetArgument("pad", ArgumentKind.PADS, 0)
_BIAS = NetArgument("bias", ArgumentKind.SWITCH, "no")
_GROUPS = NetArgument("groups", ArgumentKind.COUNT, 1)
_VALUE = NetArgument("value", ArgumentKind.NUMBER, optional=True)
_AXIS = NetArgument("axis", ArgumentKind.INT, 1)
_COMPUTED = NetArgument("computed", ArgumentKind.SWITCH, "no")
_CONV = (_OUT, _window("k", 1), _PAD, _window("stride", 1), _window("dilation", 1), _GROUPS, _BIAS)
_POOL = (_window("k"), _window("stride", 1), _PAD)

_TABLE = (
    Signature("conv", (*_CONV, _COMPUTED), positional=1, weights=True),
    Signature("conv_transpose", _CONV, positional=1, weights=True),
    Signature("linear", (_OUT, _BIAS), positional=1, weights=True),
    Signature("bn", (NetArgument("eps", ArgumentKind.NUMBER, 1e-5),), weights=True),
    Signature("scale", (_VALUE,), weights=True),
    Signature("shift", (_VALUE,), weights=True),
    Signature("neg"),
    Signature("identity"),
    Signature("dropout"),
    Signature("cast", (NetArgument("to", ArgumentKind.TYPE),), positional=1),
    Signature(
        "pad", (NetArgument("amount", ArgumentKind.PADS), NetArgument("value", ArgumentKind.NUMBER, 0)), positional=1
    ),
    Signature("relu"),
    Signature("leaky_relu", (NetArgument("slope", ArgumentKind.NUMBER, 0.01),)),
    Signature("sigmoid"),
    Signature("silu"),
    Signature("tanh"),
    Signature("hardswish"),
    Signature("softmax", (_AXIS,)),
    Signature("avg_pool", (*_POOL, NetArgument("counts_pad", ArgumentKind.SWITCH, "yes")), positional=1),
    Signature("max_pool", _POOL, positional=1),
    Signature(
        "slice", (NetArgument("start", ArgumentKind.INT), NetArgument("end", ArgumentKind.INT), _AXIS), positional=2
    ),
    Signature("transpose", (NetArgument("perm", ArgumentKind.INTS),), positional=1),
    Signature("reshape", (NetArgument("shape", ArgumentKind.INTS),), positional=1),
)

SIGNATURES: Mapping[str, Signature] = MappingProxyType({signature.op: signature for signature in _TABLE})
