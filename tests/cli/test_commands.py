"""The other commands: inspect, verify, patterns, completion, and what every `--help` holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rewriter.language.library import find_pattern_files
from tests.cli.conftest import Run, listing
from tests.matching.heads import dual

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "docs" / "schema"
COMMANDS = (
    [], ["apply"], ["inspect"], ["verify"], ["completion"],
    ["patterns"], ["patterns", "list"], ["patterns", "show"], ["patterns", "test"],
)  # fmt: skip


def valid(text: str, schema: str) -> dict[str, object]:
    data = json.loads(text)
    jsonschema.validate(data, json.loads((SCHEMAS / f"{schema}.schema.json").read_text()))
    return data


# --- help and completion ---------------------------------------------------------------------------------------------

HELP = """
import sys
from rewriter import cli
for words in {commands!r}:
    assert cli.run([*words, "--help"]) == 0, words
heavy = sorted({{"torch", "onnx", "numpy", "rich", "onnxruntime"}} & sys.modules.keys())
assert not heavy, heavy
"""


def test_help_loads_no_heavy_module() -> None:
    script = HELP.format(commands=COMMANDS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("Usage: ") == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_examples(command: list[str], run: Run) -> None:
    ran = run(*command, "--help")
    assert ran.code == 0 and "Example" in ran.out and f"  fxrewrite {' '.join(command)}".rstrip() in ran.out


@pytest.mark.parametrize("words", [["--version"], ["-h"]])
def test_short_answers(words: list[str], run: Run) -> None:
    ran = run(*words)
    assert ran.code == 0 and "fxrewrite" in ran.out and ran.err == ""


def test_a_command_that_does_not_exist(run: Run) -> None:
    ran = run("aply", "net.onnx")
    assert ran.code == 2 and "aply" in ran.err and ran.out == ""
    assert run().code == 2 and run("patterns").code == 2


@pytest.mark.parametrize(("shell", "marks"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete ")])
def test_completion_scripts(shell: str, marks: str, run: Run, tmp_path: Path) -> None:
    ran = run("completion", shell)
    assert ran.code == 0 and marks in ran.out and "_FXREWRITE_COMPLETE" in ran.out
    program = shutil.which(shell)
    if program is not None:  # of a shell that is here, the syntax too
        (tmp_path / "script").write_text(ran.out)
        assert subprocess.run([program, "-n", tmp_path / "script"], capture_output=True).returncode == 0


def test_completion_of_pattern_names() -> None:
    words = {"COMP_WORDS": "fxrewrite apply net.onnx --patterns repconv,au", "COMP_CWORD": "4"}
    script = "from rewriter.cli import main; main()"
    environment = {"_FXREWRITE_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT), **words}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["plain,repconv,aux-prune"]


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_says_at_once_what_could_go(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(dual(aux_convs=1), folder / "two.onnx")
    before = listing(folder)
    monkeypatch.chdir(folder)
    ran = run("inspect", "two.onnx")
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0] == "two.onnx" and "parameters" in lines[1]
    assert lines[2].startswith("  −") and "aux-prune removes first" in lines[2]
    data = valid(run("inspect", "two.onnx", "--json").out, "inspection")
    outlook = {entry["pattern"]: entry for entry in data["patterns"]}  # type: ignore[attr-defined]
    whole = data["totals"]["parameters"]  # type: ignore[index]
    share = 100 * outlook["aux-prune"]["saved_parameters"] / whole
    assert f"(−{share:.1f} %)" in lines[2]
    assert listing(folder) == before


def test_inspect_says_when_a_choice_is_needed_and_when_nothing_can_go(heads: Path, folder: Path, run: Run) -> None:
    assert "aux-prune needs --keep" in run("inspect", heads).out
    model = onnx.load(heads)
    del model.graph.output[0]
    onnx.save(model, folder / "one.onnx")
    ran = run("inspect", folder / "one.onnx")
    assert "no shipped pattern would take parameters away" in ran.out and "that no output needs" in ran.out


def test_inspect_counts_multiply_adds_of_open_sizes_when_they_are_said(folder: Path, run: Run) -> None:
    model = dual(aux_convs=1)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "high"
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[2].dim_param = "places"
    onnx.save(model, folder / "open.onnx")
    assert "--shape" in run("inspect", folder / "open.onnx").out
    ran = run("inspect", folder / "open.onnx", "--shape", "image=1x3x32x32")
    assert "multiply-adds at image 1x3x32x32" in ran.out and "unknown" not in ran.out
    assert run("inspect", folder / "open.onnx", "--shape", "image=3x32x32").code == 2


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_tells_equal_from_different(net: Path, folder: Path, run: Run) -> None:
    once, other = folder / "once.onnx", folder / "other.onnx"
    assert run("apply", net, "-o", once).code == 0
    ran = run("verify", net, once)
    assert ran.code == 0 and ran.out.startswith("verified: 1 output equal within tolerance\n") and ran.err == ""
    data = valid(run("verify", net, once, "--json").out, "verification")
    assert data["verdict"] == "ok"

    model = onnx.load(once)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(model, other)
    ran = run("verify", net, other)
    assert ran.code == 5 and "VERIFICATION FAILED" in ran.err and "VERIFICATION FAILED" in ran.out
    assert "failed" in ran.out
    assert run("verify", net, other, "--tolerance", "10").code == 0
    ran = run("verify", net, other, "--json")
    assert ran.code == 5 and valid(ran.out, "verification")["verdict"] == "failed"


def test_verify_names_what_cannot_be_compared(net: Path, heads: Path, run: Run) -> None:
    ran = run("verify", net, heads)
    assert ran.code == 2 and "no output has the same name" in ran.err
    ran = run("verify", net, net, "--tolerance", "-1")
    assert ran.code == 2 and "--tolerance" in ran.err
    ran = run("verify", net, net, "--inputs", "absent.npz")
    assert ran.code == 2 and "--inputs" in ran.err


# --- patterns --------------------------------------------------------------------------------------------------------


def test_patterns_list_names_everything_that_can_be_applied(run: Run) -> None:
    ran = run("patterns", "list")
    assert ran.code == 0 and ran.err == ""
    for path in find_pattern_files():
        assert path.stem in ran.out
    assert "arXiv:2101.03697" in ran.out and "deploy" in ran.out


def test_patterns_show_prints_the_file(run: Run, folder: Path) -> None:
    path = next(path for path in find_pattern_files() if path.stem == "repconv")
    ran = run("patterns", "show", "repconv")
    assert ran.code == 0 and ran.out == path.read_text() and str(path) in ran.err
    (folder / "my.fxp").write_text(
        "fxrewrite 1\n\npattern mine {\n  # \x1b[2J\n  match y = x -> identity\n  do bypass\n}\n"
    )
    ran = run("patterns", "show", folder / "my.fxp")
    assert "\x1b" not in ran.out + ran.err
    ran = run("patterns", "show", "repcon")
    assert ran.code == 2 and "repconv" in ran.err


def test_patterns_test_runs_the_tests_of_a_file(run: Run, folder: Path) -> None:
    ran = run("patterns", "test", "bypass")
    assert ran.code == 0 and "pass" in ran.out and ran.err.endswith(", 0 failed\n")
    text = next(path for path in find_pattern_files() if path.stem == "bypass").read_text()
    assert "gives relu=1, sigmoid=1" in text
    (folder / "my.fxp").write_text(text.replace("gives relu=1, sigmoid=1", "gives relu=2", 1))
    ran = run("patterns", "test", folder / "my.fxp")
    assert ran.code == 2 and ran.err.endswith(", 1 failed\n") and "expected relu=2" in " ".join(ran.out.split())
    (folder / "bare.fxp").write_text(
        'fxrewrite 1\n\npattern bare {\n  doc "Bare."\n  match y = x -> identity\n  do bypass\n}\n'
    )
    ran = run("patterns", "test", folder / "bare.fxp")
    assert ran.code == 0 and "no tests in these patterns" in ran.err
    assert run("patterns", "test", "nobody").code == 2
