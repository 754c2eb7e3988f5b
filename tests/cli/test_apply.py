"""`apply` as a user meets it: defaults, exit codes, what is written and what is said."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fixtures import blocks
from rewriter import api
from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.reporting.json import from_json
from tests.cli.conftest import Run, listing
from tests.matching.heads import dual


def test_the_first_lines_say_what_changed_where_it_is_and_whether_it_was_compared(
    net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ran = run("apply", net.name)
    assert ran.code == 0
    assert ran.out.splitlines()[:3] == [
        "net.onnx → net.rewritten.onnx",
        "  688 → 584 parameters, 8 → 2 nodes, 40.3k → 36.3k multiply-adds",
        "  verified: 1 output equal within tolerance",
    ]
    assert ran.err == "fxrewrite: wrote net.rewritten.onnx (verified: 1 output equal within tolerance)\n"
    made = onnx.load(net.with_name("net.rewritten.onnx"))
    assert sorted(node.op_type for node in made.graph.node) == ["Conv", "Relu"]


@pytest.mark.parametrize(("name", "made"), [("a.ONNX", "a.rewritten.onnx"), ("a.b", "a.b.rewritten.onnx")])
def test_the_default_output_lies_beside_the_model(name: str, made: str, folder: Path, run: Run) -> None:
    onnx.save(blocks.repvgg_plain(), folder / name, format="protobuf")
    assert run("apply", folder / name, "--no-verify").code == 0
    assert sorted(listing(folder)) == sorted([name, made])


def test_nothing_to_do_gives_the_same_bytes(net: Path, folder: Path, run: Run) -> None:
    once, twice = folder / "once.onnx", folder / "twice.onnx"
    assert run("apply", net, "-o", once).code == 0
    ran = run("apply", once, "-o", twice)
    assert ran.code == 0 and twice.read_bytes() == once.read_bytes()
    assert "nothing to rewrite" in ran.out and "verified: nothing was changed" in ran.out
    assert "nothing to rewrite, so it holds the same bytes" in ran.err


def test_check_writes_nothing(net: Path, folder: Path, run: Run) -> None:
    made, report = folder / "net.rewritten.onnx", folder / "check.json"
    made.write_text("an older result is in nobody's way")
    before = listing(folder)
    ran = run("apply", net, "--check")
    assert ran.code == 1 and "something would change; no model was written" in ran.err
    assert listing(folder) == before
    assert run("apply", net, "--check", "--report", report).code == 1
    assert json.loads(report.read_text())["output"] is None and made.read_text().startswith("an older")
    assert run("apply", net, "-o", folder / "once.onnx").code == 0
    ran = run("apply", folder / "once.onnx", "--check")
    assert ran.code == 0 and "nothing would change; no model was written" in ran.err


def test_json_stands_alone_on_stdout_beside_other_reports(net: Path, folder: Path, run: Run) -> None:
    words = ["--json", "--report", folder / "a.json", "--report", folder / "b.md"]
    ran = run("apply", net, *words)
    assert ran.code == 0 and ran.err.startswith("fxrewrite: wrote ")
    assert (folder / "a.json").read_text() == ran.out
    report = from_json(json.loads(ran.out))
    assert report.output == str(folder / "net.rewritten.onnx") and len(report.matches) == 1
    assert (folder / "b.md").read_text().startswith(f"# `{net}`\n")


def test_without_verification_everything_says_so(
    net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ran = run("apply", net.name, "--no-verify", "--report", folder / "r.md", "--report", folder / "r.json")
    assert ran.code == 0
    assert "NOT VERIFIED" in ran.err and "  NOT VERIFIED" in ran.out.splitlines()[2]
    assert "> **NOT VERIFIED" in (folder / "r.md").read_text()
    assert json.loads((folder / "r.json").read_text())["verification"]["verdict"] == "not verified"


def test_without_an_engine_it_says_so_before_any_work(
    net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("rewriter.checking.status.find_spec", lambda name: None)
    for name in ("apply", "verify"):
        monkeypatch.setattr(api, name, forbidden)
    before = listing(folder)
    for words in (["apply", net], ["verify", net, net]):
        ran = run(*words)
        assert (ran.code, ran.out) == (5, "")
        assert 'pip install "fxrewrite[cpu]"' in ran.err and "--no-verify" in ran.err
    assert listing(folder) == before


FAILED = OutputCheck("y", "y", 1.0, 0.0, 2.0, 1e-6, Verdict.FAILED, "ones 1x3x8x8")
INCONCLUSIVE = Verification(Verdict.INCONCLUSIVE, "the original is noise", "engine")


@pytest.mark.parametrize(
    ("found", "loud"),
    [
        (
            Verification(Verdict.FAILED, "y differs by 1.0", "engine", (FAILED,)),
            "VERIFICATION FAILED: y differs by 1.0",
        ),
        (Verification(Verdict.NOT_VERIFIED, "it has a custom op"), "NOT VERIFIED: it has a custom op"),
    ],
)
def test_a_failed_comparison_writes_nothing(
    found: Verification, loud: str, net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "compare", lambda *_, **__: found)
    before = listing(folder)
    monkeypatch.chdir(folder)
    ran = run("apply", net.name, "--report", "r.json", "--report", "r.md")
    assert ran.code == 5 and f"error: {loud}\nNothing was written" in ran.err
    assert f"\n  {loud}\n" in ran.out and ran.out.splitlines()[0] == net.name
    assert listing(folder) == before
    assert run("apply", net, "--check").code == 5


def test_an_inconclusive_comparison_is_written_and_said(
    net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "compare", lambda *_, **__: INCONCLUSIVE)
    ran = run("apply", net)
    assert ran.code == 0 and "INCONCLUSIVE: the original is noise" in ran.err and "INCONCLUSIVE" in ran.out
    assert (folder / "net.rewritten.onnx").exists()


def test_split_votes_print_a_line_that_works_when_typed(heads: Path, folder: Path, run: Run) -> None:
    before = listing(folder)
    ran = run("apply", heads, "--patterns", "deploy", "--no-verify")
    assert (ran.code, ran.out) == (4, "") and "candidates:" in ran.err and "votes:" in ran.err
    assert listing(folder) == before
    typed = re.findall(r"^  (--keep .*)$", ran.err, re.MULTILINE)
    assert sorted(typed) == ["--keep all", "--keep first", "--keep second"]
    for number, line in enumerate(typed):
        target = folder / f"{number}.onnx"
        assert run("apply", heads, "--patterns", "deploy", "--no-verify", "-o", target, *shlex.split(line)).code == 0
        kept = [output.name for output in onnx.load(target).graph.output]
        assert kept == (["first", "second"] if line.endswith("all") else [line.split()[1]])


def test_keep_and_rename(folder: Path, run: Run) -> None:
    onnx.save(dual(), folder / "two.onnx")
    words = ["--patterns", "aux-prune", "--keep", "second", "--rename", "second=boxes", "--rename", "image=pixels"]
    ran = run("apply", folder / "two.onnx", *words)
    assert ran.code == 0
    graph = onnx.load(folder / "two.rewritten.onnx").graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == (["pixels"], ["boxes"])
    assert "removed first" in ran.out and "second → boxes" in ran.out and "aux-prune.keep = second" in ran.out


def test_arrays_and_shapes_for_the_comparison(net: Path, folder: Path, run: Run) -> None:
    np.savez(folder / "good.npz", image=np.ones((1, 8, 9, 7), np.float32))
    plain = _ran_on(run("apply", net, "--json").out)
    given = _ran_on(run("apply", net, "--json", "--force", "--inputs", folder / "good.npz").out)
    assert len(plain) > 1 and len(given) == 1 and not set(plain) & set(given)
    shaped = _ran_on(run("apply", net, "--json", "--force", "--shape", "image=1x8x9x7").out)
    assert len(shaped) == len(plain) and all("1x8x9x7" in words for words in shaped)
    np.savez(folder / "bad.npz", image=np.ones((1, 8, 9), np.float32))
    before = listing(folder)
    ran = run("apply", net, "-o", folder / "o.onnx", "--inputs", folder / "bad.npz")
    assert ran.code == 2 and "--inputs" in ran.err and "image" in ran.err
    assert run("apply", net, "-o", folder / "o.onnx", "--inputs", net).code == 2
    assert listing(folder) == before


def _ran_on(text: str) -> list[str]:
    verification = json.loads(text)["verification"]
    assert verification["verdict"] == "ok"
    return verification["inputs"]


def test_inputs_are_never_written_to(net: Path, folder: Path, run: Run) -> None:
    np.savez(folder / "in.npz", image=np.ones((1, 8, 9, 7), np.float32))
    before = listing(folder)
    ran = run("apply", net, "--inputs", folder / "in.npz", "-o", folder / "in.npz", "--force")
    assert ran.code == 2 and "is an input" in ran.err and listing(folder) == before


def test_a_limit_on_rounds_is_loud(net: Path, run: Run) -> None:
    ran = run("apply", net, "--max-rounds", "1")
    assert ran.code == 0 and "LIMIT reached" in ran.out


def test_a_fault_of_ours_is_no_traceback_unless_asked(
    net: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(api, "apply", broken)
    ran = run("apply", net)
    assert ran.code == 70 and "internal error: ZeroDivisionError: of ours" in ran.err and "--debug" in ran.err
    from rewriter import cli

    assert cli.run(["apply", str(net), "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (MemoryError(), 6, "not enough memory"),
        (RecursionError(), 6, "nested too deeply"),
        (OSError(28, "No space left on device", "somewhere"), 6, "somewhere: no space left"),
        (OSError(5, "Input/output error"), 2, "input/output error"),
    ],
)
def test_what_the_system_says(
    problem: Exception, code: int, said: str, net: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(api, "apply", broken)
    ran = run("apply", net)
    assert (ran.code, ran.out) == (code, "") and said in ran.err


def test_progress_is_for_terminals(net: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewriter.commandline import console

    monkeypatch.setattr(console, "_DELAY", 0.0)
    ran = run("apply", net)
    assert ran.code == 0 and ran.err.count("\n") == 1 and "\r" not in ran.err and "\x1b" not in ran.err


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys
    import time

    from rewriter.commandline import console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(console, "_DELAY", 0.01)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with console.Progress() as progress:
        deadline = time.monotonic() + 20
        while "verifying [red]\\x1b" not in sys.stderr.getvalue():
            progress("verifying [red]\x1b", 0.5)
            assert time.monotonic() < deadline
            time.sleep(0.05)


NASTY = "x\x1b[2J[red]|`a`\r\n\u202e<b>*"


def test_hostile_names_are_written_out_everywhere(folder: Path, run: Run) -> None:
    model = blocks.repvgg_identity()
    for node in model.graph.node:
        node.name = f"{NASTY}{node.name}"
        node.output[:] = [f"{NASTY}{name}" for name in node.output]
        node.input[:] = [f"{NASTY}{name}" if name.rpartition("_")[0] in OPS else name for name in node.input]
    for output in model.graph.output:
        output.name = f"{NASTY}{output.name}"
    onnx.save(model, folder / "net.onnx")
    reports: list[Any] = ["--report", folder / "r.md", "--report", folder / "r.json"]
    ran = run("apply", folder / "net.onnx", *reports)
    assert ran.code == 0
    shown = [ran.out, ran.err, (folder / "r.md").read_text(), (folder / "r.json").read_text()]
    shown.append(run("inspect", folder / "net.onnx").out)
    ran = run("apply", folder / "net.onnx", "--force", "--patterns", "deploy", "--keep", "absent")
    assert ran.code == 2 and "[2J" in ran.err
    shown.append(ran.err)
    for text in shown:
        assert not set(text) & {"\x1b", "\r", "\u202e"}
    assert "x\\x1b[2J[red]|`a`\\x0d\\x0a\\u202e<b>*" in "".join(shown[0].split()).replace("…", "")
    document = shown[2]
    assert "<b>" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", document)
    rows = [line for line in document.splitlines() if "\\x1b" in line and line.startswith("|")]
    assert rows and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    name = json.loads(shown[3])["before"]["outputs"][0]["name"]
    assert name.startswith(NASTY)


OPS = {"Conv", "BatchNormalization", "Add", "Relu"}


@pytest.mark.parametrize("width", [80, 120])
def test_widths(width: int, net: Path, heads: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    pruned = run("apply", heads, "--patterns", "deploy", "--keep", "second", "--no-verify")
    for ran in (run("apply", net), pruned, run("inspect", net), run("patterns", "list")):
        assert ran.code == 0
        lines = ran.out.splitlines()
        assert max(map(len, lines)) <= width and not any(line != line.rstrip() for line in lines)
