"""What a view asks of a kind of fx graph, and the answers for graphs of ATen operators.

Invariant: where nothing says what a node does, it may change all that it reads and give any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rewriter.graph.view import Value
from rewriter.torch_graphs.calls import (
    Call,
    FxNode,
    call_of,
    fake,
    is_aten,
    is_getitem,
    is_node,
    is_tensor,
    items,
    op_of,
    operator_of,
    path_of,
)


class Dialect(Protocol):
    @property
    def root(self) -> Any:
        """The module that the graph is of, in which bodies and layers lie."""
        ...

    @property
    def shapes_hold(self) -> bool:
        """Whether extents of one name are proved equal."""
        ...

    def call(self, node: FxNode, values: Callable[[Any], Value]) -> Call | None:
        """The operator that a node calls, with arguments by their names in ATen."""
        ...

    def name(self, node: FxNode) -> str:
        """The name of an operator that the vocabulary has no word for."""
        ...

    def scope(self, node: FxNode) -> str: ...

    def written(self, node: FxNode) -> list[FxNode]:
        """The nodes whose values it changes."""
        ...

    def aliased(self, node: FxNode) -> list[FxNode]:
        """The nodes whose values, or parts of them, it gives."""
        ...

    def trains(self, node: FxNode) -> bool:
        """Whether it changes something beside what it reads, so that it has to stay."""
        ...

    def separable(self, node: FxNode) -> bool:
        """Whether an in-place node has an out-of-place form."""
        ...

    def detach(self, node: FxNode) -> None:
        """Give an in-place node its out-of-place form."""
        ...

    def loosen(self, node: FxNode) -> None:
        """Make a view of its input a reshape of it, which any layout in memory allows."""
        ...

    def function(self, node: FxNode) -> Callable[..., Any] | None:
        """What computes a node of its arguments alone, the same every time; None where nothing does."""
        ...

    def problem(self, node: FxNode) -> str | None:
        """Why a node may not be taken, whatever it is."""
        ...

    def layered(self, node: FxNode) -> bool:
        """Whether layers may hide in it."""
        ...


MAY_ALIAS = frozenset(
    """dropout feature_dropout alpha_dropout feature_alpha_dropout reshape reshape_as contiguous to type_as flatten
    expand_as view_as pad rrelu unflatten""".split()  # noqa: SIM905
)
"""Operators that may give their input itself, whatever their schema says."""

RANDOM = frozenset(
    """bernoulli rand randn rand_like randn_like randint randperm normal uniform multinomial dropout feature_dropout
    alpha_dropout rrelu poisson exponential""".split()  # noqa: SIM905
)
"""Operators that may give something else every time; all others give the same of the same constants."""

HARMLESS = frozenset({"getitem", "add", "sub", "mul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge", "neg"})
"""Functions without a schema that work on sizes."""


def out_of_place(node: FxNode) -> Any:
    """The operator that computes the same into a new tensor; None where there is none of the same arguments."""
    import torch

    known = operator_of(node)
    if known is None:
        return None
    made = getattr(getattr(torch.ops.aten, known.name, None), known.overload, None)
    if made is None or any(a.alias_info is not None for a in made._schema.arguments):
        return None
    return made if tuple(a.name for a in made._schema.arguments) == known.arguments else None


def writes(node: FxNode) -> bool:
    """Whether it says that it changes an argument."""
    known = operator_of(node)
    return known is not None and bool(known.writes)


def written(node: FxNode) -> list[FxNode]:
    """The nodes whose values it changes; all it reads, where nothing says what it does."""
    known = operator_of(node)
    if known is None:
        name = getattr(node.target, "__name__", "")
        return [] if name in HARMLESS or name.startswith("sym_") or is_getitem(node) else list(node.all_input_nodes)
    found: list[FxNode] = []
    for place, name in known.writes:
        given = node.args[place] if place < len(node.args) else node.kwargs.get(name)
        found += [n for n in items(given) if is_node(n)]
    return found


def trains(node: FxNode) -> bool:
    """Whether it updates statistics, which its schema does not say."""
    name = op_of(node)
    if name == "batch_norm" and operator_of(node) is not None:
        return len(node.args) > 5 and bool(node.args[5])
    return name in ("_native_batch_norm_legit", "native_batch_norm", "cudnn_batch_norm", "_batch_norm_with_update")


def aliased(node: FxNode) -> list[FxNode]:
    """What a node gives a view of, or itself."""
    if node.op != "call_function":
        return []
    if is_getitem(node):
        return [node.args[0]]
    known = operator_of(node)
    if known is None:
        return list(node.all_input_nodes)
    return list(node.all_input_nodes) if known.gives_views or known.name in MAY_ALIAS else []


@dataclass(frozen=True, slots=True)
class Aten:
    """Graphs of ATen operators, as torch.export writes them; their schemas tell."""

    root: Any
    shapes_hold: bool = True

    def call(self, node: FxNode, values: Callable[[Any], Value]) -> Call | None:
        return call_of(node, values)

    def name(self, node: FxNode) -> str:
        known = operator_of(node)
        return f"{'python' if known is None else known.namespace}.{op_of(node)}".lower()

    def scope(self, node: FxNode) -> str:
        return path_of(node)

    def written(self, node: FxNode) -> list[FxNode]:
        return written(node) if node.op == "call_function" else []

    def aliased(self, node: FxNode) -> list[FxNode]:
        return aliased(node)

    def trains(self, node: FxNode) -> bool:
        return node.op == "call_function" and trains(node)

    def separable(self, node: FxNode) -> bool:
        return out_of_place(node) is not None

    def detach(self, node: FxNode) -> None:
        target = out_of_place(node) if writes(node) else None
        if target is not None:
            node.target = target

    def loosen(self, node: FxNode) -> None:
        import torch

        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default

    def function(self, node: FxNode) -> Callable[..., Any] | None:
        return node.target if is_aten(node) and op_of(node) not in RANDOM else None

    def problem(self, node: FxNode) -> str | None:
        del node
        return None

    def layered(self, node: FxNode) -> bool:
        return operator_of(node) is None and is_tensor(fake(node))
