"""Outputs that a choice decides, and models that differ from themselves."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from rewriter.checking import OutputCheck, Verdict, Verification, verify
from tests.checking import nets


def by_name(result: Verification) -> dict[str, OutputCheck]:
    return {check.name: check for check in result.outputs}


def scored(kind: str, last: np.ndarray | None = None, classes: int = 256) -> onnx.ModelProto:
    """Scores from a conv, then a choice among them: `topk` or `argmax`."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((classes, 16, 1, 1)).astype(np.float32) if last is None else last
    nodes = [nets.node("Conv", ["x", "w"], "scores"), nets.node("Flatten", ["scores"], "flat")]
    outputs = [nets.value("index", None, TensorProto.INT64)]
    stored = {"w": w, "k": np.array([20], np.int64)}
    if kind == "topk":
        nodes.append(helper.make_node("TopK", ["flat", "k"], ["best", "index"], "/topk"))
        outputs.append(nets.value("best"))
    else:
        nodes.append(nets.node("ArgMax", ["scores"], "index", axis=1))
    return nets.model(nodes, [nets.value("x", [1, 16, 12, 12])], outputs, stored)


def tied(scale: float) -> np.ndarray:
    """Weights in which every row stands twice, the second times `scale`: all ties, decided by the last bit."""
    rows = np.random.default_rng(0).standard_normal((128, 16, 1, 1)).astype(np.float32)
    return np.concatenate([rows, rows * np.float32(scale)])


def test_a_tie_that_falls_the_other_way_is_explained() -> None:
    before, after = scored("argmax", tied(1 + 1e-7)), scored("argmax", tied(1 - 1e-7))
    result = verify(before, after)
    checks = by_name(result)
    assert result.verdict is Verdict.OK, result.reason
    assert "elements differ" in checks["index"].note
    assert checks["scores"].note == "compared before the choice that follows"
    assert checks["scores"].error > 0


def test_topk_over_ties_is_explained_and_a_wrong_score_is_not() -> None:
    before = scored("topk", tied(1 + 1e-7))
    assert verify(before, scored("topk", tied(1 - 1e-7))).verdict is Verdict.OK
    result = verify(before, scored("topk", tied(1 + 1e-3)))
    assert by_name(result)["flat"].verdict is Verdict.FAILED
    assert result.verdict is Verdict.FAILED


def test_a_wrong_choice_over_right_scores_fails() -> None:
    before, after = scored("argmax"), scored("argmax")
    after.graph.node[-1].CopyFrom(nets.node("ArgMin", ["scores"], "index", axis=1))
    result = verify(before, after)
    checks = by_name(result)
    assert checks["scores"].verdict is Verdict.OK
    assert checks["index"].verdict is Verdict.FAILED
    assert "elements differ" in checks["index"].note


def test_a_choice_whose_scores_the_other_model_lacks_is_inconclusive() -> None:
    before, after = scored("argmax", tied(1 + 1e-7)), scored("argmax", tied(1 - 1e-7))
    after.graph.node[0].output[0] = "renamed"
    for node in after.graph.node[1:]:
        node.input[0] = "renamed"
    result = verify(before, after)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "'scores' is not in the other model" in result.reason


def test_equal_choices_need_no_explanation() -> None:
    result = verify(scored("argmax"), scored("argmax"))
    assert result.verdict is Verdict.OK
    assert by_name(result)["index"].error == 0


def test_boxes_after_nms_are_compared_as_chosen() -> None:
    """Boxes and scores from weights, suppressed, then gathered: the usual end of a detector."""
    rng = np.random.default_rng(2)
    nodes = [
        nets.node("MatMul", ["x", "wb"], "raw"),
        nets.node("Sigmoid", ["raw"], "boxes"),
        nets.node("MatMul", ["x", "ws"], "logits"),
        nets.node("Sigmoid", ["logits"], "s"),
        nets.node("Transpose", ["s"], "scores", perm=[0, 2, 1]),
        nets.node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "low"], "picked"),
        nets.node("Gather", ["picked", "two"], "which", axis=1),
        nets.node("Gather", ["boxes", "which"], "kept", axis=1),
    ]
    stored = {
        "wb": rng.standard_normal((8, 4)).astype(np.float32),
        "ws": rng.standard_normal((8, 2)).astype(np.float32),
        "most": np.array([10], np.int64),
        "iou": np.array([0.5], np.float32),
        "low": np.array([0.5], np.float32),
        "two": np.array(2, np.int64),
    }
    net = nets.model(nodes, [nets.value("x", [1, 40, 8])], [nets.value("kept")], stored)
    assert verify(net, net).verdict is Verdict.OK
    wrong = nets.nudged(net, "ws", 1e-3)
    assert verify(net, wrong).verdict is Verdict.FAILED


def test_sizes_computed_with_floor_are_no_choice() -> None:
    nodes = [
        nets.node("Shape", ["x"], "dims"),
        nets.node("Cast", ["dims"], "f", to=TensorProto.FLOAT),
        nets.node("Floor", ["f"], "g"),
        nets.node("Cast", ["g"], "sizes", to=TensorProto.INT64),
        nets.node("Resize", ["x", "", "", "sizes"], "y", mode="nearest"),
    ]
    net = nets.model(nodes, [nets.value("x", [1, 1, 8, 8])], [nets.value("y")])
    result = verify(net, net)
    assert [check.name for check in result.outputs] == ["y"]
    assert result.verdict is Verdict.OK


def test_a_random_model_is_not_verified_and_its_other_outputs_are() -> None:
    net = nets.convs()
    net.graph.node.append(helper.make_node("RandomNormalLike", ["y"], ["noise"], "/noise"))
    net.graph.node.append(nets.node("Add", ["y", "noise"], "z"))
    net.graph.output.append(nets.value("z"))
    result = verify(net, net)
    checks = by_name(result)
    assert result.verdict is Verdict.NOT_VERIFIED
    assert (checks["y"].verdict, checks["z"].verdict) == (Verdict.OK, Verdict.NOT_VERIFIED)
    assert "random ops" in result.reason
    assert "RandomNormalLike '/noise'" in result.reason
    assert verify(net, nets.nudged(net, "w0", 1e-2)).verdict is Verdict.FAILED
