"""The verdicts: what is called equal, what is not, and what cannot be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.checking import Verdict, Verification, verify
from rewriter.errors import InputError, UsageError
from tests.checking import nets

FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16


def only(result: Verification) -> object:
    (check,) = result.outputs
    return check


def test_a_model_equals_itself_and_is_not_changed() -> None:
    net = nets.convs()
    before = net.SerializeToString()
    result = verify(net, net)
    assert (result.verdict, result.reason) == (Verdict.OK, "")
    assert result.outputs[0].error == 0 < result.outputs[0].own_error < 1e-5
    assert result.engine.startswith("onnxruntime ")
    assert [label.split()[0] for label in result.inputs] == ["gaussian", "zeros", "ones", "impulse"]
    assert result.peak_bytes > 1 << 20
    assert net.SerializeToString() == before


def test_a_changed_weight_fails_and_says_where() -> None:
    net = nets.convs()
    result = verify(net, nets.nudged(net, "w1", 1e-3))
    assert result.verdict is Verdict.FAILED
    check = result.outputs[0]
    assert check.error > check.tolerance > 0
    assert "'y' differs by" in result.reason
    assert check.inputs in result.reason


def test_one_weight_wrong_by_one_part_in_ten_thousand_is_caught() -> None:
    net = nets.convs((3, 32, 64, 64, 32), (1, 3, 32, 48))
    for name in ("w0", "w1", "w2", "w3"):
        assert verify(net, nets.nudged(net, name, 1e-4)).verdict is Verdict.FAILED, name


def conv_bn(seed: int = 3) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Three times conv, batch norm and ReLU, and the same folded by hand in float64."""
    rng = np.random.default_rng(seed)
    stored: dict[str, np.ndarray] = {}
    folded: dict[str, np.ndarray] = {}
    nodes, after = [], []
    last = "x"
    for at, (inner, outer) in enumerate([(3, 24), (24, 24), (24, 12)]):
        w = (rng.standard_normal((outer, inner, 3, 3)) * (2 / (9 * inner)) ** 0.5).astype(np.float32)
        scale, shift, mean = (rng.normal(m, 0.2, outer).astype(np.float32) for m in (1, 0, 0))
        var = rng.uniform(0.8, 1.2, outer).astype(np.float32)
        names = [f"s{at}", f"h{at}", f"m{at}", f"v{at}"]
        stored |= {f"w{at}": w, **dict(zip(names, (scale, shift, mean, var), strict=True))}
        factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + 1e-5)
        folded[f"k{at}"] = (w * factor[:, None, None, None]).astype(np.float32)
        folded[f"b{at}"] = (shift - mean * factor).astype(np.float32)
        nodes.append(nets.node("Conv", [last, f"w{at}"], f"c{at}", pads=[1] * 4))
        nodes.append(nets.node("BatchNormalization", [f"c{at}", *names], f"n{at}", epsilon=1e-5))
        after.append(nets.node("Conv", [last, f"k{at}", f"b{at}"], f"n{at}", pads=[1] * 4))
        last = f"a{at}" if at < 2 else "y"
        for graph in (nodes, after):
            graph.append(nets.node("Relu" if at < 2 else "Identity", [f"n{at}"], last))
    x, y = [nets.value("x", ["n", 3, "h", "w"])], [nets.value("y")]
    return nets.model(nodes, x, y, stored), nets.model(after, x, y, folded)


def test_a_right_fold_passes_and_a_slightly_wrong_one_fails() -> None:
    before, after = conv_bn()
    result = verify(before, after)
    assert result.verdict is Verdict.OK, result.reason
    assert result.outputs[0].error > 0
    assert verify(before, nets.nudged(after, "k1", 1e-4)).verdict is Verdict.FAILED


def test_a_border_only_error_is_caught() -> None:
    """A pointwise conv with bias in front of a padded 3x3, folded as if there were no border."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 0.3, (8, 8, 1, 1)), rng.normal(0, 0.1, (8, 8, 3, 3))
    bias = np.full(8, 1e-3)
    stored = {"w": first, "b": bias, "k": second}
    nodes = [nets.node("Conv", ["x", "w", "b"], "c"), nets.node("Conv", ["c", "k"], "y", pads=[1] * 4)]
    kernel = np.einsum("omhw,mi->oihw", second, first[:, :, 0, 0])
    wrong = {"k": kernel, "b": np.einsum("omhw,m->o", second, bias)}
    x, y = [nets.value("x", [1, 8, 64, 64])], [nets.value("y")]
    before = nets.model(nodes, x, y, {name: array.astype(np.float32) for name, array in stored.items()})
    folded = [nets.node("Conv", ["x", "k", "b"], "y", pads=[1] * 4)]
    after = nets.model(folded, x, y, {name: array.astype(np.float32) for name, array in wrong.items()})
    assert verify(before, after).verdict is Verdict.FAILED


def test_another_order_of_float_operations_passes() -> None:
    rng = np.random.default_rng(1)
    stored = {name: rng.standard_normal((1, 64, 1, 1)).astype(np.float32) for name in "abc"}
    x, y = [nets.value("x", [1, 64, 8, 8])], [nets.value("y")]
    one = [nets.node("Add", ["x", "a"], "p"), nets.node("Add", ["p", "b"], "q"), nets.node("Add", ["q", "c"], "y")]
    two = [nets.node("Add", ["b", "c"], "p"), nets.node("Add", ["a", "p"], "q"), nets.node("Add", ["q", "x"], "y")]
    result = verify(nets.model(one, x, y, stored), nets.model(two, x, y, stored))
    assert result.verdict is Verdict.OK
    assert result.outputs[0].error > 0


def test_nan_at_the_same_places_passes_and_elsewhere_fails() -> None:
    x, y = [nets.value("x", [1, 8])], [nets.value("y")]
    log = nets.model([nets.node("Log", ["x"], "y")], x, y)
    same = nets.model([nets.node("Identity", ["x"], "t"), nets.node("Log", ["t"], "y")], x, y)
    clean = nets.model([nets.node("Abs", ["x"], "t"), nets.node("Log", ["t"], "y")], x, y)
    assert verify(log, same).verdict is Verdict.OK
    result = verify(log, clean)
    assert result.verdict is Verdict.FAILED
    assert "NaN or infinity" in result.reason


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([nets.node("Flatten", ["x"], "y")], "shape 1x12 where the original has 1x3x4"),
        ([nets.node("Cast", ["x"], "y", to=TensorProto.DOUBLE)], "type float64 where the original has float32"),
    ],
)
def test_another_shape_or_type_fails(nodes: list[onnx.NodeProto], says: str) -> None:
    x = [nets.value("x", [1, 3, 4])]
    before = nets.model([nets.node("Identity", ["x"], "y")], x, [nets.value("y")])
    kind = TensorProto.DOUBLE if nodes[0].op_type == "Cast" else TensorProto.FLOAT
    result = verify(before, nets.model(nodes, x, [nets.value("y", None, kind)]))
    assert result.verdict is Verdict.FAILED
    assert says in result.reason


def test_a_model_that_fails_where_the_original_runs_fails() -> None:
    x, y = [nets.value("x", ["n", 3, "h", "w"])], [nets.value("y")]
    before = nets.model([nets.node("Identity", ["x"], "y")], x, y)
    shape = {"s": np.array([1, 3, -1], np.int64)}
    after = nets.model(
        [nets.node("Reshape", ["x", "s"], "t"), nets.node("Reshape", ["t", "s2"], "y")],
        x,
        y,
        {**shape, "s2": np.array([1, 3, 7, 5], np.int64)},
    )
    result = verify(before, after)
    assert result.verdict is Verdict.FAILED
    assert "where the original runs" in result.reason


def test_a_new_input_fails() -> None:
    before = nets.model([nets.node("Identity", ["x"], "y")], [nets.value("x", [4])], [nets.value("y")])
    after = nets.model(
        [nets.node("Add", ["x", "z"], "y")], [nets.value("x", [4]), nets.value("z", [4])], [nets.value("y")]
    )
    result = verify(before, after)
    assert result.verdict is Verdict.FAILED
    assert "input that the original has not: z" in result.reason


def test_an_ill_conditioned_original_is_inconclusive() -> None:
    """A difference of two nearly equal convs, blown up: rounding alone changes it by more than it is."""
    w = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    nodes = [
        nets.node("Conv", ["x", "w"], "a"),
        nets.node("Conv", ["x", "v"], "b"),
        nets.node("Sub", ["a", "b"], "y"),
    ]
    x, y = [nets.value("x", [1, 8, 8, 8])], [nets.value("y")]
    before = nets.model(nodes, x, y, {"w": w, "v": w * np.float32(1 + 2e-7)})
    single = [nets.node("Conv", ["x", "d"], "y")]
    after = nets.model(single, x, y, {"d": (w * np.float32(1 + 2e-7)) * np.float32(0)})
    result = verify(before, after)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "weights are off by one rounding" in result.reason


def test_a_tolerance_of_the_users_is_absolute() -> None:
    net = nets.convs()
    off = nets.nudged(net, "w2", 1e-3)
    error = verify(net, off, tolerance=1.0).outputs[0].error
    assert verify(net, off, tolerance=error * 1.01).verdict is Verdict.OK
    assert verify(net, off, tolerance=error * 0.99).verdict is Verdict.FAILED
    with pytest.raises(UsageError, match="tolerance"):
        verify(net, net, tolerance=float("nan"))


def two_heads() -> onnx.ModelProto:
    net = nets.convs()
    net.graph.node.append(nets.node("Sigmoid", ["r0"], "aux"))
    net.graph.output.append(nets.value("aux"))
    return net


def test_outputs_are_paired_and_only_what_they_need_is_run() -> None:
    before = two_heads()
    before.graph.node.append(nets.node("Broken", ["r0"], "broken", domain="nowhere"))
    before.graph.output.append(nets.value("broken"))
    before.opset_import.append(helper.make_opsetid("nowhere", 1))
    after = nets.convs()
    after.graph.node[-1].output[0] = "main"
    after.graph.output[0].name = "main"
    result = verify(before, after, outputs={"y": "main"})
    assert result.verdict is Verdict.OK
    assert (result.outputs[0].name, result.outputs[0].renamed) == ("y", "main")
    assert "2 nodes of the original that the compared outputs do not need were not run" in result.notes


def test_names_in_common_are_the_default_and_the_rest_is_said() -> None:
    result = verify(two_heads(), nets.convs())
    assert [check.name for check in result.outputs] == ["y"]
    assert "outputs of the original that were not compared: aux" in result.notes
    for pairs, says in [({"z": "y"}, "no output 'z'"), ({"y": "z"}, "no output 'z'"), ({}, "no outputs")]:
        with pytest.raises(UsageError, match=says):
            verify(two_heads(), nets.convs(), outputs=pairs)
    renamed = nets.convs()
    renamed.graph.output[0].name = "r0"
    with pytest.raises(UsageError, match="no output has the same name"):
        verify(nets.convs(), renamed)


def test_float16_runs_and_judges_by_its_own_roundoff() -> None:
    net = nets.convs(dtype=np.float16)
    result = verify(net, net)
    assert result.verdict is Verdict.OK
    assert result.outputs[0].tolerance > 8 * 2**-11 * result.outputs[0].scale
    assert verify(net, nets.nudged(net, "w0", 0.5)).verdict is Verdict.FAILED


def test_bfloat16_runs() -> None:
    import ml_dtypes

    net = nets.convs(dtype=ml_dtypes.bfloat16, opset=22)
    result = verify(net, net)
    assert result.verdict is Verdict.OK, result.reason
    assert "reference" in result.engine or "run as float32" in result.engine


@pytest.mark.slow
def test_a_large_bfloat16_model_runs_as_float32() -> None:
    import ml_dtypes

    large = nets.convs((3, 64, 64), (1, 3, 160, 160), dtype=ml_dtypes.bfloat16, opset=22)
    result = verify(large, large)
    assert result.verdict is Verdict.OK, result.reason
    assert result.engine.endswith("bfloat16 and float64 run as float32")
    result = verify(large, nets.nudged(large, "w1", 4.0))
    assert result.verdict is Verdict.FAILED


def test_float64_runs_in_full_by_the_reference_where_it_is_small() -> None:
    net = nets.convs(dtype=np.float64)
    result = verify(net, nets.nudged(net, "w0", 1e-11))
    assert result.verdict is Verdict.FAILED
    assert "reference evaluator" in result.engine
    assert verify(net, net).verdict is Verdict.OK


def test_a_newer_ir_version_is_lowered_on_the_copy() -> None:
    net = nets.convs(ir=14)
    result = verify(net, net)
    assert (result.verdict, net.ir_version) == (Verdict.OK, 14)
    assert result.engine.startswith("onnxruntime")


def test_a_too_new_opset_goes_to_the_reference_within_its_budget() -> None:
    net = nets.convs(opset=onnx.defs.onnx_opset_version())
    result = verify(net, net)
    assert result.verdict is Verdict.OK, result.reason
    large = nets.convs((3, 64, 64), (1, 3, 160, 160), opset=onnx.defs.onnx_opset_version())
    result = verify(large, large)
    if "reference" not in result.engine and result.verdict is Verdict.OK:
        pytest.skip("the installed runtime knows the newest opset of the installed onnx")
    assert result.verdict is Verdict.NOT_VERIFIED
    assert "multiply-adds are more than" in result.reason
    assert "--no-verify" in result.reason


def test_a_custom_operator_is_not_verified() -> None:
    x, y = [nets.value("x", [4])], [nets.value("y", [4])]
    net = nets.model([nets.node("Magic", ["x"], "y", domain="acme")], x, y, domains=["acme"])
    result = verify(net, net)
    assert result.verdict is Verdict.NOT_VERIFIED
    assert "Magic" in result.reason
    assert "--no-verify" in result.reason


def test_external_data_is_read_by_us_from_the_folder(tmp_path: Path) -> None:
    net = nets.convs()
    onnx.save(net, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    loaded = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert verify(loaded, nets.convs(), before_folder=tmp_path).verdict is Verdict.OK
    off = nets.nudged(nets.convs(), "w0", 1e-3)
    assert verify(off, loaded, after_folder=tmp_path).verdict is Verdict.FAILED
    with pytest.raises(InputError, match="folder is not known"):
        verify(loaded, net)


@pytest.mark.parametrize(
    ("key", "entry", "says"),
    [
        ("location", "../secret", "outside the model's folder"),
        ("location", "missing", "No such file"),
        ("offset", "999999", "past the end"),
        ("length", "12", "its dims say"),
        ("offset", "x", "unreadable"),
    ],
)
def test_external_data_that_leads_elsewhere_is_refused(tmp_path: Path, key: str, entry: str, says: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(nets.convs(), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    loaded = onnx.load(folder / "m.onnx", load_external_data=False)
    for pair in loaded.graph.initializer[0].external_data:
        if pair.key == key:
            pair.value = entry
    with pytest.raises(InputError, match=says):
        verify(loaded, nets.convs(), before_folder=folder)


def test_a_constant_in_a_body_may_lie_in_a_file_too(tmp_path: Path) -> None:
    """Tensors of nodes and bodies never keep a location: the engine would look for it in the working folder."""
    array = np.arange(6, dtype=np.float32)
    (tmp_path / "c.data").write_bytes(array.tobytes())
    tensor = numpy_helper.from_array(array, "t")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="c.data")
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    body = helper.make_graph([constant, nets.node("Add", ["x", "k"], "b")], "body", [], [nets.value("b", [6])])
    nodes = [nets.node("If", ["yes"], "y", then_branch=body, else_branch=body)]
    net = nets.model(nodes, [nets.value("x", [6])], [nets.value("y")], {"yes": np.array(True)})
    plain = nets.model([nets.node("Add", ["x", "k"], "y")], [nets.value("x", [6])], [nets.value("y")], {"k": array})
    assert verify(net, plain, before_folder=tmp_path).verdict is Verdict.OK


def odd_graphs() -> dict[str, onnx.ModelProto]:
    """Graphs that are legal and that walks over graphs get wrong."""
    x, y = [nets.value("x", [2, 3])], [nets.value("y")]
    two = np.full((2, 3), 2, np.float32)
    neg = nets.node("Neg", ["x"], "y")
    body = helper.make_graph([nets.node("Add", ["x", "outer"], "b")], "body", [], [nets.value("b", [2, 3])])
    function = helper.make_function(
        "acme", "Twice", ["a"], ["b"], [nets.node("Add", ["a", "a"], "b")], [helper.make_opsetid("", 17)]
    )
    called = nets.model([nets.node("Twice", ["x"], "y", domain="acme")], x, y, domains=["acme"])
    called.functions.append(function)
    sparse = nets.model([nets.node("Mul", ["x", "s"], "y")], x, y)
    values = numpy_helper.from_array(np.array([3.0, 4.0], np.float32), "s")
    at = numpy_helper.from_array(np.array([0, 4], np.int64), "s_at")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [2, 3]))
    captured = [
        nets.node("Mul", ["x", "two"], "outer"),
        nets.node("If", ["c"], "y", then_branch=body, else_branch=body),
    ]
    stale = nets.model([neg], x, [nets.value("y", [7, 7, 7])])
    stale.graph.value_info.append(nets.value("y", [9]))
    unused = helper.make_node("Dropout", ["x"], ["y", ""], "/drop")
    return {
        "an output that is an input": nets.model([neg], x, [*y, nets.value("x", [2, 3])]),
        "an output that is a constant": nets.model([neg], x, [*y, nets.value("k", [2, 3])], {"k": two}),
        "no inputs": nets.model([nets.node("Neg", ["k"], "y")], [], y, {"k": two}),
        "an empty dimension": nets.model([neg], [nets.value("x", [0, 3])], y),
        "a scalar": nets.model([neg], [nets.value("x", [])], y),
        "unsorted nodes": nets.model([nets.node("Neg", ["t"], "y"), nets.node("Abs", ["x"], "t")], x, y),
        "a value captured by a body": nets.model(captured, x, y, {"two": two, "c": np.array(False)}),
        "a function": called,
        "a sparse initializer": sparse,
        "stale shapes": stale,
        "an unused second output": nets.model([unused], x, y),
        "an unused input": nets.model([neg], [*x, nets.value("z", [4])], y),
        "a default": nets.model([nets.node("Clip", ["x", "", "two"], "y")], x, y, {"two": np.float32(2)}),
    }


@pytest.mark.parametrize("name", odd_graphs())
def test_odd_graphs_equal_themselves(name: str) -> None:
    net = odd_graphs()[name]
    result = verify(net, net)
    assert (result.verdict, result.reason) == (Verdict.OK, "")
    assert len(result.outputs) == len(net.graph.output)
