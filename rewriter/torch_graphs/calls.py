"""An fx node as a call of an ATen operator, its arguments by name with the schema's defaults filled in.

Invariant: exporters leave trailing defaults out and write in-place forms with an underscore; behind a `Call` neither is
to be seen. A target without a schema (arithmetic on sizes, higher-order operators) is no call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, cast

import numpy as np

from rewriter.graph.view import Array, Constant, Value

FxNode: TypeAlias = Any
"""A `torch.fx.Node`; torch is not imported for its types."""

Ints: TypeAlias = "tuple[int, ...]"


END = (1 << 63) - 1
"""An end of a slice that is that of whatever it cuts."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A tensor that a node holds itself, as a module does, by its name in the state dict."""

    name: str
    constant: Constant


@dataclass(frozen=True, slots=True)
class Call:
    node: FxNode
    op: str  # "conv2d": the operator without overload and underscore
    overload: str
    args: Mapping[str, Any]
    values: Callable[[Any], Value]

    def value(self, name: str) -> Value | None:
        """The value behind an argument: of a node, or a number as a constant; None where it is None."""
        given = self.args.get(name)
        if is_node(given) or isinstance(given, Held):
            return self.values(given)
        if isinstance(given, bool | int | float):
            return self.held(name, np.asarray(given), self.dtype if isinstance(given, float) else None)
        return None

    def tensors(self, name: str) -> list[Value]:
        return [self.values(item) for item in items(self.args.get(name)) if is_node(item)]

    def held(self, role: str, array: Array, dtype: str | None = None) -> Value:
        """An argument as the constant that it would be in a file: a number of the result's type, a list of integers."""
        name = f"{self.node.name}:{role}"
        if dtype is None:
            dtype = self.dtype if self.dtype and "float" in self.dtype and array.ndim == 0 else array.dtype.name
        return Value(name, None, (), constant=Constant(name, array.shape, dtype, lambda: array), dtype=dtype)

    def listed(self, role: str, numbers: Sequence[int]) -> Value:
        return self.held(role, np.asarray(numbers, np.int64), "int64")

    def ints(self, name: str, rank: int) -> Ints | None:
        """A list of whole numbers, one for each of `rank` axes; None where it holds a size known at run time only."""
        found = items(self.args.get(name))
        if not all(isinstance(item, int) for item in found):
            return None
        return tuple(found) * rank if len(found) == 1 else tuple(found)

    @property
    def dtype(self) -> str | None:
        return dtype_of(self.node)


def items(given: Any) -> list[Any]:
    """The items of a list or tuple; anything else is a list of one."""
    return [*cast("Sequence[Any]", given)] if isinstance(given, list | tuple) else [given]


def is_node(given: Any) -> bool:
    return hasattr(given, "all_input_nodes")


def call_of(node: FxNode, values: Callable[[Any], Value]) -> Call | None:
    """The call that a node is; None where its target has no schema."""
    operator_ = operator_of(node)
    if operator_ is None:
        return None
    args = {**operator_.defaults, **dict(zip(operator_.arguments, node.args, strict=False)), **node.kwargs}
    return Call(node, operator_.name, operator_.overload, args, values)


@dataclass(frozen=True, slots=True)
class Operator:
    """What a schema says, read once for each operator: asking torch for it again for each node takes long."""

    namespace: str
    name: str  # without the underscore of the in-place form
    overload: str
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]
    writes: tuple[tuple[int, str], ...]  # the arguments that it changes, by place and name
    gives_views: bool


def operator_of(node: FxNode) -> Operator | None:
    """The operator that a node calls; None where its target has no schema."""
    return _operator(node.target) if node.op == "call_function" else None


@cache
def _operator(target: Any) -> Operator | None:
    schema = getattr(target, "_schema", None)
    if schema is None:
        return None
    namespace, _, name = schema.name.rpartition("::")
    arguments = list(schema.arguments)
    return Operator(
        namespace,
        name if name.startswith("__") else name.rstrip("_"),
        schema.overload_name or "default",
        tuple([a.name for a in arguments]),
        {a.name: a.default_value for a in arguments if a.has_default_value()},
        tuple([(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]),
        any(r.alias_info is not None for r in schema.returns),
    )


def attribute(root: Any, path: str) -> Any:
    """What lies in a module at a dotted path; None where nothing does."""
    found = root
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def op_of(node: FxNode) -> str:
    """The operator's name without namespace, overload and the underscore of the in-place form."""
    known = operator_of(node)
    return known.name if known is not None else getattr(node.target, "__name__", f"{node.target}")


def is_aten(node: FxNode) -> bool:
    known = operator_of(node)
    return known is not None and known.namespace == "aten"


def is_getitem(node: FxNode) -> bool:
    """Whether it takes one result of an operator that has several."""
    return node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], int)


ASSERTS = frozenset({"_assert_tensor_metadata"})
SIZES = frozenset({"sym_size", "sym_stride", "sym_numel", "sym_storage_offset"})


def is_assert(node: FxNode) -> bool:
    """Whether it only checks the type of a value, which an edit keeps: it is no reader."""
    return is_aten(node) and op_of(node) in ASSERTS


# --- what export knows of values -------------------------------------------------------------------------------------


def fake(node: FxNode) -> Any:
    """The tensor without elements that stands for what a node gives, or the list of them; None where there is none."""
    return node.meta.get("val")


def is_tensor(found: Any) -> bool:
    return hasattr(found, "untyped_storage")


def dtype_of(node: FxNode) -> str | None:
    found = fake(node)
    return str(found.dtype).removeprefix("torch.") if is_tensor(found) else None


def shape_of(node: FxNode) -> tuple[int | str, ...] | None:
    """The extents, symbolic ones by their expressions: two that are equal are equal sizes, whatever runs."""
    found = fake(node)
    return (
        tuple([extent if type(extent) is int else str(extent) for extent in found.shape]) if is_tensor(found) else None
    )


def alike(one: Any, other: Any) -> bool:
    """Whether two nodes give tensors of the same sizes and type, and in the same place."""
    if not (is_node(one) and is_node(other) and is_tensor(fake(one)) and is_tensor(fake(other))):
        return False
    shapes = [[str(extent) for extent in fake(node).shape] for node in (one, other)]
    return shapes[0] == shapes[1] and dtype_of(one) == dtype_of(other) and fake(one).device == fake(other).device


def path_of(node: FxNode) -> str:
    """The modules that a node comes from, as "/model/22/cv2"."""
    path, outer = "", ""
    for fqn, _ in dict(node.meta.get("nn_module_stack") or {}).values():
        inner = str(fqn).replace("L['self'].", "").replace("L['self']", "")
        if inner and inner != outer and not inner.startswith("_empty"):
            path += f"/{inner.removeprefix(outer + '.')}"
            outer = inner
    return path
