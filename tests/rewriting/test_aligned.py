"""Reshapes of one value behind each other, where that lets a sum fold, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rewriter import api
from rewriter.graph.onnx import view
from rewriter.rewriting.aligned import align

RNG = np.random.default_rng(5)


def net(*, act: bool = False, joined: bool = True, maps: tuple[int, ...] = (-1, 2, 3, 3)) -> ModelProto:
    """A layer over 18 places beside a 3x3 on the same as maps; `act` stands between, or the two are not `joined`."""
    tensors = {
        "rows": np.int64([-1, 18, 1, 1]), "maps": np.int64(maps), "back": np.int64([-1, 2, 3, 3]),
        "w": RNG.normal(size=(18, 9, 1, 1)).astype(np.float32), "k": RNG.normal(size=(2, 1, 3, 3)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "rows"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["d"], group=2),
        *([helper.make_node("Relu", ["d"], ["e"])] if act else []),
        helper.make_node("Reshape", ["e" if act else "d", "back"], ["wide"]),
        helper.make_node("Reshape", ["a", "maps"], ["m"]),
        helper.make_node("Conv", ["m", "k"], ["near"], group=2, pads=[1, 1, 1, 1]),
    ]
    nodes += [helper.make_node("Add", ["wide", "near"], ["y"])] if joined else []
    outputs = ["y"] if joined else ["wide", "near"]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 18])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_maps_are_cut_out_of_the_rows_and_the_sum_folds() -> None:
    model = net()
    (edit,) = align(view(model))
    assert (edit.old, edit.new) == ("a", "r")
    result = api.apply(model, ["collapse"])
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Reshape", "Conv", "Reshape"]
    (conv,) = (node for node in result.model.graph.node if node.op_type == "Conv")
    assert {a.name: helper.get_attribute_value(a) for a in conv.attribute}["group"] == 2


@pytest.mark.parametrize("change", [{"joined": False}, {"act": True}, {"maps": (-1, 2, 9, 1, 1)}])
def test_without_a_sum_to_fold_the_model_stays_as_it_is(change: dict[str, object]) -> None:
    model = net(**change)  # type: ignore[arg-type]
    if "maps" in change:
        model.graph.node[-2].CopyFrom(helper.make_node("Relu", ["m"], ["near"]))
        model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["near"], ["y"]))
    before = model.SerializeToString()
    assert not align(view(model))
    assert api.apply(model, ["collapse"], verify=False).model.SerializeToString() == before


def test_patterns_that_do_not_ask_for_linear_regions_leave_it() -> None:
    model = net()
    before = model.SerializeToString()
    assert api.apply(model, ["repconv", "conv-bn", "bypass"], verify=False).model.SerializeToString() == before
