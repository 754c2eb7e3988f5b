"""Outputs of a program that go: out of the graph, out of its signature, and out of the structure that users get.

Invariant: what stays keeps its place in its list, tuple or dict; a container that is left empty goes too. Where the
structure is another (a dataclass, a named tuple) the place stays, and holds None.
"""

from __future__ import annotations

from typing import Any

from rewriter.torch_graphs.calls import FxNode, fake, is_node, is_tensor
from rewriter.torch_graphs.signature import Signature, nodes_of
from rewriter.torch_graphs.structures import without_leaves


def wanted(graph: Any, signature: Signature) -> list[FxNode]:
    """The outputs that the user gets, of tensors, each once."""
    pairs = zip(nodes_of(graph), signature.outputs, strict=True)
    return list(dict.fromkeys(n for n, spec in pairs if _is_users(spec) and is_node(n) and is_tensor(fake(n))))


def remove(graph: Any, signature: Signature, gone: FxNode) -> None:
    """Take an output out, wherever it stands among what the user gets."""
    from torch.export.graph_signature import ConstantArgument, OutputKind, OutputSpec

    given, specs = nodes_of(graph), signature.outputs
    first = next(i for i, spec in enumerate(specs) if _is_users(spec))
    spec = signature.out_spec or signature.program.module_call_graph[0].signature.out_spec
    places = {i - first for i, (n, s) in enumerate(zip(given, specs, strict=True)) if n is gone and _is_users(s)}
    leaves, signature.out_spec = without_leaves(spec, len(specs) - first, places)
    nothing = OutputSpec(OutputKind.USER_OUTPUT, ConstantArgument(name="", value=None), None)
    signature.outputs = specs[:first] + [nothing if i is None else specs[first + i] for i in leaves]
    node = graph.output_node()
    node.args = (tuple(given[:first] + [None if i is None else given[first + i] for i in leaves]),)
    if "val" in node.meta:
        node.meta["val"] = tuple(fake(n) if is_node(n) else n for n in node.args[0])


def _is_users(spec: Any) -> bool:
    return spec.kind.name == "USER_OUTPUT"
