"""Finding patterns by name, preset and path, and setting their parameters."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rewriter.errors import PatternError, UsageError
from rewriter.language import library
from rewriter.language.library import LoadedPattern, find_pattern_files, resolve
from rewriter.language.parameters import set_parameters
from rewriter.language.syntax import BodyMatch

OWN = 'fxrewrite 1\nchain act = relu\npattern mine { doc "d" param k: int = 3 match y = x -> act do bypass }\n'
ANOTHER = 'pattern other { doc "d" param rate: number = 1 param on: bool = false match y = x -> tanh do bypass }\n'


def names(patterns: list[LoadedPattern]) -> list[str]:
    return [pattern.name for pattern in patterns]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my.fxp").write_text(OWN + ANOTHER)
    return tmp_path


def test_presets() -> None:
    every, deploy = resolve(["all"]), resolve(["deploy"])
    assert all(isinstance(pattern.pattern.match, BodyMatch) for pattern in every)
    assert {"repconv", "conv-bn", "bypass"} <= set(names(every))
    assert set(names(deploy)) == {*names(every), "aux-prune"}


def test_every_shipped_file_is_named_like_its_pattern() -> None:
    for path in find_pattern_files():
        (loaded,) = resolve([path.stem])
        assert loaded.source_path == path.name and loaded.file == path.resolve()


def test_order_is_kept_and_nothing_comes_twice() -> None:
    assert names(resolve(["repconv", "bypass", "repconv"])) == ["repconv", "bypass"]


def test_a_file_may_hold_several_patterns_and_sees_its_own_chains(folder: Path) -> None:
    mine, other = resolve(["my.fxp"], folder)
    assert (mine.name, other.name) == ("mine", "other")
    assert list(mine.chains) == ["norm", "cbn", "act"]
    assert len(mine.sha256) == 64 and mine.sha256 == other.sha256
    assert resolve(["./my.fxp", str(folder / "my.fxp")], folder) == resolve(["./my.fxp"], folder)


def test_two_files_cannot_give_one_name(folder: Path) -> None:
    (folder / "repconv.fxp").write_text(OWN.replace("mine", "repconv"))
    with pytest.raises(UsageError, match="is in two files"):
        resolve(["repconv", "./repconv.fxp"], folder)


def test_unknown_names_say_what_is_near() -> None:
    with pytest.raises(
        UsageError, match=r"unknown pattern 'repconf'; did you mean 'repconv'\? \(fxrewrite patterns list"
    ):
        resolve(["repconf"])
    with pytest.raises(UsageError, match=r"unknown pattern 'zzz' \(fxrewrite patterns list"):
        resolve(["zzz"])


@pytest.mark.parametrize("name", ["none.fxp", "./none", "", "a\0.fxp", "./"])
def test_files_that_cannot_be_read(name: str, folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve([name], folder)
    assert caught.value.exit_code == 2


def test_a_bad_file_shows_the_path_as_it_was_given(folder: Path) -> None:
    (folder / "bad.fxp").write_text("fxrewrite 1\npatern\n")
    with pytest.raises(PatternError, match=r"^\./bad\.fxp:2:1: "):
        resolve(["./bad.fxp"], folder)
    (folder / "bad.fxp").write_text("fxrewrite 1\n")
    with pytest.raises(PatternError, match="holds no pattern"):
        resolve(["./bad.fxp"], folder)


def _points(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("plugin", value, library.ENTRY_POINTS)
    monkeypatch.setattr(library, "entry_points", lambda group: [point] if group == library.ENTRY_POINTS else [])


def plugin_files() -> list[Path]:
    return [Path(__file__).with_name("plugin.fxp")]


def test_other_packages_give_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    _points(monkeypatch, "tests.language.test_library:plugin_files")
    assert names(resolve(["plugged-in"])) == ["plugged-in"]


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _points(monkeypatch, "tests.language.test_library:nothing_here")
    with pytest.raises(UsageError, match=r"entry point 'plugin' of fxrewrite\.patterns failed: AttributeError"):
        resolve(["plugged-in"])
    assert names(resolve(["repconv"])) == ["repconv"]


def test_reading_patterns_loads_neither_numpy_nor_onnx() -> None:
    code = "import sys; from rewriter.language.library import resolve; resolve(['deploy']); "
    code += "print([m for m in ('numpy', 'onnx', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- parameters ----------------------------------------------------------------------------------------------------


def test_settings_are_typed_by_their_declarations(folder: Path) -> None:
    patterns = resolve(["my.fxp", "aux-prune"], folder)
    settings = ["mine.k=5", "rate=2.5", "on=true", "aux-prune.keep=a, b", "keep=c", "mine.cost=off"]
    mine, other, aux = set_parameters(patterns, settings)
    assert (mine.value("k"), other.value("rate"), other.value("on")) == (5, 2.5, True)
    assert aux.value("keep") == ("c",)
    assert (mine.gated, other.gated) == (False, True)
    assert patterns[0].value("k") == 3 and patterns[0].gated


def test_cost_goes_to_every_pattern() -> None:
    assert not any(pattern.gated for pattern in set_parameters(resolve(["all"]), ["cost=off"]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("k", "cannot read the setting"),
        ("=3", "cannot read the setting"),
        ("mine.k=much", "mine.k is a whole number, not 'much'"),
        ("k=1_000", "a whole number"),
        ("rate=nan", "a number"),
        ("rate=1e999", "a number"),
        ("on=maybe", "true or false"),
        ("cost=perhaps", "'cost' is on or off"),
        ("mine.rate=1", r"unknown parameter 'mine.rate'; there are cost \(of every pattern\), mine.k"),
        ("rat=1", r"unknown parameter 'rat'; did you mean 'rate'\? there are cost"),
        ("repconv.k=1", "no pattern 'repconv' is in use"),
    ],
)
def test_settings_that_fit_nothing(setting: str, message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        set_parameters(resolve(["my.fxp"], folder), [setting])
