"""Sizes read from a branch that goes are read elsewhere, so that it dies: whole detectors, and what must be refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fixtures.cache import cached_export
from fixtures.disguise import disguised
from fixtures.export import Form
from fixtures.judge import count_params, op_histogram
from fixtures.yolov9 import converted, variant
from rewriter import api
from rewriter.graph.onnx import view
from rewriter.language.library import resolve
from rewriter.reporting.markdown import to_markdown
from rewriter.rewriting import engine
from rewriter.rewriting.edits import RemoveOutput
from rewriter.rewriting.onnx_draft import OnnxDraft
from rewriter.rewriting.reroot import Rerooting, Status, reroot
from tests.dims.running import noise
from tests.end_to_end.judging import relative, run

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SIZES = ((1, 320, 320), (2, 416, 320), (1, 256, 512), (2, 256, 512))
PATTERNS = ("repconv", "conv-bn", "bypass")
CLOSE = 1e-5
PARAMETERS = {"t": 2_407_632, "n": converted(variant("n")).fused}
ANCHORS = {("t", "legacy"): 7, ("n", "legacy"): 7, ("n", "legacy-bn"): 7, ("t", "dynamo"): 6, ("n", "dynamo"): 0}
"""Sizes that main reads from the auxiliary branch; dynamo takes those of `n` from the backbone, which stays."""

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


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def without(model: ModelProto, gone: str, **options: Any) -> tuple[OnnxDraft, Rerooting]:
    """A draft of a copy without an output, re-rooted."""
    draft = OnnxDraft(copied(model))
    draft.apply([RemoveOutput(gone)])
    done = reroot(draft.view(), **options)
    draft.apply(done.edits)
    return draft, done


@pytest.mark.parametrize(("name", "form"), MODELS)
def test_the_auxiliary_branch_dies(name: str, form: Form) -> None:
    model = exported(name, form)
    auxiliary, main = (output.name for output in model.graph.output)
    draft, done = without(model, auxiliary)
    assert not done.stayed
    assert len(done.moved) == len(done.edits) == ANCHORS[name, form]
    assert {a.status for m in done.moved for a in m.assumptions} <= {Status.IMPLIED}
    assert not reroot(draft.view()).moved  # nothing is left to do

    cut = draft.finish()
    onnx.checker.check_model(cut, full_check=True)
    folded = OnnxDraft(copied(cut))
    engine.rewrite(folded, resolve(PATTERNS))
    small = folded.finish()
    assert count_params(small) == PARAMETERS[name]
    assert "BatchNormalization" not in op_histogram(small)
    for batch, high, wide in SIZES:
        feeds = {model.graph.input[0].name: noise(batch, 3, high, wide)}
        wanted = run(model, feeds)[main]
        np.testing.assert_array_equal(run(cut, feeds)[main], wanted)
        assert relative(run(small, feeds)[main], wanted) <= CLOSE


@pytest.mark.parametrize("form", ["legacy", "dynamo"])
def test_names_and_order_decide_nothing(form: Form) -> None:
    model = exported("n", form)
    auxiliary, main = (output.name for output in model.graph.output)
    _, plain = without(model, auxiliary)
    for seed in (1, 2):
        disguise = disguised(model, seed)
        draft, done = without(disguise.model, disguise.names[auxiliary])
        assert {(m.old, m.new) for m in done.moved} == {
            (disguise.names[m.old], disguise.names[m.new]) for m in plain.moved
        }
        result = draft.finish()
        onnx.checker.check_model(result, full_check=True)
        feeds = {disguise.names[model.graph.input[0].name]: noise(2, 3, 64, 96)}
        found = run(result, feeds)[disguise.names[main]]
        np.testing.assert_array_equal(found, run(model, {model.graph.input[0].name: noise(2, 3, 64, 96)})[main])


# --- small graphs --------------------------------------------------------------------------------------------------


def op(kind: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), name=f"make {outputs}", **attrs)


def model_of(*nodes: NodeProto, outputs: str = "main aux", shape: Any = ("n", 2, "h", "w"), **held: Any) -> ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in {**CONSTANTS, **held}.items()]
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    made = [helper.make_empty_tensor_value_info(name) for name in outputs.split()]
    graph = helper.make_graph(nodes, "g", [x], made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CONSTANTS: dict[str, Any] = {
    "zero": np.int64([0]),
    "two": np.int64([2]),
    "three": np.int64([3]),
    "double": np.float32([1, 1, 2, 2]),
}
HALF = {"kernel_shape": [2, 2], "strides": [2, 2]}


def pairs(done: Rerooting) -> list[tuple[str, str]]:
    return [(m.old, m.new) for m in done.moved]


def unchanged(draft: OnnxDraft, model: ModelProto) -> ModelProto:
    """What a draft gives computes the main output as before, and its nodes stand behind what they read."""
    result = draft.finish()
    feeds = {"x": noise(3, 2, 6, 4)}
    np.testing.assert_array_equal(run(result, feeds)["main"], run(model, feeds)["main"])
    seen = {"", "x", *(tensor.name for tensor in result.graph.initializer)}
    for node in result.graph.node:
        assert seen.issuperset(node.input)
        seen.update(node.output)
    return result


def test_the_input_comes_first_and_only_what_is_read_has_to_agree() -> None:
    model = model_of(
        op("Conv", "x k", "aux"),
        op("Shape", "aux", "s"),
        op("Gather", "s zero", "n", axis=0),
        op("Concat", "n two m", "t", axis=0),
        op("Reshape", "x t", "main"),
        k=np.zeros((5, 2, 3, 3), np.float32),
        m=np.int64([-1]),
    )
    draft, done = without(model, "aux")
    assert pairs(done) == [("aux", "x")] and done.moved[0].because == "both have [0] = n"
    assert op_histogram(unchanged(draft, model)).get("Conv", 0) == 0


def test_a_cut_whose_end_is_told_by_the_branch_is_told_by_the_input() -> None:
    model = model_of(
        op("Conv", "x k", "aux"),
        op("Shape", "aux", "s", start=2, end=3),
        op("Sub", "s two", "end"),
        op("Slice", "x zero end two", "main"),
        k=np.zeros((5, 2, 1, 1), np.float32),
    )
    draft, done = without(model, "aux")
    assert pairs(done) == [("aux", "x")]
    assert op_histogram(unchanged(draft, model)).get("Conv", 0) == 0


@pytest.mark.parametrize(
    ("first", "last", "moves"), [("two", "four", True), ("two", "far", True), ("zero", "two", False)]
)
def test_a_slice_tells_what_is_read(first: str, last: str, moves: bool) -> None:
    model = model_of(
        op("Conv", "x k", "aux"),
        op("Shape", "aux", "s"),
        op("Slice", f"s {first} {last} zero", "main"),
        k=np.zeros((5, 2, 1, 1), np.float32),
        four=np.int64([4]),
        far=np.int64([2**63 - 1]),
    )
    draft, done = without(model, "aux")
    assert pairs(done) == ([("aux", "x")] if moves else [])
    unchanged(draft, model)


@pytest.mark.parametrize(("start", "end", "moves"), [(2, 4, True), (0, 1, True), (-1, None, True), (1, 2, False)])
def test_start_and_end_are_heeded(start: int, end: int | None, moves: bool) -> None:
    bounds = {"start": start} if end is None else {"start": start, "end": end}
    model = model_of(
        op("Conv", "x k", "aux"), op("Shape", "aux", "main", **bounds), k=np.zeros((5, 2, 1, 1), np.float32)
    )
    draft, done = without(model, "aux")
    assert pairs(done) == ([("aux", "x")] if moves else [])
    assert bool(done.stayed) is not moves
    unchanged(draft, model)


def test_size_is_moved_too() -> None:
    model = model_of(op("Relu", "x", "aux"), op("Size", "aux", "main"))
    _, done = without(model, "aux")
    assert pairs(done) == [("aux", "x")] and done.moved[0].because == "both have 2·h·n·w elements"


def test_unknown_is_never_equal() -> None:
    model = model_of(op("NonZero", "x", "aux"), op("NonZero", "x", "b"), op("Shape", "aux", "s"),
                     op("Expand", "one s", "e"), op("Cast", "b", "f", to=FLOAT), op("Mul", "e f", "main"),
                     one=np.float32([1]))  # fmt: skip
    _, done = without(model, "aux")
    assert not done.edits and [s.old for s in done.stayed] == ["aux"]
    assert "no value that stays" in done.stayed[0].why
    foreign = helper.make_node("Odd", ["x"], ["aux"], domain="some.where", name="odd")
    model = model_of(foreign, op("Shape", "aux", "main"))
    model.opset_import.append(helper.make_opsetid("some.where", 1))
    _, done = without(model, "aux")
    assert not done.edits and "nothing is known" in done.stayed[0].why


def test_what_stays_anyway_is_left_alone() -> None:
    model = model_of(op("Relu", "x", "r"), op("Shape", "r", "s"), op("Reshape", "r s", "main"), op("Tanh", "r", "aux"))
    draft, done = without(model, "aux")
    assert done == Rerooting() and len(draft.nodes) == 3


def test_no_cycle_comes() -> None:
    """What depends on the anchor has the size that the anchor reads, and would be the nearest."""
    model = model_of(
        op("MaxPool", "x", "aux", **HALF),
        op("Shape", "aux", "s"),
        op("Expand", "one s", "e"),
        op("Relu", "e", "main"),
        one=np.float32([1]),
    )
    draft, done = without(model, "aux")
    assert not done.edits and [s.old for s in done.stayed] == ["aux"]
    unchanged(draft, model)


def test_two_anchors_do_not_lean_on_each_other() -> None:
    model = model_of(
        op("MaxPool", "x", "p", **HALF),
        op("AveragePool", "x", "q", **HALF),
        op("Concat", "p q", "aux", axis=1),
        op("Shape", "p", "s"),
        op("Shape", "q", "t"),
        op("Expand", "one s", "a"),
        op("Expand", "one t", "b"),
        op("Add", "a b", "main"),
        one=np.float32([1]),
    )
    draft, done = without(model, "aux")
    assert not done.edits and len(done.stayed) == 2
    unchanged(draft, model)


def upsampled(*kept: NodeProto) -> ModelProto:
    """Size of pool × 2 joined with x, on the auxiliary side: equal only for even images."""
    return model_of(
        op("MaxPool", "x", "p", **HALF),
        op("Resize", "p _ double", "u", mode="nearest"),
        op("Concat", "u u", "u2", axis=1),
        op("Concat", "u2 x", "aux", axis=1),
        op("Resize", "p _ double", "v", mode="nearest"),
        op("Shape", "aux", "s", start=2),
        *kept,
    )


def test_a_lost_assumption_is_refused_unless_asked() -> None:
    kept = (op("Cast", "s", "f", to=FLOAT), op("ReduceMax", "p", "m", keepdims=0), op("Mul", "f m", "main"))
    model = upsampled(*kept)
    draft, done = without(model, "aux")
    (stayed,) = done.stayed
    assert not done.edits and "which no node that stays would enforce" in stayed.why
    assert {(a.equation, a.status) for a in stayed.assumptions} == {
        ("h = 2·floor(h/2)", Status.LOST),
        ("w = 2·floor(w/2)", Status.LOST),
    }
    draft, done = without(model, "aux", allow_lost=True)
    assert pairs(done) == [("aux", "x")] and len(done.moved[0].lost) == 2
    result = draft.finish()
    for high, wide in ((4, 6), (8, 2)):
        feeds = {"x": noise(2, 2, high, wide)}
        np.testing.assert_array_equal(run(result, feeds)["main"], run(model, feeds)["main"])


def test_a_lost_assumption_is_asked_for_by_a_parameter_and_reported() -> None:
    kept = (op("Cast", "s", "f", to=FLOAT), op("ReduceMax", "p", "m", keepdims=0), op("Mul", "f m", "main"))
    model = upsampled(*kept)
    model.graph.output.append(helper.make_tensor_value_info("aux", FLOAT, None))
    plain = api.apply(model, ["aux-prune"], keep="main", verify=False).report.decisions[0]
    assert [(size.new, len(size.lost)) for size in plain.sizes] == [(None, 2)]
    result = api.apply(model, ["aux-prune"], keep="main", set_="aux-prune.lost=true", verify=False)
    (size,) = result.report.decisions[0].sizes
    assert (size.old, size.new, size.assumptions) == ("aux", "x", ())
    assert size.lost == ("h = 2·floor(h/2)", "w = 2·floor(w/2)")
    assert "no longer checked: h = 2·floor(h/2)" in to_markdown(result.report).replace("\\", "")
    assert "Concat" in op_histogram(model) and "Concat" not in op_histogram(result.model)


def test_an_assumption_that_stays_is_implied() -> None:
    kept = (op("Concat", "x v", "c", axis=1), op("Cast", "s", "f", to=FLOAT), op("ReduceMax", "c", "m", keepdims=0),
            op("Mul", "f m", "main"))  # fmt: skip
    _, done = without(upsampled(*kept), "aux")
    assert pairs(done) == [("aux", "x")]
    assert {a.status for a in done.moved[0].assumptions} == {Status.IMPLIED}
    assert done.moved[0].assumptions[0].asserted_by == ("make aux", "make c")


def test_what_depends_on_the_anchor_enforces_nothing() -> None:
    """The Concat that stays compares x with something made in the very size that the anchor reads."""
    kept = (
        op("Expand", "one s", "e"),
        op("Unsqueeze", "e zero", "g"),
        op("Unsqueeze", "g zero", "i"),
        op("Mul", "v i", "j"),
        op("Concat", "x j", "c", axis=1),
        op("ReduceMax", "c", "main"),
    )
    model = upsampled(*kept)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1]), "one"))
    _, done = without(model, "aux")
    assert not done.edits and done.stayed


def test_shapes_inside_of_what_goes_do_not_matter() -> None:
    model = model_of(
        op("MaxPool", "x", "p", **HALF),
        op("Shape", "p", "s"),
        op("Expand", "one s", "aux"),
        op("Relu", "x", "main"),
        one=np.float32([1]),
    )
    draft, done = without(model, "aux")
    assert done == Rerooting() and [n.op_type for n in draft.nodes] == ["Relu"]


def test_an_anchor_that_fails_gives_others_what_stays_with_it() -> None:
    """What one Shape reads stays; another, behind it, then needs no other source."""
    model = model_of(
        op("NonZero", "x", "z"),
        op("Shape", "z", "s"),
        op("Relu", "x", "q"),
        op("Shape", "q", "t", start=2),
        op("Concat", "s t", "main", axis=0),
        op("Identity", "q", "aux"),
    )
    draft, done = without(model, "aux")
    assert pairs(done) == [("q", "x")] and [s.old for s in done.stayed] == ["z"]
    unchanged(draft, model)


def test_a_source_that_nobody_else_reads_is_the_last_choice() -> None:
    """A Conv before its norm has the same size as the norm, and reading it would keep the two from folding."""
    norm = {name: np.ones(3, np.float32) for name in ("scale", "shift", "mean", "var")}
    model = model_of(
        op("Conv", "x k", "c", strides=[2, 2]),
        op("BatchNormalization", "c scale shift mean var", "b"),
        op("Sigmoid", "b", "g"),
        op("Mul", "b g", "d"),
        op("AveragePool", "x", "aux", kernel_shape=[3, 3], strides=[2, 2]),
        op("Shape", "aux", "s", start=2),
        op("Cast", "s", "f", to=FLOAT),
        op("ReduceMax", "d", "m", keepdims=0),
        op("Mul", "f m", "main"),
        k=np.ones((3, 2, 3, 3), np.float32),
        **norm,
    )
    _, done = without(model, "aux")
    assert pairs(done) == [("aux", "b")]


def test_a_source_that_is_made_later_is_moved_before_the_anchor() -> None:
    model = model_of(
        op("MaxPool", "x", "p", **HALF),
        op("Shape", "p", "s"),
        op("MaxPool", "x", "q", **HALF),
        op("Relu", "q", "r"),
        op("Expand", "r s", "main"),
        op("Tanh", "p", "aux"),
    )
    draft, done = without(model, "aux")
    assert pairs(done) == [("p", "q")] or pairs(done) == [("p", "r")]
    unchanged(draft, model)


def hooked(*before: NodeProto, high: int | str = "h", wide: int | str = "w", **conv: Any) -> ModelProto:
    """A convolution and its norm, with the size of the value between them read for a Resize elsewhere."""
    arrays = {"w": np.ones((2, 2, 3, 3)), "one": np.ones(2), "half": np.full(2, 0.5), "none": np.array([])}
    weights = {name: array.astype(np.float32) for name, array in arrays.items()}
    nodes = [
        *before,
        op("Conv", "x w", "c", **conv),
        op("Shape", "c", "size"),
        op("BatchNormalization", "c one half half one", "normed"),
        op("Relu", "normed", "r"),
        op("Resize", "x none none size", "s", mode="nearest"),
        op("Mul", "r s", "main"),
    ]
    return model_of(*nodes, outputs="main", shape=(1, 2, high, wide), **weights)


def test_a_size_that_keeps_a_value_from_being_folded_is_read_elsewhere() -> None:
    model = hooked(pads=[1, 1, 1, 1])
    draft = OnnxDraft(copied(model))
    outcome = engine.rewrite(draft, resolve(["conv-bn"]))
    result = draft.finish()
    assert [(s.node, s.old, s.new) for s in outcome.sizes] == [("make size", "c", "x")]
    assert "BatchNormalization" not in op_histogram(result) and outcome.end == "fixpoint"
    for high, wide in ((5, 7), (8, 4)):
        feeds = {"x": noise(1, 2, high, wide)}
        assert relative(run(result, feeds)["main"], run(model, feeds)["main"]) <= CLOSE


def test_a_size_that_nothing_else_has_keeps_its_value() -> None:
    model = hooked()
    draft = OnnxDraft(copied(model))
    outcome = engine.rewrite(draft, resolve(["conv-bn"]))
    assert not outcome.sizes and not outcome.matches and not draft.edited
    assert any(refusal.code == "escape" for refusal in outcome.refusals)


def test_a_size_that_is_a_number_is_stored_where_its_value_goes() -> None:
    model = hooked(high=7, wide=6)
    draft = OnnxDraft(copied(model))
    outcome = engine.rewrite(draft, resolve(["conv-bn"]))
    result = draft.finish()
    assert not outcome.sizes and op_histogram(result) == {"Conv": 1, "Relu": 1, "Resize": 1, "Mul": 1}
    feeds = {"x": noise(1, 2, 7, 6)}
    assert relative(run(result, feeds)["main"], run(model, feeds)["main"]) <= CLOSE


def test_a_size_that_is_a_number_goes_where_nothing_else_needs_it() -> None:
    """What is between the value and its size goes as well."""
    model = hooked(high=7, wide=6)
    shape = next(node for node in model.graph.node if node.op_type == "Shape")
    shape.input[0] = "turned"
    model.graph.node.insert(1, op("Transpose", "c", "turned", perm=[0, 1, 2, 3]))
    draft = OnnxDraft(copied(model))
    engine.rewrite(draft, resolve(["conv-bn"]))
    assert op_histogram(draft.finish()) == {"Conv": 1, "Relu": 1, "Resize": 1, "Mul": 1}


def test_a_known_size_that_is_an_output_keeps_its_value() -> None:
    model = hooked(high=7, wide=6)
    model.graph.output.append(helper.make_tensor_value_info("size", INT64, [4]))
    draft = OnnxDraft(copied(model))
    outcome = engine.rewrite(draft, resolve(["conv-bn"]))
    assert any(refusal.code == "escape" for refusal in outcome.refusals) and not draft.edited


@pytest.mark.parametrize(("high", "left"), [(7, {"Resize": 1}), ("h", {"Conv": 1, "Shape": 1, "Resize": 1})])
def test_a_number_is_read_of_no_branch(high: int | str, left: dict[str, int]) -> None:
    """A setting that follows from the size of what goes; where that is open, nothing else is as large."""
    nodes = (op("Conv", "x w", "aux"), op("Shape", "aux", "size"), op("Resize", "x _ _ size", "main", mode="nearest"))
    model = model_of(*nodes, shape=(1, 2, high, 6), w=np.ones((2, 2, 3, 3), np.float32))
    result = api.apply(model, ["aux-prune"], keep="main", verify=False)
    assert op_histogram(result.model) == left
    (size,) = result.report.decisions[0].sizes
    assert (size.node, size.old, size.new) == ("make size", "aux", "size" if left == {"Resize": 1} else None)
    assert (size.because == "it is 1, 2, 5, 4, whatever the input") is (left == {"Resize": 1})
    feeds = {"x": noise(1, 2, 7, 6)}
    np.testing.assert_array_equal(run(result.model, feeds)["main"], run(model, feeds)["main"])


def test_only_wanted_outputs_count() -> None:
    model = model_of(op("Relu", "x", "aux"), op("Shape", "aux", "main"))
    assert not reroot(view(model)).edits
    assert pairs(reroot(view(model), {"main"})) == [("aux", "x")]
