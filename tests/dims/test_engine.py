"""The engine of sizes: right for every value at every size, and silent where it does not know."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fixtures.cache import cached_export
from fixtures.export import Form
from rewriter.dims import Sizes, sizes
from rewriter.graph.onnx import view
from tests.dims.running import noise, score

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SIZES = ((1, 320, 320), (2, 416, 320), (1, 256, 512))

MODELS = [
    pytest.param("n", "legacy", id="n-legacy"),
    pytest.param("n", "dynamo", id="n-dynamo"),
    pytest.param("n", "legacy-bn", id="n-legacy-bn", marks=pytest.mark.slow),
    pytest.param("t", "legacy", id="t-legacy", marks=pytest.mark.slow),
    pytest.param("t", "dynamo", id="t-dynamo", marks=pytest.mark.slow),
]


@cache
def exported(name: str, form: Form) -> ModelProto:
    return onnx.load(cached_export(name, form, 128, dynamic=True))


@pytest.mark.parametrize(("name", "form"), MODELS)
def test_no_size_of_a_detector_is_wrong(name: str, form: Form) -> None:
    model = exported(name, form)
    known = sizes(view(model))
    for batch, high, wide in SIZES:
        found = score(model, {model.graph.input[0].name: noise(batch, 3, high, wide)}, known)
        assert not found.wrong
        assert found.right > 3000
        assert found.unknown == 0


# --- small graphs --------------------------------------------------------------------------------------------------


def op(kind: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attrs)


def model_of(*nodes: NodeProto, opset: int = 17, shape: Any = ("n", 8, "h", "w"), **tensors: Any) -> ModelProto:
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()]
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    outputs = [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output]
    graph = helper.make_graph(nodes, "g", [x], outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def known_of(*nodes: NodeProto, **rest: Any) -> Sizes:
    return sizes(view(model_of(*nodes, **rest)))


def shown(known: Sizes, name: str = "y") -> tuple[str, ...]:
    return tuple(str(size.expr) for size in known.dims[name])


def check(*nodes: NodeProto, unknown: int = 0, **rest: Any) -> Sizes:
    """Nothing is wrong at several sizes, odd ones among them."""
    model = model_of(*nodes, **rest)
    known = sizes(view(model))
    for batch, high, wide in ((1, 16, 16), (2, 17, 13), (3, 12, 31)):
        found = score(model, {"x": noise(batch, 8, high, wide)}, known)
        assert not found.wrong
        assert found.unknown == unknown
    return known


WEIGHT = np.zeros((4, 8, 3, 3), np.float32)


def test_windows_are_followed() -> None:
    for stride, pad, dilation in ((1, 1, 1), (2, 1, 1), (3, 0, 2), (2, 0, 1)):
        attrs = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
        check(op("Conv", "x k", "y", **attrs), k=WEIGHT)
    check(op("MaxPool", "x", "y", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]))
    check(op("AveragePool", "x", "y", kernel_shape=[2, 2]))
    check(op("GlobalAveragePool", "x", "y"))
    transposed = np.zeros((8, 2, 3, 3), np.float32)
    check(op("ConvTranspose", "x k", "y", strides=[2, 2], output_padding=[1, 0], pads=[1, 1, 0, 0]), k=transposed)


def test_what_is_known_does_not_depend_on_the_order_of_nodes() -> None:
    """That floor(h/4) − 1 is not negative follows from a window that is as large, wherever it stands."""
    pools = (
        op("MaxPool", "x", "p", kernel_shape=[4, 4], strides=[4, 4]),
        op("MaxPool", "p", "q", kernel_shape=[2, 2], strides=[1, 1]),
    )
    numbers = (
        op("Shape", "x", "s"),
        op("Slice", "s two three zero", "high"),
        op("Div", "high four", "quarter"),
        op("Sub", "quarter one", "less"),
        op("Div", "less two", "half"),
        op("ConstantOfShape", "half", "y"),
    )
    held = {name: np.int64([n]) for n, name in enumerate(("zero", "one", "two", "three", "four"))}
    first, second = (known_of(*nodes, **held) for nodes in ((*pools, *numbers), (*numbers, *pools)))
    assert shown(first) == shown(second) == ("floor((h + 4)/8) - 1",)


@pytest.mark.parametrize("settings", [{"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}])
def test_what_runtimes_round_is_one_opaque_term_by_settings(settings: dict[str, Any]) -> None:
    pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
    known = check(
        op("MaxPool", "x", "a", **pool, **settings),
        op("MaxPool", "x", "b", **pool, **settings),
        op("MaxPool", "x", "c", **pool),
        op("MaxPool", "x", "d", kernel_shape=[2, 2], strides=[2, 2], **settings),
        op("Identity", "a", "y"),
        unknown=8,
    )
    assert shown(known, "a") == shown(known, "b") and known.dims["a"] == known.dims["b"]
    assert known.dims["a"] != known.dims["c"] and known.dims["a"] != known.dims["d"]


def test_resize_by_whole_scales_and_by_sizes() -> None:
    check(op("Resize", "x _ scales", "y"), scales=np.float32([1, 1, 2, 3]))
    check(
        op("Shape", "x", "s"),
        op("Slice", "s zero two axis", "front"),
        op("Slice", "s two four axis", "back"),
        op("Mul", "back two", "twice"),
        op("Concat", "front twice", "sizes", axis=0),
        op("Resize", "x _ _ sizes", "y"),
        zero=np.int64([0]), two=np.int64([2]), four=np.int64([4]), axis=np.int64([0]),
    )  # fmt: skip
    known = known_of(op("Resize", "x _ scales", "y"), scales=np.float32([1, 1, 1.5, 1.5]))
    again = known_of(op("Resize", "x _ scales", "y"), scales=np.float32([1, 1, 1.25, 1.25]))
    assert shown(known)[2].startswith("resize(") and known.dims["y"][2].expr != again.dims["y"][2].expr


def test_numbers_through_floats_as_exporters_write_them() -> None:
    nodes = [
        op("Shape", "x", "s"),
        op("Gather", "s two", "h"),
        op("Cast", "h", "f", to=FLOAT),
        op("Mul", "f double", "g"),
        op("Floor", "g", "i"),
        op("Cast", "i", "j", to=INT64),
        op("Range", "zero j one", "y"),
    ]
    known = check(
        *nodes, two=np.int64(2), double=np.float32(2), zero=np.int64(0), one=np.int64(1)
    )  # fmt: skip
    assert shown(known) == ("2·h",)
    halved = known_of(*nodes, two=np.int64(2), double=np.float32(0.5), zero=np.int64(0), one=np.int64(1))
    assert shown(halved)[0].startswith("?")  # half a size need not be whole
    half = known_of(*[*nodes[:2], op("Cast", "h", "f", to=TensorProto.FLOAT16), *nodes[3:]], two=np.int64(2),
                    double=np.float16(2), zero=np.int64(0), one=np.int64(1))  # fmt: skip
    assert shown(half)[0].startswith("?")  # float16 does not hold every size


LISTS = {"one": np.int64([1]), "two": np.int64([2]), "at": np.int64([2]), "zero": np.int64([0])}


def height(name: str) -> list[NodeProto]:
    return [op("Shape", "x", "s"), op("Gather", "s at", name)]


def test_division_is_a_floor_only_where_nothing_is_negative() -> None:
    full = [op("Div", "k two", "q"), op("ConstantOfShape", "q", "y")]
    assert shown(check(*height("k"), *full, **LISTS)) == ("floor(h/2)",)
    five = np.int64([5])
    down = known_of(*height("h"), op("Sub", "h five", "k"), *full, five=five, **LISTS)
    assert "q" not in down.elements and "y" not in down.dims  # (3 − 5) / 2 is −1, its floor −1, but (4 − 5) / 2 is 0
    up = check(*height("h"), op("Add", "h five", "k"), *full, five=five, **LISTS)
    assert shown(up) == ("floor((h + 1)/2) + 2",)
    near = check(
        *height("h"),
        op("Sub", "h two", "k"),
        op("Div", "k four", "q"),
        op("ConstantOfShape", "q", "y"),
        four=[4],
        **LISTS,
    )
    assert shown(near) == ("positive part(floor((h + 2)/4) - 1)",)  # −1 / 4 is 0
    assert "q" not in known_of(*height("k"), op("Neg", "k", "m"), op("Div", "m two", "q"), **LISTS).elements
    assert "q" not in known_of(*height("k"), op("Div", "two k", "q"), **LISTS).elements


def test_constants_divide_towards_zero() -> None:
    model = model_of(
        op("Shape", "x", "s", start=1, end=2),
        op("Sub", "s nine", "m"),
        op("Div", "m two", "y"),
        shape=("n", 8, "h", "w"),
        nine=np.int64([13]),
        two=np.int64([2]),
    )
    known = sizes(view(model))
    assert str(known.elements["y"].items[0].expr) == "-2"
    assert not score(model, {"x": noise(1, 8, 4, 4)}, known).wrong


def same_pads(start: str) -> list[NodeProto]:
    """What a padding of its own to the size of SAME comes to, in floats, as a list of extents."""
    half, back = (
        [op("Cast", start, "f", to=FLOAT), op("Div", "f half", "q"), op("Ceil", "q", "c")],
        op("Mul", "c half", "m"),
    )
    more = [op("Add", "m one", "a"), op("Sub", "a f", "d"), op("Clip", "d nothing", "p")]
    return [
        *half,
        back,
        *more,
        op("Div", "p half", "l"),
        op("Cast", "l", "k", to=INT64),
        op("ConstantOfShape", "k", "y"),
    ]


PADS = {"half": np.float32([2]), "nothing": np.float32(0), **LISTS, "one": np.float32([1])}


@pytest.mark.parametrize("wide", [16, 17])
def test_numbers_that_pass_through_fractions_are_what_a_runtime_computes(wide: int) -> None:
    model = model_of(op("Shape", "x", "s", start=3), *same_pads("s"), shape=(1, 8, 12, wide), **PADS)
    known = sizes(view(model))
    found = score(model, {"x": noise(1, 8, 12, wide)}, known)
    assert not found.wrong and shown(known) == (f"{((wide + 1) // 2 * 2 + 1 - wide) // 2}",)
    assert "q" not in known.elements or wide % 2 == 0  # half a place is no size


def test_fractions_of_open_sizes_stay_unknown() -> None:
    known = known_of(op("Shape", "x", "s", start=3), *same_pads("s"), **PADS)
    assert "k" not in known.elements


def test_what_runtimes_compute_to_different_last_digits_is_no_size() -> None:
    """The logarithm of 8 to the base 2 may be a last digit less than 3, whose whole part is 2."""
    halvings = [
        op("Cast", "s", "f", to=FLOAT),
        op("Log", "f", "g"),
        op("Div", "g base", "q"),
        op("Cast", "q", "k", to=INT64),
    ]
    nodes = [op("Shape", "x", "s", start=3), *halvings, op("ConstantOfShape", "k", "y")]
    known = known_of(*nodes, shape=(1, 8, 12, 8), base=np.log(np.float32([2])))
    assert "f" in known.elements and not {"g", "q", "k"} & known.elements.keys()


def test_random_numbers_and_strangers_are_not_computed() -> None:
    for node in (op("RandomNormalLike", "f", "r"), op("Stranger", "f", "r", domain="of.others")):
        nodes = [op("Shape", "x", "s", start=3), op("Cast", "s", "f", to=FLOAT), node, op("Cast", "r", "y", to=INT64)]
        assert "y" not in known_of(*nodes, shape=(1, 8, 12, 16)).elements


def test_slices_of_values() -> None:
    lists = {"a": np.int64([1]), "b": np.int64([2**63 - 1]), "e": np.int64([-1]), "axis": np.int64([2]), **LISTS}
    less = op("Slice", "x zero e axis", "x-")
    assert shown(check(less, **lists), "x-")[2] == "h - 1"  # no axis of an input is empty
    assert shown(known_of(less, op("Slice", "x- zero e axis", "y"), **lists))[2].startswith("slice(")  # that may be
    check(op("Slice", "x a b axis", "y"), **lists)
    assert shown(check(op("Slice", "x zero b axis", "y"), **lists))[2] == "h"
    check(op("Slice", "x zero two axis", "y"), **lists)
    assert shown(check(op("Slice", "x zero b axis two", "y"), **lists))[2] == "floor((h + 1)/2)"
    assert shown(check(op("Slice", "x a b axis two", "y"), **lists))[2] == "floor(h/2)"
    check(op("Slice", "x two b axis two", "y"), **lists)
    check(op("Slice", "x a e axis two", "y"), **lists)
    check(op("Slice", "x e b axis two", "y"), **lists)
    check(less, op("Slice", "x- a b axis two", "y"), **lists)  # nothing is left of one row, and nothing of nothing
    check(*height("k"), op("Div", "k two", "q"), op("Slice", "x q k axis", "y"), **lists)
    halves = check(*height("k"), op("Div", "k two", "q"), op("Slice", "x zero q axis", "y"), **lists)
    assert shown(halves)[2] in ("floor(h/2)", "slice(h, 0, floor(h/2), 1)")
    check(op("Slice", "x zero four axes", "y"), four=np.int64([4]), axes=np.int64([1]), **lists)


def test_reshapes_come_out_even() -> None:
    assert shown(check(op("Reshape", "x t", "y"), t=np.int64([0, 2, -1]))) == ("n", "2", "4·h·w")
    assert shown(check(op("Reshape", "x t", "y"), t=np.int64([0, 0, -1]))) == ("n", "8", "h·w")
    known = check(
        *height("k"), op("Concat", "m k", "t", axis=0), op("Reshape", "x t", "y"), m=np.int64([-1]), **LISTS
    )  # fmt: skip
    assert shown(known) == ("8·n·w", "h")
    check(op("Flatten", "x", "y", axis=2))


def test_split_halves() -> None:
    assert shown(check(op("Split", "x", "a b", axis=1), op("Identity", "b", "y"))) == ("n", "4", "h", "w")
    check(op("Split", "x parts", "a b", axis=1), op("Identity", "b", "y"), parts=np.int64([3, 5]))
    check(op("Split", "x", "a b c", axis=1, num_outputs=3), op("Identity", "c", "y"), opset=18)


def test_moves_of_axes() -> None:
    check(op("Transpose", "x", "y", perm=[0, 2, 3, 1]))
    check(op("Unsqueeze", "x axes", "a"), op("Squeeze", "a axes", "y"), axes=np.int64([1, -1]))
    check(op("ReduceMean", "x", "y", axes=[2, 3], keepdims=0))
    check(op("ReduceSum", "x axes", "y"), axes=np.int64([-1]))
    check(op("ArgMax", "x", "y", axis=1, keepdims=0))
    check(op("DepthToSpace", "x", "y", blocksize=2))
    check(op("Pad", "x pads", "y"), pads=np.int64([0, 0, 1, 2, 0, 0, 3, 4]))
    check(op("Tile", "x times", "y"), times=np.int64([1, 1, 2, 3]))
    check(op("Shape", "x", "s"), op("Expand", "one s", "y"), one=np.float32([1]))
    check(op("Transpose", "x", "t", perm=[0, 1, 3, 2]), op("MatMul", "x t", "y"))
    check(op("Size", "x", "y"))


def test_unknown_is_equal_to_nothing() -> None:
    known = known_of(
        op("Relu", "x", "r"), op("NonZero", "x", "a"), op("NonZero", "x", "b"), op("Concat", "a b", "y", axis=1)
    )
    assert known.dims["a"][0] == known.dims["b"][0] and known.dims["a"][1] != known.dims["b"][1]
    foreign = helper.make_node("Relu", ["x"], ["y"], domain="some.where")
    model = model_of(foreign)
    model.opset_import.append(helper.make_opsetid("some.where", 1))
    assert "y" not in sizes(view(model)).dims
    odd = known_of(op("If", "c", "y", then_branch=helper.make_graph([], "t", [], [])), c=np.bool_(True))
    assert "y" not in odd.dims


def test_names_of_axes_are_never_read() -> None:
    known = known_of(op("Relu", "x", "y"), shape=("s", "32*s", "s", None))
    assert len(set(known.dims["y"])) == 4  # no runtime holds axes of one name to be equal
    assert shown(known) == ("x[0]", "32*s", "x[2]", "x[3]")


def test_a_joint_asserts_what_it_needs() -> None:
    known = known_of(
        op("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]),
        op("Resize", "p _ scales", "up"),
        op("Concat", "up x", "y", axis=1),
        op("Concat", "x up", "z", axis=1),
        scales=np.float32([1, 1, 2, 2]),
    )
    assert shown(known)[2:] == ("h", "w") and shown(known, "z") == shown(known)
    assert sorted(map(str, known.assumptions)) == ["h = 2·floor(h/2)", "w = 2·floor(w/2)"]
    assert len(known.assertions) == 4  # two nodes, two axes; the assumptions exist once
    assert all(size.uses == {i} for i, size in enumerate(known.dims["y"][2:])) and not known.dims["y"][0].uses


def test_a_sum_assumes_nothing_where_an_axis_may_be_one() -> None:
    known = check(op("ReduceMax", "x", "m", axes=[2]), op("Sub", "x m", "y"))
    assert shown(known) == ("n", "8", "h", "w")
    pooled = known_of(
        op("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]),
        op("Add", "x p", "a"),
        op("Add", "p x", "y"),
    )  # for h = 3 the pooled axis has one element, and broadcasts
    assert shown(pooled)[2].startswith("broadcast(") and known_equal(pooled, "a", "y")
    assert not pooled.assumptions
    grown = known_of(op("Pad", "x p", "a"), op("Pad", "x q", "b"), op("Add", "a b", "y"),
                     p=np.int64([0, 0, 2, 0, 0, 0, 0, 0]), q=np.int64([0, 0, 3, 0, 0, 0, 0, 0]))  # fmt: skip
    assert len(grown.assumptions) == 1  # never true, so the node always fails: two or more elements each


def known_equal(known: Sizes, a: str, b: str) -> bool:
    return [size.expr for size in known.dims[a]] == [size.expr for size in known.dims[b]]


@pytest.mark.parametrize("op_type", ["Concat", "Slice", "Reshape", "Split", "Resize", "Gather", "Expand", "Tile"])
def test_malformed_nodes_tell_nothing(op_type: str) -> None:
    model = model_of(op(op_type, "x", "y", axis=9))
    assert all(str(size.expr).startswith("?") for size in sizes(view(model)).dims.get("y", ()))


def test_bounds_known_only_at_run_time_tell_nothing_wrong() -> None:
    known = known_of(
        op("ReduceMax", "x", "m", keepdims=0),
        op("Cast", "m", "i", to=INT64),
        op("Unsqueeze", "i axis", "b"),
        op("Slice", "x zero b", "p"),
        op("Slice", "x b b", "q"),
        op("Reshape", "x b", "r"),
        op("Slice", "x b b axis", "y"),
        axis=np.int64([0]), zero=np.int64([0]),
    )  # fmt: skip
    for name in ("p", "q", "r", "y"):
        assert all(str(s.expr).startswith("?") for s in known.dims.get(name, ())[:1])
    assert shown(known)[1:] == ("8", "h", "w")  # one axis is cut, the others stay


def test_a_long_chain_is_no_burden() -> None:
    nodes = [op("MaxPool", f"v{i}" if i else "x", f"v{i + 1}", kernel_shape=[2, 2]) for i in range(5000)]
    assert shown(known_of(*nodes), "v5000")[2] == "h - 5000"
