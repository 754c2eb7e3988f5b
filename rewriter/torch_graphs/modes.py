"""What a graph does as in training: norms of the batch and dropout, which a trace writes down as it finds them.

Invariant: a norm that has no statistics of its own is one of the batch in either mode, and is not told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rewriter.graph.view import Value
from rewriter.torch_graphs.calls import Call
from rewriter.torch_graphs.dialect import Dialect

_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"})


def notes(graph: Any, dialect: Dialect) -> Iterator[str]:
    """A line on the layers in training mode, where there are some: most people meant to call `eval()` first."""
    calls = [dialect.call(node, _unasked) for node in graph.nodes if node.op.startswith("call_")]
    found = Counter([kind for call in calls if call is not None and (kind := _kind(call))])
    if found:
        what = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(found.items(), reverse=True))
        yield f"in training mode, as traced: {what}, which stay as they are; to ship the model, trace it after eval()"


def _kind(call: Call) -> str:
    if "batch_norm" in call.op and call.args.get("training") and call.args.get("running_mean") is not None:
        return "norm"
    return "dropout" if call.op in _DROPOUTS and call.args.get("train") and call.args.get("p") != 0 else ""


def _unasked(item: Any) -> Value:
    raise AssertionError(f"what kind of call it is does not depend on {item}")
