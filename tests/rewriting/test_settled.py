"""Nodes that read a value for its size or type alone keep nothing from being folded, and outlive what they read."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fixtures.judge import op_histogram
from rewriter import api
from rewriter.checking.record import Verdict
from rewriter.rewriting.onnx_draft import OnnxDraft

FLOAT = TensorProto.FLOAT
CAST_LIKE = helper.make_node("CastLike", ["c", "a"], ["k"], name="like")
SHAPE = helper.make_node("Shape", ["a"], ["shape"], name="size")


def model_of(*aside: NodeProto, outputs: tuple[str, ...] = ("z",), sizes: bool = True) -> ModelProto:
    """a = conv(x), y = norm(a), z = relu(y) * k + ..., where `aside` reads a."""
    random = np.random.default_rng(0)
    tensors = {"w": random.normal(size=(4, 3, 1, 1)).astype(np.float32), "c": np.float64(0.5)}
    tensors |= {name: random.uniform(0.5, 1.5, 4).astype(np.float32) for name in ("s", "b", "m", "v")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        *aside,
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"], name="norm"),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
    ]
    last = "r"
    if "k" in {name for node in aside for name in node.output}:
        nodes += [helper.make_node("Sigmoid", ["k"], ["g"]), helper.make_node("Mul", [last, "g"], ["rg"])]
        last = "rg"
    if "shape" in {name for node in aside for name in node.output}:
        nodes += [helper.make_node("Neg", [last], ["n"]), helper.make_node("Reshape", ["n", "shape"], ["rs"])]
        last = "rs"
    nodes.append(helper.make_node("Tanh", [last], ["z"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 3, 5, 5] if sizes else ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(name, FLOAT if name == "z" else TensorProto.INT64, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("aside", [(CAST_LIKE,), (SHAPE,), (CAST_LIKE, SHAPE), (SHAPE, CAST_LIKE)])
@pytest.mark.parametrize("patterns", ["conv-bn", "collapse"])
def test_a_value_read_for_its_size_or_type_alone_folds_away(aside: tuple[NodeProto, ...], patterns: str) -> None:
    result = api.apply(model_of(*aside), patterns)
    counts = op_histogram(result.model)
    assert counts["Conv"] == 1 and not counts.keys() & {"BatchNormalization", "CastLike", "Shape"}
    assert result.report.verification.verdict is Verdict.OK
    stored = {tensor.name for tensor in result.model.graph.initializer}
    assert {name for node in aside for name in node.output} <= stored  # under the names that are read


def test_a_size_that_is_not_known_is_read_elsewhere_or_keeps_the_value() -> None:
    result = api.apply(model_of(SHAPE, sizes=False), "conv-bn")
    assert result.report.verification.verdict is Verdict.OK
    assert op_histogram(result.model)["Shape"] == 1


def test_a_size_that_is_an_output_keeps_what_it_is_read_of() -> None:
    result = api.apply(model_of(SHAPE, outputs=("z", "shape")), "conv-bn")
    assert not result.report.changed


def test_what_was_dead_and_read_a_value_that_goes_leaves_nothing_dangling() -> None:
    first = helper.make_node("Slice", ["a", "one", "two"], ["cut"])
    dead = [first, helper.make_node("Shape", ["cut"], ["q"]), helper.make_node("Neg", ["q"], ["unread"])]
    model = model_of(*dead)
    model.graph.initializer.extend(numpy_helper.from_array(np.int64([n]), name) for n, name in ((1, "one"), (2, "two")))
    result = api.apply(model, "conv-bn")
    assert result.report.verification.verdict is Verdict.OK
    made = {name for node in result.model.graph.node for name in node.output}
    known = made | {t.name for t in result.model.graph.initializer} | {"x"}
    assert all(name in known for node in result.model.graph.node for name in node.input)


def test_readers_that_only_ask_for_the_type_are_none() -> None:
    graph = OnnxDraft(model_of(CAST_LIKE)).view()
    assert graph.values["a"].private and graph.values["k"].constant is not None
    assert [node.name for node in graph.nodes if graph.values["a"] in node.outputs] == ["conv"]
