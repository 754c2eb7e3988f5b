"""Nothing depends on names, on the order of nodes or outputs, or on widths: structure alone decides.

Expected counts come from the fixture's own definition, never from a run of the rewrite.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from fixtures.cache import cached_export
from fixtures.disguise import disguised
from fixtures.expect import MAIN_OUTPUT, shipped_nodes
from fixtures.export import FORMS, Form, export
from fixtures.judge import conv_count, count_params, op_histogram
from fixtures.yolov9 import DualModel, Variant, build, converted, variant
from fixtures.yolov9.spec import RepElan, Row
from rewriter import api
from rewriter.errors import ChoiceError
from rewriter.reporting.record import Report
from tests.end_to_end.judging import node_count, noise, relative, run

PATTERNS = ["repconv", "conv-bn", "bypass", "aux-prune"]
SIZE = 64
CLOSE = 1e-5
N_AND_T = [
    pytest.param(name, form, id=f"{name}-{form}", marks=() if name == "n" else pytest.mark.slow)
    for name in ("n", "t")
    for form in FORMS
]

# An export takes many seconds: `make test` makes those of `n` as it is, and of each change to it the cheapest form.
BY_FORM = [pytest.param(form, id=form, marks=() if form == "legacy" else pytest.mark.slow) for form in FORMS]
RESIDUAL = [
    pytest.param(name, form, id=f"{name}-{form}", marks=() if (name, form) == ("n", "legacy") else pytest.mark.slow)
    for name in ("n", "t")
    for form in FORMS
]


@cache
def exported(name: str, form: Form) -> ModelProto:
    return onnx.load(cached_export(name, form, SIZE))


def decision(report: Report) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (made,) = report.decisions
    return made.kept, made.removed


def check(model: ModelProto, shape: Variant, main: str, nodes: int | None) -> Report:
    """Apply, and compare with the definition's counts and the original's own main output."""
    result = api.apply(model, PATTERNS, verify=False)
    wanted = converted(shape)
    assert decision(result.report)[0] == (main,)
    assert (conv_count(result.model), count_params(result.model)) == (wanted.fused_convs, wanted.fused)
    assert not {"BatchNormalization", "Identity"} & op_histogram(result.model).keys()
    if nodes is not None:
        assert node_count(result.model) == nodes
    image = noise(1, 3, SIZE, SIZE, seed=11)
    feeds = {model.graph.input[0].name: image}
    assert relative(run(result.model, feeds)[main], run(model, feeds)[main]) <= CLOSE
    return result.report


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "form"), N_AND_T)
def test_a_disguise_changes_nothing(name: str, form: Form, seed: int) -> None:
    plain = exported(name, form)
    main = plain.graph.output[MAIN_OUTPUT].name
    hidden = disguised(plain, seed, shuffle_outputs=True)
    report = check(hidden.model, variant(name), hidden.names[main], shipped_nodes(plain, variant(name)))

    expected = api.apply(plain, PATTERNS, verify=False).report
    assert report.after.ops == expected.after.ops
    assert report.after.parameters == expected.after.parameters
    assert len(report.matches) == len(expected.matches)
    for one in (report, expected):
        votes = {vote.name: vote.value for vote in one.decisions[0].votes}
        assert (votes["depth"], votes["pan"]) == ("true", "true")


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_outputs_decides_nothing(form: Form) -> None:
    plain = exported("n", form)
    main, swapped = plain.graph.output[MAIN_OUTPUT].name, ModelProto()
    swapped.CopyFrom(plain)
    outputs = [type(value).FromString(value.SerializeToString()) for value in reversed(plain.graph.output)]
    del swapped.graph.output[:]
    swapped.graph.output.extend(outputs)
    one, other = (api.apply(model, PATTERNS, verify=False) for model in (plain, swapped))
    assert decision(one.report) == decision(other.report) == ((main,), (plain.graph.output[0].name,))
    assert one.model.graph.node == other.model.graph.node


WIDTHS = [("n", 2.0), ("n", 3.0), ("t", 0.5)]


@pytest.mark.parametrize(
    ("name", "width", "form"),
    [
        pytest.param(n, w, f, id=f"{n}-{w}-{f}", marks=() if (n, w, f) == ("n", 2.0, "legacy") else pytest.mark.slow)
        for n, w in WIDTHS
        for f in FORMS
    ],
)
def test_other_widths(name: str, width: float, form: Form) -> None:
    model = onnx.load(cached_export(name, form, SIZE, width=width))
    shape = variant(name, width=width)
    check(model, shape, model.graph.output[MAIN_OUTPUT].name, shipped_nodes(model, shape))


@pytest.mark.parametrize("form", BY_FORM)
def test_another_number_of_classes(form: Form) -> None:
    model = onnx.load(cached_export("n", form, SIZE, nc=3))
    shape = variant("n", nc=3)
    check(model, shape, model.graph.output[MAIN_OUTPUT].name, shipped_nodes(model, shape))


@pytest.mark.parametrize(("name", "form"), RESIDUAL)
def test_one_more_residual(name: str, form: Form) -> None:
    """A residual around a block stays an Add; the block inside folds."""
    model = onnx.load(cached_export(name, form, SIZE, extra_residual=True))
    shape = variant(name, extra_residual=True)
    main = model.graph.output[MAIN_OUTPUT].name
    report = check(model, shape, main, shipped_nodes(model, shape))
    ordinary = api.apply(exported(name, form), PATTERNS, verify=False).report
    assert dict(report.after.ops)["Add"] == dict(ordinary.after.ops)["Add"] + 1


@pytest.mark.parametrize("form", BY_FORM)
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "disguised"])
def test_raw_maps_go_with_their_group(form: Form, hidden: bool) -> None:
    """Eight outputs: two decoded, three raw maps of the auxiliary head, three of the main one."""
    plain = onnx.load(cached_export("n", form, SIZE, raw_outputs=True))
    names = [value.name for value in plain.graph.output]
    model = plain
    if hidden:
        under = disguised(plain, 4, shuffle_outputs=True)
        model, names = under.model, [under.names[name] for name in names]
    assert len(names) == 8
    auxiliary, main = {names[0], *names[2:5]}, {names[1], *names[5:8]}
    for keep in ((), (names[1],)):
        result = api.apply(model, PATTERNS, keep=keep, verify=False)
        kept, removed = decision(result.report)
        assert (set(kept), set(removed)) == (main, auxiliary)
        assert {value.name for value in result.model.graph.output} == main
        wanted = converted(variant("n"))
        assert (conv_count(result.model), count_params(result.model)) == (wanted.fused_convs, wanted.fused)
        feeds = {model.graph.input[0].name: noise(1, 3, SIZE, SIZE, seed=5)}
        before, after = run(model, feeds), run(result.model, feeds)
        assert all(relative(after[name], before[name]) <= CLOSE for name in main)


def deepened(name: str, depth: int) -> Variant:
    """The variant with `depth` more bottlenecks in every block that only the auxiliary head needs."""
    shape = variant(name)
    live = shape.main_rows()

    def deeper(row: Row) -> Row:
        block = row.block
        return replace(row, block=replace(block, repeats=block.repeats + depth)) if isinstance(block, RepElan) else row

    rows = tuple(row if index in live else deeper(row) for index, row in enumerate(shape.rows))
    return replace(shape, rows=rows)


@pytest.fixture(scope="module")
def deep_auxiliary() -> DualModel:
    return build(deepened("n", 12))


@pytest.mark.parametrize("form", BY_FORM)
def test_a_deeper_auxiliary_head_asks(deep_auxiliary: DualModel, form: Form, tmp_path: Path) -> None:
    """The votes contradict each other: the user has to say, and what they say is done."""
    plain = onnx.load(export(deep_auxiliary, form, SIZE, tmp_path / "deep.onnx"))
    names = [value.name for value in plain.graph.output]
    under = disguised(plain, 9, shuffle_outputs=True)
    asks(plain, names)
    asks(under.model, [under.names[name] for name in names])


def asks(model: ModelProto, names: list[str]) -> None:
    before = model.SerializeToString()
    with pytest.raises(ChoiceError) as caught:
        api.apply(model, PATTERNS, verify=False)
    assert caught.value.exit_code == 4
    assert all(name in str(caught.value) for name in names) and "--keep" in str(caught.value)
    assert model.SerializeToString() == before

    result = api.apply(model, PATTERNS, keep=[names[MAIN_OUTPUT]], verify=False)
    wanted = converted(deepened("n", 12))
    assert (conv_count(result.model), count_params(result.model)) == (wanted.fused_convs, wanted.fused)


def test_the_other_side_when_the_user_says_so() -> None:
    """`--keep` of the auxiliary output leaves its branch, whose size the definition knows too."""
    model = exported("n", "legacy")
    auxiliary = model.graph.output[0].name
    result = api.apply(model, PATTERNS, keep=[auxiliary], verify=False)
    shape = variant("n")
    wanted = converted(replace(shape, main=shape.aux, aux=shape.main))
    assert [value.name for value in result.model.graph.output] == [auxiliary]
    assert (conv_count(result.model), count_params(result.model)) == (wanted.fused_convs, wanted.fused)
    feeds = {"images": noise(1, 3, SIZE, SIZE, seed=2)}
    assert relative(run(result.model, feeds)[auxiliary], run(model, feeds)[auxiliary]) <= CLOSE


def test_the_definition_tells_widths_apart() -> None:
    """The expected figures differ where the models do: equal ones would make the tests above blind."""
    shapes = [variant("n"), variant("n", width=2.0), variant("n", nc=3), variant("t"), variant("t", width=0.5)]
    assert len({converted(shape).fused for shape in shapes}) == len(shapes)
    assert converted(deepened("n", 12)) == converted(variant("n"))
