"""Sizes and values: what a model is run on, and what a user may say about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from rewriter.checking import Verdict, verify
from rewriter.checking.net import unpack
from rewriter.checking.pack import pack
from rewriter.checking.samples import cases, integer_bounds
from rewriter.checking.sizes import bind, candidates, input_specs, total_stride
from rewriter.errors import UsageError
from tests.checking import nets

IMAGE = ("batch", 3, "height", "width")


def as_net(model: object):  # type: ignore[no-untyped-def]
    packed = pack(model, None, "test")
    return unpack(packed.proto, {b.name: np.frombuffer(b.read(), np.float32).reshape(b.dims) for b in packed.weights})


def test_symbolic_sizes_are_two_that_differ_in_every_axis() -> None:
    net = nets.convs(dims=IMAGE, stride=2)
    result = verify(net, net)
    assert result.verdict is Verdict.OK
    assert [i for i in result.inputs if i.startswith("gaussian")] == ["gaussian 2x3x16x24", "gaussian 1x3x40x32"]
    assert len(result.inputs) == 8


def test_images_of_a_large_stride_are_tried_after_smaller_ones() -> None:
    specs = input_specs(nets.convs(dims=IMAGE).graph)
    tries = [(sizes["height"], sizes["width"]) for sizes in candidates(specs, {}, 512)]
    assert tries[:2] == [(128, 192), (320, 256)] and (1024, 1536) in tries
    assert tries.index((128, 128)) < tries.index((1024, 1536))


def test_extents_that_are_named_as_multiples_are_multiples() -> None:
    specs = input_specs(nets.convs(dims=("batch", 3, "32*h", "12*w")).graph)
    assert all(sizes["32*h"] % 96 == 0 == sizes["12*w"] % 96 for sizes in candidates(specs, {}, 8))
    odd = input_specs(nets.convs(dims=("batch", 3, "h*32 + 1", "0*w")).graph)
    assert candidates(odd, {}, 8)[0] == {"batch": 2, "h*32 + 1": 16, "0*w": 24}


def test_the_total_stride_counts_a_pyramid_once() -> None:
    down = [nets.node("MaxPool", [a], b, kernel_shape=[2, 2], strides=[2, 2]) for a, b in ["xa", "ab", "bc"]]
    up = nets.node("Resize", ["c", "", "scales"], "d", mode="nearest")
    again = [nets.node("MaxPool", [a], b, kernel_shape=[2, 2], strides=[2, 2]) for a, b in ["de", "ef"]]
    stored = {"scales": np.array([1, 1, 4, 4], np.float32)}
    net = nets.model([*again, up, *down], [nets.value("x", IMAGE)], [nets.value("f")], stored)
    assert total_stride(as_net(net)) == 8


def test_one_symbol_has_one_size_and_bound_ones_stay() -> None:
    net = nets.model(
        [nets.node("Add", ["p", "q"], "y")],
        [nets.value("p", ["n", "h"]), nets.value("q", ["n", "h"])],
        [nets.value("y")],
    )
    specs = input_specs(net.graph)
    bound, sizes = bind(specs, {"p": (5, 7)})
    assert (sizes, bound[0].dims) == ({"n": 5, "h": 7}, (5, 7))
    assert candidates(bound, sizes, 1) == [{"n": 5, "h": 7}]
    assert all(spec.shape(c) == specs[0].shape(c) for spec in specs for c in candidates(specs, {}, 32))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"y": (1, 3, 8, 8)}, "no input 'y'; its inputs are x"),
        ({"x": (1, 3, 8)}, "'x' has 4 dimensions"),
        ({"x": (1, 4, 8, 8)}, "batchx3xheightxwidth, not 1x4x8x8"),
    ],
)
def test_shapes_that_do_not_fit_are_usage_errors(shapes: dict[str, tuple[int, ...]], says: str) -> None:
    net = nets.convs(dims=IMAGE)
    with pytest.raises(UsageError, match=says):
        verify(net, net, shapes=shapes)


def test_a_given_shape_is_the_only_one() -> None:
    net = nets.convs(dims=IMAGE)
    result = verify(net, net, shapes={"x": (1, 3, 11, 13)})
    assert result.inputs[0] == "gaussian 1x3x11x13"
    assert len(result.inputs) == 4


def test_sizes_that_do_not_run_give_way_and_are_named() -> None:
    """A batch of one, written into the graph."""
    shape = {"s": np.array([1, -1], np.int64)}
    nodes = [nets.node("Reshape", ["x", "s"], "f"), nets.node("ReduceMax", ["f"], "t", axes=[1], keepdims=1)]
    nodes += [
        nets.node("Shape", ["x"], "dims"),
        nets.node("Reshape", ["f", "dims"], "g"),
        nets.node("Add", ["g", "one"], "y"),
    ]
    shape["one"] = np.ones((1, 3, 1, 1), np.float32)
    nodes.append(nets.node("Squeeze", ["x", "zero"], "z"))
    shape["zero"] = np.array([0], np.int64)
    net = nets.model(nodes, [nets.value("x", IMAGE)], [nets.value("y"), nets.value("z")], shape)
    result = verify(net, net)
    assert result.verdict is Verdict.OK
    assert all(" 1x3x" in label for label in result.inputs)
    assert any("does not run on gaussian 2x3x" in note for note in result.notes)


def test_a_model_that_runs_at_no_size_says_why_and_what_to_do() -> None:
    nodes = [nets.node("Reshape", ["x", "s"], "y")]
    net = nets.model(nodes, [nets.value("x", IMAGE)], [nets.value("y")], {"s": np.array([7, 11], np.int64)})
    result = verify(net, net)
    assert result.verdict is Verdict.NOT_VERIFIED
    assert "the original does not run" in result.reason
    assert "--shape" in result.reason


def test_an_input_without_a_shape_asks_for_one() -> None:
    net = nets.model([nets.node("Identity", ["x"], "y")], [nets.value("x")], [nets.value("y")])
    assert "--shape x=" in verify(net, net).reason
    assert verify(net, net, shapes={"x": (2, 3)}).verdict is Verdict.OK


def test_integers_stay_inside_what_they_index() -> None:
    table = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    nodes = [
        nets.node("Cast", ["ids"], "wide", to=TensorProto.INT64),
        nets.node("Gather", ["table", "wide"], "e"),
        nets.node("OneHot", ["kinds", "depth", "values"], "hot"),
        nets.node("Where", ["mask", "e", "zero"], "y"),
    ]
    stored = {"table": table, "depth": np.array(3), "values": np.array([0, 1], np.float32), "zero": np.float32(0)}
    ids = nets.value("ids", ["n", "length"], TensorProto.INT32)
    kinds = nets.value("kinds", ["n"], TensorProto.INT64)
    mask = nets.value("mask", ["n", "length", 1], TensorProto.BOOL)
    net = nets.model(nodes, [ids, kinds, mask], [nets.value("y"), nets.value("hot")], stored)
    assert integer_bounds(as_net(net)) == {"ids": 5, "kinds": 3}
    specs = input_specs(net.graph)
    made = cases(specs, candidates(specs, {}, 1)[0], 0, {"ids": 5, "kinds": 3}, {})
    assert made[0].feeds["ids"].max() == 4 and made[0].feeds["ids"].min() == 0
    assert made[0].feeds["mask"].dtype == np.bool_
    assert len({array.tobytes() for array in (case.feeds["ids"] for case in made)}) == 4
    assert verify(net, net).verdict is Verdict.OK
    off = table.copy()
    off[4, 0] += 1e-3
    assert verify(net, nets.with_weight(net, "table", off)).verdict is Verdict.FAILED


def test_inputs_from_a_file_are_what_is_run(tmp_path: Path) -> None:
    net = nets.convs(dims=IMAGE)
    path = tmp_path / "in.npz"
    np.savez(path, x=np.full((1, 3, 9, 9), 0.5, np.float32))
    result = verify(net, net, inputs=path)
    assert (result.verdict, result.inputs) == (Verdict.OK, ("given 1x3x9x9",))
    assert result.outputs[0].own_error > 0


def test_inputs_that_a_file_lacks_are_made_up_to_fit(tmp_path: Path) -> None:
    net = nets.model(
        [nets.node("Add", ["p", "q"], "y")],
        [nets.value("p", ["n", "h"]), nets.value("q", ["n", "h"])],
        [nets.value("y")],
    )
    path = tmp_path / "in.npz"
    np.savez(path, p=np.ones((3, 5), np.float32))
    result = verify(net, net, inputs=path)
    assert result.inputs[0] == "gaussian 3x5, 3x5"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((1, 3, 8, 8), np.float32)}, "no input 'images'; its inputs are x"),
        ({"x": np.zeros((1, 4, 8, 8), np.float32)}, "not 1x4x8x8"),
        ({"x": np.zeros((1, 3, 8, 8), np.float64)}, "'x' is float32 in the model, and float64 in 'in.npz'"),
        ({"x": np.array([{}], dtype=object)}, "cannot be read"),
        ({}, "holds no arrays"),
    ],
)
def test_files_that_do_not_fit_are_usage_errors(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    net = nets.convs(dims=IMAGE)
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=says):
        verify(net, net, inputs=path)


def test_a_file_that_is_no_npz_and_one_given_twice_are_usage_errors(tmp_path: Path) -> None:
    net = nets.convs(dims=IMAGE)
    path = tmp_path / "in.npz"
    path.write_bytes(b"no")
    with pytest.raises(UsageError, match="cannot be read"):
        verify(net, net, inputs=path)
    np.savez(path, x=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match="in the --inputs file too"):
        verify(net, net, inputs=path, shapes={"x": (1, 3, 8, 8)})


def test_an_input_that_only_the_other_model_still_reads_is_fed() -> None:
    inputs = [nets.value("x", [4]), nets.value("z", [4])]
    before = nets.model([nets.node("Identity", ["x"], "y")], inputs, [nets.value("y")])
    nodes = [nets.node("Sub", ["z", "z"], "zero"), nets.node("Add", ["x", "zero"], "y")]
    assert verify(before, nets.model(nodes, inputs, [nets.value("y")])).verdict is Verdict.OK


def test_a_default_that_is_also_an_input_is_not_fed() -> None:
    net = nets.convs()
    net.ir_version = 3
    net.graph.input.extend(nets.value(t.name, list(t.dims)) for t in net.graph.initializer)
    net.graph.node.append(helper.make_node("Neg", ["y"], ["z"]))
    assert verify(net, net).verdict is Verdict.OK
