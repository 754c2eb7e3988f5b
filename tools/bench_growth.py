"""How time grows with a model: view, matching, planning and a whole apply, on more and more nodes and on wider sums.

Invariant: figures are seconds of CPU per 1,000 nodes, so that a constant column means linear growth.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rewriter import api  # noqa: E402  (the path comes first)
from rewriter.graph.onnx import view  # noqa: E402
from rewriter.graph.view import Graph  # noqa: E402
from rewriter.language.library import resolve  # noqa: E402
from rewriter.matching.find import find  # noqa: E402
from rewriter.rewriting import collapse  # noqa: E402
from rewriter.rewriting.engine import query_of_loaded  # noqa: E402

CHANNELS = 4
APPLIED_UP_TO = 20_000
"""Nodes up to which a whole apply is timed: folding and proving take thousands of times what matching takes."""


def chain(blocks: int, branches: int = 2) -> ModelProto:
    """`blocks` times: `branches` convs (3x3 and 1x1 in turn) and the value itself, added; then an activation."""
    nodes: list[NodeProto] = []
    value = "x"
    for i in range(blocks):
        total = value
        for j in range(branches):
            made = f"conv{i}_{j}"
            k = 3 if j % 2 == 0 else 1
            nodes.append(helper.make_node("Conv", [value, f"w{k}"], [made], pads=[k // 2] * 4))
            nodes.append(helper.make_node("Add", [total, made], [f"sum{i}_{j}"]))
            total = f"sum{i}_{j}"
        value = f"out{i}"
        nodes.append(helper.make_node("Relu", [total], [value]))
    return _model(nodes, value)


def linear_chain(blocks: int) -> ModelProto:
    """Padded convs and norms in a row without any activation: one region, cut at every block."""
    nodes: list[NodeProto] = []
    value = "x"
    for i in range(blocks):
        nodes.append(helper.make_node("Conv", [value, "w3"], [f"conv{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", [f"conv{i}", "one", "one", "one", "one"], [f"bn{i}"]))
        value = f"bn{i}"
    return _model(nodes, value)


def _model(nodes: list[NodeProto], output: str) -> ModelProto:
    random = np.random.default_rng(0)
    weights = {f"w{k}": random.normal(size=(CHANNELS, CHANNELS, k, k)).astype(np.float32) for k in (1, 3)}
    weights["one"] = np.ones(CHANNELS, np.float32)
    shape = [1, CHANNELS, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def matching(graph: Graph) -> None:
    """Every shipped pattern on paper, as one round of `deploy` does it before it folds anything."""
    for loaded in resolve(["all"]):
        query = query_of_loaded(loaded)
        if not query.linear:
            find(graph, query)


def row(title: str, model: ModelProto) -> None:
    nodes = len(model.graph.node)
    graph = view(model)
    planned = query_of_loaded(resolve(["collapse"])[0])
    collapse.plan(view(chain(1)), planned)  # loads networkx
    spent = [
        seconds(lambda: view(model)),
        seconds(lambda: matching(graph)),
        seconds(lambda: collapse.plan(graph, planned)),
    ]
    if nodes <= APPLIED_UP_TO:
        spent.append(seconds(lambda: api.apply(model, ["deploy"], verify=False)))
    print(f"{title:<34} {nodes:>8}  " + "  ".join(f"{1000 * s / nodes:8.4f}" for s in spent), flush=True)


def main() -> None:
    print(f"{'':<34} {'nodes':>8}  {'view':>8}  {'find':>8}  {'collapse':>8}  {'deploy':>8}   (CPU s per 1,000 nodes)")
    for blocks in (200, 2_000, 20_000):
        row("blocks of 2 branches", chain(blocks))
    for branches in (4, 40, 400):
        row(f"blocks of {branches} branches", chain(10_000 // (2 * branches), branches))
    for blocks in (500, 5_000, 50_000):
        row("convs and norms in a row", linear_chain(blocks))


if __name__ == "__main__":
    main()
