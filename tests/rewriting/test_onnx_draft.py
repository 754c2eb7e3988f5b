"""What an edit must leave alone, byte for byte, and the names that it must not confuse."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, StringStringEntryProto, TensorAnnotation, TensorProto, checker, helper, numpy_helper

from rewriter.algebra.conv import round_to
from rewriter.errors import VerificationError
from rewriter.language.library import resolve
from rewriter.rewriting import onnx_draft
from rewriter.rewriting.engine import rewrite
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.rewriting.small_models import (
    SmallNet,
    copied,
    node_making,
    ops,
    rewritten,
    same,
    scalar_if,
    tensor_of,
)


def annotation(name: str, **parameters: str) -> TensorAnnotation:
    found = TensorAnnotation(tensor_name=name)
    found.quant_parameter_tensor_names.extend(StringStringEntryProto(key=k, value=v) for k, v in parameters.items())
    return found


def rich() -> ModelProto:
    """One block that folds between nodes that do not, with notes of every kind on them."""
    net = SmallNet()
    head = net.add("Relu", ["x"], "head")
    folded = net.norm(net.conv(head, "c"), "folded")
    net.add("Sigmoid", [folded], "y")
    net.add("Relu", ["x"], "dead_first")
    net.tensor([1.0, 2.0], "unread")
    net.infos += [net.value("head"), net.value("c"), net.value("folded"), net.value("never_was")]
    model = net.model("y")
    graph = model.graph
    graph.quantization_annotation.extend([annotation("head"), annotation("c"), annotation("nowhere")])
    graph.doc_string, model.doc_string, model.producer_name = "graph", "model", "someone"
    for number, node in enumerate(graph.node):
        node.doc_string = f"doc {number}"
        node.metadata_props.add(key="scope", value=f"layer{number}")
    model.metadata_props.add(key="stride", value="32")
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    function = helper.make_function(
        "com.example", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"], name="inner")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model.functions.append(function)
    checker.check_model(model)
    return model


def test_what_is_not_touched_stays_byte_for_byte() -> None:
    model = rich()
    result, _ = rewritten(model)
    old = {node.output[0]: node.SerializeToString() for node in model.graph.node}
    assert [node.output[0] for node in result.graph.node] == ["head", "folded", "y", "dead_first"]
    for name in ("head", "y", "dead_first"):
        assert node_making(result, name).SerializeToString() == old[name]
    for field in ("opset_import", "ir_version", "functions", "metadata_props", "doc_string", "producer_name"):
        assert getattr(result, field) == getattr(model, field), field
    assert (result.graph.input, result.graph.output) == (model.graph.input, model.graph.output)
    assert [info.name for info in result.graph.value_info] == ["head", "folded", "never_was"]
    assert [a.tensor_name for a in result.graph.quantization_annotation] == ["head", "nowhere"]
    assert result.graph.initializer[0].name == "unread"


def test_the_new_conv_has_the_name_docs_and_metadata_of_the_old_one() -> None:
    model = rich()
    result, _ = rewritten(model)
    old, new = node_making(model, "c"), node_making(result, "folded")
    assert (new.op_type, new.name, new.doc_string) == ("Conv", old.name, old.doc_string)
    assert new.metadata_props == old.metadata_props


def test_fields_that_this_version_does_not_know_survive() -> None:
    unknown = bytes([0xFA, 0x3E, 0x03]) + b"abc"  # field 1007, three bytes
    model = rich()
    data = model.graph.node[0].SerializeToString() + unknown
    model.graph.node[0].ParseFromString(data)
    result, _ = rewritten(model)
    assert unknown in node_making(result, "head").SerializeToString()


def test_nothing_to_do_gives_the_same_bytes() -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    model = net.model("y")
    before = model.SerializeToString(deterministic=True)
    draft = OnnxDraft(model)
    rewrite(draft, resolve(["all"]))
    assert not draft.edited and draft.finish() is model
    assert model.SerializeToString(deterministic=True) == before


def test_nodes_in_any_order_and_without_names() -> None:
    net = SmallNet()
    net.add("Sigmoid", [net.block(net.add("Relu", ["x"]))], "y")
    model = net.model("y")
    for node in model.graph.node:
        node.name = ""
    expected, _ = rewritten(model)
    turned = copied(model)
    del turned.graph.node[:]
    turned.graph.node.extend(reversed(list(model.graph.node)))
    draft = OnnxDraft(turned)
    rewrite(draft, resolve(["all"]))
    result = draft.finish()
    assert ops(result) == ops(expected) == {"Relu": 1, "Conv": 1, "Sigmoid": 1}
    assert [node.op_type for node in result.graph.node] == ["Sigmoid", "Conv", "Relu"]
    weights = [numpy_helper.to_array(next(t for t in m.graph.initializer if t.dims[2:])) for m in (result, expected)]
    assert np.array_equal(*weights)


def test_duplicate_node_names_are_no_matter() -> None:
    net = SmallNet()
    a = net.norm(net.conv("x"))
    net.norm(net.conv(net.add("Relu", [a])), "y")
    model = net.model("y")
    for node in model.graph.node:
        node.name = "twin"
    result, _ = rewritten(model)
    assert ops(result) == {"Conv": 2, "Relu": 1}


def test_fresh_names_are_new_everywhere() -> None:
    """In the graph, in bodies at any depth, in functions, in notes and in training graphs."""
    net = SmallNet()
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["w.folded_1"])], "i", [], [net.value("w.folded_1")])
    nested = helper.make_graph([scalar_if("w.folded_2", inner, inner)], "o", [], [net.value("w.folded_2")])
    net.norm(net.conv("x", weight=net.tensor(np.ones((4, 4, 3, 3)), "w")), "y")
    net.nodes.append(scalar_if("z", nested, nested))
    net.nodes.append(helper.make_node("Relu", ["x"], ["dead"], name="w.folded"))
    model = net.model("y", "z")
    model.functions.append(
        helper.make_function("f", "F", ["w.folded_3"], ["b"], [helper.make_node("Relu", ["w.folded_3"], ["b"])], [])
    )
    model.graph.quantization_annotation.append(annotation("w.folded_4", SCALE_TENSOR="w.folded_5"))
    model.training_info.add().algorithm.node.append(helper.make_node("Relu", ["w.folded_6"], ["w.folded_7"]))
    draft = OnnxDraft(copied(model))
    rewrite(draft, resolve(["conv-bn"]))
    assert node_making(draft.finish(), "y").input[1] == "w.folded_8"
    assert draft.fresh("new") == "new" and draft.fresh("new") == "new_1"


# --- bodies ----------------------------------------------------------------------------------------------------------


def branching(local: str) -> ModelProto:
    """An If whose branches read the idle `i` and have a value of their own called `local`."""
    net = SmallNet()
    relu = net.add("Relu", ["x"], "r")
    net.add("Identity", [relu], "i")

    def branch(op: str) -> object:
        nodes = [helper.make_node("Neg", ["i"], [local]), helper.make_node(op, [local, "i"], ["out"])]
        return helper.make_graph(nodes, op, [], [net.value("out")])

    net.nodes.append(scalar_if("y", branch("Add"), branch("Mul")))  # type: ignore[arg-type]
    model = net.model("y")
    return model


@pytest.mark.parametrize("local", ["own", "r"])
def test_a_bypassed_value_that_bodies_read(local: str) -> None:
    """Even where a body calls a value of its own by the name that it has to read from now on."""
    model = branching(local)
    result, _ = rewritten(model, ["bypass"])
    checker.check_model(result)
    assert ops(result) == {"Relu": 1, "If": 1}
    body = result.graph.node[-1].attribute[0].g
    read = {name for node in body.node for name in node.input}
    assert "r" in read and "i" not in read
    if local == "own":
        assert read == {"own", "r"}


def test_renames_reach_bodies_in_bodies_and_stop_where_the_name_is_their_own() -> None:
    net = SmallNet()
    net.add("Identity", [net.add("Relu", ["x"], "r")], "i")
    reads = helper.make_graph([helper.make_node("Neg", ["i"], ["deep"])], "reads", [], [net.value("deep")])
    hides = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["i"]), helper.make_node("Neg", ["i"], ["deep2"])],
        "hides", [], [net.value("deep2")],
    )  # fmt: skip
    outer = helper.make_graph([scalar_if("o", reads, hides)], "outer", [], [net.value("o")])
    net.nodes.append(scalar_if("y", outer, outer))
    model = net.model("y")
    result, _ = rewritten(model, ["bypass"])
    inner = {a.name: a.g for a in result.graph.node[-1].attribute[0].g.node[0].attribute}
    assert inner["then_branch"].node[0].input == ["r"]
    assert inner["else_branch"] == hides


def test_an_interior_value_that_a_body_reads_does_not_fold() -> None:
    net = SmallNet()
    net.norm(net.conv("x", "c"), "y")
    body = helper.make_graph([helper.make_node("Neg", ["c"], ["b"])], "b", [], [net.value("b")])
    net.nodes.append(scalar_if("z", body, body))
    model = net.model("y", "z")
    result, outcome = rewritten(model)
    assert result == model
    assert [r.code for r in outcome.refusals] == ["escape"]


# --- what is dead ----------------------------------------------------------------------------------------------------


def test_what_was_dead_before_stays_as_it_was() -> None:
    """Also where a pattern would fit it: nothing that no output needs is rewritten, or removed."""
    net = SmallNet()
    net.norm(net.conv("x"), "dead_end")
    net.add("Identity", [net.add("Relu", ["x"])], "idle_end")
    net.norm(net.conv("x"), "y")
    model = net.model("y")
    result, outcome = rewritten(model)
    assert ops(result) == {"Conv": 2, "BatchNormalization": 1, "Relu": 1, "Identity": 1}
    assert list(result.graph.node)[:4] == list(model.graph.node)[:4]
    assert [m.exit for m in outcome.matches] == ["y"]
    assert OnnxDraft(model).dead_before == tuple(n.name for n in list(model.graph.node)[:4])


def test_a_dead_node_that_reads_inside_keeps_what_it_reads() -> None:
    net = SmallNet()
    net.norm(net.conv("x", "c"), "y")
    net.add("Relu", ["c"], "dead")
    result, outcome = rewritten(net.model("y"))
    assert ops(result) == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}
    assert [r.code for r in outcome.refusals] == ["escape"]


def test_a_node_without_outputs_keeps_what_it_reads() -> None:
    """Its producer was needed by an output that goes; removing it would leave a read of nothing."""
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    net.add("Neg", ["x"], "gone")
    net.nodes.append(helper.make_node("Sink", ["gone"], [""], name="sink", domain="com.example"))
    model = net.model("y")
    model.graph.output.append(net.value("gone"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    draft = OnnxDraft(model)
    draft.apply([onnx_draft.RemoveOutput("gone")])
    assert [node.op_type for node in draft.finish().graph.node] == ["Relu", "Neg", "Sink"]


def test_tensors_that_somebody_else_needs_stay() -> None:
    """An initializer that is an input or an output, that a training graph binds, or that a living note is about."""
    net = SmallNet()
    c = net.conv("x", "c", weight=net.tensor(np.ones((4, 4, 3, 3)), "bound"), bias=True)
    shift = net.tensor(np.full((1, 4, 1, 1), 2.0), "scale_of_x")
    net.norm(net.add("Add", [c, shift]), "y")
    model = net.model("y")
    model.graph.quantization_annotation.append(annotation("x", SCALE_TENSOR="scale_of_x"))
    model.graph.quantization_annotation.append(annotation("c", SCALE_TENSOR="t1"))
    model.training_info.add().update_binding.add(key="bound", value="new_bound")
    model.graph.output.append(helper.make_tensor_value_info("t3", TensorProto.FLOAT, [4]))
    draft = OnnxDraft(model)
    rewrite(draft, resolve(["all"]))
    result = draft.finish()
    assert ops(result) == {"Conv": 1}
    assert [t.name for t in result.graph.initializer][:3] == ["bound", "scale_of_x", "t3"]
    assert len(result.graph.initializer) == 5
    assert [a.tensor_name for a in result.graph.quantization_annotation] == ["x"]


def test_a_default_of_an_input_stays_with_it() -> None:
    net = SmallNet()
    net.norm(net.conv("x", weight=net.tensor(np.ones((4, 4, 3, 3)), "w")), "y")
    model = net.model("y")
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3]))
    draft = OnnxDraft(copied(model))
    outcome = rewrite(draft, resolve(["conv-bn"]))
    assert draft.finish() == model
    assert [r.code for r in outcome.refusals] == ["value"]


def test_a_removed_output_takes_its_stored_constant_along() -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    net.tensor([1.0], "constant")
    model = net.model("y")
    model.graph.output.append(helper.make_tensor_value_info("constant", TensorProto.FLOAT, [1]))
    draft = OnnxDraft(model)
    draft.apply([onnx_draft.RemoveOutput("constant")])
    assert not draft.finish().graph.initializer


def test_sparse_weights_are_left_alone() -> None:
    net = SmallNet()
    net.add("Relu", [net.norm(net.conv("x"))], "r")
    net.add("Add", ["r", "sparse"], "y")
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("sparse.i", TensorProto.INT64, [1], [2])
    model = net.model("y", inputs=("x", "sparse"))
    del model.graph.input[1]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5]))
    draft = OnnxDraft(copied(model))
    rewrite(draft, resolve(["all"]))
    result = draft.finish()
    assert ops(result) == {"Conv": 1, "Relu": 1, "Add": 1}
    assert result.graph.sparse_initializer == model.graph.sparse_initializer


# --- bypasses --------------------------------------------------------------------------------------------------------


def test_thousands_of_idle_readers_go_in_one_round() -> None:
    net = SmallNet()
    relu = net.add("Relu", ["x"])
    net.add("Sum", [net.add("Identity", [relu]) for _ in range(3000)], "y")
    model = net.model("y")
    draft = OnnxDraft(model)
    outcome = rewrite(draft, resolve(["bypass"]), max_rounds=2)
    assert (outcome.end, outcome.rounds, len(outcome.matches)) == ("fixpoint", 2, 3000)
    assert ops(draft.finish()) == {"Relu": 1, "Sum": 1}
    assert set(model.graph.node[-1].input) == {relu}


def test_a_chain_longer_than_any_match() -> None:
    net = SmallNet()
    value = net.add("Relu", ["x"], "start")
    for number in range(1500):
        value = net.add("Identity", [value], "y" if number == 1499 else "")
    result, outcome = rewritten(net.model("y"), ["bypass"])
    assert ops(result) == {"Relu": 1} and result.graph.node[0].output == ["y"]
    assert outcome.end == "fixpoint" and outcome.rounds <= 3


def test_idle_nodes_between_folds_at_both_ends() -> None:
    net = SmallNet()
    value = net.add("Identity", ["x"])
    for _ in range(3):
        value = net.add("Identity", [net.block(net.add("Relu", [value]))])
    net.add("Identity", [value], "y")
    result, _ = rewritten(net.model("y"))
    assert ops(result) == {"Relu": 3, "Conv": 3}


def test_one_value_can_take_the_name_of_one_output_only() -> None:
    net = SmallNet()
    relu = net.add("Relu", ["x"])
    for name in ("y", "z"):
        net.add("Identity", [relu], name)
    result, outcome = rewritten(net.model("y", "z"), ["bypass"])
    assert ops(result) == {"Relu": 1, "Identity": 1}
    assert [r.code for r in outcome.refusals] == ["escape"]


@pytest.mark.parametrize("kept", ["input", "output", "constant"])
def test_from_the_interface_to_an_output(kept: str) -> None:
    net = SmallNet()
    entry = {"input": "x", "output": net.add("Relu", ["x"], "z"), "constant": net.tensor(np.ones(net.shape))}[kept]
    net.add("Identity", [entry], "y")
    model = net.model("y", "z")
    result, outcome = rewritten(model, ["bypass"])
    assert result == model
    assert [r.code for r in outcome.refusals] == ["escape"]


# --- storing ---------------------------------------------------------------------------------------------------------


def test_before_ir_4_new_tensors_are_nodes() -> None:
    """There a stored tensor has to be an input as well, which would make it overridable and change the interface."""
    net = SmallNet()
    net.norm(net.conv("x"), "y")
    model = net.model("y", ir_version=4)
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    model.ir_version = 3
    checker.check_model(model)
    result, _ = rewritten(model)
    assert ops(result) == {"Constant": 2, "Conv": 1}
    assert result.graph.input == model.graph.input and not result.graph.initializer


def test_the_default_domain_keeps_the_name_that_the_model_imports() -> None:
    net = SmallNet()
    net.norm(net.conv("x"), "y")
    model = net.model("y")
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    draft = OnnxDraft(model)
    rewrite(draft, resolve(["conv-bn"]))
    result = draft.finish()
    assert [node.domain for node in result.graph.node] == ["ai.onnx"]


def test_a_stored_tensor_that_is_not_the_proved_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    net = SmallNet()
    net.norm(net.conv("x"), "y")
    draft = OnnxDraft(net.model("y"))
    rewrite(draft, resolve(["conv-bn"]))
    monkeypatch.setattr(onnx_draft, "round_to", lambda values, dtype: round_to(values * (1 + 1e-6), dtype))
    with pytest.raises(VerificationError, match="not the proved one"):
        draft.finish()


def test_finishing_twice_stores_once() -> None:
    net = SmallNet()
    net.norm(net.conv("x"), "y")
    draft = OnnxDraft(net.model("y"))
    rewrite(draft, resolve(["conv-bn"]))
    assert draft.finish() is draft.finish()
    assert len(draft.model.graph.initializer) == 2
    checker.check_model(draft.model)


# --- renaming the interface ------------------------------------------------------------------------------------------


def test_names_of_the_interface_change_places() -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    net.add("Neg", ["y"], "z")
    model = net.model("y", "z")
    draft = OnnxDraft(copied(model))
    names = {"y": "z", "z": "y", "x": "image"}
    assert draft.rename_interface(names) is None
    result = draft.finish()
    assert [v.name for v in (*result.graph.input, *result.graph.output)] == ["image", "z", "y"]
    same(model, result, names)


def test_a_new_name_that_a_body_has_already() -> None:
    model = branching("image")
    draft = OnnxDraft(copied(model))
    assert draft.rename_interface({"x": "image"}) == "image"
    assert draft.finish() == model and not draft.edited


def test_a_renamed_input_is_followed_into_bodies_tensors_and_notes() -> None:
    net = SmallNet()
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "b", [], [net.value("b")])
    net.nodes.append(scalar_if("y", body, body))
    net.infos.append(net.value("x"))
    net.tensor(np.ones(net.shape), "x")
    model = net.model("y")
    model.graph.quantization_annotation.append(annotation("x"))
    draft = OnnxDraft(copied(model))
    assert draft.rename_interface({"x": "image"}) is None
    result = draft.finish()
    assert b"\x01x" not in result.SerializeToString()
    assert result.graph.initializer[0].name == result.graph.input[0].name == "image"
    assert result.graph.node[0].attribute[0].g.node[0].input == ["image"]
    checker.check_model(result)


def test_an_output_that_is_an_input() -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    model = net.model("y", "x")
    draft = OnnxDraft(copied(model))
    draft.rename_interface({"x": "both"})
    result = draft.finish()
    assert [v.name for v in (*result.graph.input, *result.graph.output)] == ["both", "y", "both"]
    same(model, result, {"x": "both"})


def test_the_name_of_a_removed_output_is_free() -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "output0")
    net.add("Neg", ["x"], "y")
    net.infos.append(net.value("output0"))
    model = net.model("output0", "y")
    draft = OnnxDraft(copied(model))
    draft.apply([onnx_draft.RemoveOutput("output0")])
    assert draft.rename_interface({"y": "output0"}) is None
    result = draft.finish()
    assert not result.graph.value_info and [o.name for o in result.graph.output] == ["output0"]
    assert ops(result) == {"Neg": 1}


# --- size ------------------------------------------------------------------------------------------------------------


def test_thousands_of_bypasses_go_in_one_run() -> None:
    blocks = 2_000
    net = SmallNet()
    value, weight = "x", net.tensor(np.ones((4, 4, 1, 1)), "w")
    for _ in range(blocks):
        value = net.norm(net.conv(value, k=1, weight=weight))
        value = net.add("Identity", [net.add("Neg", [net.add("Relu", [value])])])
    net.add("Relu", [value], "y")
    draft = OnnxDraft(net.model("y"))
    rewrite(draft, resolve(["bypass"]))
    result = draft.finish()
    assert ops(result)["Neg"] == blocks and "Identity" not in ops(result)


def test_weights_of_two_folds_that_share_one() -> None:
    """The shared one stays for whoever reads it still, and each fold has one of its own."""
    net = SmallNet()
    shared = net.tensor(np.ones((4, 4, 1, 1)), "shared")
    a = net.norm(net.conv("x", k=1, weight=shared))
    b = net.norm(net.conv(net.add("Relu", [a]), k=1, weight=shared))
    net.conv(net.add("Relu", [b]), "y", k=1, weight=shared)
    result, _ = rewritten(net.model("y"))
    assert ops(result) == {"Conv": 3, "Relu": 2}
    read = [node.input[1] for node in result.graph.node if node.op_type == "Conv"]
    assert read == ["shared.folded", "shared.folded_1", "shared"]
    assert np.array_equal(tensor_of(result, "shared"), np.ones((4, 4, 1, 1)))
