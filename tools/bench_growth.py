"""How time grows with a model: view, matching and a whole apply on RepVGG-like chains of more and more nodes.

Invariant: figures are seconds of CPU per 1,000 nodes, so that a constant row means linear growth.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rewriter import api  # noqa: E402  (the path comes first)
from rewriter.graph.onnx import view  # noqa: E402
from rewriter.language.library import resolve  # noqa: E402
from rewriter.matching.find import find  # noqa: E402
from rewriter.rewriting.engine import query_of_loaded  # noqa: E402

CHANNELS = 4


def chain(blocks: int) -> ModelProto:
    """`blocks` times: a 3x3 and a 1x1 conv and the value itself, added; then an activation (5 nodes)."""
    nodes, value = [], "x"
    for i in range(blocks):
        wide, narrow, half, total, out = (f"{name}{i}" for name in ("wide", "narrow", "half", "total", "out"))
        nodes += [
            helper.make_node("Conv", [value, "w3"], [wide], pads=[1] * 4),
            helper.make_node("Conv", [value, "w1"], [narrow]),
            helper.make_node("Add", [wide, narrow], [half]),
            helper.make_node("Add", [half, value], [total]),
            helper.make_node("Relu", [total], [out]),
        ]
        value = out
    random = np.random.default_rng(0)
    weights = {f"w{k}": random.normal(size=(CHANNELS, CHANNELS, k, k)).astype(np.float32) for k in (1, 3)}
    shape = [1, CHANNELS, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    query = query_of_loaded(resolve(["repconv"])[0])
    print(f"{'nodes':>8}  {'view':>8}  {'find':>8}  {'apply':>8}   (CPU seconds per 1,000 nodes)")
    for blocks in (200, 2_000, 20_000):
        model = chain(blocks)
        nodes = len(model.graph.node)
        graph = view(model)
        spent = (
            seconds(lambda model=model: view(model)),
            seconds(lambda graph=graph: find(graph, query)),
            seconds(lambda model=model: api.apply(model, ["repconv"], verify=False)),
        )
        print(f"{nodes:>8}  " + "  ".join(f"{1000 * s / nodes:8.4f}" for s in spent))


if __name__ == "__main__":
    main()
