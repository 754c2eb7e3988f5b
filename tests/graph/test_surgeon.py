"""graphsurgeon graphs go in and out without being changed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.errors import InputError, UsageError
from rewriter.graph.surgeon import from_proto, to_proto

gs = pytest.importorskip("onnx_graphsurgeon")


def small(opset: int = 17, domain: str | None = None) -> object:
    x = gs.Variable("x", np.float32, (1, 3))
    y = gs.Variable("y", np.float32, (1, 2))
    weight = gs.Constant("w", np.arange(6, dtype=np.float32).reshape(3, 2))
    node = gs.Node("MatMul", "mm", inputs=[x, weight], outputs=[y], domain=domain)
    return gs.Graph([node], [x], [y], name="g", opset=opset)


def test_a_graph_becomes_a_model_that_names_its_ir_version() -> None:
    model = to_proto(small())
    onnx.checker.check_model(model)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert to_proto(small(opset=21)).ir_version == 10


def test_the_graph_is_not_changed() -> None:
    graph = small(domain="com.example")
    to_proto(graph)
    assert graph.import_domains is None  # type: ignore[attr-defined]
    assert graph.ir_version is None  # type: ignore[attr-defined]
    assert [n.name for n in graph.nodes] == ["mm"]  # type: ignore[attr-defined]


def test_a_stated_ir_version_is_kept() -> None:
    graph = small()
    graph.ir_version = 9  # type: ignore[attr-defined]
    assert to_proto(graph).ir_version == 9


def test_sequence_inputs_keep_their_type() -> None:
    seq = gs.Variable("s", np.float32, type="sequence_type")
    out = gs.Variable("n", np.int64, ())
    graph = gs.Graph([gs.Node("SequenceLength", inputs=[seq], outputs=[out])], [seq], [out], opset=17)
    assert to_proto(graph).graph.input[0].type.HasField("sequence_type")


def test_a_model_comes_back_as_an_independent_graph() -> None:
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    model = helper.make_model(graph, ir_version=10)
    before = model.SerializeToString()
    native = from_proto(model)
    native.nodes[0].inputs[1].name = "renamed"  # type: ignore[index]
    assert to_proto(native).graph.initializer[0].name == "renamed"
    assert model.SerializeToString() == before


def test_what_is_no_graph_and_what_cannot_be_exported_is_said() -> None:
    with pytest.raises(UsageError, match="a graphsurgeon graph is wanted, not str; load files by their path"):
        to_proto("model.onnx")  # type: ignore[arg-type]
    graph = small()
    graph.outputs[0].dtype = None  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="graphsurgeon cannot export the graph"):
        to_proto(graph)
    with pytest.raises(InputError, match="opset 999 is newer"):
        to_proto(small(opset=999))
