"""Nets as models: what they compute, and that the same net is always the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from rewriter.errors import PatternError, UsageError
from rewriter.language.library import resolve
from rewriter.language.lint import histogram
from rewriter.language.nets import IR_VERSION, OPSET, build_net
from rewriter.language.parser import parse
from rewriter.language.signatures import SIGNATURES
from rewriter.language.syntax import Net

NETS = [(f"{p.name}: {t.name}", t.net) for p in resolve(["deploy"]) for t in (*p.pattern.tests, *p.pattern.refuses)]
CALLS = {
    "conv": "conv(4,k=3,pad=1)",
    "conv_transpose": "conv_transpose(4,k=2,stride=2,bias=yes)",
    "linear": "linear(5,bias=yes)",
    "cast": "cast(float64)",
    "pad": "pad([1,0,2,1],value=3)",
    "avg_pool": "avg_pool(2)",
    "max_pool": "max_pool([2,1],stride=2)",
    "slice": "slice(1,3)",
    "transpose": "transpose([0,1,3,2])",
    "reshape": "reshape([2,-1])",
}


def net(text: str) -> Net:
    tests = f'test "t" {{ net {text} gives conv=1 }}'
    return (
        parse(f'fxrewrite 1 pattern p {{ doc "d" match y = x -> conv do bypass {tests} }}', "p.fxp")
        .patterns[0]
        .tests[0]
        .net
    )


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    return list(ReferenceEvaluator(model).run(None, inputs))  # type: ignore[arg-type]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("shipped", [n for _, n in NETS], ids=[name for name, _ in NETS])
def test_nets_of_shipped_patterns_run(shipped: Net) -> None:
    model = build_net(shipped)
    inputs = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    rng = np.random.default_rng(0)
    results = run(model, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()})
    assert results and all(np.isfinite(result).all() and result.std() > 0 for result in results)
    uncounted = sum(kind == "Identity" for kind in ops(model))
    assert sum(histogram(shipped).values()) == len(model.graph.node) - uncounted


@pytest.mark.parametrize("op", sorted(SIGNATURES))
def test_every_operator_can_be_built(op: str) -> None:
    model = build_net(net(f"y = x[2,4,6,8] -> {CALLS.get(op, op)}"))
    (result,) = run(model, x=np.ones((2, 4, 6, 8), np.float32))
    declared = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert list(result.shape) == declared


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, again, other = (build_net(NETS[-1][1], seed=seed).SerializeToString() for seed in (0, 0, 1))
    assert one == again != other


def test_versions_are_explicit() -> None:
    model = build_net(NETS[0][1])
    assert (model.ir_version, model.opset_import[0].version) == (IR_VERSION, OPSET)


def test_sums_keep_signs_and_order() -> None:
    model = build_net(net("y = x[1,2,3,3] -> sum { - neg; x; - scale(value=3) }"))
    assert ops(model) == ["Neg", "Mul", "Neg", "Add", "Sub"]
    x = np.ones((1, 2, 3, 3), np.float32)
    np.testing.assert_array_equal(run(model, x=x)[0], x + x - 3 * x)


def test_values_that_nobody_reads_are_outputs_and_keep_their_names() -> None:
    model = build_net(net("a = x[1,2,3,3] -> relu; b = a -> tanh; c = a -> sum { sigmoid; w[1,2,3,3] }; d = w"))
    assert [o.name for o in model.graph.output] == ["b", "c", "d"]
    assert [i.name for i in model.graph.input] == ["x", "w"]


def test_branches_of_a_sum_run_side_by_side() -> None:
    model = build_net(net("y = x[1,2,3,3] -> relu -> sum { shift(value=1); shift(value=2) -> scale(value=5) }"))
    x = np.full((1, 2, 3, 3), 7, np.float32)
    np.testing.assert_array_equal(run(model, x=x)[0], (x + 1) + (x + 2) * 5)


def test_symbolic_extents() -> None:
    model = build_net(net("y = x[n,2,h,8] -> conv(4,k=3,pad=1) -> bn -> max_pool(2,stride=2)"))
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["n", 2, "h", 8]
    assert run(model, x=np.ones((3, 2, 6, 8), np.float32))[0].shape == (3, 4, 3, 4)


def test_norms_have_statistics_of_their_own() -> None:
    model = build_net(net("y = x[1,8,3,3] -> bn -> bn"))
    tensors = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    assert len({t.tobytes() for t in tensors}) == 8
    assert all((np.abs(t) > 0.1).all() and t.std() > 0 for t in tensors)
    assert all((t > 0).all() for t in tensors[3::4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = x[1,2,3,3] -> conv(4,k=5)", "leaves nothing of axis 2"),
        ("y = x[1,3,3,3] -> conv(4,groups=2)", "groups do not divide"),
        ("y = x[1,2,3,3] -> conv(4,k=[3,3,3])", "3 numbers, the value has 2 spatial axes"),
        ("y = x[1,2] -> conv(4)", "needs a value with spatial axes"),
        ("y = x[1,c,3,3] -> bn", "known number of channels"),
        ("y = x[1,2,3,3] -> sum { conv(4); x }", "do not add"),
        ("y = x[1,2,3,3] -> slice(1,5)", "no slice from 1 to 5"),
        ("y = x[1,2,3,3] -> reshape([5,-1])", "does not reshape"),
        ("y = x[1,2,3,3] -> transpose([0,1,1,2])", "no order of 4 axes"),
        ("y = x[1,2,3,3] -> softmax(axis=4)", "no axis 4"),
        ("y = x[1,2,3,3] -> concat { conv(4,k=3); x }", "not a valid model"),
        ("y = x[1,2,3,3] -> cast(int64) -> conv(4)", "not a valid model"),
        ("y = x[1,4096,3,3] -> conv(4096,k=3)", "weights of a net have at most"),
        ("y = x[60000,2,60000,3] -> relu", "a value of a net has at most"),
        ("y = x[1,2,3,3] -> pad(60000)", "a value of a net has at most"),
    ],
)
def test_nets_that_cannot_be_built(text: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        build_net(net(text))


def test_unknown_form() -> None:
    with pytest.raises(UsageError, match="unknown form 'fx'"):
        build_net(NETS[0][1], "fx")


def test_models_beside_the_pattern_file(tmp_path: Path) -> None:
    found = net('file("nets/a.onnx")')
    folder = tmp_path / "patterns"
    (folder / "nets").mkdir(parents=True)
    with pytest.raises(PatternError, match=r"no model 'nets/a\.onnx'"):
        build_net(found, folder=folder)
    with pytest.raises(PatternError, match="no folder"):
        build_net(found)
    model = build_net(NETS[0][1])
    (folder / "nets" / "a.onnx").write_bytes(model.SerializeToString())
    assert build_net(found, folder=folder) == model
    (folder / "nets" / "a.onnx").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(PatternError, match="not an ONNX model"):
        build_net(found, folder=folder)
    (folder / "nets" / "a.onnx").unlink()
    (tmp_path / "secret.onnx").write_bytes(model.SerializeToString())
    (folder / "nets" / "a.onnx").symlink_to(tmp_path / "secret.onnx")
    with pytest.raises(PatternError, match="no model"):
        build_net(found, folder=folder)
