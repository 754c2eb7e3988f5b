"""Outputs that hold numbers of unlike size: each index of an axis is judged beside the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rewriter.checking import OutputCheck, Verdict, compare, perturb, trial
from rewriter.checking.compare import Measured, difference
from rewriter.checking.engines import OnnxRuntime
from rewriter.checking.net import Net, unpack
from rewriter.checking.pack import pack
from rewriter.checking.wire import dtype_of
from tests.checking import nets

UNIT = 2.0**-24


def as_net(model: onnx.ModelProto) -> Net:
    packed = pack(model, None, "test")
    return unpack(
        packed.proto,
        {b.name: np.frombuffer(b.read(), dtype_of(b.elem_type)).reshape(b.dims) for b in packed.weights},
    )


def judged(before: onnx.ModelProto, after: onnx.ModelProto, tolerance: float | None = None) -> OutputCheck:
    """As the child does it, without the child."""
    request = trial.Request({"y": "y"}, {}, {}, tolerance)
    (check,) = trial.run(OnnxRuntime(), request, as_net(before), as_net(after), lambda text: None).outputs
    return check


def detector(layout: str = "plain") -> onnx.ModelProto:
    """Four boxes of 500 pixels and twelve scores, joined; `layout` hides how."""
    rng = np.random.default_rng(0)
    stored: dict[str, Any] = {"to_pixels": np.float32(500), "flat": np.array([0, 0, -1], np.int64)}
    nodes: list[onnx.NodeProto] = []
    last = "x"
    for at, (wide, name) in enumerate([(16, "a"), (16, "b")]):
        stored[f"w{at}"] = rng.normal(0, (2 / (9 * (3, 16)[at])) ** 0.5, (wide, (3, 16)[at], 3, 3)).astype(np.float32)
        nodes += [nets.node("Conv", [last, f"w{at}"], f"c{at}", pads=[1] * 4), nets.node("Relu", [f"c{at}"], name)]
        last = name
    for name, wide in (("box", 4), ("cls", 12)):
        stored[f"w_{name}"] = rng.normal(0, 0.1, (wide, 16, 1, 1)).astype(np.float32)
        nodes.append(nets.node("Conv", [last, f"w_{name}"], f"{name}_raw"))
        nodes.append(nets.node("Sigmoid", [f"{name}_raw"], name))
    nodes.append(nets.node("Mul", ["box", "to_pixels"], "pixels"))
    nodes.append(nets.node("Concat", ["pixels", "cls"], "joined", axis=1))
    nodes.append(nets.node("Reshape", ["joined", "flat"], "rows"))
    last = nets.node("Transpose", ["rows"], "y", perm=[0, 2, 1])
    nodes.append(last if layout == "transposed" else nets.node("Identity", ["rows"], "y"))
    return nets.model(nodes, [nets.value("x", [1, 3, 20, 24])], [nets.value("y")], stored)


def scaled(net: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    return nets.with_weight(net, name, (nets.weight(net, name) * factor).astype(np.float32))


@pytest.mark.parametrize(("layout", "axis"), [("plain", 1), ("transposed", 2)])
def test_scores_beside_pixels_are_judged_by_their_own_size(layout: str, axis: int) -> None:
    net = detector(layout)
    check = judged(net, scaled(net, "w_cls", 1 + 1e-4))
    assert check.verdict is Verdict.FAILED
    assert f"of axis {axis}; 12 of 16 fail, 4 to 15" in check.note
    assert check.scale < 1
    assert check.error > check.tolerance > 4 * check.own_error
    check = judged(net, scaled(net, "w_box", 1 + 1e-4))
    assert (check.verdict, check.note) == (Verdict.FAILED, "")
    assert check.scale > 100


def test_a_right_rewrite_shows_the_figures_of_the_whole_and_the_closest_index() -> None:
    """Scaling a weight by a power of two and back is exact; by 3 it rounds."""
    net = detector()
    after = scaled(net, "w1", 3.0)
    for name in ("w_box", "w_cls"):
        after = scaled(after, name, 1 / 3)
    check = judged(net, after)
    assert check.verdict is Verdict.OK
    assert check.scale > 100
    assert "closest to its own limit: index " in check.note


def test_a_tolerance_of_the_users_is_of_the_whole() -> None:
    net = detector()
    check = judged(net, scaled(net, "w_cls", 1 + 1e-4), tolerance=1.0)
    assert (check.verdict, check.tolerance, check.note) == (Verdict.OK, 1.0, "")


def test_a_model_that_rounds_inside_is_known() -> None:
    net = detector()
    assert not perturb.coarse(as_net(net), UNIT)
    net.graph.node[-1].output[0] = "t"
    net.graph.node.append(nets.node("Cast", ["t"], "half", to=TensorProto.FLOAT16))
    net.graph.node.append(helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT))
    assert perturb.coarse(as_net(net), UNIT)
    assert not perturb.coarse(as_net(net), 2.0**-11)


def measured(before: np.ndarray, after: np.ndarray, own: np.ndarray) -> Measured:
    return Measured("test", difference(before, after, True), own, UNIT, True)


def test_axes_of_kinds_are_split_and_axes_of_positions_are_not() -> None:
    axes = {
        (1, 84, 2100): ((1, 84),),
        (1, 2100, 84): ((2, 84),),
        (2100, 6): ((1, 6),),
        (1, 21, 64, 64): ((1, 21), (3, 64)),
        (1, 1000): (),
        (1, 1000, 1, 1): (),
        (1, 5, 12): (),
        (500,): (),
        (): (),
        (0, 3): (),
    }
    for shape, expected in axes.items():
        assert difference(np.zeros(shape, np.float32), np.zeros(shape, np.float32), True).axes == expected, shape


def test_an_index_is_judged_with_the_own_error_of_its_like() -> None:
    before = np.ones((1, 8, 100), np.float32)
    after = before.copy()
    after[0, 2, 50] += 2e-5
    own = np.array([1e-3, 1e-5, 1e-5, 2e-6, 1e-5, 1e-5, 1e-3, 1e-3, 1e-3])
    assert compare.passes(measured(before, after, own), None)  # the like of index 2 reach 1e-5
    own[1:3] = own[4:6] = 2e-6
    check = compare.judge("y", "y", [measured(before, after, own)], None, "")
    assert (check.verdict, check.note) == (Verdict.FAILED, "index 2 of axis 1")


def test_a_nearly_empty_index_is_not_held_to_nothing() -> None:
    before = np.ones((1, 8, 100), np.float32)
    before[0, 3] = 0
    after = before.copy()
    after[0, 3, 7] = 1e-9
    own = np.array([1e-6, *[1e-6] * 3, 1e-12, *[1e-6] * 4])
    assert compare.passes(measured(before, after, own), None)
    after[0, 3, 7] = 1e-6
    own[4] = 0
    assert compare.passes(measured(before, after, own), None)  # 0 is not known, and counts as that of the others
    own[4] = 1e-12
    assert not compare.passes(measured(before, after, own), None)


def test_an_index_that_rounding_rules_is_inconclusive_and_never_hides_another() -> None:
    before = np.ones((1, 8, 100), np.float32)
    before[0, 3] = 1e-4
    own = np.array([1e-3, *[1e-3] * 3, 1e-5, *[1e-3] * 4])
    after = before.copy()
    after[0, 3, 0] += 1e-4
    check = compare.judge("y", "y", [measured(before, after, own)], None, "")
    assert check.verdict is Verdict.INCONCLUSIVE
    assert "over 1 %" in check.note
    own[5] = 1e-5
    after[0, 4, 0] += 1e-4
    assert compare.judge("y", "y", [measured(before, after, own)], None, "").note == "index 4 of axis 1"


def test_infinities_that_rounding_moves_are_inconclusive() -> None:
    before, after = np.ones(4, np.float32), np.array([1, 1, np.inf, 1], np.float32)
    sets = [measured(before, after, np.array([np.inf]))]
    assert compare.judge("y", "y", sets, None, "").verdict is Verdict.INCONCLUSIVE
    sets = [measured(before, after, np.array([1e-6]))]
    assert compare.judge("y", "y", sets, None, "").verdict is Verdict.FAILED


def test_what_fails_narrowly_is_looked_at_with_more_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs may be lucky; what is far off is not given more, and more runs end when they explain it."""
    seeds: list[int] = []
    measure = trial.measure_own

    def counted(
        of: trial.Trial, sets: Sequence[trial.Ran], names: Any = None, asked: Sequence[int] = (1, 2, 3)
    ) -> None:
        seeds.extend(asked)
        measure(of, sets, names, asked)
        for key in of.own:
            of.own[key] = of.own[key] * (0.01 if 5 not in seeds else 100)

    monkeypatch.setattr(trial, "measure_own", counted)
    net = nets.convs()
    assert judged(net, nets.nudged(net, "w1", 1e-5)).verdict is Verdict.OK
    assert seeds[-2:] == [4, 5]
    seeds.clear()
    assert judged(net, nets.nudged(net, "w1", 1e-1)).verdict is Verdict.FAILED
    assert max(seeds) == 3
