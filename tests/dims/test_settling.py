"""Cuts and reshapes whose settings are computed from sizes are plain ones where they are that for every size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from rewriter.dims.engine import measured
from rewriter.dims.settling import plain_nodes
from rewriter.graph.onnx import view

FAR = 2**31 - 1
Place = Sequence[NodeProto]


def op(kind: str, inputs: str, output: str, **attrs: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attrs)


def place(name: str, of: str, less: int) -> list[NodeProto]:
    """A list of one: an extent of the image, less a number."""
    return [op("Slice", f"size {of} {of}+1", f"{name}.whole"), op("Sub", f"{name}.whole {less}", name)]


def cut(*nodes: NodeProto, start: str = "1", end: str = "end", axis: str = "high", step: str = "1") -> Any:
    """What the Slice of these settings is: start, end, axis and step, "all" of it, or None where it is not known."""
    held = {str(n): [n] for n in range(-3, 4)} | {"high": [2], "high+1": [3], "wide": [3], "wide+1": [4]}
    graph = helper.make_graph(
        [op("Shape", "x", "size"), *nodes, op("Slice", f"x {start} {end} {axis} {step}", "y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.int64(numbers), name) for name, numbers in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = plain_nodes(measured(view(model))).get(len(nodes) + 1)
    if found is None:
        return None
    assert [value.name for value in found.data] == ["x"] and found.problem is None
    if found.op == "identity":
        return "all"
    return tuple([number for key in ("starts", "ends", "axes", "steps") for number in found.attrs[key]])


def test_ends_that_lie_before_that_of_the_image() -> None:
    assert cut(*place("end", "high", 1)) == (1, -1, 2, 1)
    assert cut(*place("end", "wide", 1), axis="wide", step="2") == (1, -1, 3, 2)
    assert cut(*place("start", "high", 1), start="start", end="3") == (-1, 3, 2, 1)


def test_ends_at_that_of_the_image_and_beyond() -> None:
    assert cut(*place("end", "high", 0)) == (1, FAR, 2, 1)
    assert cut(*place("end", "high", -3)) == (1, FAR, 2, 1)


def test_all_of_it() -> None:
    assert cut(*place("end", "high", 0), start="0") == "all"
    assert cut(*place("end", "high", 0), start="0", step="2") == (0, FAR, 2, 2)


@pytest.mark.parametrize(("of", "less"), [("high", 2), ("wide", 1), ("wide", 0)])
def test_an_end_that_may_be_negative_or_is_that_of_another_axis(of: str, less: int) -> None:
    """An image of one row has row -1 before the end: counted from there, it is another."""
    assert cut(*place("end", of, less)) is None


def test_a_step_that_is_not_known_or_goes_backwards() -> None:
    assert cut(*place("end", "high", 1), start="end", end="0", step="-1") is None
    assert cut(*place("end", "high", 1), *place("step", "wide", 0), step="step") is None


def reshaped(*sizes: str, rows: str = "h") -> Any:
    """The target of a Reshape to extents of the image, "n" and "h" among them, or numbers."""
    numbers = {str(n): [n] for n in range(-1, 33)}
    nodes = [op("Shape", "x", "size"), op("Slice", "size 0 1", "n"), op("Slice", "size 2 3", "h")]
    nodes += [op("Sub", "h 1", "h-1"), op("Mul", "n h", "nh"), op("Concat", " ".join(sizes), "target", axis=0)]
    graph = helper.make_graph(
        [*nodes, op("Reshape", "x target", "y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, rows, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.int64(number), name) for name, number in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = plain_nodes(measured(view(model))).get(len(nodes))
    return None if found is None else found.attrs.get("shape", found.attrs.get("extents"))


def test_one_extent_that_is_open_is_what_the_others_leave() -> None:
    assert reshaped("nh", "32") == (-1, 32)
    assert reshaped("4", "nh", "8") == (4, -1, 8)


def test_several_open_extents_are_named_by_the_inputs() -> None:
    assert reshaped("n", "h", "32") == ("n", "h", 32)
    assert reshaped("h", "32", "n") == ("h", 32, "n")


def test_extents_that_no_input_has_or_several_and_one_that_may_be_zero() -> None:
    assert reshaped("n", "h-1", "8") is None
    assert reshaped("nh", "n", "8") is None
    assert reshaped("n", "h", "32", rows="n") is None  # two axes of one name need not be equal
    assert reshaped("n", "-1") is None
    assert reshaped("h-1", "32") is None  # zero copies the extent that is there
