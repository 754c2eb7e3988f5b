"""What is written around an image of any size is a slice where that is proved for all of them, and else is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from rewriter.dims.engine import measured
from rewriter.dims.settling import plain_nodes
from rewriter.graph.onnx import view
from rewriter.graph.view import Node

Shape = Sequence[str | int]
IMAGE: Shape = ("n", 4, "h", "w")
Found = tuple[tuple[int, ...], tuple[int | None, ...], tuple[int, ...]]
"""The starts and stops of a write and the shape of its values."""


def op(kind: str, inputs: str, output: str, **attrs: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attrs)


def found(*nodes: NodeProto, image: Shape = IMAGE, **tensors: Any) -> Found | str | None:
    """What the last node, a ScatterND, writes; the name of a value that takes the place of all."""
    written = node_of(nodes, image, **tensors)
    if written is None:
        return None
    (data,) = written.data
    if written.op == "identity":
        return data.name
    assert (written.op, data.name) == ("assign", nodes[-1].input[0])
    return written.attrs["starts"], written.attrs["stops"], written.consts["values"].shape


def node_of(nodes: Sequence[NodeProto], image: Shape = IMAGE, **tensors: Any) -> Node | None:
    held = {"zero": 0, "one": 1, "two": 2, "three": 3, "first": [0], "unit": [1], "pair": [2], "last": [-1]}
    held |= {"end": [2**63 - 1], "channels": [4], "pads": [0, 0, 1, 1, 0, 0, 1, 1], "single": [1, 1]}
    held |= {"v": np.arange(4, dtype=np.float32).reshape(4, 1, 1)} | tensors
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_empty_tensor_value_info("z")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return plain_nodes(measured(view(model))).get(len(nodes) - 1)


SIZES = [
    op("Shape", "x", "size"),
    op("Pad", "x pads", "padded"),
    op("Shape", "padded", "whole"),
    *[op("Gather", of, to) for of, to in (("size zero", "images"), ("size two", "high"), ("size three", "wide"))],
    *[op("Gather", of, to) for of, to in (("whole two", "rows"), ("whole three", "columns"))],
]
"""An image, another with one more row and column on each side, and the extents of both as numbers."""


def listed(*sizes: str) -> list[NodeProto]:
    """A list of extents, each given as a number or, where it is known, as a list of one."""
    open_ = {name: f"{name}_" for name in sizes if name not in ("unit", "pair", "channels")}
    made = [op("Unsqueeze", f"{name} first", to) for name, to in open_.items()]
    return [*made, op("Concat", " ".join(open_.get(name, name) for name in sizes), "target", axis=0)]


def rows(*index: NodeProto, count: str = "unit", **given: Any) -> Found | str | None:
    """Constants for so many rows of the padded image, as today's exporter writes them; `index` makes `at`."""
    front = op("Transpose", "padded", "front", perm=[2, 1, 0, 3])
    updates = [*listed(count, "channels", "images", "columns"), op("Expand", "v target", "updates")]
    return found(*SIZES, *index, *updates, front, op("ScatterND", "front at updates", "z"), **given)


def cut(start: str, stop: str, step: str = "unit", limit: str = "rows") -> list[NodeProto]:
    """Some of the places of a range from 0 on."""
    made = [op("Range", f"zero {limit} one", "places"), op("Slice", f"places {start} {stop} first {step}", "some")]
    return [*made, op("Unsqueeze", "some last", "at")]


def written(start: int, stop: int | None) -> Found:
    """Constants in some rows, all images and all columns."""
    return (start, 0, 0, 0), (stop, None, None, None), (1, 4, 1, 1)


# --- slices ----------------------------------------------------------------------------------------------------------


def test_the_first_row_and_the_last_of_an_image_of_any_size() -> None:
    assert rows(*cut("first", "unit")) == written(0, 1)
    assert rows(*cut("last", "end")) == written(-1, None)


def test_places_that_are_computed_from_the_size() -> None:
    """Of h + 2 rows the last one is row h + 1, whatever h is; row h is the one before it."""
    assert rows(op("Add", "high one", "place"), op("Reshape", "place single", "at")) == written(-1, None)
    assert rows(op("Reshape", "high single", "at")) == written(-2, -1)


def test_several_rows() -> None:
    assert rows(*cut("first", "pair"), count="pair") == written(0, 2)
    inside = [op("Add", "high one", "limit"), op("Range", "one limit one", "places")]
    assert rows(*inside, op("Unsqueeze", "places last", "at"), count="high") == written(1, -1)


def test_an_index_that_counts_from_the_end() -> None:
    assert rows(op("Identity", "minus", "at"), minus=[[-1]]) == written(-1, None)
    assert rows(op("Identity", "minus", "at"), minus=[[-2], [-1]], count="pair") == written(-2, None)


@pytest.mark.parametrize("image", [("n", 4, 6, "w"), (2, 4, "h", 5), (1, 4, "h", "w"), ("n", 4, 1, "w")])
def test_some_of_the_extents_may_be_known(image: Shape) -> None:
    assert rows(*cut("first", "unit"), image=image) == written(0, 1)
    assert rows(*cut("last", "end"), image=image) == written(-1, None)


PLACES = ("images", "channel", "rows", "columns")


def by_places(*sizes: str, **changed: str) -> list[NodeProto]:
    """The row or column of an index per place, as the exporter of TorchScript writes it; `some` are the rows."""
    made = [op("Gather", "whole one", "channel"), *cut("last", "end")[:2]]
    for axis, name in enumerate(PLACES):
        limit = changed.get(name, name)
        made.append(op("Range", f"zero {limit} one", f"range{axis}"))
        source = "some" if name == "rows" else f"range{axis}"
        made.append(op("Reshape", f"{source} shape{axis}", f"axis{axis}"))
    made += [op("Add", "axis0 axis1", "two_axes"), op("Add", "two_axes axis2", "three_axes")]
    made += [op("Add", "three_axes axis3", "all_axes"), op("Shape", "all_axes", "extents")]
    for axis in range(4):
        made += [op("Expand", f"axis{axis} extents", f"wide{axis}"), op("Unsqueeze", f"wide{axis} last", f"one{axis}")]
    made += [op("Concat", "one0 one1 one2 one3", "at", axis=-1), op("Expand", "v extents", "updates")]
    return [*SIZES, *made, op("ScatterND", "padded at updates", "z")]


SHAPES = {f"shape{axis}": [-1 if i == axis else 1 for i in range(4)] for axis in range(4)}


def test_place_by_place() -> None:
    whole: Found = ((0, 0, -1, 0), (None, None, None, None), (1, 4, 1, 1))
    assert found(*by_places(), **SHAPES) == whole
    assert found(*by_places(), image=("n", 4, 5, 6), **SHAPES) == whole
    narrow: Found = ((0, 0, -1, 0), (None, None, None, -2), (1, 4, 1, 1))
    assert found(*by_places(columns="wide"), **SHAPES) == narrow


def test_what_is_written_over_everything_takes_its_place() -> None:
    every = [op("Range", "zero rows one", "places"), op("Unsqueeze", "places last", "at")]
    front = op("Transpose", "padded", "front", perm=[2, 1, 0, 3])
    other = op("Relu", "front", "other")
    assert found(*SIZES, *every, front, other, op("ScatterND", "front at other", "z")) == "other"


def elements(index: Any, axis: int = 3, count: str = "unit", **given: Any) -> Found | str | None:
    """Columns of the padded image, as today's exporter writes what torch writes by one index."""
    made = [*listed("images", "channels", "rows", count), op("Expand", "v target", "updates")]
    made += [op("Shape", "updates", "all"), op("Expand", "index all", "at")]
    last = op("ScatterElements", "padded at updates", "z", axis=axis)
    return found(*SIZES, *made, last, index=np.int64(index), **given)


def test_one_column_by_its_index() -> None:
    whole = (None, None, None)
    assert elements([0]) == ((0, 0, 0, 0), (*whole, 1), (1, 4, 1, 1))
    assert elements([-1], axis=-1) == ((0, 0, 0, -1), (*whole, None), (1, 4, 1, 1))
    assert elements([[[[-2, -1]]]], count="pair") == ((0, 0, 0, -2), (*whole, None), (1, 4, 1, 1))
    assert elements([1], image=("n", 4, "h", 6)) == ((0, 0, 0, 1), (*whole, 2), (1, 4, 1, 1))


def test_columns_by_indices_that_are_no_run() -> None:
    assert elements([[[[0, 2]]]], count="pair") is None
    assert elements([[[[0, 0]]]], count="pair") is None
    assert elements([4]) is None  # an image of one column has three with room
    assert elements([0], axis=2) is None  # then the rows of each column write to one place


@pytest.mark.parametrize(
    ("before", "least"),
    [
        ([], 3),
        ([op("Conv", "x window", "y", strides=[2, 2], pads=[1, 1, 1, 1])], 3),
        ([op("Conv", "x window", "y")], 3),  # a window that does not fit is an error
        ([op("Slice", "x unit end pair", "y")], 2),  # of one row nothing is left
        ([op("Slice", "x unit end pair", "cut"), op("Conv", "cut window", "y", pads=[1, 1, 1, 1])], 2),
    ],
)
def test_how_many_rows_there_are_at_the_least(before: list[NodeProto], least: int) -> None:
    made = [*before, op("Pad", "y pads" if before else "x pads", "padded"), *SIZES[2:3], *SIZES[6:]]
    made += [op("Shape", "padded", "s"), op("Gather", "s zero", "images"), *cut("first", "unit")]
    made += [*listed("unit", "channels", "images", "columns"), op("Expand", "v target", "updates")]
    made += [op("Transpose", "padded", "front", perm=[2, 1, 0, 3]), op("ScatterND", "front at updates", "z")]
    plain = node_of(made, window=np.ones((4, 4, 3, 3), dtype=np.float32))
    assert plain is not None and plain.attrs["least"] == (least, 4, 1, 3)


# --- what is no slice, or not for every size -------------------------------------------------------------------------


def test_a_step_of_two() -> None:
    assert rows(*cut("first", "end", "pair")) is None
    assert rows(op("Identity", "rising", "at"), rising=[[0], [2]], count="pair") is None


def test_a_place_that_is_named_twice() -> None:
    assert rows(op("Identity", "twice", "at"), twice=[[0], [0]], count="pair") is None


def test_places_along_a_diagonal() -> None:
    diagonal = [op("Range", "zero rows one", "places"), op("Unsqueeze", "places last", "each")]
    pairs = op("Concat", "each each", "at", axis=-1)
    updates = [*listed("rows", "images", "channels"), op("Expand", "flat target", "updates")]
    front = op("Transpose", "padded", "front", perm=[2, 3, 0, 1])
    last = op("ScatterND", "front at updates", "z")
    given = {"image": ("n", 4, 6, 6), "flat": np.ones(4, dtype=np.float32)}
    assert found(*SIZES, *diagonal, pairs, *updates, front, last, **given) is None


def test_a_bound_in_the_other_direction_of_the_image() -> None:
    """Row w, of an image that is h high."""
    assert rows(op("Reshape", "wide single", "at")) is None
    assert rows(*cut("last", "end", limit="columns")) is None


def test_a_place_that_may_lie_outside() -> None:
    assert rows(op("Add", "rows one", "place"), op("Reshape", "place single", "at")) is None
    assert rows(op("Sub", "high two", "place"), op("Reshape", "place single", "at")) is None  # of one row: row -1


def test_the_last_row_of_a_value_that_may_have_none() -> None:
    """An image of one row is empty without its first one, and then there is no last row."""
    less = [op("Slice", "x unit end pair", "less"), op("Shape", "less", "rest"), op("Gather", "rest two", "rows")]
    updates = [*listed("unit", "channels", "images", "wide"), op("Expand", "v target", "updates")]
    front = op("Transpose", "less", "front", perm=[2, 1, 0, 3])
    sizes = [node for node in SIZES if "rows" not in node.output]
    last = op("ScatterND", "front at updates", "z")
    assert found(*sizes, *less, *cut("last", "end"), *updates, front, last) is None


def test_constants_that_are_stored_for_every_place_but_the_images() -> None:
    """As the exporter of TorchScript leaves them where only the number of images is open."""
    stored = [*listed("unit", "channels", "images", "columns"), op("Expand", "full target", "updates")]
    front = op("Transpose", "padded", "front", perm=[2, 1, 0, 3])
    last = op("ScatterND", "front at updates", "z")
    full = np.ones((1, 4, 1, 8), dtype=np.float32) * np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    given = {"image": ("n", 4, 6, 6), "full": full}
    assert found(*SIZES, *cut("first", "unit"), *stored, front, last, **given) == written(0, 1)
    full[0, 2, 0, 3] += 1
    assert found(*SIZES, *cut("first", "unit"), *stored, front, last, **given) == (*written(0, 1)[:2], (1, 4, 1, 8))


def test_constants_for_one_size_only() -> None:
    """What the exporter of TorchScript leaves of an example: right for that size, and an error for all others."""
    baked = op("Expand", "v baked", "updates")
    front = op("Transpose", "padded", "front", perm=[2, 1, 0, 3])
    last = op("ScatterND", "front at updates", "z")
    assert found(*SIZES, *cut("first", "unit"), baked, front, last, baked=[1, 4, 2, 9]) is None


def test_values_that_are_added_to_what_is_there() -> None:
    front = op("Transpose", "padded", "front", perm=[2, 1, 0, 3])
    updates = [*listed("unit", "channels", "images", "columns"), op("Expand", "v target", "updates")]
    last = op("ScatterND", "front at updates", "z", reduction="add")
    assert found(*SIZES, *cut("first", "unit"), *updates, front, last) is None


def test_values_that_are_no_constants() -> None:
    front = op("Transpose", "padded", "front", perm=[2, 1, 0, 3])
    taken = op("Slice", "front first unit first", "updates")
    assert found(*SIZES, *cut("first", "unit"), front, taken, op("ScatterND", "front at updates", "z")) is None
