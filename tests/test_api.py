"""The public functions on every kind of model: the argument stays, the result is of its kind, the report is honest."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, numpy_helper
from rich.console import Console

import rewriter
from fixtures.blocks import BLOCKS
from fixtures.judge import count_params, op_histogram
from rewriter import api
from rewriter.checking.record import Verdict
from rewriter.errors import ChoiceError, InputError, OutputError, PatternError, UsageError
from rewriter.graph.files import LoadedModel
from rewriter.reporting.inspection_text import InspectionText
from rewriter.reporting.record import MatchRecord, RefusalRecord
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.rewriting.small_models import SmallNet, copied, ops, same

OWN = """fxrewrite 1
pattern {name} {{ doc "d" match y = x -> {op} do bypass }}
"""


def block() -> ModelProto:
    """A block between two nodes that stay, one of them dead."""
    net = SmallNet()
    net.add("Sigmoid", [net.block(net.add("Relu", ["x"], "entry"), "exit")], "y")
    net.add("Neg", ["x"], "dead")
    return net.model("y")


def heads(aux: str = "aux", main: str = "main") -> ModelProto:
    net = SmallNet()
    a = net.add("Relu", [net.conv("x")], "a")
    net.norm(net.conv(a), aux)
    deep = net.add("Relu", [net.conv(a)])
    net.norm(net.conv(net.add("Relu", [net.conv(deep)])), main)
    return net.model(aux, main)


def alike() -> ModelProto:
    """Two outputs of one depth: nobody can tell which is wanted."""
    net = SmallNet()
    a = net.add("Relu", [net.conv("x")])
    net.conv(a, "left")
    net.conv(a, "right")
    return net.model("left", "right")


def saved(folder: Path, model: ModelProto, name: str = "in.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def external(folder: Path, model: ModelProto) -> Path:
    path = folder / "in.onnx"
    onnx.save_model(copied(model), path, save_as_external_data=True, location="in.data", size_threshold=0)
    return path


def kinds(folder: Path, model: ModelProto) -> list[Any]:
    path = saved(folder, model)
    return [path, str(path), copied(model), rewriter.load(path), gs.import_onnx(copied(model))]


def state(model: Any) -> bytes:
    """Everything that a caller could see of an argument."""
    if isinstance(model, str | Path):
        return Path(model).read_bytes()
    if isinstance(model, LoadedModel):
        return model.proto.SerializeToString(deterministic=True)
    proto = model if isinstance(model, ModelProto) else gs.export_onnx(model)
    return proto.SerializeToString(deterministic=True)


# --- kinds of models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(5))
def test_the_argument_stays_and_the_result_is_of_its_kind(tmp_path: Path, kind: int) -> None:
    model = kinds(tmp_path, block())[kind]
    before = state(model)
    result = rewriter.apply(model)
    for call in (rewriter.find, rewriter.inspect):
        call(model)
    assert state(model) == before
    assert isinstance(result.model, gs.Graph if kind == 4 else ModelProto)
    assert result.report.verification.verdict is Verdict.OK
    proto = gs.export_onnx(result.model) if kind == 4 else result.model
    assert ops(proto) == {"Relu": 1, "Conv": 1, "Sigmoid": 1, "Neg": 1}
    out = result.save(tmp_path / "out.onnx")
    same(block(), onnx.load(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


@pytest.mark.parametrize("kind", range(5))
def test_nothing_to_do_gives_the_same_bytes(tmp_path: Path, kind: int) -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    data = net.model("y").SerializeToString() + bytes([0xFA, 0x3E, 0x03]) + b"abc"  # a field that nobody knows
    (tmp_path / "in.onnx").write_bytes(data)
    proto = ModelProto.FromString(data)
    path = tmp_path / "in.onnx"
    model = [path, str(path), proto, rewriter.load(path), gs.import_onnx(proto)][kind]
    result = rewriter.apply(model)
    assert not result.report.changed and result.report.verification.verdict is Verdict.OK
    assert (result.report.before, result.report.rounds) == (result.report.after, 1)
    out = result.save(tmp_path / "out.onnx")
    if kind < 4:
        assert out.read_bytes() == data and result.model == proto


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        rewriter.apply(tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match="not dict"):
        rewriter.apply({})  # type: ignore[arg-type]
    broken = block()
    broken.graph.node[1].input[0] = "nowhere"
    for model in (broken, saved(tmp_path, broken), gs_graph_with_a_cycle()):
        with pytest.raises(InputError):
            rewriter.apply(model, verify=False)


def gs_graph_with_a_cycle() -> Any:
    a, b = gs.Variable("a", np.float32, [1]), gs.Variable("b", np.float32, [1])
    nodes = [gs.Node("Relu", inputs=[a], outputs=[b]), gs.Node("Relu", inputs=[b], outputs=[a])]
    return gs.Graph(nodes, inputs=[], outputs=[b])


def test_a_result_is_saved_where_it_may_be(tmp_path: Path) -> None:
    path = saved(tmp_path, block())
    result = rewriter.apply(path, verify=False)
    with pytest.raises(OutputError):
        result.save(path, force=True)
    out = result.save(tmp_path / "out.onnx")
    first = out.read_bytes()
    with pytest.raises(OutputError):
        result.save(out)
    assert result.save(out, force=True).read_bytes() == first
    assert path.read_bytes() == block().SerializeToString()


def test_external_data_stays_on_disk_and_goes_along(tmp_path: Path) -> None:
    model, away = heads(), tmp_path / "away"
    away.mkdir()
    path = external(tmp_path, model)
    before = (tmp_path / "in.data").read_bytes()
    result = rewriter.apply(path, ["deploy"])
    assert result.report.verification.verdict is Verdict.OK
    assert result.report.before.parameters == count_params(model)
    out = result.save(away / "out.onnx")
    assert (tmp_path / "in.data").read_bytes() == before
    assert all((away / location).is_file() for location in rewriter.load(out).external)
    loaded = onnx.load(out)
    assert [o.name for o in loaded.graph.output] == ["main"]
    same(model, loaded)


# --- words that choose -----------------------------------------------------------------------------------------------


def test_a_text_alone_is_a_list_of_one(tmp_path: Path) -> None:
    given = {"patterns": "aux-prune", "keep": "main", "set_": "aux-prune.scope=aux*"}
    result = rewriter.apply(heads(), **given, verify=False)  # type: ignore[arg-type]
    listed = rewriter.apply(heads(), **{k: [v] for k, v in given.items()}, verify=False)  # type: ignore[arg-type]
    assert result.model == listed.model
    assert result.report.decisions[0].kept == ("main",)
    assert dict(result.report.parameters)["aux-prune.keep"] == "main"
    assert [r.pattern for r in rewriter.find(block(), "repconv") if isinstance(r, MatchRecord)] == ["repconv"]
    assert {t.pattern for t in api.test_patterns("bypass")} == {"bypass"}


def test_keep_all_and_keep_nothing() -> None:
    result = rewriter.apply(heads(), ["deploy"], keep="all")
    (decision,) = result.report.decisions
    assert (decision.kept, decision.removed) == (("aux", "main"), ())
    assert [o.name for o in result.model.graph.output] == ["aux", "main"]
    with pytest.raises(ChoiceError, match="--keep all"):
        rewriter.apply(alike(), ["deploy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": ["deploy"], "keep": ["mian"]}, "main"),
        ({"patterns": ["deploy"], "keep": "m"}, "no such output"),
        ({"patterns": ["repconv"], "keep": ["main"]}, "needs a pattern that removes outputs"),
        ({"patterns": ["repconvv"]}, "unknown pattern"),
        ({"set_": ["repconv.costs=off"]}, "costs"),
        ({"max_rounds": -1}, "less than 0"),
        ({"rename": {"nowhere": "z"}}, "no input or output"),
        ({"rename": {"main": "a"}}, "'a' is taken"),
        ({"rename": {"main": ""}}, "cannot be empty"),
        ({"rename": {"main": "z", "aux": "z"}}, "'z' is taken"),
        ({"shapes": {"y": (1, 2)}}, "y"),
    ],
)
def test_words_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    model = heads()
    before = state(model)
    with pytest.raises(UsageError, match=message):
        rewriter.apply(model, **options)
    assert state(model) == before


def test_keep_for_a_pattern_that_takes_no_names(tmp_path: Path) -> None:
    own = tmp_path / "own.fxp"
    own.write_text('fxrewrite 1\npattern p { doc "d" match outputs { main: index(1) aux: rest } do remove-output aux }')
    with pytest.raises(UsageError, match="parameter `keep`"):
        rewriter.apply(heads(), [str(own)], keep=["main"])
    assert rewriter.apply(heads(), [str(own)]).report.decisions[0].removed == ("aux",)


def test_several_pattern_files(tmp_path: Path) -> None:
    for name, op in (("idle", "identity"), ("wrong", "relu")):
        (tmp_path / f"{name}.fxp").write_text(OWN.format(name=name, op=op))
    paths = [str(tmp_path / f"{name}.fxp") for name in ("idle", "wrong")]
    report = rewriter.apply(block(), ["repconv", *paths]).report
    assert [(s.name, s.path) for s in report.patterns] == [
        ("repconv", "repconv.fxp"), ("idle", paths[0]), ("wrong", paths[1])
    ]  # fmt: skip
    assert all(len(s.sha256) == 64 for s in report.patterns)
    assert [(r.pattern, r.code) for r in report.refusals] == [("wrong", "exact")]
    (tmp_path / "bad.fxp").write_text("fxrewrite 1\npattern p { match y = x -> convv do bypass }")
    with pytest.raises(PatternError, match=r"bad\.fxp:2"):
        rewriter.find(block(), [str(tmp_path / "bad.fxp")])


# --- renaming --------------------------------------------------------------------------------------------------------


def test_renames_are_verified_as_they_are() -> None:
    names = {"x": "image", "main": "aux", "aux": "main"}
    result = rewriter.apply(heads(), ["conv-bn"], rename=names)
    assert result.report.verification.verdict is Verdict.OK
    assert len(result.report.verification.outputs) == 2
    assert dict(result.report.renamed) == names
    assert [i.name for i in result.model.graph.input] == ["image"]
    same(heads(), result.model, names)


def test_a_rename_alone_is_a_change(tmp_path: Path) -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    path = saved(tmp_path, net.model("y"))
    result = rewriter.apply(path, rename={"y": "boxes", "x": "x"})
    assert result.report.changed and result.report.renamed == (("y", "boxes"),)
    assert [o.name for o in onnx.load(result.save(tmp_path / "out.onnx")).graph.output] == ["boxes"]


def test_keep_and_rename_to_the_name_of_what_goes() -> None:
    result = rewriter.apply(heads("output0", "1925"), ["deploy"], keep=["1925"], rename={"1925": "output0"})
    assert [o.name for o in result.model.graph.output] == ["output0"]
    assert result.report.verification.verdict is Verdict.OK
    same(heads("gone", "1925"), result.model, {"1925": "output0"})
    with pytest.raises(UsageError, match="no input or output of the result"):
        rewriter.apply(heads(), ["deploy"], keep=["main"], rename={"aux": "z"})


def test_inputs_and_shapes_speak_of_old_names(tmp_path: Path) -> None:
    file = tmp_path / "in.npz"
    np.savez(file, x=np.ones((1, 4, 6, 5), np.float32))
    for options in ({"inputs": file}, {"shapes": {"x": (1, 4, 6, 5)}}):
        report = rewriter.apply(heads(), rename={"x": "image"}, **options).report  # type: ignore[arg-type]
        assert report.verification.verdict is Verdict.OK


# --- verdicts --------------------------------------------------------------------------------------------------------


def corrupted(self: OnnxDraft) -> ModelProto:
    model = HONEST(self)
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".folded"))
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


HONEST = OnnxDraft.finish


def test_a_tensor_that_goes_wrong_after_its_proof_fails_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxDraft, "finish", corrupted)
    report = rewriter.apply(block()).report
    assert report.verification.verdict is Verdict.FAILED
    assert [c.verdict for c in report.verification.outputs] == [Verdict.FAILED]
    assert all(m.proof and m.proof.error <= m.proof.limit for m in report.matches)
    unverified = rewriter.apply(block(), verify=False).report.verification
    assert unverified.verdict is Verdict.NOT_VERIFIED and "--no-verify" in unverified.reason


def test_verify_compares_what_both_have(tmp_path: Path) -> None:
    result = rewriter.apply(heads(), ["deploy"], verify=False)
    found = rewriter.verify(saved(tmp_path, heads()), result.model)
    assert found.verdict is Verdict.OK and [c.name for c in found.outputs] == ["main"]
    assert any("aux" in note for note in found.notes)
    other = rewriter.apply(heads(), verify=False, rename={"x": "image"}).model
    assert rewriter.verify(heads(), other).verdict is Verdict.FAILED
    with pytest.raises(UsageError, match="no output has the same name"):
        rewriter.verify(heads(), heads("p", "q"))
    assert rewriter.verify(heads(), block_of(2.0), tolerance=1e9).verdict is not Verdict.OK


def block_of(factor: float) -> ModelProto:
    """Outputs of the same names as those of `heads`, in another shape."""
    net = SmallNet()
    for name in ("aux", "main"):
        net.add("ReduceSum", [net.add("Mul", ["x", net.tensor(factor)])], name, keepdims=1)
    model = net.model("aux", "main")
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


# --- reports ---------------------------------------------------------------------------------------------------------


def test_every_field_of_the_report() -> None:
    model = block()
    report = rewriter.apply(model, ["deploy"], set_=["bypass.cost=off"], keep="all").report
    assert (report.model, report.output, report.renamed, report.end, report.rounds) == (
        "ModelProto", None, (), "fixpoint", 2
    )  # fmt: skip
    assert report.parameters == (("bypass.cost", "off"),)
    assert report.dead_before == ("n_dead",)
    assert (report.covered, report.shadowed, report.refusals) == (3, (), ())
    assert report.seconds > 0 and dict(report.versions)["fxrewrite"] == rewriter.__version__
    (match,) = report.matches
    assert (match.entry, match.exit, match.leftovers, match.made) == ("entry", "exit", (), ("n_v1",))
    assert match.nodes == tuple(n.name for n in list(model.graph.node)[1:8])
    assert match.before and match.after and match.proof
    assert (match.before.parameters, match.after.parameters) == (144 + 16 + 3 * 8, 144 + 4)
    for totals, counted in ((report.before, model), (report.after, rewriter.apply(model, verify=False).model)):
        assert totals.nodes == len(counted.graph.node)
        assert dict(totals.ops) == op_histogram(counted)
        assert totals.parameters == count_params(counted)
        assert [(o.name, o.dtype, o.shape) for o in totals.outputs] == [("y", "float32", (1, 4, 6, 5))]
    assert report.before.multiply_adds == (144 + 16) * 30 and report.after.multiply_adds == 144 * 30
    stored = sum(len(t.raw_data) for t in model.graph.initializer)
    assert (report.before.bytes, report.after.bytes) == (stored, 4 * (144 + 4))


def test_a_limit_is_reported_as_one() -> None:
    reports = [rewriter.apply(block(), max_rounds=most, verify=False).report for most in (0, 1, 2)]
    assert [(r.rounds, r.end, r.changed) for r in reports] == [
        (0, "limit", False), (1, "limit", True), (2, "fixpoint", True)
    ]  # fmt: skip


def test_two_runs_give_equal_reports_and_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path, block())
    first, second = (rewriter.apply(path) for _ in range(2))
    assert timeless(first.report) == timeless(second.report)
    assert first.model.SerializeToString() == second.model.SerializeToString()


def timeless(report: Any) -> Any:
    verification = replace(report.verification, seconds=0.0, peak_bytes=0)
    return replace(report, seconds=0.0, verification=verification)


def test_the_order_of_patterns_changes_nothing(tmp_path: Path) -> None:
    names = ["conv-bn", "repconv", "aux-prune", "bypass"]
    results = [rewriter.apply(heads(), order, verify=False) for order in (names, names[::-1], [*names, *names])]
    assert len({r.model.SerializeToString() for r in results}) == 1
    assert len({r.report.matches for r in results}) == 1


# --- find and inspect ------------------------------------------------------------------------------------------------


def test_find_tells_each_pattern_alone() -> None:
    found = rewriter.find(block())
    done = [r for r in found if isinstance(r, MatchRecord)]
    assert sorted((r.pattern, r.exit) for r in done)[-1] == ("repconv", "exit")
    assert sum(r.pattern == "conv-bn" for r in done) == 2
    assert all(r.proof for r in done)
    assert rewriter.find(block(), ["aux-prune"]) == []


def test_find_goes_on_inside_a_refused_match() -> None:
    """The norm after the sum is none (its variance is negative); the sum before it folds, in `find` as in `apply`."""
    net = SmallNet()
    inner = net.add("Add", [net.conv("x"), net.conv("x", k=1)], "inner")
    net.norm(inner, "y")
    net.tensors[-1].CopyFrom(numpy_helper.from_array(np.full(4, -1, np.float32), net.tensors[-1].name))
    model = net.model("y")
    found = rewriter.find(model, ["repconv"])
    assert [r.exit for r in found if isinstance(r, MatchRecord)] == ["inner"]
    assert [(r.node, r.code) for r in found if isinstance(r, RefusalRecord)] == [("n_y", "value")]
    report = rewriter.apply(model, ["repconv"], verify=False).report
    assert [m.exit for m in report.matches] == ["inner"]


@pytest.mark.parametrize("case", sorted(BLOCKS))
def test_inspect_counts_as_the_judge_does(case: str) -> None:
    model = BLOCKS[case].build(0, 8)
    found = rewriter.inspect(model)
    assert found.totals.parameters == count_params(model)
    assert found.totals.nodes == len(model.graph.node)
    assert found.shared.nodes + len(found.dead) <= found.totals.nodes
    by_name = {p.pattern: p for p in found.patterns}
    alone = rewriter.apply(model, ["repconv"], max_rounds=1, verify=False)
    assert by_name["repconv"].matches == len(alone.report.matches)
    assert by_name["repconv"].saved_parameters == count_params(model) - count_params(alone.model)


def test_inspect_shares_of_two_heads() -> None:
    found = rewriter.inspect(heads())
    aux, main = found.outputs
    assert (aux.name, aux.needed.parameters, aux.exclusive.parameters) == ("aux", 144 + 152, 152)
    assert (main.needed.parameters, main.exclusive.parameters) == (144 * 3 + 152, 144 * 2 + 152)
    assert (found.shared.nodes, found.shared.parameters, found.shared.multiply_adds) == (2, 144, 144 * 30)
    (pruned,) = [p for p in found.patterns if p.pattern == "aux-prune"]
    assert (pruned.matches, pruned.saved_parameters, pruned.note) == (1, 152, "removes aux")
    (unclear,) = [p for p in rewriter.inspect(alike()).patterns if p.pattern == "aux-prune"]
    assert unclear.matches == 0 and unclear.note.startswith("needs --keep")
    assert rewriter.inspect(block()).dead == ("n_dead",)


@pytest.mark.parametrize("layered", [True, False])
def test_inspect_says_where_layers_are_that_it_does_not_count(layered: bool) -> None:
    inner = "Conv(x, w)" if layered else "Neg(x)"
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 17]>
        g (float[1,2,4,4] x, bool flag) => (float[1,2,4,4] y) <float[2,2,1,1] w = {{1, 0, 0, 1}}> {{
            [pick] y = If(flag) <
                then_branch = t () => (float[1,2,4,4] a) {{ a = {inner} }},
                else_branch = e () => (float[1,2,4,4] b) {{ b = Identity(x) }}>
        }}""")
    found = rewriter.inspect(model)
    assert found.hidden == (("pick",) if layered else ()) and found.totals.parameters == 0
    console = Console(width=100, file=StringIO())
    console.print(InspectionText(found))
    assert ("layers inside of bodies and functions: pick" in console.file.getvalue()) is layered


def test_pattern_tests_run() -> None:
    told: list[float | None] = []
    results = api.test_patterns(progress=lambda text, share: told.append(share))
    assert len(results) > 30 and all(r.passed for r in results)
    assert told == sorted(told, key=lambda share: share or 0.0)
