"""Weights come out of every kind of checkpoint without running it; code runs only after --trust."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rewriter.checkpoints import weights
from rewriter.checkpoints.fitting import fit, lay
from rewriter.errors import ChoiceError, InputError, UsageError
from tests.checkpoints.zips import Mine, saved, source
from tests.checkpoints.zips import weights as some


def load(path: Path, *, key: str | None = None, whole: bool = False, **options: Any) -> weights.Loaded:
    return weights.load(source(path), key=key, whole=whole, **options)


def same(found: weights.Loaded, wanted: Any) -> bool:
    return found.state.keys() == wanted.keys() and all(
        torch.equal(found.state[name], value) and found.state[name].dtype == value.dtype
        for name, value in wanted.items()
    )


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_state_dicts(zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", some(), _use_new_zipfile_serialization=zipped)
    assert same(load(path), some())


def test_safetensors(tmp_path: Path) -> None:
    save_file(dict(some()), tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors"), some())
    with pytest.raises(UsageError, match="no entries"):
        load(tmp_path / "w.safetensors", key="model")


@pytest.mark.parametrize("change", [slice(0, 40), slice(0, -4)])
def test_damaged_safetensors(change: slice, tmp_path: Path) -> None:
    save_file(dict(some()), tmp_path / "w.safetensors")
    with pytest.raises(InputError):
        load(source(tmp_path / "x", (tmp_path / "w.safetensors").read_bytes()[change]).path)


def test_averaged_weights_come_first_and_the_rest_is_named(tmp_path: Path) -> None:
    last = {name: value * 2 for name, value in some().items()}
    path = saved(tmp_path / "w.pt", {"model": last, "ema": some(), "optimizer": {"state": {}, "param_groups": []}})
    found = load(path)
    assert same(found, some()) and found.key == "ema"
    assert "averaged" in found.notes[0] and "'optimizer'" in found.notes[0]
    assert same(load(path, key="model"), last)


def test_a_key_may_lead_deeper(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"student": {"backbone": some()}, "other": {"head": some()}})
    assert same(load(path, key="student.backbone"), some()) and same(load(path, key="student"), some())
    with pytest.raises(ChoiceError, match=r"--key student.backbone\n  --key other.head"):
        load(path)
    with pytest.raises(UsageError, match="leads to no weights"):
        load(path, key="absent")


def test_arguments_beside_the_weights_do_not_need_trust(tmp_path: Path) -> None:
    """Files with a Namespace are refused by torch's safe reader; the weights in them are data all the same."""
    path = saved(
        tmp_path / "w.pt", {"model": some(), "args": argparse.Namespace(secret=1), "x": Mine(tmp_path / "ran")}
    )
    found = load(path)
    assert same(found, some()) and "read as data" in found.notes[0] and "argparse.Namespace" in found.notes[0]
    assert not (tmp_path / "ran").exists()


def test_views_and_shared_storages_are_read_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    value = {"a": base[4:10], "b": base.view(4, 6).t(), "c": base, "d": torch.empty(0, 3), "e": base.bfloat16()}
    path = saved(tmp_path / "w.pt", {"model": value, "x": Mine(tmp_path / "ran")})
    assert same(load(path), value)


def test_a_module_is_read_as_data_where_a_factory_builds_it(tmp_path: Path) -> None:
    module = net()
    module.register_buffer("passing", torch.ones(3), persistent=False)
    path = saved(tmp_path / "m.pt", {"epoch": 3, "model": module})
    assert same(load(path), module.state_dict())


def test_a_whole_module_needs_trust(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model": net(), "x": Mine(tmp_path / "ran")})
    with pytest.raises(InputError, match=r"would run code of others.*--trust --code DIR"):
        load(path, whole=True)
    assert not (tmp_path / "ran").exists()
    found = load(path, whole=True, trust=True)
    assert found.module is not None and "--trust" in found.notes[0] and (tmp_path / "ran").exists()


def test_code_of_a_module_is_found_in_its_folder_and_only_then(tmp_path: Path) -> None:
    code = tmp_path / "tree"
    code.mkdir()
    (code / "their_net.py").write_text("from torch import nn\nclass Net(nn.Sequential):\n    pass\n")
    sys.path.insert(0, str(code))
    import their_net  # type: ignore[import-not-found]

    path = saved(tmp_path / "m.pt", {"ema": their_net.Net(nn.Conv2d(3, 4, 1)).half()})
    sys.path.remove(str(code))
    del sys.modules["their_net"]
    with pytest.raises(InputError, match="with its own code"):
        load(path, whole=True, trust=True)
    before = [*sys.path]
    found = load(path, whole=True, trust=True, code=code)
    assert type(found.module).__name__ == "Net" and sys.path == before
    del sys.modules["their_net"]
    with pytest.raises(UsageError, match="only looked at with --trust"):
        load(path, whole=True, code=code)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "stripped"),
    [
        (["a.w", "b.w"], ()),
        (["module.a.w", "module.b.w"], ("module.",)),
        (["module._orig_mod.a.w", "module._orig_mod.b.w"], ("module.", "_orig_mod.")),
        (["_orig_mod.module.a.w", "_orig_mod.module.b.w", "n_averaged"], ("_orig_mod.", "module.")),
        (["a._orig_mod.w", "b.w"], ("_orig_mod",)),
        (["model.model.a.w", "model.model.b.w"], ("model.", "model.")),
    ],
)
def test_what_wrappers_put_before_names_is_taken_off(stored: list[str], stripped: tuple[str, ...]) -> None:
    found = fit(["a.w", "b.w"], stored)
    assert found.stripped == stripped and not found.missing and not found.unexpected
    assert [*found.names] == ["a.w", "b.w"] and [*found.names.values()] == stored[:2]


def test_a_prefix_that_belongs_to_the_model_stays() -> None:
    assert fit(["model.a", "model.b"], ["model.a", "model.b"]).stripped == ()


def test_two_names_that_would_become_one_are_left() -> None:
    assert fit(["a"], ["module.a", "a"]).stripped == ()


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight


def test_what_a_model_holds_under_two_names_may_be_stored_under_one() -> None:
    wanted = Shared().state_dict()
    for left in ("one.weight", "two.weight"):
        model = Shared()
        lay(model, {name: tensor for name, tensor in wanted.items() if name != left}, "file")
        assert torch.equal(model.one.weight, wanted["one.weight"]) and model.two.weight is model.one.weight
    with pytest.raises(InputError, match="missing"):
        lay(Shared(), {name: tensor for name, tensor in wanted.items() if not name.endswith("weight")}, "file")


def test_a_model_with_other_weights_is_not_traced() -> None:
    state = net().state_dict()
    with pytest.raises(InputError, match=r"(?s)6 of 7 tensors fit.*missing in the file \(1\):\s+'0.weight'"):
        lay(net(), {name: value for name, value in state.items() if name != "0.weight"}, "w.pt")
    with pytest.raises(InputError, match="4x3x1x1 in the file, 4x3x3x3 in the model"):
        lay(net(), {**state, "0.weight": torch.zeros(4, 3, 1, 1)}, "w.pt")
    assert "'aux.weight'" in lay(net(), {**state, "aux.weight": torch.zeros(2)}, "w.pt")[0]
    without = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert lay(net(), without, "w.pt") == ()
