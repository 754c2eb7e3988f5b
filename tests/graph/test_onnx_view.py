"""The view of whole models: order, names, bodies, weights in every disguise, constants, types, scopes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from rewriter.errors import InputError
from rewriter.graph.onnx import view
from rewriter.graph.proto import captured_names, live_names, value_type
from rewriter.graph.view import Constant, Graph

FLOAT = TensorProto.FLOAT
WEIGHT = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)


def info(name: str, shape: Any = None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def op(kind: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    """A node; names apart by blanks, `_` for one that is left out."""
    read, made = ([("" if name == "_" else name) for name in names.split()] for names in (inputs, outputs))
    return helper.make_node(kind, read, made, **attrs)


def model_of(*nodes: NodeProto, opset: int = 17, ir: int = 8, outputs: str = "y", **tensors: Any) -> ModelProto:
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()]
    graph = helper.make_graph(nodes, "g", [info("x", [1, 1, 8, 8])], [info(name) for name in outputs.split()], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def graph_of(*nodes: NodeProto, **more: Any) -> Graph:
    return view(model_of(*nodes, **more))


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


# --- order and names -----------------------------------------------------------------------------------------------


def test_unsorted_nodes_are_put_in_order_and_stay_the_same_messages() -> None:
    model = model_of(op("Relu", "b", "y"), op("Add", "x a", "b"), op("Sigmoid", "x", "a"))
    graph = view(model)
    assert ops(graph) == ["sigmoid", "add", "relu"]
    assert all(any(node.native is proto for proto in model.graph.node) for node in graph.nodes)
    assert [node.index for node in graph.nodes] == [0, 1, 2]
    assert graph.values["x"].readers == (0, 1) and graph.values["a"].producer == 0


@pytest.mark.parametrize(
    "nodes",
    [
        [op("Relu", "y", "y")],
        [op("Relu", "b", "a"), op("Relu", "a", "b"), op("Relu", "x", "y")],
        [op("Add", "x c", "a"), op("Add", "x a", "b"), op("Add", "a b", "c"), op("Relu", "c", "y")],
    ],
)
def test_cycles_are_refused(nodes: list[NodeProto]) -> None:
    with pytest.raises(InputError, match="the graph has a cycle through it"):
        graph_of(*nodes)


@pytest.mark.parametrize(
    "model",
    [
        model_of(op("Relu", "x", "y"), op("Neg", "x", "y")),
        model_of(op("Relu", "x", "x")),
        model_of(op("Relu", "x", "w"), op("Relu", "w", "y"), w=WEIGHT),
        model_of(op("Split", "x", "y y")),
    ],
)
def test_two_values_of_one_name_are_refused(model: ModelProto) -> None:
    with pytest.raises(InputError, match=r"two values of the graph are called '[xyw]'; rename one of them"):
        view(model)


def test_node_names_may_be_empty_or_stand_twice() -> None:
    graph = graph_of(op("Relu", "x", "a", name="n"), op("Relu", "a", "b", name="n"), op("Relu", "b", "y"))
    assert [node.name for node in graph.nodes] == ["n", "n", ""]


def test_dead_nodes_are_in_the_view() -> None:
    graph = graph_of(op("Relu", "x", "y"), op("Relu", "x", "dead"))
    assert graph.values["dead"].readers == () and len(graph.nodes) == 2


def test_absent_inputs_and_outputs() -> None:
    graph = graph_of(op("Clip", "x _ top", "y"), op("LSTM", "x w r", "_ h _"), top=np.float32(6))
    assert [v.name for v in graph.nodes[0].data] == ["x", "top"]
    assert [v.name for v in graph.nodes[1].outputs] == ["", "h", ""]
    assert "" not in graph.values


def test_a_name_that_nothing_makes_is_a_value_without_producer() -> None:
    value = graph_of(op("Add", "x outer", "y")).values["outer"]
    assert (value.producer, value.constant, value.is_input, value.readers) == (None, None, False, (0,))


def test_five_thousand_nodes_in_a_row_in_the_worst_order() -> None:
    nodes = [op("Relu", f"v{i}", f"v{i + 1}") for i in range(5000)]
    nodes = [op("Relu", "x", "v0"), *nodes, op("Relu", "v5000", "y")]
    graph = graph_of(*reversed(nodes))
    assert len(graph.nodes) == 5002 and graph.nodes[0].data[0].is_input
    assert len(live_names(nodes, ["y"])) == 5003


# --- inputs, outputs, sizes ----------------------------------------------------------------------------------------


def test_outputs_that_are_inputs_or_constants() -> None:
    graph = graph_of(op("Conv", "x w", "y"), outputs="x w y y", w=WEIGHT)
    x, w, y, again = graph.outputs
    assert x.is_input and x.is_output and not x.private
    assert w.constant is not None and w.is_output and y is again
    assert graph.nodes[0].consts["weight"] is w.constant


def test_declared_sizes_zero_scalars_symbols_and_unknowns() -> None:
    model = model_of(op("Relu", "x", "y"))
    del model.graph.input[:]
    model.graph.input.extend([info("x", [0, "n", None]), info("s", []), info("r")])
    model.graph.input.append(helper.make_value_info("q", helper.make_sequence_type_proto(info("x", [1]).type)))
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = -1
    values = view(model).values
    assert values["x"].shape == (0, "n", None, None)
    assert (values["s"].shape, values["r"].shape, values["q"].shape, values["q"].dtype) == ((), None, None, None)


def test_element_types_that_nobody_defined_are_unknown() -> None:
    for number in (0, 9999):
        assert value_type(info("x", [1], number)) == (None, (1,))
    model = model_of(helper.make_node("Odd", ["x"], ["y"], domain="own", to=9999))
    assert view(model).nodes[0].attrs == {"to": 9999}


def test_element_types_follow_through_nodes() -> None:
    half = np.ones((2, 1, 1, 1), np.float16)
    nodes = [op("Odd", "x", "a", domain="own"), op("Conv", "a w", "b"), op("Relu", "b", "c"), op("Shape", "c", "s")]
    graph = graph_of(*nodes, op("Cast", "c", "d", to=1), op("Split", "d", "e f", axis=1), op("Add", "a f", "y"), w=half)
    found = {name: graph.values[name].dtype for name in "abcsdefy"}
    assert found == dict(zip("abcsdefy", [None, "float16", "float16", None, *["float32"] * 4], strict=True))


def test_types_go_through_sequences_and_choices() -> None:
    """What a choice gives has the type of what is chosen, not of the condition, an input that may be read like it."""
    graph = graph_of(
        op("SplitToSequence", "x", "s", axis=2, keepdims=1),
        op("SequenceAt", "s i", "a"),
        op("Cast", "x", "c", to=TensorProto.BOOL),
        op("Where", "c a x", "b"),
        op("CastLike", "k b", "y"),
        i=np.int64(0),
        k=np.float64(2),
    )
    assert [graph.values[name].dtype for name in "sacb"] == ["float32", "float32", "bool", "float32"]
    found = graph.values["y"].constant
    assert found is not None and found.dtype == "float32"


def test_the_parameters_of_a_norm_tell_its_type_only_before_opset_15() -> None:
    nodes = [op("Odd", "x", "a", domain="own"), op("BatchNormalization", "a s s s s", "b"), op("Relu", "b", "y")]
    for opset, dtype in ((13, "float32"), (14, "float32"), (15, None), (17, None)):
        graph = graph_of(*nodes, opset=opset, s=np.ones(2, np.float32))
        assert graph.values["b"].dtype == dtype and graph.nodes[1].problem is None


# --- weights in disguise -------------------------------------------------------------------------------------------


def conv_reading(*before: NodeProto, **tensors: Any) -> Any:
    return graph_of(*before, op("Conv", "x k", "y"), **tensors).nodes[-1]


TURNED = WEIGHT.transpose(3, 2, 1, 0)
DISGUISES = [
    ([op("Identity", "w", "k")], {"w": WEIGHT}),
    ([op("Identity", "w", "a"), op("Identity", "a", "k")], {"w": WEIGHT}),
    ([op("Transpose", "w", "k", perm=[3, 2, 1, 0])], {"w": TURNED}),
    ([op("Transpose", "w", "k")], {"w": TURNED}),
    ([op("Reshape", "w s", "k")], {"w": WEIGHT.reshape(-1), "s": np.int64([2, 1, -1, 3])}),
    ([op("Unsqueeze", "w a", "k")], {"w": WEIGHT[:, 0], "a": np.int64([1])}),
    ([op("Squeeze", "w a", "k")], {"w": WEIGHT[None], "a": np.int64([0])}),
    ([op("Cast", "w", "k", to=FLOAT)], {"w": WEIGHT.astype(np.float64)}),
    ([op("Mul", "w f", "k")], {"w": WEIGHT / 2, "f": np.float32([2])}),
    ([op("Constant", "", "k", value=numpy_helper.from_array(WEIGHT))], {}),
]


@pytest.mark.parametrize(("before", "tensors"), DISGUISES)
def test_a_weight_behind_nodes_that_make_constants(before: list[NodeProto], tensors: dict[str, Any]) -> None:
    node = conv_reading(*before, **tensors)
    assert node.problem is None
    weight = node.consts["weight"]
    np.testing.assert_array_equal(weight.load(), WEIGHT)
    assert (weight.shape, weight.dtype, weight.name) == (WEIGHT.shape, "float32", "k")
    assert set(weight.stored) == ({n for n, t in tensors.items() if t.dtype != np.int64} or {"k"})  # not lists of sizes


def test_a_bias_that_is_computed_from_sizes_alone_is_made_of_no_tensor() -> None:
    """What the unoptimised dynamo export writes for a convolution without a bias."""
    before = [
        op("Shape", "w", "s", start=0, end=1),
        op("Expand", "s one", "t"),
        op("CastLike", "zero x", "z"),
        op("Expand", "z t", "b"),
    ]
    zero, one = np.float64(0), np.int64([1])
    node = graph_of(*before, op("Conv", "x w b", "y"), w=WEIGHT, zero=zero, one=one).nodes[-1]
    bias = node.consts["bias"]
    assert (bias.shape, bias.dtype, bias.stored) == ((2,), "float32", ("zero",)) and not bias.load().any()
    shape = graph_of(*before, op("Conv", "x w b", "y"), w=WEIGHT, zero=zero, one=one).values["s"].constant
    assert shape is not None and shape.stored == () and shape.load().tolist() == [2]


def test_a_weight_that_depends_on_data_or_on_chance_is_not_known() -> None:
    computed = conv_reading(op("Mul", "w x", "k"), w=WEIGHT)
    assert computed.problem == "its weight is not a constant" and [v.name for v in computed.data] == ["x", "k"]
    noise = [op("RandomNormal", "", "r", shape=[2, 4, 3, 3]), op("Mul", "w r", "m"), op("Identity", "m", "k")]
    assert conv_reading(*noise, w=WEIGHT).problem == "its weight is computed, but it is random"
    sampled = [op("Bernoulli", "w", "r"), op("Mul", "w r", "k")]
    assert conv_reading(*sampled, w=WEIGHT).problem == "its weight is computed, but it is random"


def test_a_weight_that_takes_too_much_is_not_known() -> None:
    wide = [op("Expand", "w s", "e"), op("ReduceMean", "e", "k", axes=[0], keepdims=0)]
    node = conv_reading(*wide, w=WEIGHT, s=np.int64([1 << 20, 2, 4, 3, 3]))
    assert node.problem == "its weight is computed, but it has 75,497,472 elements, more than 67,108,864"


def test_nodes_without_outputs_make_no_constants() -> None:
    for node in (op("Relu", "x", ""), op("Neg", "w", ""), op("Shape", "x", ""), op("Constant", "", "", value_int=1)):
        assert graph_of(node, op("Relu", "x", "y"), w=WEIGHT).values["y"].producer == 1


def test_a_quantised_weight_is_not_known() -> None:
    scale, whole = np.float32(0.5), WEIGHT.astype(np.int8)
    quantised = conv_reading(op("DequantizeLinear", "q s", "k"), q=whole, s=scale)
    assert quantised.problem == "its weight is computed, but DequantizeLinear is not evaluated"
    assert [v.name for v in quantised.data] == ["x", "k"]


@pytest.mark.parametrize("ir", [3, 4, 8])
def test_a_weight_that_is_also_an_input_can_be_overridden(ir: int) -> None:
    model = model_of(op("Conv", "x w", "y"), ir=ir, w=WEIGHT)
    model.graph.input.append(info("w", [2, 1, 3, 3]))
    node = view(model).nodes[0]
    assert node.problem == "its weight is also an input of the model and can be overridden"
    assert node.data[1].constant is None


def test_a_sparse_weight_is_not_known() -> None:
    model = model_of(op("Conv", "x w", "y"))
    values = helper.make_tensor("w", FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 1, 3, 3]))
    assert view(model).nodes[0].problem == "its weight is not a constant"


def test_a_constant_of_an_earlier_round_stands_for_a_stored_one() -> None:
    kernel = Constant("w", WEIGHT.shape, "float32", lambda: WEIGHT.astype(np.float64))
    node = view(model_of(op("Conv", "x w", "y")), made={"w": kernel}).nodes[0]
    assert node.consts["weight"] is kernel


def sparse() -> SparseTensorProto:
    values = helper.make_tensor("v", FLOAT, [1], [1.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4])


@pytest.mark.parametrize(
    ("attrs", "expected", "dtype"),
    [
        ({"value": numpy_helper.from_array(np.float32([1, 2]))}, [1, 2], "float32"),
        ({"value": numpy_helper.from_array(np.float16(3))}, 3, "float16"),
        ({"value_float": 0.1}, float(np.float32(0.1)), "float32"),
        ({"value_floats": [1.5, 2.5]}, [1.5, 2.5], "float32"),
        ({"value_int": -3}, -3, "int64"),
        ({"value_ints": [1, 2]}, [1, 2], "int64"),
        ({"value_string": "a"}, None, None),
        ({"value_strings": ["a"]}, None, None),
        ({"sparse_value": sparse()}, None, None),
        ({"value": 1.5}, None, None),
        ({"value_int": 1.5}, None, None),
        ({"value_ints": 1}, None, None),
        ({"value_float": [1.0]}, None, None),
        ({"value_int": 1, "value_float": 1.0}, None, None),
        ({}, None, None),
    ],
)
def test_constant_nodes_of_all_kinds(attrs: dict[str, Any], expected: Any, dtype: str | None) -> None:
    constant = graph_of(op("Constant", "", "y", **attrs)).values["y"].constant
    if expected is None:
        assert constant is None
    else:
        assert constant is not None and constant.dtype == dtype and constant.stored == ("y",)
        assert constant.load().tolist() == expected


def test_a_constant_node_whose_elements_lie_in_another_file(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="t.bin")
    (tmp_path / "t.bin").write_bytes(np.float32([1, 2]).tobytes())
    constant = view(model_of(op("Constant", "", "y", value=tensor)), folder=tmp_path).values["y"].constant
    assert constant is not None and constant.load().tolist() == [1, 2]


# --- bodies --------------------------------------------------------------------------------------------------------


def body(nodes: list[NodeProto], outputs: str, inputs: str = "", **tensors: Any) -> GraphProto:
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()]
    named = ([info(name) for name in names.split()] for names in (inputs, outputs))
    return helper.make_graph(nodes, "body", *named, held)


def branch(graph: GraphProto, output: str = "y") -> NodeProto:
    return op("If", "c", output, then_branch=graph, else_branch=graph)


def test_values_that_bodies_read_have_them_as_readers() -> None:
    graph = graph_of(op("Relu", "x", "a"), op("Sigmoid", "a", "b"), branch(body([op("Add", "a b", "r")], "r")))
    node = graph.nodes[2]
    assert [v.name for v in node.captures] == ["a", "b"] and [v.name for v in node.data] == ["c"]
    assert graph.values["a"].readers == (1, 2) and graph.values["a"].captured
    assert not graph.values["b"].private and not graph.values["y"].captured


def test_a_node_stands_after_what_its_body_reads() -> None:
    graph = graph_of(branch(body([op("Relu", "a", "r")], "r")), op("Relu", "x", "a"))
    assert ops(graph) == ["relu", "if"]
    with pytest.raises(InputError, match="cycle"):
        graph_of(branch(body([op("Relu", "y", "r")], "r")))


def test_captured_names_of_nested_loops_and_shadowed_names() -> None:
    inner = branch(body([op("Add", "outer own", "r")], "r"), "t")
    loop = op(
        "Loop", "n c", "y", body=body([op("Relu", "it", "own"), inner, op("Add", "t w", "z")], "z", "it cond", w=1.0)
    )
    assert captured_names(loop) == {"outer", "c"}
    shadowing = branch(body([op("Relu", "late", "a"), op("Relu", "x", "late")], "late"))
    assert captured_names(shadowing) == {"late", "x"}  # read before it is its own: the outer one
    assert captured_names(branch(body([], "outer"))) == {"outer"}
    held = body([op("Relu", "s", "r")], "r")
    held.sparse_initializer.append(sparse())
    held.sparse_initializer[0].values.name = "s"
    assert captured_names(branch(held)) == set()


def test_several_graphs_in_one_attribute() -> None:
    node = op("Odd", "x", "y", domain="own")
    node.attribute.append(helper.make_attribute("all", [body([], "a"), body([], "b")]))
    assert captured_names(node) == {"a", "b"}


# --- domains and functions -----------------------------------------------------------------------------------------


def test_custom_operators_are_no_operators_of_the_table() -> None:
    graph = graph_of(op("Conv", "x w", "a", domain="com.Own"), op("Add", "a a", "y", domain="ai.onnx"), w=WEIGHT)
    custom, add = graph.nodes
    assert (custom.op, [v.name for v in custom.data], custom.consts) == ("com.own.conv", ["x", "w"], {})
    assert add.op == "add"


def test_the_opset_is_that_of_the_default_domain() -> None:
    model = model_of(op("Relu", "x", "y"), opset=9)
    model.opset_import.append(helper.make_opsetid("own", 99))
    assert view(model).opset == 9
    model.opset_import[0].domain = "ai.onnx"
    assert view(model).opset == 9
    del model.opset_import[0]
    assert view(model).opset == 1


def test_a_function_of_the_model_overrules_the_operator_of_its_name() -> None:
    model = model_of(op("Identity", "w", "k"), op("Conv", "x k", "y"), w=WEIGHT)
    for name in ("Identity", "Conv"):
        inner = [op("Relu", "a", "b")]
        model.functions.append(helper.make_function("", name, ["a"], ["b"], inner, [helper.make_opsetid("", 17)]))
    graph = view(model)
    assert ops(graph) == ["ai.onnx.identity", "ai.onnx.conv"] and graph.values["k"].constant is None


@pytest.mark.parametrize("opset", [*range(7, 28), 99])
def test_every_opset_from_7_on_reads_a_plain_block(opset: int) -> None:
    ones = np.ones(2, np.float32)
    nodes = [
        op("Conv", "x w", "a"),
        op("BatchNormalization", "a s s s s", "b"),
        op("Add", "a b", "c"),
        op("Relu", "c", "y"),
    ]
    graph = graph_of(*nodes, opset=opset, w=WEIGHT, s=ones)
    assert ops(graph) == ["conv", "bn", "add", "relu"] and all(node.problem is None for node in graph.nodes)


# --- scopes --------------------------------------------------------------------------------------------------------


def noted(name: str, **notes: str) -> str:
    node = op("Relu", "x", "y", name=name)
    for key, content in notes.items():
        node.metadata_props.add(key=key, value=content)
    return graph_of(node).nodes[0].scope


def test_the_scope_is_the_path_in_the_name_or_what_dynamo_notes() -> None:
    assert noted("/model.22/cv2/Conv") == "/model.22/cv2"
    assert noted("/Conv") == "" and noted("Conv_7") == "" and noted("") == ""
    namespace = ": pkg.Net/model.22: pkg.Head/model.22.cv2: torch.nn.Conv2d/conv2d: aten.conv2d.default"
    assert noted("node_conv", other="a/b", namespace=namespace) == "/model.22/cv2"
    assert noted("/real/Relu", namespace=namespace) == "/real"
    assert (
        noted("n", namespace="") == "" and noted("n", namespace="///") == "" and noted("n", namespace="a: b/c") == "/a"
    )


# --- large graphs --------------------------------------------------------------------------------------------------


def blocks(count: int) -> ModelProto:
    nodes: list[NodeProto] = []
    value = "x"
    for i in range(count):
        p = f"b{i}"
        nodes += [
            op("Conv", f"{value} w", f"{p}c", pads=[1, 1, 1, 1]),
            op("BatchNormalization", f"{p}c s s s s", f"{p}n"),
            op("Add", f"{p}n {value}", f"{p}a"),
            op("Relu", f"{p}a", f"{p}y"),
        ]
        value = f"{p}y"
    return model_of(*nodes, op("Relu", value, "y"), w=WEIGHT, s=np.ones(2, np.float32))


def test_the_collector_is_left_as_it_was() -> None:
    model = blocks(250)
    view(model)
    assert gc.isenabled()
    gc.disable()
    try:
        view(model)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_known_sizes_are_constants_and_what_only_they_need_reads_nothing() -> None:
    model = model_of(
        op("Relu", "x", "a"),
        op("Transpose", "a", "t", perm=[1, 0, 3, 2]),
        op("Shape", "t", "s", start=1),
        op("Size", "a", "n"),
        op("Sigmoid", "a", "b"),
        op("Expand", "b s", "e"),
        op("Cast", "n", "m", to=FLOAT),
        op("Mul", "b m", "y"),
        outputs="y e",
    )
    plain, sized = view(model), view(model, sizes={"t": (1, 2, 4, 3), "a": (2, 1, 3, 4)})
    assert plain.values["s"].constant is None
    found = [sized.values[name].constant for name in ("s", "n", "m")]
    assert [None if constant is None else constant.load().tolist() for constant in found] == [[2, 4, 3], 24, 24.0]
    assert [len(plain.values[name].readers) for name in "at"] == [3, 1]
    assert [sized.nodes[reader].op for reader in sized.values["a"].readers] == ["sigmoid"]
    assert not sized.values["t"].readers and len(sized.values["s"].readers) == 1
