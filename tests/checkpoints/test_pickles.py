"""A pickle is walked and never run: what it would build, what it would import, and nothing happens."""

from __future__ import annotations

import argparse
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import pytest

from rewriter.checkpoints.contents import is_module, named, tensors
from rewriter.checkpoints.pickles import Call, Name, Pairs, each, walk
from rewriter.checkpoints.torchfile import open_torch
from rewriter.errors import FxRewriteError, InputError
from tests.checkpoints.zips import Mine, saved, source, weights

VALUE = {"a": 1, "b": [1.5, None, True, "text", b"bytes", (1, 2), {"c": {3}}, -(1 << 70)], "ö": bytearray(b"x")}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_as_they_are(protocol: int) -> None:
    found = walk(pickle.dumps(VALUE, protocol), "x")
    assert isinstance(found.value, Pairs) and found.value.get("a") == 1
    assert found.value.get("b")[:4] == [1.5, None, True, "text"]
    assert found.value.get("b")[5] == (1, 2) and found.value.get("b")[7] == -(1 << 70)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(protocol: int, tmp_path: Path) -> None:
    data = pickle.dumps({"x": Mine(tmp_path / "ran")}, protocol)
    found = walk(data, "x")
    call = found.value.get("x")
    assert isinstance(call, Call) and call.arguments == (str(tmp_path / "ran"),)
    assert [name.name for name in found.names][-1] == "mkdir" and not (tmp_path / "ran").exists()
    pickle.loads(data)  # the proof that it would have
    assert (tmp_path / "ran").exists()


def test_objects_keep_their_state_and_their_items() -> None:
    found = walk(pickle.dumps([argparse.Namespace(lr=0.1), OrderedDict(a=1)], 2), "x").value
    assert str(found[0].arguments) or found[0].state.get("lr") == 0.1
    assert found[1].function == Name("collections", "OrderedDict") and found[1].pairs.get("a") == 1


def test_what_holds_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert len(list(each(walk(pickle.dumps(loop), "x").value))) == 1
    deep: list[object] = []
    for _ in range(60):  # 2^60 paths
        deep = [deep, deep]
    assert len(list(each(walk(pickle.dumps(deep), "x").value))) == 61


def test_nested_beyond_recursion() -> None:
    data = b"(" * 100_000 + b"t" * 100_000 + b"."
    assert len(list(each(walk(data, "x").value))) == 100_000


@pytest.mark.parametrize(
    "data",
    [b"", b".", b"N", b"NN.", b"(.", b"0.", b"t.", b"h\1.", b"}Ns.", b"Nb.", b"NNR", b"\x80", b"\x95" + b"\xff" * 8,
     b"\x8a\xff.", b"Iabc\n.", b"]NaNe.", b"c\n.", b"cos\nsystem\n(S'x'\n", b"P1\n0.", b"\x97.", b"}(Nu."],
)  # fmt: skip
def test_damaged_programs_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="damaged or cut off"):
        walk(data, "x")


def test_random_bytes_and_flipped_bits_are_answers_of_ours() -> None:
    chance = random.Random(0)
    whole = pickle.dumps(VALUE, 2)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            list(each(walk(bytes(data[: chance.randint(1, len(data))]), "x").value))
        except FxRewriteError:
            continue


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_listed_as_torch_has_them(zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"model": weights()}, _use_new_zipfile_serialization=zipped)
    file = open_torch(source(path))
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in named(file.value)}
    assert found == {f"model.{k}": (str(v.dtype)[6:], tuple(v.shape)) for k, v in weights().items()}
    assert not file.code


def test_a_module_is_listed_without_its_class(tmp_path: Path) -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).half()
    file = open_torch(source(saved(tmp_path / "m.pt", {"model": net})))
    model = file.value.get("model")
    assert is_module(model) and {name for name, _ in named(model)} == {*net.state_dict()}
    assert "torch.nn.modules.container.Sequential" in file.code
    assert {tensor.dtype for tensor in tensors(model)} == {"float16", "int64"}


def test_a_tensor_beyond_its_bytes_is_refused(tmp_path: Path) -> None:
    """An expanded tensor takes a few bytes in a file and terabytes when it is copied."""
    import torch

    path = saved(tmp_path / "w.pt", {"w": torch.zeros(1).expand(1 << 40)})
    with pytest.raises(InputError, match="made to take memory"):
        open_torch(source(path))
    path = saved(tmp_path / "v.pt", {"w": torch.zeros(8)[2:4]})  # a view keeps its whole storage
    assert next(named(open_torch(source(path)).value))[1].shape == (2,)


def test_a_tensor_with_attributes_is_one(tmp_path: Path) -> None:
    import torch

    marked, huge = torch.arange(6.0).reshape(2, 3), torch.zeros(1).expand(1 << 40)
    marked.note = huge.note = [1]  # type: ignore[attr-defined]
    file = open_torch(source(saved(tmp_path / "w.pt", {"w": marked})))
    assert [(name, tensor.shape) for name, tensor in named(file.value)] == [("w", (2, 3))] and not file.code
    with pytest.raises(InputError, match="made to take memory"):
        open_torch(source(saved(tmp_path / "h.pt", {"w": huge})))


def test_an_old_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", weights(), _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="cut off"):
        open_torch(source(path, path.read_bytes()[:-200]))
