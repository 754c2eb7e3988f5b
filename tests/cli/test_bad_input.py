"""Everything a user can get wrong: one clear message, the exit code, nothing left behind, the input untouched."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewriter.graph.drafts import Draft
from tests.cli.conftest import Ran, Run, listing

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(64)


def refused(ran: Ran, code: int, *said: str) -> None:
    """One message on stderr that says all of `said`; nothing on stdout."""
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.count("fxrewrite: ") == 1 and ran.err.startswith("fxrewrite: error: ")
    for words in said:
        assert words in ran.err


# --- the model -------------------------------------------------------------------------------------------------------


def _torch_archive(path: Path, _whole: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/version", "3\n")


MODELS: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "missing": (lambda path, whole: None, "there is no such file"),
    "directory": (lambda path, whole: path.mkdir(), "is a directory"),
    "empty": (lambda path, whole: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), ""),
    "text": (lambda path, whole: path.write_text("import torch\nprint('hello')\n"), "ONNX"),
    "torch archive": (_torch_archive, ""),
    "pickle": (lambda path, whole: path.write_bytes(b"\x80\x04\x95\x10" + bytes(40)), ""),
    "picture": (lambda path, whole: path.write_bytes(PNG), ""),
    "one byte short": (lambda path, whole: path.write_bytes(whole[:-1]), ""),
}


@pytest.mark.parametrize("command", ["apply", "inspect", "verify"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_file_that_is_no_model(kind: str, command: str, net: Path, folder: Path, run: Run) -> None:
    if command == "inspect" and kind == "torch archive":
        return  # which it can list
    make, said = MODELS[kind]
    make(folder / "bad.onnx", net.read_bytes())
    before = listing(folder)
    others = [net] if command == "verify" else []
    refused(run(command, folder / "bad.onnx", *others), 3, "bad.onnx", said)
    assert listing(folder) == before


def test_a_model_that_cannot_be_read(folder: Path, run: Run) -> None:
    os.mkfifo(folder / "pipe.onnx")
    refused(run("apply", folder / "pipe.onnx"), 3, "pipe.onnx")
    refused(run("apply", folder / ("n" * 300)), 3, "too long")


# --- names and patterns ----------------------------------------------------------------------------------------------

WORDS = {
    "pattern": (["--patterns", "repcnv"], ["unknown pattern", "repcnv", "repconv"]),
    "pattern file": (["--patterns", "./absent.fxp"], ["absent.fxp", "there is no such file"]),
    "keep": (["--patterns", "deploy", "--keep", "output9"], ["output9", "Relu_"]),
    "keep without a taker": (["--keep", "x"], ["--keep", "aux-prune"]),
    "keep both": (["--patterns", "deploy", "--keep", "all,x"], ["--keep", "not both"]),
    "set": (["--set", "cost"], ["--set", "repconv.cost=off"]),
    "set unknown": (["--set", "repconv.cst=off"], ["cst"]),
    "rename": (["--rename", "a"], ["--rename", "OLD=NEW"]),
    "rename twice": (["--rename", "a=b", "--rename", "a=c"], ["--rename", "twice"]),
    "rename unknown": (["--rename", "nobody=x"], ["--rename", "nobody", "image"]),
    "shape": (["--shape", "image=1x"], ["--shape", "images=1x3x640x640"]),
    "shape twice": (["--shape", "image=1x2", "--shape", "image=1x3"], ["--shape", "given twice"]),
    "shape huge": (["--shape", "image=99999999999"], ["--shape", "too large"]),
    "shape of nobody": (["--shape", "nobody=1x8x9x7"], ["nobody", "image"]),
    "inputs": (["--inputs", "absent.npz"], ["--inputs", "there is no such file"]),
    "rounds": (["--max-rounds", "0"], ["--max-rounds"]),
    "report kind": (["--report", "report.txt"], ["--report", ".json", ".md"]),
    "option": (["--fast"], ["--fast"]),
}


@pytest.mark.parametrize("case", WORDS)
def test_words_that_cannot_be_used(case: str, net: Path, folder: Path, run: Run) -> None:
    words, said = WORDS[case]
    before = listing(folder)
    ran = run("apply", net, *words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("fxrewrite: error: ") == 1
    for part in said:
        assert part in ran.err
    assert listing(folder) == before


def test_a_pattern_file_with_an_error_shows_the_place(net: Path, folder: Path, run: Run) -> None:
    (folder / "my.fxp").write_text("fxrewrite 1\n\npattern mine {\n  mtch y = x -> relu\n}\n")
    before = listing(folder)
    ran = run("apply", net, "--patterns", f"repconv,{folder / 'my.fxp'}")
    refused(ran, 2, "my.fxp:4:3", "mtch y = x")
    source, caret = ran.err.splitlines()[1:3]
    assert caret.index("^") == source.index("mtch")
    assert listing(folder) == before


# --- the output ------------------------------------------------------------------------------------------------------


def _plain(net: Path) -> Path:
    return net


def _other_spelling(net: Path) -> Path:
    return net.parent / ".." / net.parent.name / net.name


def _symlink(net: Path) -> Path:
    (net.parent / "other.onnx").symlink_to(net.name)
    return net.parent / "other.onnx"


def _hard_link(net: Path) -> Path:
    os.link(net, net.parent / "other.onnx")
    return net.parent / "other.onnx"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("spelled", [_plain, _other_spelling, _symlink, _hard_link])
def test_the_output_is_the_input(
    spelled: Callable[[Path], Path], force: bool, net: Path, folder: Path, run: Run
) -> None:
    target = spelled(net)
    before = listing(folder)
    refused(run("apply", net, "-o", target, *["--force"] * force), 2, "is an input, which is never written")
    refused(run("apply", net, "--report", folder / "net.onnx", *["--force"] * force), 2, "--report")
    assert listing(folder) == before


def test_the_output_exists(net: Path, folder: Path, run: Run) -> None:
    (folder / "net.rewritten.onnx").write_text("mine")
    (folder / "report.json").write_text("mine")
    before = listing(folder)
    refused(run("apply", net), 2, "net.rewritten.onnx exists", "--force")
    refused(run("apply", net, "-o", folder / "new.onnx", "--report", folder / "report.json"), 2, "report.json exists")
    assert listing(folder) == before
    assert run("apply", net, "--force", "--report", folder / "report.json").code == 0
    assert listing(folder)["net.onnx"] == before["net.onnx"]
    assert (folder / "net.rewritten.onnx").stat().st_size > 100 and (folder / "report.json").read_text()[0] == "{"


def test_the_output_cannot_be_there(net: Path, folder: Path, run: Run) -> None:
    before = listing(folder)
    refused(run("apply", net, "-o", folder), 2, "is a directory", "-o")
    refused(run("apply", net, "-o", folder / "absent" / "out.onnx"), 2, "there is no such folder")
    refused(run("apply", net, "-o", net / "out.onnx"), 2, "net.onnx")
    refused(run("apply", net, "--report", folder / "absent" / "report.md"), 2, "there is no such folder")
    same = folder / "same.json"
    refused(run("apply", net, "--report", same, "--report", same), 2, "another report")
    refused(run("apply", net, "-o", same, "--report", same), 2, "its output")
    assert listing(folder) == before


def _mounted(place: Path, options: str) -> Iterator[Path | None]:
    """`place` as a disk of its own while the test runs; None where this user cannot mount one."""
    program = shutil.which("mount")
    command = [program or "", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if program is None or subprocess.run(command, capture_output=True).returncode != 0:
        yield None
        return
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path | None]:
    """A folder where nobody can write, not even root; None where this system cannot make one."""
    place = tmp_path / "read-only"
    place.mkdir()
    if os.geteuid() != 0:
        place.chmod(0o500)
        yield place
        place.chmod(0o700)
        return
    yield from _mounted(place, "ro,size=1m")


def test_an_unwritable_folder(
    read_only: Path | None, net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = (read_only or folder) / "out.onnx"
    if read_only is None:

        def denied(self: Draft, *_: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Draft, "__init__", denied)
    before = listing(folder)
    refused(run("apply", net, "-o", target), 2, str(target.parent))
    assert listing(folder) == before and (read_only is None or listing(read_only) == {})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of a few pages; None where this user cannot mount one."""
    place = tmp_path / "small"
    place.mkdir()
    yield from _mounted(place, "size=4k")


@pytest.mark.parametrize("what", ["model", "report"])
def test_a_full_disk(
    what: str, small_disk: Path | None, net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = small_disk or folder / "small"
    if small_disk is None:
        place.mkdir()

        def full(self: Draft, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Draft, "write", full)
    else:  # one page is left by now, or none; a report fits no more than a model does
        (place / "filler").write_bytes(bytes(4096))
    before = listing(folder), listing(place)
    words = ["-o", place / "out.onnx"] if what == "model" else ["-o", folder / "o.onnx", "--report", place / "r.md"]
    ran = run("apply", net, *words)
    refused(ran, 6, str(place))
    assert re.search("disk is full|no space left", ran.err)
    assert (listing(folder), listing(place)) == before


def test_messages_of_click_are_escaped(run: Run) -> None:
    ran = run("apply", "--no\x1b[31m")
    assert ran.code == 2 and "\x1b" not in ran.err and "\\x1b" in ran.err
