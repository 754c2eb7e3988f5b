"""The command as a process: signals, pipes, closed streams; nothing is left behind and nobody stays alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.cli.conftest import listing

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-P", "-m", "rewriter"]
PATIENCE = 60.0

# The signals as a shell sets them for a command in the foreground, whatever this test itself runs under.
IN_FOREGROUND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for kind in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(kind, signal.SIG_DFL)
from rewriter.cli import main
main(sys.argv[1:])
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def call(words: Sequence[object], **options: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, text=True, env=environment(), timeout=PATIENCE, **options)  # type: ignore[call-overload]


@pytest.fixture
def slow(folder: Path) -> Path:
    """A model whose comparison takes minutes: a Loop of matrix products, beside an Identity that goes."""
    size, turns = 700, 20_000
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "state"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [size, size]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Identity", ["r"], ["same"]),
            helper.make_node("Tanh", ["same"], ["start"]),
            helper.make_node("Loop", ["turns", "", "start"], ["y"], body=body),
        ],
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
        [helper.make_tensor("turns", TensorProto.INT64, [], [turns])],
    )
    path = folder / "slow.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def children(pid: int) -> list[int]:
    """Processes that `pid` started and that still live."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return found


def gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the child through /proc")
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated: the terminal is gone"),
    ],
)
def test_a_signal_during_the_comparison(number: int, code: int, said: str, slow: Path, folder: Path) -> None:
    before = listing(folder)
    words = ["apply", slow, "--report", folder / "r.json", "--report", folder / "r.md"]
    command = [sys.executable, "-P", "-c", IN_FOREGROUND, *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := children(process.pid)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        assert process.poll() is None, "the comparison is over too early for this test"
        process.send_signal(number)
        process.send_signal(number)  # an impatient user: the tidying goes on
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (code, "", f"fxrewrite: {said}\n")
    assert all(gone(pid) for pid in found)
    assert listing(folder) == before


@pytest.mark.parametrize("words", [["--help"], ["patterns", "show", "repconv"], ["patterns", "list"]])
def test_a_reader_who_has_left_is_no_error(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = call(words, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 0 and "roken pipe" not in done.stderr and "Exception" not in done.stderr


def test_a_reader_who_has_left_loses_no_model(net: Path, folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = call(["apply", net], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 0 and done.stderr.startswith("fxrewrite: wrote ") and done.stderr.count("\n") == 1
    assert (folder / "net.rewritten.onnx").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_report_that_cannot_be_printed(words: list[str], net: Path, folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = call(["apply", net, *words], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 6 and (folder / "net.rewritten.onnx").exists()
    wrote, problem = done.stderr.splitlines()
    assert wrote.startswith("fxrewrite: wrote ") and problem.startswith("fxrewrite: error: stdout cannot be written")
    with open("/dev/full", "w") as full:
        done = call(["--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 6 and done.stderr.count("\n") == 1


def test_closed_streams_get_into_no_file(net: Path, folder: Path) -> None:
    script = f"{' '.join(COMMAND)} apply {net} >&- 2>&-"
    done = subprocess.run(["sh", "-c", script], env=environment(), timeout=PATIENCE)
    assert done.returncode == 0
    made = onnx.load(folder / "net.rewritten.onnx")
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]


def test_a_terminal_that_knows_only_ascii(net: Path) -> None:
    words = [*COMMAND, "apply", str(net)]
    setting = {**environment(), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(words, capture_output=True, env=setting, timeout=PATIENCE)
    assert done.returncode == 0 and b"\\u2192" in done.stdout and done.stdout.isascii()


def test_python_dash_m_and_nothing_on_stderr_of_a_pipe(net: Path) -> None:
    done = call(["inspect", net], capture_output=True)
    assert (done.returncode, done.stderr) == (0, "") and "\x1b" not in done.stdout
