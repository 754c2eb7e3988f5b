"""Sizes: arithmetic on static sizes is followed, as a runtime computes it, and odd models give less but never raise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rewriter.graph import measure
from rewriter.graph.onnx import view
from rewriter.graph.shapes import infer

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def op(kind: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attrs)


def model_of(*nodes: NodeProto, opset: int = 17, shape: Any = (2, 6, 8, 10), **tensors: Any) -> ModelProto:
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()]
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    y = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def sizes(model: ModelProto) -> dict[str, Any]:
    return infer(model, list(model.graph.node))


def chunk(source: str, first: str, second: str, tag: str) -> list[NodeProto]:
    """Halves of the channels, as the legacy exporter of torch writes `chunk`; needs constants zero, one, two and at."""
    names = [f"{tag}{i}" for i in range(7)]
    return [
        op("Shape", source, names[0]),
        op("Gather", f"{names[0]} at", names[1], axis=0),
        op("Add", f"{names[1]} one", names[2]),
        op("Div", f"{names[2]} two", names[3]),
        op("Mul", f"{names[3]} one", names[4]),
        op("Slice", f"{source} zero {names[4]} at", first),
        op("Mul", f"{names[3]} two", names[5]),
        op("Slice", f"{source} {names[4]} {names[5]} at", second),
    ]


LISTS = {"zero": np.int64([0]), "one": np.int64([1]), "two": np.int64([2]), "at": np.int64([1])}


def test_halves_of_halves_are_followed() -> None:
    nodes = [*chunk("x", "a", "b", "p"), op("Relu", "b", "c"), *chunk("c", "d", "e", "q")]
    found = sizes(model_of(*nodes, op("Concat", "d e a", "y", axis=1), **LISTS))
    assert (found["a"], found["b"], found["d"], found["e"]) == (
        (2, 3, 8, 10),
        (2, 3, 8, 10),
        (2, 2, 8, 10),
        (2, 1, 8, 10),
    )
    assert found["y"] == (2, 6, 8, 10)


def test_a_known_channel_axis_is_followed_beside_a_batch_that_is_not_known() -> None:
    model = model_of(*chunk("x", "a", "y", "p"), shape=("n", 6, 8, 10), **LISTS)
    assert sizes(model)["a"][1:] == (3, 8, 10)
    assert not isinstance(sizes(model)["a"][0], int)


ARITHMETIC: list[tuple[list[NodeProto], dict[str, Any]]] = [
    ([op("Shape", "x", "s", start=1, end=-1)], {}),
    ([op("Shape", "x", "s", start=-9, end=9)], {}),
    ([op("Shape", "x", "t"), op("Gather", "t i", "s")], {"i": np.int64([-1, 0])}),
    (
        [op("Shape", "x", "t"), op("Gather", "t i", "u"), op("Unsqueeze", "u z", "s")],
        {"i": np.int64(2), "z": np.int64([0])},
    ),
    (
        [op("Shape", "x", "t"), op("Slice", "t a b z c", "s")],
        {"a": np.int64([3]), "b": np.int64([-99]), "z": np.int64([0]), "c": np.int64([-2])},
    ),
    ([op("Shape", "x", "t"), op("Slice", "t a b", "s")], {"a": np.int64([1]), "b": np.int64([1 << 62])}),
    ([op("Shape", "x", "t"), op("Cast", "t", "u", to=TensorProto.INT32), op("Cast", "u", "s", to=INT64)], {}),
    (
        [op("Shape", "x", "t"), op("Sub", "t n", "u"), op("Div", "u m", "v"), op("Mul", "v w", "s")],
        {"n": np.int64(9), "m": np.int64(-2), "w": np.int64([1, 1, -1, 1])},
    ),
    ([op("Shape", "x", "t"), op("Concat", "t k", "s", axis=0)], {"k": np.int64([5])}),
    (
        [op("Shape", "x", "t"), op("Reshape", "t k", "u"), op("Squeeze", "u z", "v"), op("Identity", "v", "s")],
        {"k": np.int64([1, -1]), "z": np.int64([0])},
    ),
    ([op("Constant", "", "t", value_ints=[1, 2]), op("Add", "t k", "s")], {"k": np.int64([[1], [2]])}),
    ([op("Range", "a b c", "s")], {"a": np.int64(1), "b": np.int64(9), "c": np.int64(3)}),
]


@pytest.mark.parametrize(("nodes", "tensors"), ARITHMETIC)
def test_lists_of_whole_numbers_are_what_the_reference_computes(
    nodes: list[NodeProto], tensors: dict[str, Any]
) -> None:
    """Seen through ConstantOfShape: its sizes are the numbers themselves."""
    tail = [op("Reshape", "s flat", "f"), op("ConstantOfShape", "f", "y")]
    model = model_of(*nodes, *tail, flat=np.int64([-1]), **tensors)
    listed = helper.make_tensor_value_info("f", INT64, None)
    model.graph.output.append(listed)
    x = np.zeros((2, 6, 8, 10), np.float32)
    wanted = ReferenceEvaluator(model).run(["f"], {"x": x})[0]
    found = sizes(model)
    assert found["f"] == wanted.shape
    if (wanted >= 0).all():
        assert found["y"] == tuple(wanted)


def test_division_by_zero_and_overflow_are_not_known() -> None:
    by_zero = [op("Shape", "x", "t"), op("Div", "t z", "s"), op("ConstantOfShape", "s", "y")]
    found = sizes(model_of(*by_zero, z=np.int64([0, 0, 0, 0])))
    assert not any(isinstance(d, int) for d in found.get("y", ()))
    wraps = [op("Shape", "x", "t"), op("Mul", "t z", "s"), op("ConstantOfShape", "s", "y")]
    assert not any(isinstance(d, int) for d in sizes(model_of(*wraps, z=np.int64([1 << 62] * 4))).get("y", ()))


def test_sizes_and_scales_of_a_resize() -> None:
    by_size = [op("Shape", "x", "t"), op("Slice", "t z two", "h"), op("Concat", "h big", "n", axis=0)]
    model = model_of(*by_size, op("Resize", "x _ _ n", "y"), z=np.int64([0]), two=np.int64([2]), big=np.int64([16, 30]))
    assert sizes(model)["y"] == (2, 6, 16, 30)
    assert sizes(model_of(op("Resize", "x _ s", "y"), s=np.float32([1, 1, 2, 3])))["y"] == (2, 6, 16, 30)


def test_stale_sizes_are_not_believed_where_an_operator_tells() -> None:
    model = model_of(op("Relu", "x", "a"), op("Neg", "a", "y"))
    model.graph.value_info.append(helper.make_tensor_value_info("a", FLOAT, [7, 7]))
    model.graph.output[0].type.CopyFrom(helper.make_tensor_value_info("y", FLOAT, [9]).type)
    assert (sizes(model)["a"], sizes(model)["y"]) == ((2, 6, 8, 10), (2, 6, 8, 10))


def test_sizes_that_only_the_file_knows_are_believed() -> None:
    model = model_of(helper.make_node("Odd", ["x"], ["a"], domain="own"), op("Relu", "a", "y"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("a", FLOAT, [7, 7]))
    assert sizes(model)["y"] == (7, 7)


def odd_models() -> list[ModelProto]:
    without = model_of(op("Relu", "x", "y"))
    del without.opset_import[:]
    domain = model_of(helper.make_node("Odd", ["x"], ["a"], domain="nowhere"), op("Relu", "a", "y"))
    future = model_of(op("Relu", "x", "y"), opset=9999)
    negative = model_of(op("Conv", "x w", "y"))
    negative.graph.initializer.add(name="w", data_type=FLOAT, dims=[-4, 6, 3, 3])
    undefined = model_of(op("Conv", "x w", "y"))
    undefined.graph.initializer.add(name="w", data_type=0, dims=[4, 6, 3, 3])
    future_type = model_of(op("Relu", "x", "y"))
    future_type.graph.input[0].type.tensor_type.elem_type = 9999
    huge = model_of(op("Reshape", "x s", "y"), s=np.int64([1 << 62, 1 << 62]))
    body = helper.make_graph([op("Relu", "x", "r")], "b", [], [helper.make_tensor_value_info("r", FLOAT, None)])
    short = model_of(op("Reshape", "x s", "y"))
    short.graph.initializer.add(name="s", data_type=INT64, dims=[3])
    return [
        *(without, domain, future, negative, undefined, future_type, huge, short, ModelProto()),
        model_of(op("Conv", "x", "y")),
        model_of(op("Relu", "y", "y")),
        model_of(op("Relu", "x", "y"), op("Relu", "x", "y")),
        model_of(op("Gather", "", "y"), op("Shape", "", "s"), op("Slice", "s", "t"), op("Constant", "", "u")),
        model_of(op("Constant", "", "y", value=1.5), op("Constant", "", "u", value_string="a")),
        model_of(op("If", "c", "y", then_branch=body, else_branch=body), c=np.array(True)),
        model_of(op("Shape", "x", "s", start="a"), op("Cast", "s", "t"), op("Concat", "s t", "y")),
    ]


@pytest.mark.parametrize("model", odd_models())
def test_odd_models_give_what_there_is_and_never_raise(model: ModelProto) -> None:
    found = sizes(model)
    assert all(isinstance(shape, tuple) for shape in found.values())


def test_unsorted_nodes_and_large_constants() -> None:
    weight = numpy_helper.from_array(np.ones((4, 6, 3, 3), np.float32))
    nodes = [op("Conv", "a k", "y"), op("Constant", "", "k", value=weight), op("Relu", "x", "a")]
    assert sizes(model_of(*nodes))["y"] == (2, 4, 6, 8)


def stages(count: int) -> ModelProto:
    """Stages of a CSP network as the legacy exporter writes them: halves, a conv of one, and both together."""
    nodes: list[NodeProto] = []
    value = "x"
    for i in range(count):
        a, b, c, d = (f"{name}{i}" for name in "abcd")
        nodes += [
            *chunk(value, a, b, f"t{i}_"),
            op("Conv", f"{a} w", c, pads=[1] * 4),
            op("Concat", f"{c} {b}", d, axis=1),
        ]
        value = d
    return model_of(*nodes, op("Relu", value, "y"), w=np.ones((3, 3, 3, 3), np.float32), **LISTS)


def test_a_whole_network_of_halves_has_its_multiply_adds() -> None:
    model = stages(200)
    assert measure.multiply_adds(view(model).nodes, sizes(model)) == 200 * 2 * 3 * 80 * 27
