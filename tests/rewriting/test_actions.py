"""What a fold writes, what it costs, and what a bypass may take out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rewriter.language.library import LoadedPattern, resolve
from rewriter.language.parameters import set_parameters
from rewriter.rewriting.engine import rewrite
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.rewriting.small_models import CHANNELS, SmallNet, node_making, ops, rewritten, tensor_of

SUM = "match y = x -> sum { big: conv[k=3] as wide  small{1..}: conv[k=1] as point }"


def pattern(tmp_path: Path, match: str, cost: str = "", action: str = "fold to conv") -> LoadedPattern:
    text = f'fxrewrite 1\npattern own {{ doc "d" {match} {cost}\n do {action} }}\n'
    (tmp_path / "own.fxp").write_text(text)
    return resolve(["own.fxp"], tmp_path)[0]


def branches() -> ModelProto:
    net = SmallNet()
    net.add("Add", [net.conv("x"), net.conv("x", k=1)], "y")
    return net.model("y")


def grouped() -> ModelProto:
    """A 3x3 in four groups beside a dense 1x1: 36 + 16 weights, 144 when folded."""
    net = SmallNet()
    wide = net.conv("x", weight=net.tensor(net.random.normal(size=(CHANNELS, 1, 3, 3))), group=CHANNELS)
    net.add("Add", [wide, net.conv("x", k=1)], "y")
    return net.model("y")


# --- cost ------------------------------------------------------------------------------------------------------------


def test_the_default_gate_leaves_what_would_cost_more(tmp_path: Path) -> None:
    result, outcome = rewritten(grouped(), [pattern(tmp_path, SUM)])
    assert result == grouped()
    (refused,) = outcome.refusals
    assert refused.code == "cost" and "144 multiply-adds" in refused.detail and "instead of 52" in refused.detail


def test_with_cost_off_it_folds_all_the_same(tmp_path: Path) -> None:
    loaded = set_parameters([pattern(tmp_path, SUM)], ["own.cost=off"])
    result, outcome = rewritten(grouped(), loaded)
    assert ops(result) == {"Conv": 1}
    (match,) = outcome.matches
    assert match.before and match.after
    assert (match.before.parameters, match.after.parameters) == (52, 144)
    assert (match.before.multiply_adds, match.after.multiply_adds) == (52, 144)


@pytest.mark.parametrize(
    ("clause", "folds"),
    [
        ("cost params(after) <= params(wide)", True),
        ("cost params(after) < params(wide)", False),
        ("cost macs(after) <= 144 and macs(before) = 160", True),
        ("cost params(point) > params(wide)", False),
        ("cost nodes(before) = 3 and nodes(after) = 1", True),
        ("cost nodes(after) >= nodes(before)", False),
        ("cost nodes(wide) = nodes(after)", True),
    ],
)
def test_a_cost_clause_stands_in_for_the_gate(tmp_path: Path, clause: str, folds: bool) -> None:
    result, outcome = rewritten(branches(), [pattern(tmp_path, SUM, clause)])
    assert ops(result) == ({"Conv": 1} if folds else {"Conv": 2, "Add": 1})
    assert [r.code for r in outcome.refusals] == ([] if folds else ["cost"])


def test_a_cost_clause_may_allow_what_the_gate_would_not(tmp_path: Path) -> None:
    result, _ = rewritten(grouped(), [pattern(tmp_path, SUM, "cost params(after) <= 144")])
    assert ops(result) == {"Conv": 1}


def test_a_fold_that_saves_no_node_is_refused_even_with_cost_off(tmp_path: Path) -> None:
    """Else rewriting would not end: the conv that comes would match again."""
    net = SmallNet()
    net.conv("x", "y")
    loaded = set_parameters([pattern(tmp_path, "match y = x -> conv")], ["cost=off"])
    result, outcome = rewritten(net.model("y"), loaded)
    assert result == net.model("y") and outcome.end == "fixpoint"
    assert [(r.code, r.detail) for r in outcome.refusals] == [("cost", "the fold would not save a node")]


def test_a_shared_weight_is_counted_with_the_region(tmp_path: Path) -> None:
    """The gate looks at a region as if it stood alone; the tensor stays for the other reader, unchanged."""
    net = SmallNet()
    shared = net.tensor(net.random.normal(size=(4, 4, 3, 3)), "shared")
    net.norm(net.conv("x", weight=shared), "y")
    net.conv("x", "z", weight=shared)
    result, outcome = rewritten(net.model("y", "z"))
    assert ops(result) == {"Conv": 2}
    assert outcome.matches[0].before and outcome.matches[0].before.parameters == 144 + 8
    assert np.array_equal(tensor_of(result, "shared"), numpy_helper.to_array(net.tensors[0]))


# --- leftovers -------------------------------------------------------------------------------------------------------


def residual(*operands: tuple[str, str]) -> ModelProto:
    """A block of two convs, with further operands added or subtracted in order: `y = ((block op a) op b) …`."""
    net = SmallNet()
    for name in sorted({name for _, name in operands}):
        net.add("Sigmoid" if name == "s" else "Tanh", ["x"], name)
    total = net.add("Add", [net.conv("x"), net.conv("x", k=1)])
    for number, (op, name) in enumerate(operands, 1):
        inputs = [name, total] if op == "from" else [total, name]
        total = net.add("Add" if op == "Add" else "Sub", inputs, "y" if number == len(operands) else "")
    return net.model("y")


@pytest.mark.parametrize(
    "operands",
    [
        (("Add", "s"),),
        (("Sub", "s"),),
        (("from", "s"),),
        (("Sub", "s"), ("Add", "t")),
        (("Add", "s"), ("Sub", "t")),
    ],
)
def test_leftovers_keep_their_sign(tmp_path: Path, operands: tuple[tuple[str, str], ...]) -> None:
    match = "match y = x -> sum { ± big: conv[k=3] ± small: conv[k=1] }"
    result, outcome = rewritten(residual(*operands), [pattern(tmp_path, match)])
    assert ops(result)["Conv"] == 1
    assert sorted(outcome.matches[0].leftovers) == sorted(name for _, name in operands)
    conv, *sums = [node for node in result.graph.node if node.op_type in ("Conv", "Add", "Sub")]
    assert conv.op_type == "Conv" and conv.output[0] != "y" and sums[-1].output[0] == "y"
    names = [node.name for node in result.graph.node]
    assert len(set(names)) == len(names) and all(names)


def test_leftovers_must_leave_something_saved(tmp_path: Path) -> None:
    """Two convs and an add with three leftovers are as many nodes as one conv and three adds, and one less."""
    result, _ = rewritten(residual(("Add", "s"), ("Add", "t"), ("Sub", "s")), [pattern(tmp_path, SUM)])
    assert ops(result) == {"Sigmoid": 1, "Tanh": 1, "Conv": 1, "Add": 2, "Sub": 1}


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_stored_type_stays(dtype: Any) -> None:
    net = SmallNet(dtype=dtype)
    net.block("x", "y")
    result, _ = rewritten(net.model("y"))
    assert ops(result) == {"Conv": 1}
    assert {numpy_helper.to_array(t).dtype for t in result.graph.initializer} == {np.dtype(dtype)}


def test_bfloat16_weights() -> None:
    net = SmallNet()
    net.norm(net.conv("x"), "y")
    model = net.model("y", opset=22, ir_version=10)
    for tensor in model.graph.initializer:
        bits = numpy_helper.to_array(tensor).view(np.uint32) >> 16
        tensor.data_type, tensor.raw_data = TensorProto.BFLOAT16, bits.astype(np.uint16).tobytes()
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = TensorProto.BFLOAT16
    draft = OnnxDraft(model)
    rewrite(draft, resolve(["conv-bn"]))
    result = draft.finish()
    assert [(t.data_type, len(t.raw_data)) for t in result.graph.initializer] == [
        (TensorProto.BFLOAT16, 4 * 4 * 9 * 2),
        (TensorProto.BFLOAT16, 4 * 2),
    ]


def test_attributes_of_the_folded_conv() -> None:
    net = SmallNet()
    weight = net.tensor(net.random.normal(size=(4, 2, 3, 2)))
    conv = net.add("Conv", ["x", weight], pads=[1, 0, 2, 3], strides=[2, 1], dilations=[1, 2], group=2)
    net.norm(conv, "y")
    model = net.model("y")
    for axis, extent in ((2, 4), (3, 6)):
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = extent
    result, _ = rewritten(model)
    attrs = {a.name: helper.get_attribute_value(a) for a in result.graph.node[0].attribute}
    assert attrs == {
        "pads": [1, 0, 2, 3], "strides": [2, 1], "dilations": [1, 2], "group": 2, "kernel_shape": [3, 2]
    }  # fmt: skip


def test_the_largest_conv_lends_its_name() -> None:
    net = SmallNet()
    point = net.conv("x", "point", k=1, weight=net.tensor(net.random.normal(size=(4, 4, 1, 1)), "point.weight"))
    wide = net.conv("x", "wide", weight=net.tensor(net.random.normal(size=(4, 4, 3, 3)), "wide.weight"), bias=True)
    net.add("Add", [point, wide], "y")
    result, _ = rewritten(net.model("y"))
    node = node_making(result, "y")
    assert (node.name, list(node.input)) == ("n_wide", ["x", "wide.weight.folded", "wide.weight.folded.bias"])


def test_no_bias_is_written_where_it_would_be_zero() -> None:
    result, _ = rewritten(branches())
    assert len(result.graph.node[0].input) == 2 and len(result.graph.initializer) == 1


def test_nodes_without_names_get_one() -> None:
    model = branches()
    for node in model.graph.node:
        node.name = ""
    result, outcome = rewritten(model)
    assert [node.name for node in result.graph.node] == ["y/conv"]
    assert outcome.matches[0].made == ("y/conv",)
    assert outcome.matches[0].nodes == ("v0", "v1", "y")


# --- bypass ----------------------------------------------------------------------------------------------------------


def idle(*nodes: tuple[Any, ...], shape: list[int] | None = None, opset: int = 17) -> ModelProto:
    """Something between a Relu and a Sigmoid: (op, further inputs, attributes) one after the other."""
    net = SmallNet()
    value = net.add("Relu", ["x"], "r")
    for op, arrays, attrs in nodes:
        value = net.add(op, [value, *(net.tensor(a) for a in arrays)], **attrs)
    net.add("Sigmoid", [value], "y")
    model = net.model("y", opset=opset)
    for info in (*model.graph.input, *model.graph.output):
        if shape is None:
            info.type.tensor_type.ClearField("shape")
        else:
            info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, shape))
    return model


def bypassed(model: ModelProto) -> tuple[int, list[str]]:
    """How many nodes stay beside the two, and the codes of refusals; what stays computes the same."""
    draft = OnnxDraft(model)
    outcome = rewrite(draft, resolve(["bypass"]))
    return len(draft.finish().graph.node) - 2, [r.code for r in outcome.refusals]


@pytest.mark.parametrize(
    ("model", "stays"),
    [
        (idle(("Add", [0.0], {})), 0),
        (idle(("Mul", [[1.0]], {}), shape=[4]), 0),
        (idle(("Tanh", [], {}), ("Sub", [[0.0]], {}), ("Identity", [], {}), shape=[1, 4, 2, 2]), 1),
        (idle(("Sub", [0.0], {}), shape=[]), 0),
        (idle(("Div", [1.0], {}), ("Identity", [], {}), ("Dropout", [], {})), 0),
        (idle(("Cast", [], {"to": TensorProto.FLOAT})), 0),
        (idle(("LeakyRelu", [], {"alpha": 1.0})), 0),
        (idle(("Cast", [], {"to": TensorProto.FLOAT16}), ("Cast", [], {"to": TensorProto.FLOAT})), 2),
        (idle(("Add", [[0.0]], {})), 1),  # a vector of one: of a scalar it would make a vector
        (idle(("Add", [[0.0]], {}), shape=[]), 1),
        (idle(("Mul", [[[1.0]]], {}), shape=[4]), 1),
        (idle(("Mul", [np.ones((4, 1, 1))], {}), shape=[1, 4, 2, 2]), 0),
        (idle(("Mul", [np.ones((4, 1, 1))], {}), shape=[1, 1, 2, 2]), 1),
        (idle(("Mul", [np.ones((4, 1, 1))], {}), shape=[1, "channels", 2, 2]), 1),
        (idle(("Sub", [1e-30], {}), shape=[2]), 1),
        (idle(("LeakyRelu", [], {"alpha": 0.999})), 1),
    ],
)
def test_only_what_provably_does_nothing_goes(model: ModelProto, stays: int) -> None:
    assert bypassed(model)[0] == stays


def test_zero_minus_x_stays() -> None:
    net = SmallNet()
    net.add("Sigmoid", [net.add("Sub", [net.tensor(0.0), net.add("Relu", ["x"])])], "y")
    assert bypassed(net.model("y"))[0] == 1


def test_a_cast_of_an_unknown_type_stays() -> None:
    net = SmallNet()
    unknown = net.add("Unknown", ["x"], domain="com.example")
    net.add("Sigmoid", [net.add("Cast", [unknown], to=TensorProto.FLOAT)], "y")
    assert bypassed(net.model("y"))[0] == 1


@pytest.mark.parametrize("reader", ["node", "output", "body", None])
def test_a_dropout_whose_mask_is_read_stays(reader: str | None) -> None:
    net = SmallNet()
    net.nodes.append(helper.make_node("Dropout", [net.add("Relu", ["x"])], ["d", "mask"], name="drop"))
    outputs = ["y"]
    net.add("Sigmoid", ["d"], "y")
    if reader == "node":
        net.add("Not", ["mask"], "z")
    if reader == "body":
        body = helper.make_graph([helper.make_node("Not", ["mask"], ["b"])], "b", [], [net.value("b")])
        net.nodes.append(helper.make_node("If", ["flag"], ["z"], then_branch=body, else_branch=body))
    model = net.model(*outputs)
    if reader:
        name = "mask" if reader == "output" else "z"
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.BOOL, net.shape))
    draft = OnnxDraft(model)
    rewrite(draft, resolve(["bypass"]))
    assert ("Dropout" in ops(draft.finish())) == (reader is not None)


def test_an_idle_node_on_a_weight_goes_too() -> None:
    net = SmallNet()
    net.add("Identity", [net.tensor(net.random.normal(size=(4, 4, 1, 1)), "w")], "alias")
    net.conv("x", "y", k=1, weight="alias")
    result, _ = rewritten(net.model("y"), ["bypass"])
    assert ops(result) == {"Conv": 1} and result.graph.node[0].input[1] == "w"


def test_a_bypass_action_does_not_believe_the_pattern(tmp_path: Path) -> None:
    net = SmallNet()
    net.add("Sigmoid", [net.add("Relu", ["x"])], "y")
    model = net.model("y")
    result, outcome = rewritten(model, [pattern(tmp_path, "match y = x -> relu", action="bypass")])
    assert result == model
    assert [(r.code, r.detail) for r in outcome.refusals] == [("exact", "relu does something at inference")]


def test_a_fold_action_does_not_believe_the_pattern(tmp_path: Path) -> None:
    """A batch norm whose variance is negative is no map at all."""
    net = SmallNet()
    net.norm(net.conv("x"), "y")
    net.tensors[-1].CopyFrom(numpy_helper.from_array(np.full(CHANNELS, -1, np.float32), net.tensors[-1].name))
    draft = OnnxDraft(net.model("y"))
    outcome = rewrite(draft, [pattern(tmp_path, "match y = x -> conv -> bn")])
    assert not draft.edited
    assert [r.code for r in outcome.refusals] == ["value"]
