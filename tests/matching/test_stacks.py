"""Heads on a stack of values: which slices reach what, in the view for votes and in what is taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, shape_inference

from fixtures.judge import op_histogram
from rewriter.dims import sizes
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
    edits, done = narrow(draft.view(), draft.fresh)
    draft.apply(edits)
    result = draft.finish()
    checker.check_model(result, full_check=True)
    feeds = {"image": noise(*SHAPE, seed=2)}
    wanted, found = run(before, feeds), run(result, feeds)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7)
    return result, len(done)


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


FAR = 2**62


@pytest.mark.parametrize(
    ("part", "axis", "goes"),
    [
        ((-1, FAR), 0, True),
        ((0, 1), 0, True),
        ((2, 3), 0, False),
        ((-2, -1), 0, False),
        ((0, 2), 0, False),
        ((0, 1), 1, False),
    ],
)
def test_a_slice_that_takes_the_same_of_the_operand_stays_as_it_is(
    part: tuple[int, int], axis: int, goes: bool
) -> None:
    net = Net()
    inner = head(net, stacked(net, layers(net)))
    numbers = [net.weights.append(numpy_helper.from_array(np.array([n], np.int64), f"s{n}")) or f"s{n}" for n in part]
    net.weights.append(numpy_helper.from_array(np.array([axis], np.int64), "axis"))
    taken = net.add("Slice", [inner, *numbers, "axis"])
    result, count = narrowed(model_of(net, net.add("ReduceMax", [net.add("Relu", [taken])], keepdims=0)))
    assert count == int(goes) and ("Concat" in op_histogram(result)) is not goes


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
    "kind", ["two layers", "the stack is an output", "an axis inside", "a bias per layer", "a softmax over layers"]
)
def test_what_needs_more_than_one_layer_keeps_the_stack(kind: str) -> None:
    net = Net()
    stack = stacked(net, layers(net))
    match kind:
        case "two layers":
            outputs = [take(net, head(net, stack), i) for i in (0, 2)]
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
    cones = Cones.of(unstacked(graph, stacks(graph, sizes(graph).dims)))
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
    assert unstacked(graph, stacks(graph, sizes(graph).dims)) is graph
