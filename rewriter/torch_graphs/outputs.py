"""Outputs of a program that go: out of the graph, out of its signature, and out of the structure that users get.

Invariant: what stays keeps its place in its list, tuple or dict; a container that is left empty goes too. Where the
structure is another (a dataclass, a named tuple) the place stays, and holds None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter.torch_graphs.calls import FxNode, fake, is_node, is_tensor
from rewriter.torch_graphs.signature import Signature, nodes_of
from rewriter.torch_graphs.structures import pruned


def wanted(graph: Any, signature: Signature) -> list[FxNode]:
    """The outputs that the user gets, of tensors, each once."""
    pairs = zip(nodes_of(graph), signature.outputs, strict=True)
    return list(dict.fromkeys(n for n, spec in pairs if _is_users(spec) and is_node(n) and is_tensor(fake(n))))


def remove(graph: Any, signature: Signature, gone: FxNode) -> None:
    """Take an output out, wherever it stands among what the user gets."""
    import torch.utils._pytree as pytree
    from torch.export.graph_signature import ConstantArgument, OutputKind, OutputSpec

    tree: Any = pytree
    given, specs = nodes_of(graph), signature.outputs
    first = next(i for i, spec in enumerate(specs) if _is_users(spec))
    spec = signature.out_spec or signature.program.module_call_graph[0].signature.out_spec
    structure = tree.tree_unflatten(list(range(len(specs) - first)), spec)
    places = {i - first for i, (n, s) in enumerate(zip(given, specs, strict=True)) if n is gone and _is_users(s)}
    left = _without(structure, places)
    leaves: Sequence[int | None] = tree.tree_leaves(left)
    nothing = OutputSpec(OutputKind.USER_OUTPUT, ConstantArgument(name="", value=None), None)
    signature.out_spec = tree.tree_structure(left)
    signature.outputs = specs[:first] + [nothing if i is None else specs[first + i] for i in leaves]
    node = graph.output_node()
    node.args = (tuple(given[:first] + [None if i is None else given[first + i] for i in leaves]),)
    if "val" in node.meta:
        node.meta["val"] = tuple(fake(n) if is_node(n) else n for n in node.args[0])


def _without(found: Any, places: set[int]) -> Any:
    """The structure without some of its leaves, which are numbered."""
    import torch.utils._pytree as pytree

    def goes(leaf: Any) -> bool:
        return isinstance(leaf, int) and leaf in places

    def blank(leaf: Any) -> Any:
        return None if leaf in places else leaf

    tree: Any = pytree
    plain = pruned(found, goes)
    return tree.tree_map(blank, plain)


def _is_users(spec: Any) -> bool:
    return spec.kind.name == "USER_OUTPUT"
