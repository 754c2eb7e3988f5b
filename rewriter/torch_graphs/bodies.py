"""Bodies that operators run: branches of cond, loops, and regions of another gradient mode or autocast.

Invariant: such an operator changes what it reads only where one of its bodies does; of an operator that is not known,
that is not believed. Where no pattern looks into a body, `notes` say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from rewriter.torch_graphs.calls import FxNode, attribute, is_aten, op_of

RUNNERS = frozenset(
    {"cond", "map_impl", "while_loop", "scan", "associative_scan", "wrap_with_set_grad_enabled", "wrap_with_autocast"}
)
"""Operators that do nothing but run their bodies on what they are given."""


def bodies(node: FxNode, root: Any) -> list[Any]:
    """The graph modules that a node runs."""
    if node.op != "call_function":
        return []
    held = [attribute(root, n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    return [found for found in held if hasattr(found, "graph") and hasattr(found, "get_submodule")]


def is_runner(node: FxNode) -> bool:
    return str(getattr(node.target, "__name__", "")) in RUNNERS


def notes(graph: Any, root: Any, looked: Collection[FxNode] = ()) -> Iterator[str]:
    """What was not looked into, where it holds layers that might have folded; the bodies of nodes `looked` were."""
    for node in graph.nodes:
        for body in bodies(node, root):
            if node in looked:
                yield from notes(body.graph, body)
                continue
            layers = Counter(_layers(body))
            if layers:
                what = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in layers.items())
                name = getattr(node.target, "__name__", node.name)
                yield f"not looked into: what {name} runs as {node.name} ({what})"


def _layers(body: Any) -> Iterator[str]:
    for node in body.graph.nodes:
        for inner in bodies(node, body):
            yield from _layers(inner)
        name = op_of(node) if is_aten(node) else ""
        if "conv" in name:
            yield "convolution"
        elif "batch_norm" in name:
            yield "norm"
        elif name in ("linear", "addmm"):
            yield "linear layer"
