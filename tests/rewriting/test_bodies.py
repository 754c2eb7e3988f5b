"""What goes with an output inside of branches, and with the last call of a function; what stays is said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    numpy_helper,
)

from rewriter import api
from rewriter.reporting.record import Report
from tests.end_to_end.judging import noise, run

FLOAT, SHAPE, OURS = TensorProto.FLOAT, (1, 2, 4, 4), "of.ours"


def op(kind: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"make {outputs}", **attributes)


def info(name: str, kind: int = FLOAT, shape: Sequence[int] = SHAPE) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(name: str, seed: int) -> TensorProto:
    array = np.random.default_rng(seed).normal(size=(2, 2, 1, 1)).astype(np.float32)
    return numpy_helper.from_array(array, name)


def branch(nodes: Sequence[NodeProto], outputs: str, *tensors: TensorProto) -> GraphProto:
    return helper.make_graph(nodes, "branch", [], [info(name) for name in outputs.split()], tensors)


def model_of(
    nodes: Sequence[NodeProto], outputs: str = "aux main", functions: Sequence[FunctionProto] = ()
) -> ModelProto:
    flag = [op("ReduceSum", "x", "sum", keepdims=0), op("Greater", "sum zero", "flag")]
    stored = [tensor("w", 1), tensor("v", 2), numpy_helper.from_array(np.array(0, np.float32), "zero")]
    graph = helper.make_graph([*flag, *nodes], "g", [info("x")], [info(name) for name in outputs.split()], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(OURS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))


def kept(model: ModelProto, name: str = "main") -> tuple[ModelProto, Report]:
    """The result with one output kept, which computes the same whichever way a condition falls."""
    result = api.apply(model, ["aux-prune"], keep=name, verify=False)
    checker.check_model(result.model, full_check=True)
    for seed in range(4):
        feeds = {"x": noise(*SHAPE, seed=seed) + np.float32(seed - 2)}
        np.testing.assert_array_equal(run(result.model, feeds)[name], run(model, feeds)[name])
    return result.model, result.report


def inside(model: ModelProto) -> list[list[str]]:
    """The operators in the branches of the last If, those of its condition first."""
    node = next(node for node in reversed(model.graph.node) if node.op_type == "If")
    return [[inner.op_type for inner in attribute.g.node] for attribute in branches(node)]


def branches(node: NodeProto) -> list[AttributeProto]:
    return sorted(node.attribute, key=lambda attribute: attribute.name, reverse=True)


def stored(model: ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def both(then: GraphProto, other: GraphProto, outputs: str = "aux main") -> NodeProto:
    return op("If", "flag", outputs, then_branch=then, else_branch=other)


def test_a_result_of_branches_that_nobody_reads_goes_from_all_of_them() -> None:
    then = branch([op("Conv", "x w", "a"), op("Relu", "x", "b")], "a b")
    other = branch([op("Conv", "x own", "a"), op("Neg", "x", "c"), op("Neg", "c", "b")], "a b", tensor("own", 3))
    model, report = kept(model_of([both(then, other)]))
    assert inside(model) == [["Relu"], ["Neg", "Neg"]] and "w" not in stored(model)
    assert not any(attribute.g.initializer for attribute in model.graph.node[-1].attribute)
    assert not report.decisions[0].notes


def test_what_a_branch_alone_read_of_the_auxiliary_branch_goes_too() -> None:
    then = branch([op("Conv", "x w", "a"), op("Relu", "x", "b")], "a b")
    other = branch([op("Conv", "side v", "a"), op("Neg", "x", "b")], "a b")
    model, _ = kept(model_of([op("Conv", "x v", "side"), both(then, other)]))
    assert inside(model) == [["Relu"], ["Neg"]] and [n.op_type for n in model.graph.node].count("Conv") == 0


def test_branches_of_branches_are_cut_and_what_both_results_need_stays() -> None:
    deep = branch([op("Relu", "c", "p"), op("Neg", "c", "q")], "p q")
    nested = op("If", "flag", "a r", then_branch=deep, else_branch=deep)
    then = branch([op("Conv", "x w", "c"), nested, op("Abs", "r", "b")], "a b")
    other = branch([op("Conv", "x v", "a"), op("Abs", "x", "b")], "a b")
    model, _ = kept(model_of([both(then, other)]))
    assert inside(model) == [["Conv", "If", "Abs"], ["Abs"]]
    inner = next(node for node in branches(model.graph.node[-1])[0].g.node if node.op_type == "If")
    assert list(inner.output) == ["r"] and [len(each.g.node) for each in inner.attribute] == [1, 1]


def test_what_was_dead_in_a_branch_stays() -> None:
    then = branch([op("Conv", "x w", "a"), op("Relu", "x", "b"), op("Abs", "x", "idle")], "a b")
    other = branch([op("Conv", "x v", "a"), op("Neg", "x", "b")], "a b")
    model, _ = kept(model_of([both(then, other, "aux main")]))
    assert inside(model) == [["Relu", "Abs"], ["Neg"]]


def test_a_result_that_nobody_ever_read_stays() -> None:
    then = branch([op("Conv", "x w", "a"), op("Relu", "x", "b")], "a b")
    node = both(then, then, "idle inner")
    model, _ = kept(model_of([node, op("Conv", "x v", "aux"), op("Abs", "inner", "main")]))
    assert inside(model) == [["Conv", "Relu"]] * 2 and "w" in stored(model)


def loop() -> ModelProto:
    nodes = [op("Conv", "s w", "t"), op("Relu", "r", "u"), op("Identity", "go", "on")]
    states = [info("s"), info("r")]
    reads = [info("i", TensorProto.INT64, ()), info("go", TensorProto.BOOL, ()), *states]
    body = helper.make_graph(nodes, "body", reads, [info("on", TensorProto.BOOL, ()), info("t"), info("u")])
    many = op("Constant", "", "many", value=numpy_helper.from_array(np.array(2)))
    return model_of([many, helper.make_node("Loop", ["many", "", "x", "x"], ["aux", "main"], "again", body=body)])


def head(name: str, *nodes: NodeProto, outputs: str = "p") -> FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(OURS, 1)]
    return helper.make_function(OURS, name, ["i", "k"], outputs.split(), nodes, opsets)


def call(name: str, inputs: str, outputs: str) -> NodeProto:
    return op(name, inputs, outputs, domain=OURS)


@pytest.mark.parametrize("kind", ["loop", "function"])
def test_what_cannot_be_cut_is_said(kind: str) -> None:
    two = head("Two", op("Conv", "i k", "p"), op("Relu", "i", "q"), outputs="p q")
    model = loop() if kind == "loop" else model_of([call("Two", "x w", "aux main")], functions=[two])
    result, report = kept(model)
    (note,) = report.decisions[0].notes
    assert "still computes aux" in note and "w" in stored(result)


def test_functions_that_only_what_went_called_go() -> None:
    inner = head("Inner", op("Conv", "i k", "p"))
    outer = head("Outer", call("Inner", "i k", "p"))
    shared, idle = head("Shared", op("Conv", "i k", "p")), head("Idle", op("Conv", "i k", "p"))
    then = branch([call("Outer", "x w", "a"), call("Shared", "x w", "b")], "a b")
    model, _ = kept(model_of([both(then, then)], functions=[inner, outer, shared, idle]))
    assert [function.name for function in model.functions] == ["Shared", "Idle"]
