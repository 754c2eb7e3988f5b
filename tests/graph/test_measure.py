"""Parameters as an independent judge counts them, and multiply-adds by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fixtures import judge
from rewriter.graph import measure
from rewriter.graph.onnx import view
from rewriter.graph.shapes import infer

W = np.ones((4, 3, 3, 3), np.float32)
B = np.ones(4, np.float32)
SQUARE = np.ones((8, 8), np.float32)


def op(kind: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attrs)


def model_of(*nodes: NodeProto, **tensors: Any) -> ModelProto:
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def counted(model: ModelProto) -> dict[str, int]:
    graph = view(model)
    return measure.parameters(graph, graph.nodes)


CASES: list[tuple[str, ModelProto, set[str]]] = [
    ("conv", model_of(op("Conv", "x w b", "y"), w=W, b=B), {"w", "b"}),
    ("shared", model_of(op("Conv", "x w", "a"), op("Conv", "x w", "y"), w=W), {"w"}),
    ("identity", model_of(op("Identity", "w", "k"), op("Conv", "x k", "a"), op("Conv", "x w", "y"), w=W), {"w"}),
    ("reshaped", model_of(op("Reshape", "w s", "k"), op("Conv", "x k", "y"), w=W.ravel(), s=np.int64(W.shape)), {"w"}),
    (
        "normed",
        model_of(
            op("ReduceL2", "w", "n", axes=[1, 2, 3]),
            op("Div", "g n", "q"),
            op("Mul", "w q", "k"),
            op("Conv", "x k", "y"),
            w=W,
            g=np.ones((4, 1, 1, 1), np.float32),
        ),
        {"w", "g"},
    ),
    ("problem", model_of(op("Conv", "x w b", "y", auto_pad="SAME_UPPER", strides=[2, 2]), w=W, b=B), {"w", "b"}),
    (
        "norm",
        model_of(op("BatchNormalization", "x s b m v", "y"), **dict.fromkeys("sbmv", np.ones(3, np.float32))),
        {"s", "b"},
    ),
    (
        "scalars",
        model_of(op("Mul", "x c", "a"), op("Add", "a d", "y"), c=np.float32(2), d=np.float32([[[[1]]]])),
        set(),
    ),
    (
        "anchors",
        model_of(
            op("Mul", "x c", "a"), op("Add", "a d", "y"), c=np.ones((1, 8, 8), np.float32), d=np.ones(8, np.float32)
        ),
        set(),
    ),
    (
        "scale",
        model_of(
            op("Mul", "c x", "a"),
            op("Sub", "a d", "y"),
            c=np.ones((1, 3, 1, 1), np.float32),
            d=np.ones((3, 1, 1), np.float32),
        ),
        {"c", "d"},
    ),
    ("sum", model_of(op("Sum", "x c x", "y"), c=np.ones((3, 1, 1), np.float32)), {"c"}),
    ("quotient", model_of(op("Div", "c x", "y"), c=np.ones((3, 1, 1), np.float32)), {"c"}),
    ("whole", model_of(op("Shape", "x", "s"), op("Add", "s c", "y"), c=np.ones((3, 1, 1), np.int64)), set()),
    (
        "matmul",
        model_of(op("MatMul", "x w", "a"), op("Add", "a b", "y"), w=SQUARE, b=np.ones(8, np.float32)),
        {"w", "b"},
    ),
    (
        "gemm",
        model_of(
            op("Flatten", "x", "f"),
            op("Gemm", "f w b", "y", transB=1),
            w=np.ones((5, 192), np.float32),
            b=np.ones(5, np.float32),
        ),
        {"w", "b"},
    ),
    ("transposed", model_of(op("ConvTranspose", "x w b", "y"), w=W.transpose(1, 0, 2, 3), b=B), {"w", "b"}),
    ("layer norm", model_of(op("LayerNormalization", "x s b", "y"), s=B, b=B), {"s", "b"}),
    ("instance norm", model_of(op("InstanceNormalization", "x s b", "y"), s=B, b=B), {"s", "b"}),
    ("prelu", model_of(op("PRelu", "x s", "y"), s=np.ones((3, 1, 1), np.float32)), {"s"}),
    ("embedding", model_of(op("Gather", "t i", "y"), t=SQUARE, i=np.int64([1])), {"t"}),
    ("no embedding", model_of(op("Gather", "t i", "y"), t=B, i=np.int64([1])), set()),
    ("lstm", model_of(op("LSTM", "x w r b n h", "y"), w=W, r=SQUARE, b=B, n=np.int32([1]), h=SQUARE), {"w", "r", "b"}),
    (
        "quantised",
        model_of(op("DequantizeLinear", "q s", "k"), op("Conv", "x k", "y"), q=W.astype(np.int8), s=np.float32(1)),
        {"s"},
    ),
    ("computed", model_of(op("ReduceL2", "w", "n"), op("Div", "w n", "k"), op("Conv", "x k", "y"), w=W), {"w"}),
    ("dynamic", model_of(op("Mul", "x w", "k"), op("Conv", "x k", "y"), w=SQUARE), set()),
    ("attention", model_of(op("Softmax", "x", "a"), op("MatMul", "a x", "y"), w=SQUARE), set()),
    ("constant", model_of(op("Constant", "", "k", value=numpy_helper.from_array(W)), op("Conv", "x k", "y")), {"k"}),
    ("half", model_of(op("Conv", "x w", "y"), w=W.astype(np.float16)), {"w"}),
]


@pytest.mark.parametrize(("name", "model", "expected"), CASES, ids=[name for name, _, _ in CASES])
def test_parameters_are_what_the_judge_counts(name: str, model: ModelProto, expected: set[str]) -> None:
    found = counted(model)
    assert set(found) == expected
    assert sum(found.values()) == judge.count_params(model)


def test_parameters_of_a_part() -> None:
    graph = view(
        model_of(op("Conv", "x w b", "a"), op("Conv", "a v", "y"), w=W, b=B, v=np.ones((2, 4, 1, 1), np.float32))
    )
    assert measure.parameters(graph, graph.nodes[1:]) == {"v": 8}
    assert measure.parameters(graph, []) == {}


def test_bytes_of_the_stored_tensors() -> None:
    model = model_of(op("Identity", "w", "k"), op("Conv", "x k b", "y"), w=W, b=B.astype(np.float16))
    assert measure.tensor_bytes(view(model)) == W.nbytes + 8


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (model_of(op("Conv", "x w b", "y"), w=W, b=B), 2 * 4 * 36 * 27),
        (
            model_of(
                op("Conv", "x w", "y", group=3, strides=[2, 2], pads=[1] * 4), w=np.ones((6, 1, 3, 3), np.float32)
            ),
            2 * 6 * 16 * 9,
        ),
        (model_of(op("Mul", "v c", "k"), op("Conv", "x k", "y"), v=W, c=np.float32(1)), 2 * 4 * 36 * 27),
        (
            model_of(
                op("Relu", "x", "a"), op("Reshape", "a s", "k"), op("Conv", "x k", "y"), s=np.int64([16, 3, 2, 4])
            ),
            2 * 16 * 35 * 24,
        ),
        (
            model_of(op("ConvTranspose", "x w", "y", strides=[2, 2]), w=np.ones((3, 5, 2, 2), np.float32)),
            2 * 3 * 64 * 20,
        ),
        (model_of(op("MatMul", "x w", "y"), w=SQUARE), 2 * 3 * 8 * 8 * 8),
        (
            model_of(op("Flatten", "x", "f"), op("Gemm", "f w", "y", transB=1), w=np.ones((5, 192), np.float32)),
            2 * 5 * 192,
        ),
        (
            model_of(op("Gemm", "v w", "y", transA=1), v=np.ones((7, 3), np.float32), w=np.ones((7, 5), np.float32)),
            3 * 5 * 7,
        ),
        (model_of(op("Odd", "x", "a"), op("Conv", "a w", "y"), w=W), None),
        (model_of(op("Odd", "x", "a"), op("Relu", "a", "y")), 0),
        (model_of(op("Conv", "", "y")), None),
        (model_of(op("MatMul", "x w", "")), None),
    ],
)
def test_multiply_adds_by_hand(model: ModelProto, expected: int | None) -> None:
    graph = view(model)
    assert measure.multiply_adds(graph.nodes, infer(model, list(model.graph.node))) == expected


def test_without_the_sizes_there_is_no_figure() -> None:
    graph = view(model_of(op("Conv", "x w", "y"), w=W))
    assert measure.multiply_adds(graph.nodes, {}) is None
    assert measure.multiply_adds(graph.nodes, {"y": (2, "h", 6, 6)}) is None
