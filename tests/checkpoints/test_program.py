"""torch.export archives: ordinary ones load without trust, and each known way to run code is refused before torch."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rewriter.checkpoints import program
from rewriter.checkpoints.expressions import wrong_guard, wrong_size, wrong_treespec
from rewriter.errors import FxRewriteError, InputError
from tests.checkpoints.zips import Mine, members, source, zipped

Members = dict[str, bytes]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.register_buffer("factor", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.norm(self.conv(x)) * self.factor.sum()
        return {"whole": y, "half": y[:, : y.shape[1] // 2]}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with dynamic sizes, a constant, a buffer that is not saved, and a dict of outputs."""
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch, high = torch.export.Dim("batch", min=2), torch.export.Dim("high", min=2)
    made = torch.export.export(Net().eval(), (torch.zeros(2, 3, 16, 8),), dynamic_shapes=({0: batch, 2: 4 * high},))
    torch.export.save(made, path)
    return path


def test_an_ordinary_program_loads_and_runs_without_trust(archive: Path) -> None:
    found = program.load(source(archive))
    x = torch.randn(3, 3, 20, 8)
    wanted = torch.export.load(archive).module()(x)
    assert all(torch.equal(value, wanted[name]) for name, value in found.module()(x).items())


def test_inputs_of_open_sizes_carry_marks_that_are_data(tmp_path: Path) -> None:
    """torch.export puts Python attributes on example inputs whose sizes are asked to stay open."""
    x = torch.zeros(2, 3, 16, 8)
    made = torch.export.export(Net().eval(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert vars(x)
    torch.export.save(made, tmp_path / "net.pt2")
    assert program.load(source(tmp_path / "net.pt2")).module()(x).keys() == {"whole", "half"}


def changed(archive: Path, tmp_path: Path, change: Callable[[Members], object]) -> Path:
    content = members(archive)
    change(content)
    path = tmp_path / "changed.pt2"
    path.write_bytes(zipped(content))
    return path


def test_written_anew_it_still_passes(archive: Path, tmp_path: Path) -> None:
    """What the tests below change is what is refused, not the way they write archives."""
    assert program.problem_of(source(changed(archive, tmp_path, lambda _: None))) is None


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Members], None]:
    def apply(content: Members) -> None:
        key = next(k for k in content if k.endswith(name))
        found = json.loads(content[key])
        change(found)
        content[key] = json.dumps(found).encode()

    return apply


def in_graph(change: Callable[[dict[str, Any]], object]) -> Callable[[Members], None]:
    return edit("models/model.json", lambda found: change(found["graph_module"]["graph"]))


def pickled(folder: Path) -> bytes:
    made = io.BytesIO()
    torch.save(Mine(folder), made)
    return made.getvalue()


def _sample(content: Members, folder: Path) -> None:
    content["net/data/sample_inputs/model.pt"] = pickled(folder)


def _expression(content: Members, folder: Path) -> None:
    evil = f"__import__('os').mkdir('{folder}')"
    sizes = in_graph(lambda g: g["tensor_values"]["x"]["sizes"].__setitem__(0, {"as_expr": {"expr_str": evil}}))
    sizes(content)


def _guards(content: Members, folder: Path) -> None:
    evil = f"__import__('os').mkdir('{folder}')"
    edit("models/model.json", lambda found: found.update(guards_code=[evil]))(content)


def _old_layout(content: Members, folder: Path) -> None:
    content["net/data/weights/model.pt"] = pickled(folder)


def _enum(content: Members, folder: Path) -> None:
    module = folder.parent / "planted_by_a_test.py"
    module.write_text(f"import os; os.mkdir({str(folder)!r})")
    enum = json.dumps({"__enum__": True, "fqn": "planted_by_a_test:X", "name": "x"})
    spec = json.dumps([1, {"type": "builtins.dict", "context": f"[{enum}]", "children_spec": []}])
    edit(
        "models/model.json",
        lambda found: found["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=spec),
    )(content)


def _opaque(content: Members, folder: Path) -> None:
    content["net/data/constants/opaque_obj_0"] = pickle.dumps(Mine(folder))
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edit("model_constants_config.json", lambda found: found["config"].update(odd=entry))(content)


def _weight(content: Members, folder: Path) -> None:
    content["net/data/weights/weight_0"] = pickled(folder)
    edit("model_weights_config.json", lambda found: found["config"]["conv.weight"].update(use_pickle=True))(content)


WAYS = {
    "sample inputs": (_sample, "sample inputs would import"),
    "size expression": (_expression, "the size"),
    "guards": (_guards, "the guard"),
    "old layout": (_old_layout, "model.pt"),
    "enum in a treespec": (_enum, "description of its inputs"),
    "opaque object": (_opaque, "opaque_obj_0"),
    "pickled weight": (_weight, "stored as a pickle"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_known_way_to_run_code_is_refused(
    way: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    make, said = WAYS[way]
    path = changed(archive, tmp_path, lambda content: make(content, tmp_path / "ran"))
    with pytest.raises(InputError, match=said) as refused:
        program.load(source(path))
    assert "--trust" in str(refused.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "enum in a treespec"])
def test_each_of_them_is_one(way: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself runs them; a torch that no longer does fails here, and the validator may grow."""
    monkeypatch.syspath_prepend(tmp_path)
    path = changed(archive, tmp_path, lambda content: WAYS[way][0](content, tmp_path / "ran"))
    with contextlib.suppress(Exception):  # what it makes of the rest of the archive is of no interest
        program.load(source(path), trust=True).module()(torch.zeros(2, 3, 16, 8))
    assert (tmp_path / "ran").exists()


REFUSED: dict[str, Callable[[Members], object]] = {
    "an operator of another library": in_graph(lambda g: g["nodes"][0].update(target="torch.ops.mine.f.default")),
    "a function of torch": in_graph(lambda g: g["nodes"][0].update(target="torch.load")),
    "a call": in_graph(lambda g: g["nodes"][0].update(target="_operator.methodcaller")),
    "an operator that reads files": in_graph(lambda g: g["nodes"][0].update(target="torch.ops.aten.from_file.default")),
    "a name that is code": in_graph(lambda g: g["nodes"][0].update(name="x = 1\nimport os")),
    "an operator as an argument": in_graph(
        lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_operator": "torch.load"})
    ),
    "a weight with a name that is code": edit(
        "model_weights_config.json", lambda found: found["config"].update({'a")+b("': found["config"]["conv.bias"]})
    ),
    "a weight beyond its bytes": edit(
        "model_weights_config.json",
        lambda found: found["config"]["conv.bias"]["tensor_meta"].update(sizes=[{"as_int": 1 << 40}]),
    ),
    "another schema": edit("models/model.json", lambda found: found["schema_version"].update(major=9)),
    "compiled code": lambda content: content.update({"net/data/aotinductor/model/x.so": b"\x7fELF"}),
    "no program": lambda content: content.pop("net/models/model.json"),
    "a program that is a list": lambda content: content.update({"net/models/model.json": b"[]"}),
    "deep": lambda content: content.update({"net/models/model.json": b"[" * 200_000}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_ordinary_programs_do_not_have_needs_trust(kind: str, archive: Path, tmp_path: Path) -> None:
    assert program.problem_of(source(changed(archive, tmp_path, REFUSED[kind])))


class Controlled(torch.nn.Module):
    """Branches, and a region without autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cond(x.sum() > 0, lambda t: self.conv(t), lambda t: t - 1, (x,))
        with torch.autocast("cpu", enabled=False):
            return self.conv(y.float())


def test_graphs_that_a_program_runs_are_walked_as_its_own(tmp_path: Path) -> None:
    made = torch.export.export(Controlled(), (torch.ones(2, 3, 4, 4),))
    torch.export.save(made, tmp_path / "net.pt2")
    found, x = program.load(source(tmp_path / "net.pt2")), torch.randn(2, 3, 4, 4)
    assert torch.equal(found.module()(x), made.module()(x))
    text = members(tmp_path / "net.pt2")["net/models/model.json"]
    assert text.count(b"torch.ops.aten.sub.Tensor") == 1 and text.count(b"as_graph") == 3
    for old, new in (
        (b"torch.ops.aten.sub.Tensor", b"torch.load"),  # in a branch
        (b"torch.ops.aten.sub.Tensor", b"torch.ops.aten.from_file.default"),
        (b"torch.ops.higher_order.cond", b"torch.ops.higher_order.call_torchbind"),
        (b'"name": "true_graph_0"', b'"name": "a = 1; b"'),
    ):
        content = members(tmp_path / "net.pt2")
        assert old in text
        content["net/models/model.json"] = text.replace(old, new)
        assert program.problem_of(source(tmp_path / "x.pt2", zipped(content)))


def test_a_flipped_byte_is_an_answer_of_ours(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    for position in range(0, len(data), 97):
        try:
            program.problem_of(source(tmp_path / "x.pt2", data[:position] + b"\x7f" + data[position + 1 :]))
            program.problem_of(source(tmp_path / "x.pt2", data[:position] or b"PK\3\4/models/"))
        except FxRewriteError:
            continue


@pytest.mark.parametrize(
    "text",
    ["Symbol('s77', positive=True, integer=True)", "Add(Mul(Integer(4), Symbol('s39')), Integer(-2))", "4*s39",
     "FloorDiv(s0, 2) + 1", "Max(1, s0)", "Pow(Symbol('s0'), Integer(2))"],
)  # fmt: skip
def test_sizes_that_torch_writes_pass(text: str) -> None:
    assert wrong_size(text) is None


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "().__class__", "(lambda: 0)()", "open('x')", "Symbol('a b')", "x", "[1 for _ in s0]",
     "s0 ** 99", "Pow(Pow(Pow(9, 8), 8), 8)", "Pow(9, 999999999)", f"Integer({1 << 80})", "exec", "s0 if s1 else s2",
     "s0\n", 7, "f''", "Add(*s0)", "1" * 5000],
)  # fmt: skip
def test_sizes_that_are_code_or_take_for_ever_do_not(text: object) -> None:
    assert wrong_size(text) is not None


def test_guards() -> None:
    good = ["L['x'].size()[0] >= 2", "L['args'][0].size()[2] % 4 == 0", "Mod(L['x'].size()[0], 2) != 1"]
    assert [wrong_guard(text) for text in good] == [None] * len(good)
    bad = ["L['x'].__class__", "print(1)", "L['it\\'s']", 'L["x"]', "L.size # x", "L['x'].size().foo()", "x == 1"]
    assert all(wrong_guard(text) for text in bad)


def test_treespecs() -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    assert (
        wrong_treespec(json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [leaf]}])) is None
    )
    traced = {"type": "torch.fx.immutable_collections.immutable_dict", "context": '["a"]', "children_spec": [leaf]}
    assert wrong_treespec(json.dumps([1, traced])) is None
    named = json.dumps([1, {"type": "collections.namedtuple", "context": "null", "children_spec": []}])
    assert wrong_treespec(named) and wrong_treespec("[2, {}]") and wrong_treespec("x")
