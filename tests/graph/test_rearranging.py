"""Operators that move elements, and products: what has no problem is what the runtime computes, the rest says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rewriter.graph.onnx import view
from rewriter.graph.view import Node

Array = npt.NDArray[Any]
MATRIX = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
TENSORS: dict[str, Array] = {
    "m": MATRIX,
    "row": np.float32([1, 2, 3, 4, 5]),
    "lone": np.float32([[2]]),
    "tall": np.float32([[1], [2]]),
    "cube": np.ones((2, 3, 5), np.float32),
    "one": np.int64([1]),
    "two": np.int64([2]),
    "last": np.int64([-1]),
    "far": np.int64([1 << 62]),
    "fourth": np.int64([-4]),
    "fifth": np.int64([-5]),
    "pads": np.int64([0, 1, 0, 0, 0, 2, 0, 1]),
    "cuts": np.int64([0, 0, -1, 0, 0, 0, 0, -1]),
    "few": np.int64([1, 2]),
    "odd": np.int64([1, 2, 3]),
    "half": np.float32(0.5),
    "shape": np.int64([0, -1]),
    "wide": np.int64([2, 3, 4, 5]),
    "places": np.int64([2, 0, -1]),
    "place": np.int64(1),
    "corner": np.int64([[0, 0], [1, 2]]),
    "slots": np.arange(12).reshape(2, 3, 2, 1) % 7 - 3,
    "filler": np.arange(12, dtype=np.float32).reshape(2, 3, 2, 1),
    "fresh": np.ones((2, 4, 5), np.float32),
    "mask": np.bool_([[True], [False], [True]]),
    "parts": np.int64([1, 2]),
}


def model_of(op: str, inputs: list[str], size: list[Any] | None, opset: int, outputs: int, **attrs: Any) -> ModelProto:
    node = helper.make_node(op, inputs, [f"y{i}" for i in range(outputs)], name="it", **attrs)
    tensors = [numpy_helper.from_array(a, name) for name, a in TENSORS.items() if name in inputs]
    fed = [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)]
    if "z" in inputs:
        fed.append(helper.make_tensor_value_info("z", TensorProto.INT64, None))
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "g", fed, made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def reading(op: str, *inputs: str, opset: int = 17, size: Any = (2, 3, 4, 5), outputs: int = 1, **attrs: Any) -> Node:
    size = None if size is None else list(size)
    return view(model_of(op, list(inputs), size, opset, outputs, **attrs)).nodes[0]


def carried_out(node: Node, x: Array) -> list[Array]:
    """What a clean reading says, by numpy."""
    attrs, consts = node.attrs, {role: constant.load() for role, constant in node.consts.items()}
    match node.op:
        case "linear":
            return [x @ consts["weight"].T + consts.get("bias", 0)]
        case "pad":
            cut = tuple(slice(max(0, -b), x.shape[i] - max(0, -e)) for i, (b, e) in enumerate(attrs["pads"]))
            grown = [(max(0, b), max(0, e)) for b, e in attrs["pads"]]
            return [np.pad(x[cut], grown, constant_values=attrs["value"])]
        case "slice":
            for start, end, axis, step in zip(*(attrs[k] for k in ("starts", "ends", "axes", "steps")), strict=True):
                places = range(x.shape[axis])[start:end:step]
                x = np.take(x, list(places), axis)
            return [x]
        case "split":
            return np.split(x, np.cumsum(attrs["sizes"])[:-1], attrs["axis"])
        case "reshape":
            target = [x.shape[i] if n == 0 and not attrs["allowzero"] else n for i, n in enumerate(attrs["shape"])]
            return [x.reshape(target)]
        case "expand":
            return [np.broadcast_to(x, np.broadcast_shapes(x.shape, attrs["shape"]))]
        case "transpose":
            return [x.transpose(attrs["perm"])]
        case "squeeze":
            return [x.squeeze(attrs["axes"])]
        case "unsqueeze":
            return [np.expand_dims(x, attrs["axes"])]
        case "gather":
            return [np.take(x, consts["indices"], attrs["axis"])]
        case "scatter_nd":
            y = x.copy()
            y[tuple(np.moveaxis(consts["indices"], -1, 0))] = consts["updates"]
            return [y]
        case "where":
            return [np.where(consts["condition"], x, 0.5)]
        case _:
            raise AssertionError(node.op)


FLAT, THIN = (4, 3), (2, 1, 4, 5)
READ: list[tuple[int, Any, str, tuple[str, ...], dict[str, Any]]] = [
    (17, FLAT, "Gemm", ("x", "m"), {}),
    (17, FLAT, "Gemm", ("x", "m", "row"), {"alpha": 0.5, "beta": 2.0}),
    (17, FLAT, "Gemm", ("x", "m", "lone"), {}),
    (17, FLAT, "Gemm", ("x", "m", "half"), {}),
    (17, (4, 5), "Gemm", ("x", "m"), {"transB": 1}),
    (9, FLAT, "Gemm", ("x", "m", "row"), {}),
    (17, FLAT, "MatMul", ("x", "m"), {}),
    (17, (2, 4, 3), "MatMul", ("x", "m"), {}),
    (17, (3,), "MatMul", ("x", "m"), {}),
    (10, None, "Pad", ("x",), {"pads": [0, 0, 1, 2, 0, 1, 0, -1], "value": 1.5}),
    (17, None, "Pad", ("x", "pads"), {}),
    (17, None, "Pad", ("x", "pads", "half"), {}),
    (17, None, "Pad", ("x", "cuts"), {"mode": "constant"}),
    (18, None, "Pad", ("x", "few", "", "last"), {}),
    (9, None, "Slice", ("x",), {"starts": [1, 0], "ends": [9, -1], "axes": [2, 3]}),
    (9, None, "Slice", ("x",), {"starts": [1], "ends": [2]}),
    (17, None, "Slice", ("x", "one", "far"), {}),
    (17, None, "Slice", ("x", "one", "far", "last", "two"), {}),
    (17, None, "Slice", ("x", "last", "one", "two", "last"), {}),
    (11, None, "Split", ("x",), {"axis": 1, "split": [1, 2]}),
    (17, None, "Split", ("x", "parts"), {"axis": -3}),
    (4, None, "Reshape", ("x",), {"shape": [2, -1]}),
    (17, None, "Reshape", ("x", "shape"), {}),
    (17, None, "Reshape", ("x", "wide"), {"allowzero": 1}),
    (17, THIN, "Expand", ("x", "wide"), {}),
    (17, None, "Transpose", ("x",), {"perm": [0, 2, 3, 1]}),
    (17, None, "Transpose", ("x",), {}),
    (11, THIN, "Squeeze", ("x",), {"axes": [1]}),
    (17, THIN, "Squeeze", ("x", "one"), {}),
    (17, None, "Unsqueeze", ("x", "last"), {}),
    (17, None, "Gather", ("x", "places"), {"axis": 1}),
    (17, None, "Gather", ("x", "place"), {"axis": -1}),
    (17, None, "ScatterND", ("x", "corner", "fresh"), {}),
    (17, None, "ScatterElements", ("x", "slots", "filler"), {"axis": -1}),
    (17, None, "ScatterElements", ("x", "slots", "filler"), {"axis": 3}),
    (17, (3, 4), "Where", ("mask", "x", "half"), {}),
]


@pytest.mark.parametrize(("opset", "shape", "op", "inputs", "attrs"), READ)
def test_a_clean_reading_is_what_the_runtime_computes(
    opset: int, shape: Any, op: str, inputs: tuple[str, ...], attrs: dict[str, Any]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    runtime.set_default_logger_severity(4)
    shape = shape or (2, 3, 4, 5)
    outputs = 2 if op == "Split" else 1
    model = model_of(op, list(inputs), list(shape), opset, outputs, **attrs)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = view(model).nodes[0]
    assert found.problem is None
    assert [value.name for value in found.data if value.constant is None] == ["x"]
    for made, expected in zip(carried_out(found, x), session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


PROBLEMS = [
    (17, "Gemm", ("x", "z"), {}, "its weight is also an input"),
    (17, "Gemm", ("x", "m", "z"), {}, "its bias is also an input"),
    (17, "Gemm", ("x", "m"), {"transA": 1}, "reads its input transposed"),
    (17, "Gemm", ("x", "m", "tall"), {}, "not one number per feature"),
    (17, "Gemm", ("x", "cube"), {}, "not a matrix of floats"),
    (6, "Gemm", ("x", "m", "row"), {"broadcast": 1}, "before opset 7"),
    (17, "Gemm", ("", "m"), {}, "its input is missing"),
    (17, "Pad", ("x", "odd"), {}, "its list of pads is odd"),
    (17, "Pad", ("x", "pads", "z"), {}, "is not a constant number"),
    (17, "Pad", ("x", "pads"), {"mode": "mirror"}, "its mode is not defined"),
    (18, "Pad", ("x", "few", "", "z"), {}, "the axes that it pads are not known"),
    (18, "Pad", ("x", "few", "", "far"), {}, "out of range or repeated"),
    (17, "Slice", ("x", "z", "one"), {}, "known only at run time"),
    (17, "Slice", ("x", "one", "few"), {}, "do not fit together"),
    (17, "Slice", ("x", "one", "one", "few"), {}, "do not fit together"),
    (9, "Slice", ("x",), {}, "do not fit together"),
    (17, "Slice", ("x", "fifth", "fifth", "two", "last"), {}, "from before the first element"),
    (17, "Split", ("x", "z"), {"axis": 1}, "known only at run time"),
    (17, "Transpose", ("x",), {"perm": [0, 0, 1, 2]}, "no order of axes"),
    (17, "Squeeze", ("x", "z"), {}, "known only at run time"),
]


@pytest.mark.parametrize(("opset", "op", "inputs", "attrs", "words"), PROBLEMS)
def test_what_cannot_be_read_says_why(
    opset: int, op: str, inputs: tuple[str, ...], attrs: dict[str, Any], words: str
) -> None:
    found = reading(op, *inputs, opset=opset, outputs=2 if op == "Split" else 1, **attrs)
    assert found.problem is not None
    assert words in found.problem


def test_a_cut_that_goes_backwards_starts_inside() -> None:
    """From before the first element ONNX takes that one, and Python none."""
    model = model_of("Slice", ["x", "fourth", "fifth", "two", "last"], [2, 3, 4, 5], 17, 1)
    assert view(model).nodes[0].problem is not None
    assert view(model, sizes={"x": (2, 3, 4, 5)}).nodes[0].problem is None
    assert view(model, sizes={"x": (2, 3, 3, 5)}).nodes[0].problem is not None


def test_a_pad_of_named_axes_needs_the_rank() -> None:
    found = reading("Pad", "x", "few", "", "last", opset=18, size=None)
    assert found.problem == "the rank of what it pads is not known"


@pytest.mark.parametrize("op", ["Reshape", "Expand", "Gather", "ScatterND", "ScatterElements", "Where"])
def test_what_is_known_at_run_time_stays_an_input(op: str) -> None:
    inputs = {
        "ScatterND": ("x", "corner", "z"),
        "ScatterElements": ("x", "slots", "z"),
        "Where": ("z", "x", "half"),
    }.get(op, ("x", "z"))
    found = reading(op, *inputs)
    assert found.problem is None
    assert "z" in [value.name for value in found.data]
    assert "shape" not in found.attrs


def test_products_with_anything_but_a_constant_matrix_stay_products() -> None:
    for inputs in (("x", "z"), ("x", "row"), ("x", "cube"), ("m", "x"), ("m", "m")):
        found = reading("MatMul", *inputs)
        assert (found.op, found.problem) == ("matmul", None)


def test_the_constants_of_a_linear_lead_to_what_is_stored() -> None:
    found = reading("Gemm", "x", "m", "lone", alpha=2.0, size=FLAT)
    weight, bias = found.consts["weight"], found.consts["bias"]
    assert (weight.name, weight.stored, weight.shape) == ("m", ("m",), (5, 3))
    assert (bias.stored, bias.shape) == (("lone",), (5,))
    assert reading("MatMul", "x", "m", size=FLAT).output.dtype == "float32"


def test_cuts_into_sequences() -> None:
    assert reading("SplitToSequence", "x", "parts", axis=1).attrs == {"axis": 1, "sizes": (1, 2)}
    assert reading("SplitToSequence", "x", "place", axis=-3).attrs == {"axis": -3, "each": 1}
    assert reading("SequenceAt", "x", "place").attrs == {"index": 1}
    for op, inputs, words in (
        ("SplitToSequence", ("x",), "drops an axis"),
        ("SplitToSequence", ("x", "z"), "known only at run time"),
        ("SequenceAt", ("x", "z"), "known only at run time"),
        ("SequenceAt", ("x", "one"), "known only at run time"),
    ):
        problem = reading(op, *inputs).problem
        assert problem is not None
        assert words in problem


def test_equal_parts_of_a_split_have_no_sizes() -> None:
    assert reading("Split", "x", outputs=3, axis=1, opset=13).attrs == {"axis": 1}
    assert reading("Split", "x", outputs=2, axis=1, opset=18, num_outputs=2).attrs == {"axis": 1}


def test_transposes_and_squeezes_of_unknown_rank() -> None:
    assert reading("Transpose", "x", size=None).attrs == {}
    assert reading("Squeeze", "x", size=None).attrs == {}
    assert reading("Squeeze", "x", size=None).problem is None
