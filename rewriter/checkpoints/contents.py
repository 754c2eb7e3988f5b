"""Tensors and state dicts in the symbols that a pickle walk gives.

Invariant: a `Tensor` is what the file says of one, and says nothing of how far that is true: `check_extents` holds it
against the bytes that are there. Names are found as torch would find them, without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, cast

from rewriter.checkpoints.pickles import Call, Name, Pairs, Stored, Symbol, each
from rewriter.errors import InputError
from rewriter.graph.tensors import shown

SIZES: Final[Mapping[str, int]] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
_STORAGES: Final = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64", "UntypedStorage": "uint8",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
ATTRIBUTED: Final = Name("torch._tensor", "_rebuild_from_type_v2")
"""What makes a tensor on which Python attributes were put, as torch.export puts them on inputs of open sizes."""
_MOST_NAMES: Final = 1_000_000
_MOST_DEPTH: Final = 64
_MOST_PREFIX: Final = 4096


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense tensor as the file describes it; `key` names the storage that it is a view of."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    key: str
    stored: int  # bytes that its storage is said to have

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def reach(self) -> int:
        """Bytes of its storage that it needs."""
        if not self.elements:
            return 0
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * SIZES[self.dtype]


def tensor_of(value: Symbol) -> Tensor | None:
    """The tensor that a call would rebuild; None for any other value, and for tensors that are not plain and dense."""
    if not isinstance(value, Call) or not isinstance(value.function, Name):
        return None
    arguments: Symbol = value.arguments
    if not isinstance(arguments, tuple) or not arguments:
        return None
    parts = cast("tuple[Symbol, ...]", arguments)
    if value.function == ATTRIBUTED:
        plain = len(parts) == 4 and parts[0] != ATTRIBUTED and parts[1] == Name("torch", "Tensor")
        return tensor_of(Call(parts[0], parts[2])) if plain else None
    if value.function.module != "torch._utils":
        return None
    if value.function.name == "_rebuild_parameter":
        inner = parts[0]
        return tensor_of(inner) if isinstance(inner, Call) and inner.function != value.function else None
    if value.function.name not in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_tensor_v3"):
        return None
    return _dense(parts, parts[6] if value.function.name == "_rebuild_tensor_v3" and len(parts) > 6 else None)


def _dense(parts: Sequence[Symbol], dtype: Symbol) -> Tensor | None:
    if len(parts) < 4 or not isinstance(parts[0], Stored):
        return None
    reference: Symbol = parts[0].reference
    shape, stride = _integers(parts[2]), _integers(parts[3])
    if not isinstance(reference, tuple) or shape is None or stride is None or len(shape) != len(stride):
        return None
    found = cast("tuple[Symbol, ...]", reference)
    if len(found) < 5 or not isinstance(found[1], Name) or type(found[4]) is not int or type(parts[1]) is not int:
        return None
    kind = _STORAGES.get(found[1].name)
    if isinstance(dtype, Name) and dtype.module == "torch":
        kind, width = (dtype.name if dtype.name in SIZES else None), 1
    else:
        width = SIZES.get(kind or "", 1)
    if kind is None or not isinstance(found[2], str) or parts[1] < 0 or found[4] < 0:
        return None
    return Tensor(kind, shape, stride, parts[1], found[2], found[4] * width)


def _integers(value: Symbol) -> tuple[int, ...] | None:
    """Sizes or strides, a tuple or a torch.Size of one."""
    if isinstance(value, Call) and value.function == Name("torch", "Size"):
        arguments: Symbol = value.arguments
        value = cast("tuple[Symbol, ...]", arguments)[0] if isinstance(arguments, tuple) and arguments else None
    if not isinstance(value, tuple):
        return None
    found = cast("tuple[Symbol, ...]", value)
    if len(found) > 64 or any(type(item) is not int or not 0 <= item < 1 << 62 for item in found):
        return None
    return cast("tuple[int, ...]", found)


def tensors(value: Symbol) -> list[Tensor]:
    """Every tensor inside a value, each object once; a parameter and the tensor in it are one."""
    found = [(part, tensor) for part in each(value) if (tensor := tensor_of(part)) is not None]
    wrapped = {id(part.arguments[0]) for part, _ in found}  # of a parameter; a storage is in nobody's way
    return [tensor for part, tensor in found if id(part) not in wrapped]


def pairs_of(value: Symbol) -> Pairs | None:
    """The pairs of a dict or an OrderedDict, None for anything else."""
    if isinstance(value, Pairs):
        return value
    if isinstance(value, Call) and value.function == Name("collections", "OrderedDict"):
        return value.pairs
    return None


def is_module(value: Symbol) -> bool:
    """True for what would become an nn.Module: its state holds parameters, buffers and modules."""
    return isinstance(value, Call) and isinstance(value.state, Pairs) and "_modules" in value.state.names()


def named(value: Symbol) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module or of nested dicts, by their dotted names."""
    waiting: list[tuple[str, Symbol, int]] = [("", value, 0)]
    for _ in range(_MOST_NAMES):
        if not waiting:
            return
        prefix, found, depth = waiting.pop()
        if (tensor := tensor_of(found)) is not None:
            yield prefix.removesuffix("."), tensor
        elif depth < _MOST_DEPTH and len(prefix) < _MOST_PREFIX and len(waiting) < _MOST_NAMES:
            inside = [(f"{prefix}{key}.", part, depth + 1) for key, part in _children(found)]
            waiting += reversed(inside)


def _children(value: Symbol) -> Iterator[tuple[str, Symbol]]:
    if is_module(value):
        for kind in ("_parameters", "_buffers", "_modules"):
            group = pairs_of(value.state.get(kind))
            passing = _texts(value.state.get("_non_persistent_buffers_set") if kind == "_buffers" else None)
            yield from ((k, v) for k, v in (_children(group) if group is not None else ()) if k not in passing)
    elif (pairs := pairs_of(value)) is not None:
        yield from ((key, part) for key, part in pairs.items if isinstance(key, str))


def _texts(value: Symbol) -> frozenset[str]:
    """The texts in a set, however it was pickled."""
    return frozenset(part for part in each(value) if isinstance(part, str))


def check_extents(found: Sequence[Tensor], held: Mapping[str, int], what: str) -> None:
    """Raises where a tensor is said to be larger than the bytes that are there for it: such files eat memory."""
    for tensor in found:
        there = held.get(tensor.key)
        if there is None:
            raise InputError(f"{what}: a tensor needs storage {shown(tensor.key)}, which the file lacks")
        if tensor.stored > there or tensor.reach > there or tensor.elements * SIZES[tensor.dtype] > there:
            raise InputError(
                f"{what}: a tensor of {tensor.elements:,} elements ({tensor.dtype}) is said to lie in the {there:,} "
                f"bytes of storage {shown(tensor.key)}; the file is damaged, or made to take memory"
            )
