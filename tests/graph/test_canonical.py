"""Operators as they are read: what has no problem computes what the runtime computes, the rest says why it has one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rewriter.graph import view as views
from rewriter.graph.canonical import RULES
from rewriter.graph.onnx import view

Array = npt.NDArray[Any]

WEIGHT = np.random.default_rng(1).standard_normal((4, 2, 3, 3)).astype(np.float32)
CHANNELS = {name: np.arange(1, 5, dtype=np.float32) / (i + 2) for i, name in enumerate("sbmv")}
CONSTANTS: dict[str, Array] = {
    "w": WEIGHT,
    "w2": WEIGHT[:, :, :2, :2],
    "w1": WEIGHT[:, :, :1, :1],
    "wt": WEIGHT.transpose(1, 0, 2, 3)[:, :2],
    "c": np.float32([[[1.5]], [[-2]]]),
    "half": np.float32(0.5),
    "two": np.float32(2),
    "zero": np.float32([0]),
    "five": np.float32([1, 2, 3, 4, 5]),
    "whole": np.int64([3]),
    "no_pads": np.zeros(8, np.int64),
    "pads": np.int64([0, 0, 1, 0, 0, 0, 0, 2]),
    "off": np.array(False),
    "on": np.array(True),
    "flat": np.ones((4, 2), np.float32),
    **CHANNELS,
}


def model_of(
    nodes: list[NodeProto], opset: int = 17, shape: tuple[int, ...] = (2, 2, 6, 5), kind: int = TensorProto.FLOAT
) -> ModelProto:
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in CONSTANTS.items() if name in read]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    if "z" in read:
        inputs.append(helper.make_tensor_value_info("z", kind, None))
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", kind, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def one(op: str, *inputs: str, outputs: tuple[str, ...] = ("y",), **attrs: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name="it", **attrs)


def reading(node: NodeProto, opset: int = 17, kind: int = TensorProto.FLOAT) -> views.Node:
    return view(model_of([node], opset, kind=kind)).nodes[0]


# --- what is read is what runs -------------------------------------------------------------------------------------


def taps(node: views.Node, window: tuple[int, ...], x: Array, fill: float) -> Array:
    """What each tap of a window sees, as (tap, n, channel, *out), by the definition of strides, pads and dilations."""
    strides, pads, dilations = (node.attrs[key] for key in ("strides", "pads", "dilations"))
    padded = np.pad(x, ((0, 0), (0, 0), *pads), constant_values=fill)
    reach = [d * (k - 1) for k, d in zip(window, dilations, strict=True)]
    sizes = [(n - r - 1) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    seen = []
    for tap in product(*map(range, window)):
        steps = [
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, s, n in zip(tap, dilations, strides, sizes, strict=True)
        ]
        seen.append(padded[(slice(None), slice(None), *steps)])
    return np.stack(seen)


def run_conv(node: views.Node, x: Array) -> Array:
    weight = node.consts["weight"].floats()
    groups, inner = node.attrs["groups"], weight.shape[1]
    seen = taps(node, weight.shape[2:], x, 0)
    kernel = weight.reshape(groups, -1, inner, seen.shape[0])
    parts = seen.reshape(*seen.shape[:2], groups, inner, *seen.shape[3:])
    out = np.einsum("goit,tngi...->ngo...", kernel, parts)
    out = out.reshape(len(x), len(weight), *seen.shape[3:])
    bias = node.consts["bias"].floats() if "bias" in node.consts else np.zeros(len(weight))
    return out + bias.reshape(-1, *(1,) * (x.ndim - 2))


def run_pool(node: views.Node, x: Array) -> Array:
    window = node.attrs["window"]
    if node.op == "max_pool":
        return taps(node, window, x, -np.inf).max(axis=0)
    seen = taps(node, window, x, 0)
    counted = taps(node, window, np.ones_like(x), 1 if node.attrs["include_pad"] else 0)
    return seen.sum(axis=0) / counted.sum(axis=0)


def run_bn(node: views.Node, x: Array) -> Array:
    scale, bias, mean, var = (node.consts[k].floats().reshape(-1, 1, 1) for k in ("scale", "bias", "mean", "var"))
    return (x - mean) / np.sqrt(var + node.attrs["eps"]) * scale + bias


def run(node: views.Node, x: Array) -> Array:
    match node.op:
        case "conv":
            return run_conv(node, x)
        case "max_pool" | "avg_pool":
            return run_pool(node, x)
        case "bn":
            return run_bn(node, x)
        case "shift":
            return node.attrs["sign"] * x + node.consts["term"].floats()
        case "scale":
            return x * node.consts["factor"].floats()
        case "leaky_relu":
            return np.where(x < 0, x * node.attrs["slope"], x)
        case "silu":
            return x / (1 + np.exp(-x))
        case "pad":
            assert node.attrs["amount"] == 0
            return x
        case "cast":
            assert node.attrs["to"] == node.attrs["from"] == "float32"
            return x
        case _:
            assert node.op in ("identity", "dropout")
            return x


READ = [
    (17, one("Conv", "x", "w")),
    (17, one("Conv", "x", "w", pads=[0, 1, 2, 3])),
    (17, one("Conv", "x", "w", strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 1], kernel_shape=[3, 3])),
    (17, one("Conv", "x", "w", "b")),
    (17, one("Conv", "x", "w", "")),
    (17, one("Conv", "x", "w", auto_pad="SAME_UPPER")),
    (17, one("Conv", "x", "w2", auto_pad="SAME_UPPER")),
    (17, one("Conv", "x", "w2", auto_pad="SAME_LOWER", strides=[1, 1])),
    (17, one("Conv", "x", "w", auto_pad="VALID", strides=[2, 2])),
    (17, one("Conv", "x", "w2", auto_pad="NOTSET", pads=[1, 0, 0, 0])),
    (7, one("Conv", "x", "w1")),
    *((n, one("BatchNormalization", "q", *"sbmv")) for n in (7, 8, 9, 13, 14, 15, 17)),
    (9, one("BatchNormalization", "q", *"sbmv", epsilon=0.1, momentum=0.5)),
    (17, one("BatchNormalization", "q", *"sbmv", training_mode=0, epsilon=1.0)),
    (17, one("Add", "x", "c")),
    (17, one("Add", "c", "x")),
    (17, one("Sub", "x", "c")),
    (17, one("Sub", "c", "x")),
    (17, one("Mul", "x", "two")),
    (17, one("Mul", "c", "x")),
    (17, one("Div", "x", "c")),
    (7, one("Add", "x", "five")),
    (17, one("Sum", "x")),
    (17, one("Sum", "x", "c")),
    (17, one("Sum", "c", "x")),
    (6, one("Sum", "x")),
    (7, one("Dropout", "x", ratio=0.9)),
    (10, one("Dropout", "x", outputs=("y", "mask"))),
    (12, one("Dropout", "x")),
    (13, one("Dropout", "x", "half", "off")),
    (16, one("LeakyRelu", "x")),
    (16, one("LeakyRelu", "x", alpha=0.1)),
    (10, one("Pad", "x", pads=[0] * 8, mode="edge")),
    (11, one("Pad", "x", "no_pads")),
    (18, one("Pad", "x", "no_pads", mode="reflect")),
    (17, one("Cast", "x", to=TensorProto.FLOAT)),
    (15, one("CastLike", "x", "two")),
    (17, one("MaxPool", "x", kernel_shape=[3, 2])),
    (17, one("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1], dilations=[1, 2])),
    (17, one("MaxPool", "x", kernel_shape=[2, 2], auto_pad="SAME_LOWER")),
    (17, one("AveragePool", "x", kernel_shape=[2, 3], strides=[1, 2], pads=[1, 1, 0, 1])),
    (17, one("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)),
    (17, one("AveragePool", "x", kernel_shape=[2, 2], auto_pad="SAME_UPPER")),
    (17, one("AveragePool", "x", kernel_shape=[2, 2], auto_pad="VALID", strides=[2, 2])),
]


@pytest.mark.parametrize(("opset", "node"), READ)
def test_what_has_no_problem_computes_what_the_runtime_does(opset: int, node: NodeProto) -> None:
    runtime = pytest.importorskip("onnxruntime")
    runtime.set_default_logger_severity(4)
    shape = (2, 4, 6, 5) if "q" in node.input else (2, 2, 6, 5)
    for i, name in enumerate(node.input):
        node.input[i] = "x" if name == "q" else name
    model = model_of([node], opset, shape)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        ["y"], {"x": x}
    )
    found = view(model).nodes[0]
    assert found.problem is None
    assert [value.name for value in found.data] == ["x"]
    np.testing.assert_allclose(run(found, x.astype(np.float64)), expected[0], rtol=1e-5, atol=1e-6)


def test_the_reading_of_a_grouped_and_of_a_one_dimensional_conv() -> None:
    grouped = reading(one("Conv", "x", "w1", group=2, strides=[2, 2]))
    assert grouped.problem is None
    assert grouped.attrs == {"strides": (2, 2), "dilations": (1, 1), "pads": ((0, 0), (0, 0)), "groups": 2}
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 4))
    expected = [x[:, 2 * g : 2 * g + 2, ::2, ::2] for g in (0, 1)]
    weight = WEIGHT[:, :, 0, 0].astype(float)
    parts = [np.einsum("oi,nihw->nohw", weight[2 * g : 2 * g + 2], expected[g]) for g in (0, 1)]
    np.testing.assert_allclose(run(grouped, x), np.concatenate(parts, axis=1))


def test_silu_is_swish_with_alpha_one() -> None:
    assert (reading(one("Swish", "x"), 24).op, reading(one("Swish", "x"), 24).problem) == ("silu", None)
    assert reading(one("Swish", "x", alpha=2.0), 24).problem == "its alpha is 2, not 1"


def test_until_opset_6_an_attribute_says_that_it_is_inference() -> None:
    assert reading(one("Dropout", "x", is_test=1), 6).problem is None
    assert reading(one("BatchNormalization", "x", *"sbmv", is_test=1), 6).problem is None


def test_eps_and_slope_are_the_stored_float32() -> None:
    assert reading(one("BatchNormalization", "x", *"sbmv", epsilon=0.001)).attrs["eps"] == float(np.float32(0.001))
    assert reading(one("BatchNormalization", "x", *"sbmv")).attrs["eps"] == float(np.float32(1e-5))
    assert reading(one("LeakyRelu", "x")).attrs["slope"] == float(np.float32(0.01))


def test_a_division_by_zero_is_an_infinity_that_the_algebra_refuses() -> None:
    assert np.isinf(reading(one("Div", "x", "zero")).consts["factor"].floats()).all()


def test_pools_and_concats_have_canonical_attributes() -> None:
    pool = reading(one("AveragePool", "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1], ceil_mode=1))
    assert pool.attrs == {
        "window": (3, 2),
        "strides": (2, 1),
        "pads": ((1, 0), (0, 1)),
        "dilations": (1, 1),
        "ceil": True,
        "include_pad": False,
    }
    assert "include_pad" not in reading(one("MaxPool", "x", kernel_shape=[2, 2])).attrs
    assert reading(one("Concat", "x", "z", axis=-3)).attrs == {"axis": -3}
    assert reading(one("Concat", "x", "z"), 3).attrs == {"axis": 1}
    resize = reading(one("Resize", "x", "", "five", mode="nearest"))
    assert (resize.op, resize.attrs) == ("resize", {"mode": "nearest"})


def test_a_transposed_conv_has_its_constants_by_role() -> None:
    node = reading(one("ConvTranspose", "x", "wt", strides=[2, 2], pads=[1, 1, 0, 0], output_padding=[1, 0]))
    assert (node.problem, len(node.data), node.consts["weight"].shape) == (None, 1, (2, 2, 3, 3))
    assert node.attrs["pads"] == ((1, 0), (1, 0)) and node.attrs["output_padding"] == (1, 0)


# --- what is not read, and why -------------------------------------------------------------------------------------

REFUSED = [
    (17, one("Conv", "x", "z"), "its weight is also an input of the model and can be overridden"),
    (17, one("Conv", "x"), "its weight is missing"),
    (17, one("Conv", "", "w"), "its input is missing"),
    (17, one("Conv", "x", "w", "z"), "its bias is also an input"),
    (17, one("Conv", "x", "flat"), "its weight has no spatial axis"),
    (17, one("Conv", "x", "w", kernel_shape=[1, 1]), "kernel_shape does not agree"),
    (17, one("Conv", "x", "w", group=3), "groups does not divide"),
    (17, one("Conv", "x", "w", group=0), "groups does not divide"),
    (17, one("Conv", "x", "w", strides=[1]), "do not fit together"),
    (17, one("Conv", "x", "w", strides=[0, 1]), "do not fit together"),
    (17, one("Conv", "x", "w", dilations=[1, -1]), "do not fit together"),
    (17, one("Conv", "x", "w", pads=[1, 1]), "pads are negative, too few or too many"),
    (17, one("Conv", "x", "w", pads=[0, 0, -1, 0]), "pads are negative"),
    (17, one("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]), "depends on the size of the image"),
    (17, one("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[1, 2]), "depends on the size of the image"),
    (17, one("Conv", "x", "w", auto_pad="SAME_UPPER", dilations=[2, 2]), "runtimes read auto_pad=SAME_UPPER with"),
    (17, one("Conv", "x", "w", auto_pad="VALID", pads=[1, 1, 1, 1]), "both pads and auto_pad"),
    (17, one("Conv", "x", "w", auto_pad="SAME_UPPER", pads=[1, 1, 1, 1]), "both pads and auto_pad"),
    (17, one("Conv", "x", "w", auto_pad=""), "auto_pad='' is not defined"),
    (17, one("ConvTranspose", "x", "wt", auto_pad="SAME_UPPER"), "follows from the size of its output"),
    (17, one("ConvTranspose", "x", "wt", output_shape=[12, 10]), "follows from the size of its output"),
    (17, one("BatchNormalization", "x", *"sbmv", training_mode=1), "in training mode"),
    (9, one("BatchNormalization", "x", *"sbmv", outputs=("y", *"1234")), "in training mode"),
    (13, one("BatchNormalization", "x", *"sbmv", outputs=("y", "", "", "", "4")), "in training mode"),
    (6, one("BatchNormalization", "x", *"sbmv"), "in training mode"),
    (8, one("BatchNormalization", "x", *"sbmv", spatial=0), "spatial=0"),
    (17, one("BatchNormalization", "x", "z", *"bmv"), "its scale is also an input"),
    (17, one("BatchNormalization", "x", *"sbm"), "its var is missing"),
    (17, one("BatchNormalization", "x", "s", "b", "five", "v"), "not one number per channel each"),
    (17, one("BatchNormalization", "x", "c", "c", "c", "c"), "not one number per channel each"),
    (6, one("Add", "x", "c", broadcast=1, axis=1), "before opset 7 its operands broadcast by attributes"),
    (6, one("Mul", "x", "z"), "before opset 7"),
    (17, one("Add", "x"), "it has not two inputs"),
    (17, one("Sub", "x", "c", "c"), "it has not two inputs"),
    (17, one("Div", "x", ""), "it has not two inputs"),
    (17, one("Sum", "x", ""), "one of its inputs is missing"),
    (17, one("Sum"), "one of its inputs is missing"),
    (6, one("Dropout", "x"), "in training mode"),
    (13, one("Dropout", "x", "two", "on"), "may be in training mode"),
    (13, one("Dropout", "x", "", "z"), "may be in training mode"),
    (13, one("Dropout", "x", "", "whole"), "may be in training mode"),
    (13, one("Pad", "x", "z"), "known only at run time"),
    (13, one("Pad", "x"), "known only at run time"),
    (13, one("Pad", "x", "two"), "no list of pads"),
    (10, one("Pad", "x"), "no list of pads"),
    (17, one("Cast", "x", to=0), "not known"),
    (17, one("Cast", "x", to=9999), "not known"),
    (17, one("Cast", "x"), "not known"),
    (17, one("CastLike", "x"), "it has not two inputs"),
    (17, one("MaxPool", "x"), "no kernel_shape"),
    (17, one("MaxPool", "x", kernel_shape=[2, 2], auto_pad="SAME_UPPER", strides=[2, 2]), "depends on the size"),
    (17, one("AveragePool", "x", kernel_shape=[2, 2], auto_pad="VALID", ceil_mode=1), "auto_pad with ceil_mode"),
    (17, one("Concat", "x", "z"), "it has no axis"),
]


@pytest.mark.parametrize(("opset", "node", "problem"), REFUSED)
def test_what_is_not_the_clean_form_says_why(opset: int, node: NodeProto, problem: str) -> None:
    found = reading(node, opset)
    assert problem in (found.problem or "no problem")
    assert found.op not in ("shift", "scale")


def test_outputs_beyond_the_first_that_somebody_reads() -> None:
    statistics = one("BatchNormalization", "x", *"sbmv", outputs=("t", "running"))
    mask = one("Dropout", "x", outputs=("t", "mask"))
    indices = one("MaxPool", "x", kernel_shape=[2, 2], outputs=("t", "at"))
    for node, opset, problem in ((statistics, 17, "statistics"), (mask, 11, "mask"), (indices, 17, "indices")):
        alone = view(model_of([node, one("Relu", "t")], opset)).nodes[0]
        assert alone.problem is None
        read = view(model_of([node, one("Relu", node.output[1])], opset)).nodes[0]
        assert f"{problem} are read" in str(read.problem) or f"{problem} is read" in str(read.problem)


def test_unclear_pads_are_left_out_and_strides_stay() -> None:
    node = reading(one("Conv", "x", "z", strides=[2, 2], kernel_shape=[3, 3], auto_pad="SAME_UPPER"))
    assert node.attrs == {"strides": (2, 2), "dilations": (1, 1), "groups": 1}
    assert [v.name for v in node.data] == ["x", "z"]
    assert reading(one("Conv", "x", "z", strides=[2, 2])).attrs == {"strides": (2, 2), "groups": 1}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_whole_numbers_and_two_constants_are_no_shift_or_scale(op: str) -> None:
    assert reading(one(op, "x", "whole"), kind=TensorProto.INT64).op == op.lower()
    assert reading(one(op, "c", "two")).op == op.lower()
    twice = reading(one(op, "x", "x"))
    assert (twice.op, [v.name for v in twice.data], twice.data[0].readers) == (op.lower(), ["x", "x"], (0, 0))


def test_a_constant_over_a_value_is_no_scale() -> None:
    node = reading(one("Div", "c", "x"))
    assert (node.op, [v.name for v in node.data], node.problem) == ("div", ["c", "x"], None)


def test_a_cast_before_opset_6_names_its_type_in_words() -> None:
    assert reading(one("Cast", "x", to="FLOAT16"), 5).attrs == {"to": "float16", "from": "float32"}
    assert reading(one("Cast", "x", to="BLOB"), 5).problem is not None
    assert reading(one("CastLike", "x", "whole"), 15).attrs == {"to": "int64", "from": "float32"}


# --- malformed nodes -----------------------------------------------------------------------------------------------

NAMES = """strides dilations pads kernel_shape group auto_pad epsilon training_mode is_test spatial alpha axis to
    ceil_mode count_include_pad output_padding paddings mode broadcast""".split()  # noqa: SIM905


def untyped(name: str) -> AttributeProto:
    return AttributeProto(name=name, i=3)


CONTENTS: Mapping[str, Any] = {
    "int": -(1 << 63),
    "float": float("nan"),
    "text": "\0weird",
    "ints": [1 << 62, -1, 0],
    "floats": [0.5, 0.5],
    "tensor": numpy_helper.from_array(WEIGHT),
}


@pytest.mark.parametrize("opset", [1, 6, 10, 12, 24])
@pytest.mark.parametrize("op", sorted(RULES))
def test_malformed_attributes_never_raise(op: str, opset: int) -> None:
    for name in NAMES:
        attributes = [helper.make_attribute(name, content) for content in CONTENTS.values()]
        for attribute in (*attributes, untyped(name)):
            for inputs in (["x", "w", "b"], ["x", *"sbmv"], ["x", "c"], ["x"]):
                node = one(op, *inputs)
                node.attribute.append(attribute)
                assert reading(node, opset).native == node


@pytest.mark.parametrize("op", sorted(RULES))
def test_any_inputs_are_read_without_raising(op: str) -> None:
    for inputs in ([], [""], ["", "w"], ["x"] * 9, ["whole"], ["x", "flat", "flat"], ["z", "z", "z"], ["two", "two"]):
        for outputs in ((), ("",), ("", "y"), ("y", "a", "d")):
            node = one(op, *inputs, outputs=outputs)
            assert reading(node).native == node
