"""Values that operators change in place, and whether the view may read these operators as if they did not.

Invariant: an in-place operator is clean where nobody else ever reads what it changes, under whatever name: it then is
its out-of-place form. Everything that reads a value changed otherwise is marked, and no pattern may take it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rewriter.torch_graphs.calls import SIZES, FxNode, is_assert, is_getitem, is_node, items, op_of, schema_of

MAY_ALIAS = frozenset(
    """dropout feature_dropout alpha_dropout feature_alpha_dropout reshape reshape_as contiguous to type_as flatten
    expand_as view_as pad rrelu unflatten""".split()  # noqa: SIM905
)
"""Operators that may give their input itself, whatever their schema says."""

HARMLESS = frozenset({"getitem", "add", "sub", "mul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge", "neg"})
"""Functions without a schema that work on sizes."""


@dataclass(slots=True)
class Mutations:
    """`clean` in-place nodes, `impure` ones that have to stay, and all that is `changed` under its readers."""

    clean: set[FxNode] = field(default_factory=set[FxNode])
    impure: set[FxNode] = field(default_factory=set[FxNode])
    changed: set[FxNode] = field(default_factory=set[FxNode])


def mutations(graph: Any) -> Mutations:
    found, same = Mutations(), _Classes()
    dirty: list[FxNode] = []
    for node in graph.nodes:
        if node.op == "call_function":
            written = _written(node)
            base = written[0] if written else None
            if base is not None and len(written) == 1 and _is_clean(node, base, same):
                found.clean.add(node)
                continue
            if written or _trains(node):
                found.impure.add(node)
                dirty += written
        for other in _aliased(node):
            same.join(node, other)
    for node in dirty:
        found.changed |= same.members(node)
    return found


def _is_clean(node: FxNode, base: FxNode, same: _Classes) -> bool:
    if base.op != "call_function" or not node.args or node.args[0] is not base:
        return False
    others = [user for user in base.users if user is not node and not is_assert(user) and op_of(user) not in SIZES]
    return not others and same.members(base) == {base} and out_of_place(node) is not None


def out_of_place(node: FxNode) -> Any:
    """The operator that computes the same into a new tensor; None where there is none of the same arguments."""
    import torch

    packet = getattr(torch.ops.aten, op_of(node), None)
    made = getattr(packet, getattr(schema_of(node), "overload_name", "") or "default", None)
    if made is None or any(a.alias_info is not None for a in made._schema.arguments):
        return None
    wanted = [a.name for a in schema_of(node).arguments]
    return made if [a.name for a in made._schema.arguments] == wanted else None


def writes(node: FxNode) -> bool:
    """Whether it says that it changes an argument."""
    schema = schema_of(node)
    return schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def _written(node: FxNode) -> list[FxNode]:
    """The nodes whose values it changes; all it reads, where nothing says what it does."""
    schema = schema_of(node)
    if schema is None:
        name = getattr(node.target, "__name__", "")
        return [] if name in HARMLESS or name.startswith("sym_") or is_getitem(node) else list(node.all_input_nodes)
    found: list[FxNode] = []
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            found += [n for n in items(given) if is_node(n)]
    return found


def _trains(node: FxNode) -> bool:
    """Whether it updates statistics, which its schema does not say."""
    name = op_of(node)
    if name == "batch_norm" and schema_of(node) is not None:
        return len(node.args) > 5 and bool(node.args[5])
    return name in ("_native_batch_norm_legit", "native_batch_norm", "cudnn_batch_norm", "_batch_norm_with_update")


def _aliased(node: FxNode) -> list[FxNode]:
    """What a node gives a view of, or itself."""
    if node.op != "call_function":
        return []
    if is_getitem(node):
        return [node.args[0]]
    schema = schema_of(node)
    if schema is None:
        return list(node.all_input_nodes)
    if op_of(node) not in MAY_ALIAS and not any(r.alias_info is not None for r in schema.returns):
        return []
    return list(node.all_input_nodes)


@dataclass(slots=True)
class _Classes:
    """Nodes that may share their elements."""

    of: dict[FxNode, set[FxNode]] = field(default_factory=dict[FxNode, set[FxNode]])

    def members(self, node: FxNode) -> set[FxNode]:
        return self.of.get(node, {node})

    def join(self, one: FxNode, other: FxNode) -> None:
        both = self.members(one) | self.members(other)
        for node in both:
            self.of[node] = both
