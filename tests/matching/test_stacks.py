"""Heads on a stack of values: which slices reach what, in the view for votes and in what is taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, shape_inference

from fixtures.judge import op_histogram
from rewriter.dims.engine import measured
from rewriter.graph.onnx import view
from rewriter.matching.cones import Cones
from rewriter.matching.stacks import stacks
from rewriter.matching.unstacked import unstacked
from rewriter.rewriting.narrow import narrow
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.end_to_end.judging import noise, run
from tests.matching.heads import Net

SHAPE = (2, 5, 4)  # batch, queries, width
LAYERS = 3
FAR = 2**62


def take(net: Net, x: str, index: int | Sequence[int], name: str = "", axis: int = 0) -> str:
    net.weights.append(numpy_helper.from_array(np.array(index, np.int64), f"i{len(net.weights)}"))
    return net.add("Gather", [x, net.weights[-1].name], name, axis=axis)


def layers(net: Net) -> list[str]:
    found = ["image"]
    for _ in range(LAYERS):
        found.append(net.add("Tanh", [matrix(net, found[-1])]))
    return found[1:]


def matrix(net: Net, x: str) -> str:
    chance = np.random.default_rng(len(net.weights))
    return net.add("MatMul", [x, net.weight(chance.normal(size=(4, 4)).astype(np.float32))])


def stacked(net: Net, values: Sequence[str]) -> str:
    net.weights.append(numpy_helper.from_array(np.array([0], np.int64), f"i{len(net.weights)}"))
    axes = net.weights[-1].name
    return net.add("Concat", [net.add("Unsqueeze", [value, axes]) for value in values], axis=0)


def head(net: Net, x: str, *, sizes_of: Sequence[int] = (4,)) -> str:
    """x · sigmoid(x) after a layer with a bias."""
    bias = net.weight(np.linspace(-1, 1, int(np.prod(sizes_of)), dtype=np.float32).reshape(tuple(sizes_of)))
    x = net.add("Add", [matrix(net, x), bias])
    return net.add("Mul", [x, net.add("Sigmoid", [x])])


def model_of(net: Net, *outputs: str) -> ModelProto:
    model = net.model([(output, (1,)) for output in outputs])
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE))
    model = shape_inference.infer_shapes(model, strict_mode=True)
    del model.graph.value_info[:]
    return model


def narrowed(model: ModelProto) -> tuple[ModelProto, int]:
    """The result, after it was compared with the original, and how many stacks went."""
    before = ModelProto.FromString(model.SerializeToString())
    draft = OnnxDraft(model)
    found = narrow(draft.view(), draft.fresh)
    draft.apply(found.edits)
    result = draft.finish()
    checker.check_model(result, full_check=True)
    feeds = {"image": noise(*SHAPE, seed=2)}
    wanted, given = run(before, feeds), run(result, feeds)
    for name, value in wanted.items():
        np.testing.assert_allclose(given[name], value, rtol=1e-6, atol=1e-7)
    return result, len(found.done)


@pytest.mark.parametrize("index", [0, 1, 2, -1, [1], [[-2]]])
def test_a_head_runs_on_the_one_layer_that_is_taken(index: int | list[int]) -> None:
    net = Net()
    stack = stacked(net, layers(net))
    result, count = narrowed(model_of(net, take(net, head(net, stack), index)))
    assert count == 1
    ops = op_histogram(result)
    kept = 1 + int(np.ravel(index)[0]) % LAYERS
    assert "Concat" not in ops and (ops["Unsqueeze"], ops["Gather"], ops["Tanh"]) == (1, 1, kept)


@pytest.mark.parametrize("index", [0, 3, -1])
def test_operands_with_several_slices_are_counted_from_their_first(index: int) -> None:
    net = Net()
    pairs = [net.add("Concat", [value, value], axis=0) for value in layers(net)]
    stack = net.add("Concat", pairs, axis=-3)
    result, count = narrowed(model_of(net, take(net, head(net, stack), index)))
    assert count == 1 and op_histogram(result)["Concat"] == 1


def numbers(net: Net, *lists: Sequence[int] | Sequence[Sequence[int]]) -> list[str]:
    for listed in lists:
        net.weights.append(numpy_helper.from_array(np.array(listed, np.int64), f"n{len(net.weights)}"))
    return [tensor.name for tensor in net.weights[-len(lists) :]]


def cut(net: Net, x: str, start: int, end: int, axis: int = 0) -> str:
    return net.add("Slice", [x, *numbers(net, [start], [end], [axis])])


@pytest.mark.parametrize(
    ("part", "left"),
    [
        ((-1, FAR), [2]),
        ((0, 1), [0]),
        ((1, 2), [1]),
        ((2, 3), [2]),
        ((-2, -1), [1]),
        ((0, 2), [0, 1]),
        ((1, FAR), [1, 2]),
        ((0, 3), [0, 1, 2]),
        ((0, -1), [0, 1]),
    ],
)
@pytest.mark.parametrize("behind", [True, False])
def test_a_slice_takes_the_same_of_what_is_left(part: tuple[int, int], left: list[int], behind: bool) -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    taken = cut(net, inner, *part)
    result, count = narrowed(model_of(net, net.add("ReduceMax", [net.add("Relu", [taken])]) if behind else taken))
    ops = op_histogram(result)
    assert count == int(len(left) < LAYERS)
    assert (ops["Tanh"], ops["Unsqueeze"], ops.get("Concat", 0)) == (max(left) + 1, len(left), int(len(left) > 1))


def test_a_slice_along_another_axis_takes_of_all() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    assert narrowed(model_of(net, cut(net, inner, 0, 1, axis=1)))[1] == 0


def test_what_a_slice_cuts_along_other_axes_is_kept() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    taken = net.add("Slice", [inner, *numbers(net, [1, 1], [4, 2], [2, 0], [2, 1])])
    result, count = narrowed(model_of(net, net.add("Relu", [taken])))
    assert count == 1 and op_histogram(result)["Slice"] == 1


@pytest.mark.parametrize("opset", [9, 10])
def test_before_slice_reads_where_it_cuts_only_what_stands_as_it_is_goes(opset: int) -> None:
    net = Net(opset)
    parts = [net.add("Tanh", [matrix(net, "image")]) for _ in range(2)]
    both = net.add("Relu", [net.add("Concat", parts, axis=1)])
    old = opset < 10
    taken = net.add("Slice", [both], starts=[6], ends=[8], axes=[1]) if old else cut(net, both, 6, 8, axis=1)
    assert narrowed(model_of(net, taken))[1] == int(opset >= 10)


@pytest.mark.parametrize("listed", [[0], [2, 1], [1, 0], [0, 2], [-1, 0], [[1, -2], [-2, 1]]])
@pytest.mark.parametrize("nd", [False, True])
def test_what_no_index_of_a_list_means_goes(listed: list[int], nd: bool) -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    if nd:
        (indices,) = numbers(net, np.reshape(listed, (-1, 1)).tolist())
        taken = net.add("GatherND", [inner, indices])
    else:
        taken = take(net, inner, listed)
    result, count = narrowed(model_of(net, taken))
    left = len(set(np.ravel(listed) % LAYERS))
    assert count == 1 and op_histogram(result)["Unsqueeze"] == left


@pytest.mark.parametrize("empty", [True, False])
def test_a_split_that_leaves_all_in_one_part_does_not_say_how_many(empty: bool) -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    (parts,) = numbers(net, [LAYERS, 0] if empty else [LAYERS])
    net.nodes.append(helper.make_node("Split", [inner, parts], ["whole", "rest"][: 1 + empty], axis=0))
    assert narrowed(model_of(net, take(net, "whole", 1)))[1] == 1


@pytest.mark.parametrize(("sizes_of", "read", "left"), [([1, 1, 1], [1], 1), ([1, 2], [1], 2), ([2, 1], [0, 1], 3)])
def test_parts_that_nobody_reads_go(sizes_of: list[int], read: list[int], left: int) -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    (parts,) = numbers(net, sizes_of)
    names = [f"part{n}" for n in range(len(sizes_of))]
    net.nodes.append(helper.make_node("Split", [inner, parts], names, axis=0))
    result, count = narrowed(model_of(net, *(net.add("Relu", [names[n]]) for n in read)))
    assert count == int(left < LAYERS) and op_histogram(result)["Unsqueeze"] == left


def test_a_part_that_is_an_output_keeps_its_name() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    net.nodes.append(helper.make_node("Split", [inner, *numbers(net, [1, 1, 1])], ["a", "b", "c"], axis=0))
    result, count = narrowed(model_of(net, "b"))
    assert count == 1 and [output.name for output in result.graph.output] == ["b"]


def test_cuts_of_cuts_are_followed() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    result, count = narrowed(model_of(net, take(net, cut(net, cut(net, inner, 0, -1), -1, FAR), 0)))
    assert count == 1 and op_histogram(result)["Tanh"] == 2


def test_a_target_that_names_the_slices_is_written_anew() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    (target,) = numbers(net, [LAYERS, SHAPE[0] * SHAPE[1], SHAPE[2]])
    result, count = narrowed(model_of(net, take(net, net.add("Reshape", [inner, target]), 1)))
    assert count == 1 and op_histogram(result)["Tanh"] == 2


def test_a_target_that_mixes_slices_keeps_the_stack() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    (target,) = numbers(net, [SHAPE[0], LAYERS, SHAPE[1], SHAPE[2]])
    assert narrowed(model_of(net, take(net, net.add("Reshape", [inner, target]), 1, axis=1)))[1] == 0


def open_batch(model: ModelProto) -> ModelProto:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("which", [0, 1])
def test_a_batch_of_open_size_is_cut_where_its_operands_meet(which: int) -> None:
    net = Net()
    both = head(net, net.add("Concat", [head(net, "image"), matrix(net, "image")], axis=0))
    (zero,) = numbers(net, [0])
    size = net.add("Slice", [net.add("Shape", ["image"]), zero, *numbers(net, [1], [0])])
    far = net.weight(np.array([FAR], np.int64))
    bounds = [zero, size] if which == 0 else [size, far]
    taken = net.add("Relu", [net.add("Slice", [both, *bounds, zero])])
    model = open_batch(model_of(net, taken))
    before = ModelProto.FromString(model.SerializeToString())
    draft = OnnxDraft(model)
    draft.apply(narrow(draft.view(), draft.fresh).edits)
    result = draft.finish()
    assert "Concat" not in op_histogram(result)
    for images in (1, 3, 5):
        feeds = {"image": noise(images, *SHAPE[1:], seed=images)}
        wanted, found = run(before, feeds), run(result, feeds)
        np.testing.assert_allclose(found[taken], wanted[taken], rtol=1e-6, atol=1e-7)


def test_a_cut_at_a_number_inside_an_open_batch_may_take_of_both() -> None:
    net = Net()
    both = net.add("Concat", [head(net, "image"), matrix(net, "image")], axis=0)
    model = open_batch(model_of(net, net.add("Relu", [cut(net, both, 0, 2)])))
    before = ModelProto.FromString(model.SerializeToString())
    draft = OnnxDraft(model)
    assert not narrow(draft.view(), draft.fresh).done
    assert run(before, {"image": noise(1, *SHAPE[1:])})  # of two operands with one image each


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_legacy_way_of_asking_how_much_there_is_goes_with_the_stack(part: int) -> None:
    """chunk is a Slice whose bounds follow from the Shape of the stack itself, also where they are known beforehand."""
    net = Net()
    parts = [head(net, x) for x in layers(net)]
    inner = head(net, net.add("Concat", parts, axis=1))
    one, many, start, end = numbers(net, [1], [LAYERS], [part], [part + 1])
    each = net.add("Div", [net.add("Gather", [net.add("Shape", [inner]), one], axis=0), many])
    taken = net.add("Slice", [inner, net.add("Mul", [each, start]), net.add("Mul", [each, end]), one])
    result, count = narrowed(model_of(net, net.add("Relu", [taken])))
    assert count == 1 and not {"Shape", "Concat"} & set(op_histogram(result))


def test_a_size_along_the_stack_that_somebody_else_is_told_keeps_it() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    zero, one = numbers(net, [0], [1])
    counted = net.add("Slice", [net.add("Shape", [inner]), zero, one, zero])
    wide = net.add("Expand", ["image", net.add("Concat", [counted, *numbers(net, [1, 1, 1])], axis=0)])
    assert narrowed(model_of(net, take(net, inner, 1), wide))[1] == 0


def test_sizes_along_other_axes_may_be_read_of_the_stack() -> None:
    net = Net()
    stack = stacked(net, layers(net))
    (two,) = numbers(net, [2])
    counted = net.add("Cast", [net.add("Gather", [net.add("Shape", [stack]), two])], to=TensorProto.FLOAT)
    result, count = narrowed(model_of(net, take(net, head(net, stack), 1), counted))
    assert count == 1 and "Concat" not in op_histogram(result)


@pytest.mark.parametrize(("opset", "axis", "goes"), [(12, 1, False), (12, 3, True), (13, 1, True), (13, 2, False)])
def test_a_softmax_of_old_sums_over_all_axes_behind(opset: int, axis: int, goes: bool) -> None:
    net = Net(opset)
    turned = (
        net.add("Unsqueeze", ["image"], axes=[0]) if opset < 13 else net.add("Unsqueeze", ["image", *numbers(net, [0])])
    )
    parts = [net.add("Tanh", [matrix(net, turned)]) for _ in range(2)]
    both = net.add("Softmax", [net.add("Concat", parts, axis=2)], axis=axis)
    model = model_of(net, cut(net, both, 0, 5, axis=2))
    assert narrowed(model)[1] == int(goes)


@pytest.mark.parametrize(("start", "goes"), [(3, True), (0, False)])
def test_stored_queries_in_front_go_but_are_not_run_alone(start: int, goes: bool) -> None:
    """Denoising queries of a detector, before those that are asked; heads on constants alone are for folding."""
    net = Net()
    stored = net.weight(np.linspace(-1, 1, SHAPE[0] * 3 * SHAPE[2], dtype=np.float32).reshape(SHAPE[0], 3, SHAPE[2]))
    both = head(net, net.add("Concat", [stored, matrix(net, "image")], axis=1))
    result, count = narrowed(model_of(net, cut(net, both, start, FAR if start else 3, axis=1)))
    assert count == int(goes) and ("Concat" in op_histogram(result)) is not goes


def test_an_exponent_per_layer_keeps_the_stack() -> None:
    for shape, goes in (((LAYERS, 1, 1, 1), False), ((1, 1, 1, 4), True)):
        net = Net()
        stack = net.add("Exp", [stacked(net, layers(net))])
        power = net.weight(np.linspace(1, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape))
        assert narrowed(model_of(net, take(net, net.add("Pow", [stack, power]), 1)))[1] == int(goes)


def test_what_is_the_same_for_all_layers_may_be_added() -> None:
    """Reference points of a decoder, which have no axis of layers."""
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    moved = net.add("Sigmoid", [net.add("Add", [inner, matrix(net, "image")])])
    assert narrowed(model_of(net, take(net, moved, 1)))[1] == 1


def test_what_differs_between_layers_may_not() -> None:
    net = Net()
    found = layers(net)
    moved = net.add("Add", [head(net, stacked(net, found)), stacked(net, [matrix(net, x) for x in found])])
    assert narrowed(model_of(net, take(net, moved, 1)))[1] == 0


def sides(net: Net) -> list[str]:
    """Two values as wide as each other only where the width of the image is even."""
    half = net.add("Slice", ["image", *numbers(net, [0], [FAR], [2], [2])])
    return [net.add("Tanh", ["image"]), net.add("Concat", [half, half], axis=2)]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_check_that_only_the_stack_makes_keeps_it_unless_let_go(allowed: bool) -> None:
    net = Net()
    taken = net.add("Relu", [cut(net, net.add("Concat", sides(net), axis=1), 0, 5, axis=1)])
    model = model_of(net, taken)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "columns"
    draft = OnnxDraft(model)
    found = narrow(draft.view(), draft.fresh, allow_lost=allowed)
    assert bool(found.done) is allowed and bool(found.stayed) is not allowed
    assert all("columns" in equation for each in found.done for equation in each.lost)
    assert all("lost=true" in words for words in found.stayed)


def test_a_concat_of_heads_of_which_the_first_is_kept() -> None:
    net = Net()
    both = net.add("Concat", [head(net, matrix(net, "image")), head(net, "image")], axis=1)
    names = []
    for number in (0, SHAPE[1], 1):
        net.weights.append(numpy_helper.from_array(np.array([number], np.int64), f"p{len(net.weights)}"))
        names.append(net.weights[-1].name)
    result, count = narrowed(model_of(net, net.add("Slice", [both, *names])))
    assert count == 1 and op_histogram(result)["MatMul"] == 2


def test_two_heads_on_one_stack_go_together() -> None:
    net = Net()
    stack = stacked(net, layers(net))
    boxes = take(net, head(net, net.add("Transpose", [stack], perm=[2, 0, 1, 3])), -1, axis=1)
    result, count = narrowed(model_of(net, take(net, head(net, stack), 2), boxes))
    assert count == 1 and "Concat" not in op_histogram(result)


@pytest.mark.parametrize(
    "kind", ["every layer", "the stack is an output", "an axis inside", "a bias per layer", "a softmax over layers"]
)
def test_what_needs_every_layer_keeps_the_stack(kind: str) -> None:
    net = Net()
    stack = stacked(net, layers(net))
    match kind:
        case "every layer":
            outputs = [take(net, head(net, stack), i) for i in range(LAYERS)]
        case "the stack is an output":
            outputs = [take(net, head(net, stack), 1), stack]
        case "an axis inside":
            outputs = [take(net, head(net, stack), 1, axis=1)]
        case "a bias per layer":
            outputs = [take(net, head(net, stack, sizes_of=(LAYERS, 1, 1, 4)), 1)]
        case _:
            outputs = [take(net, net.add("Softmax", [stack], axis=0), 1)]
    model = model_of(net, *outputs)
    result, count = narrowed(model)
    assert count == 0 and op_histogram(result)["Concat"] == 1


def test_a_size_that_is_read_of_the_stack_keeps_it() -> None:
    net = Net()
    stack = stacked(net, layers(net))
    counted = net.add("Cast", [net.add("Shape", [stack])], to=TensorProto.FLOAT)
    assert narrowed(model_of(net, take(net, head(net, stack), 1), counted))[1] == 0


def test_a_body_that_captures_what_ran_on_the_stack_keeps_it() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    flag = net.add("Constant", [], value=helper.make_tensor("v", TensorProto.BOOL, [], [True]))
    info = helper.make_tensor_value_info("whole", TensorProto.FLOAT, (LAYERS, *SHAPE))
    body = helper.make_graph([helper.make_node("Neg", [inner], ["whole"])], "body", [], [info])
    other = net.add("If", [flag], then_branch=body, else_branch=body)
    assert narrowed(model_of(net, take(net, inner, 1), other))[1] == 0


def test_declared_sizes_of_what_ran_on_the_stack_go() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    model = model_of(net, take(net, inner, 1))
    model.graph.value_info.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, (LAYERS, *SHAPE)))
    result, _ = narrowed(model)
    assert not result.graph.value_info


# --- for looking -----------------------------------------------------------------------------------------------------


def depths(model: ModelProto) -> list[int]:
    graph = view(model)
    cones = Cones.of(unstacked(graph, stacks(graph, measured(graph))))
    return [cones.depth_of(value) for value in cones.outputs]


def test_every_slice_is_as_deep_as_its_layer() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    outputs = [take(net, inner, index) for index in (-1, 0, 1)]
    assert depths(model_of(net, *outputs)) == [4, 2, 3]


def test_slices_and_splits_are_followed() -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    for numbers in ([0], [-1], [0], [1, 1]):
        net.weights.append(numpy_helper.from_array(np.array(numbers, np.int64), f"n{len(net.weights)}"))
    starts, ends, axes, parts = (tensor.name for tensor in net.weights[-4:])
    first = net.add("Slice", [inner, starts, ends, axes])
    net.nodes.append(helper.make_node("Split", [first, parts], ["one", "two"], axis=0))
    outputs = [net.add("Squeeze", [value, axes]) for value in ("one", "two")]
    whole = net.add("ReduceMean", [inner], keepdims=0)
    assert depths(model_of(net, *outputs, take(net, inner, 2), whole)) == [2, 3, 4, 4]


def test_a_node_that_reads_parts_of_two_layers_reads_each_of_its_own() -> None:
    """XCiT: the class token and the others are cut apart, scaled, and meet again."""
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    for numbers in ([0], [1], [2]):
        net.weights.append(numpy_helper.from_array(np.array(numbers, np.int64), f"n{len(net.weights)}"))
    zero, one, two = (tensor.name for tensor in net.weights[-3:])
    first = net.add("Tanh", [net.add("Slice", [inner, zero, one, zero])])
    second = net.add("Sigmoid", [net.add("Slice", [inner, one, two, zero])])
    assert depths(model_of(net, net.add("Add", [first, second]))) == [3]


def test_a_view_without_stacks_is_the_same() -> None:
    net = Net()
    graph = view(model_of(net, layers(net)[-1]))
    assert unstacked(graph, stacks(graph, measured(graph))) is graph
