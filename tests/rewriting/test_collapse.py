"""Collapse: what it folds without a pattern for the block, where it cuts, and what it says about going further."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from onnx import TensorProto, numpy_helper

from rewriter.language.library import resolve
from rewriter.rewriting.engine import Outcome, rewrite
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.rewriting.small_models import CHANNELS, SmallNet, rewritten

COLLAPSE = ("collapse",)


def ops(net: SmallNet, *outputs: str, **options: object) -> tuple[dict[str, int], Outcome]:
    """Operators after collapse alone, which has to compute the same and to be done."""
    model, outcome = rewritten(net.model(*outputs), COLLAPSE, **options)
    assert outcome.end == "fixpoint" and all(match.proof for match in outcome.matches)
    return dict(Counter(node.op_type for node in model.graph.node)), outcome


def depthwise(net: SmallNet, x: str, output: str = "", k: int = 3) -> str:
    weight = net.tensor(net.random.normal(size=(CHANNELS, 1, k, k)))
    return net.add("Conv", [x, weight], output, pads=[k // 2] * 4, group=CHANNELS)


# --- what folds ------------------------------------------------------------------------------------------------------


def test_a_block_of_branches_is_one_conv() -> None:
    net = SmallNet()
    net.norm(net.block("x"), "y")
    found, outcome = ops(net, "y")
    assert found == {"Conv": 1}
    (match,) = outcome.matches
    assert match.summary == "linear region of 4 bn, 2 conv, 2 sum"
    assert match.before is not None and match.after is not None and match.after.bytes < match.before.bytes


def test_sums_inside_branches_fold_with_them() -> None:
    net = SmallNet()
    inner = net.norm(net.block("x"))
    net.add("Add", ["x", net.add("Sub", [inner, net.norm("x")])], "y")
    assert ops(net, "y")[0] == {"Conv": 1}


def test_the_value_before_a_block_may_be_made_by_a_conv() -> None:
    """Two padded 3x3 in a row: the value between them is where the region is cut."""
    net = SmallNet()
    middle = net.norm(net.conv("x"))
    net.block(middle, "y")
    assert ops(net, "y")[0] == {"Conv": 2}


def test_of_a_sum_from_two_values_the_operands_of_one_fold() -> None:
    net = SmallNet()
    r = net.add("Relu", ["x"])
    net.add("Add", [net.block(r), net.norm(net.conv("x"))], "y")
    assert ops(net, "y")[0] == {"Relu": 1, "Conv": 2, "Add": 1}


def test_two_groups_in_one_sum_both_fold() -> None:
    net = SmallNet()
    r = net.add("Relu", ["x"])
    net.add("Add", [net.block(r), net.block("x")], "y")
    assert ops(net, "y")[0] == {"Relu": 1, "Conv": 2, "Add": 1}


def test_an_entry_that_broadcasts_stays() -> None:
    net = SmallNet()
    pooled = net.add("GlobalAveragePool", ["x"])
    net.add("Add", [net.add("Add", [net.conv("x", k=1), net.conv("x", k=1)]), pooled], "y")
    assert ops(net, "y")[0] == {"GlobalAveragePool": 1, "Conv": 1, "Add": 1}


def test_what_stays_in_a_sum_folds_by_itself() -> None:
    """x + conv(relu(conv-bn)): the inner conv and norm still become one."""
    net = SmallNet()
    inner = net.norm(net.conv(net.add("Relu", [net.norm(net.conv("x"))])))
    net.add("Add", ["x", inner], "y")
    assert ops(net, "y")[0] == {"Conv": 2, "Relu": 1, "Add": 1}


def test_every_reader_of_a_shared_value_keeps_it() -> None:
    net = SmallNet()
    c = net.conv("x")
    net.norm(c, "y")
    net.add("Relu", [c], "z")
    assert ops(net, "y", "z")[0] == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}


# --- what does not ---------------------------------------------------------------------------------------------------


def test_a_bare_scale_and_shift_stay() -> None:
    net = SmallNet()
    scaled = net.add("Mul", ["x", net.tensor(net.random.normal(size=(CHANNELS, 1, 1)))])
    net.add("Add", [scaled, net.tensor(net.random.normal(size=(CHANNELS, 1, 1)))], "y")
    found, outcome = ops(net, "y")
    assert found == {"Mul": 1, "Add": 1} and not outcome.refusals


def test_norms_alone_stay() -> None:
    net = SmallNet()
    net.add("Add", [net.norm("x"), net.norm("x")], "y")
    assert ops(net, "y")[0] == {"BatchNormalization": 2, "Add": 1}


def test_a_depthwise_conv_is_not_made_dense() -> None:
    """3x3 depthwise beside a dense 1x1: 36 + 16 weights would be 144."""
    net = SmallNet()
    net.add("Add", [depthwise(net, "x"), net.conv("x", k=1)], "y")
    found, outcome = ops(net, "y")
    assert found == {"Conv": 2, "Add": 1}
    (refusal,) = outcome.refusals
    assert refusal.code == "cost" and refusal.before is not None and refusal.after is not None
    assert (refusal.before.multiply_adds, refusal.after.multiply_adds) == (52, 144)


def test_the_depthwise_operands_of_a_sum_fold_beside_a_dense_one() -> None:
    net = SmallNet()
    pair = net.add("Add", [depthwise(net, "x"), depthwise(net, "x", k=1)])
    net.add("Add", [net.add("Add", [pair, net.norm("x")]), net.conv("x", k=1)], "y")
    found, outcome = ops(net, "y")
    assert found == {"Conv": 2, "Add": 1}
    assert [refusal.code for refusal in outcome.refusals] == ["cost"]


def test_without_the_gate_cost_is_no_reason() -> None:
    net = SmallNet()
    net.add("Add", [depthwise(net, "x"), net.conv("x", k=1)], "y")
    free = replace(resolve(["collapse"])[0], gated=False)
    model, _ = rewritten(net.model("y"), [free])
    assert [node.op_type for node in model.graph.node] == ["Conv"]


def test_nothing_folds_over_an_activation() -> None:
    net = SmallNet()
    net.conv(net.add("Relu", [net.conv("x", k=1)]), "y", k=1)
    found, outcome = ops(net, "y")
    assert found == {"Conv": 2, "Relu": 1} and not outcome.refusals


def test_what_is_computed_of_constants_and_not_evaluated_is_left_alone() -> None:
    """The product is a region without an entry: whole numbers made of an exponential may differ between runtimes."""
    net = SmallNet()
    square = net.tensor(net.random.normal(size=(CHANNELS, CHANNELS)))
    whole = net.add("Cast", [net.add("Cast", [net.add("Exp", [square])], to=TensorProto.INT64)], to=TensorProto.FLOAT)
    product = net.add("MatMul", [whole, square])
    net.add("Mul", ["x", net.add("ReduceMean", [net.add("Softsign", [product])])], "y")
    assert ops(net, "y")[0]["MatMul"] == 1


# --- together with the others ----------------------------------------------------------------------------------------


def test_together_with_other_patterns_nothing_is_lost() -> None:
    net = SmallNet()
    r = net.add("Relu", [net.norm(net.block("x"))])
    scaled = net.add("Mul", [net.block(r), net.tensor(np.array(0.5))])
    net.add("Add", [scaled, net.add("Mul", ["x", net.tensor(np.array(1.0))])], "y")
    model, _ = rewritten(net.model("y"), ["repconv", "conv-bn", "bypass", "collapse"])
    assert Counter(node.op_type for node in model.graph.node) == {"Conv": 2, "Relu": 1, "Add": 1}


def test_a_ring_that_is_known_only_at_run_time_is_named() -> None:
    """The first row of an even image, the second of an odd one."""
    net = SmallNet()
    inner = net.conv("x", k=1, bias=True)
    pads = numpy_helper.from_array(np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    net.tensors += [pads, numpy_helper.from_array(np.int64([[2]]), "two")]
    padded = net.add("Pad", [inner, "pads"])
    turned = net.add("Transpose", [padded], perm=[2, 1, 0, 3])
    row = net.add("Expand", [net.tensor(np.ones((1, CHANNELS, 1, 1))), net.add("Shape", [turned])])
    size = net.add("Slice", [net.add("Shape", [turned]), "none", "one"])
    place = net.add("Mod", [net.add("Unsqueeze", [size, "none"]), "two"])
    written = net.add("ScatterND", [turned, place, net.add("Slice", [row, "none", "one"])])
    net.tensors += [numpy_helper.from_array(np.int64([n]), name) for n, name in ((0, "none"), (1, "one"))]
    back = net.add("Transpose", [written], perm=[2, 1, 0, 3])
    net.add("Conv", [back, net.tensor(net.random.normal(size=(CHANNELS, CHANNELS, 3, 3)))], "y")
    model = net.model("y")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_param = "h"
        value.type.tensor_type.shape.dim[3].dim_param = "w"
    draft = OnnxDraft(model)
    outcome = rewrite(draft, resolve(COLLAPSE))
    assert [r.detail for r in outcome.refusals if r.code == "dynamic" and "fixed height and width" in r.detail]
    assert not outcome.matches
