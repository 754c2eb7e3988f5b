"""Settings that are computed from sizes: what computes them is read no more, is checked, and is never left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fixtures.judge import op_histogram
from rewriter import api
from rewriter.checking.record import Verdict
from rewriter.dims.engine import Pass
from rewriter.dims.settling import plain_nodes
from rewriter.errors import Reason
from rewriter.graph.view import Constant, Node
from rewriter.rewriting import plain
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.end_to_end.judging import run

FLOAT = TensorProto.FLOAT
STRIPS = {"top": (2, 0), "left": (3, 0), "bottom": (2, -1), "right": (3, -1)}


def op(kind: str, inputs: str, output: str, **attrs: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attrs)


def ring(name: str, entry: str, sized: str = "") -> list[NodeProto]:
    """A layer, room around it and four writes; their places come from the size of the room, or of `sized`."""
    made = [op("Conv", f"{entry} {name}.w {name}.b", name), op("Pad", f"{name} pads", f"{name}.room")]
    made.append(op("Shape", sized or f"{name}.room", f"{name}.whole"))
    last = f"{name}.room"
    for strip, (axis, place) in STRIPS.items():
        at = f"{name}.{strip}"
        perm = [2, 1, 0, 3] if axis == 2 else [3, 1, 2, 0]
        made.append(op("Gather", f"{name}.whole axis{axis}", f"{at}.extent"))
        made.append(op("Range", f"zero {at}.extent one", f"{at}.places"))
        made.append(op("Slice", f"{at}.places {place} {'unit' if place == 0 else 'end'} first", f"{at}.some"))
        made += [op("Unsqueeze", f"{at}.some last", f"{at}.at"), op("Transpose", last, f"{at}.front", perm=perm)]
        made += [op("Shape", f"{at}.front", f"{at}.size"), op("Slice", f"{at}.size unit end first", f"{at}.rest")]
        made += [op("Concat", f"unit {at}.rest", f"{at}.target", axis=0)]
        made.append(op("Expand", f"{name}.v {at}.target", f"{at}.values"))
        made.append(op("ScatterND", f"{at}.front {at}.at {at}.values", f"{at}.written"))
        made.append(op("Transpose", f"{at}.written", at, perm=perm))
        last = at
    return made


def model_of(*nodes: NodeProto, off: float = 0.0) -> ModelProto:
    random = np.random.default_rng(0)
    held: dict[str, np.ndarray] = {"zero": np.int64(0), "one": np.int64(1), "axis2": np.int64(2), "axis3": np.int64(3)}
    held |= {name: np.int64([n]) for name, n in (("first", 0), ("unit", 1), ("last", -1), ("end", 2**63 - 1))}
    held |= {
        "scale": np.linspace(1, 2, 4, dtype=np.float32).reshape(4, 1, 1),
        "axis2_": np.int64([2]),
        "axis3_": np.int64([3]),
        "0": np.int64([0]),
        "-1": np.int64([-1]),
        "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    for name in ("a", "b"):
        bias = random.normal(size=4).astype(np.float32)
        held |= {f"{name}.w": random.normal(size=(4, 3, 1, 1)).astype(np.float32), f"{name}.b": bias}
        held[f"{name}.k"] = random.normal(size=(4, 4, 3, 3)).astype(np.float32)
        held[f"{name}.v"] = (bias + (off if name == "b" else 0)).reshape(4, 1, 1)
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("z", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RINGED = [*ring("a", "x"), op("Conv", "a.right a.k", "y"), op("Relu", "y", "z")]


def test_what_computes_the_places_is_no_reader() -> None:
    graph = OnnxDraft(model_of(*RINGED)).view()
    assert [node.op for node in graph.nodes].count("assign") == 4
    (reader,) = graph.readers(graph.values["a.room"])
    assert reader.name == "a.top.front"
    measured = [graph.nodes[index].name for index in graph.values["a.room"].measured_by]
    assert measured == [f"a.{strip}.written" for strip in STRIPS]


def test_all_of_it_goes_with_the_ring() -> None:
    result = api.apply(model_of(*RINGED), "collapse")
    assert op_histogram(result.model) == {"Conv": 1, "Relu": 1}
    assert result.report.verification.verdict is Verdict.OK


def test_a_ring_stays_where_writes_that_stay_need_its_size() -> None:
    """The second ring is off and stays; it is as large as the first, which tells it where to write."""
    both = [*ring("a", "x"), op("Conv", "a.right a.k", "y"), *ring("b", "x", "a.room"), op("Conv", "b.right b.k", "u")]
    last = [op("Relu", "y", "y+"), op("Relu", "u", "u+"), op("Add", "y+ u+", "z")]
    result = api.apply(model_of(*both, *last, off=3e-6), "collapse")
    assert result.report.verification.verdict is Verdict.OK
    assert op_histogram(result.model)["ScatterND"] == 8
    assert any((r.node, r.code) == ("a.room", Reason.ESCAPE) for r in result.report.refusals)
    result = api.apply(model_of(*both, *last), "collapse")
    assert op_histogram(result.model) == {"Conv": 2, "Relu": 2, "Add": 1}
    assert result.report.verification.verdict is Verdict.OK


Claims = Callable[[Node], Node]
WRONG: Mapping[str, Claims] = {
    "starts": lambda node: replace(node, attrs=node.attrs | {"starts": tuple(map(abs, node.attrs["starts"]))}),
    "stops": lambda node: replace(node, attrs=node.attrs | {"stops": (2, *node.attrs["stops"][1:])}),
    "values": lambda node: replace(node, consts={"values": twice(node.consts["values"])}),
}


def twice(constant: Constant) -> Constant:
    return replace(constant, load=lambda: 2 * constant.load())


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_write_that_is_not_what_the_nodes_do_is_left(monkeypatch: pytest.MonkeyPatch, wrong: Claims) -> None:
    def claimed(sizes: Pass) -> dict[int, Node]:
        return {index: wrong(node) for index, node in plain_nodes(sizes).items()}

    monkeypatch.setattr(plain, "plain_nodes", claimed)
    graph = OnnxDraft(model_of(*RINGED)).view()
    assert [node.op for node in graph.nodes].count("scatter_nd") >= 2


CROPPED = [
    op("Shape", "x", "size"),
    op("Slice", "size axis2_ axis3_ first", "high"),
    op("Sub", "high unit", "end2"),
    op("Slice", "x unit end2 axis2_", "inside"),
    op("Conv", "inside a.w a.b", "a"),
    op("Relu", "a", "z"),
]


def test_a_size_that_is_read_of_a_value_that_could_go_is_read_elsewhere() -> None:
    """The second layer is as large as the image, which tells as well where to cut; then it may go."""
    norm = [op("Conv", "x a.w a.b", "inner"), op("Mul", "inner scale", "outer"), op("Relu", "outer", "r")]
    size = [op("Shape", "inner", "size"), *CROPPED[1:4]]
    last = [op("Conv", "inside b.w b.b", "other"), op("Relu", "other", "s"), op("Slice", "r unit end2 axis2_", "t")]
    model = model_of(*norm, *size, *last, op("Add", "s t", "z"))
    result = api.apply(model, "collapse")
    assert op_histogram(result.model)["Conv"] == 2 and "Mul" not in op_histogram(result.model)
    assert result.report.verification.verdict is Verdict.OK
    feeds = {"x": np.ones((2, 3, 5, 4), np.float32)}
    np.testing.assert_allclose(run(result.model, feeds)["z"], run(model, feeds)["z"], rtol=1e-4, atol=1e-5)


def test_a_cut_that_is_not_what_the_nodes_do_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut() -> Node:
        return next(node for node in OnnxDraft(model_of(*CROPPED)).view().nodes if node.output.name == "inside")

    assert cut().attrs == {"starts": (1,), "ends": (-1,), "axes": (2,), "steps": (1,)}
    further = {"starts": (1,), "ends": (-2,), "axes": (2,), "steps": (1,)}

    def claimed(sizes: Pass) -> dict[int, Node]:
        return {3: replace(plain_nodes(sizes)[3], attrs=further)}

    monkeypatch.setattr(plain, "plain_nodes", claimed)
    assert cut().problem == "where it cuts is known only at run time"
