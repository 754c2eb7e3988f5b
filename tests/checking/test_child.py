"""The leash: limits on time and memory, crashes, interrupts, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib import import_module, util
from pathlib import Path

import numpy as np
import onnx
import pytest

from rewriter.checking import Limits, Verdict, engine_status, process, verify
from tests.checking import nets

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[2]


def busy() -> onnx.ModelProto:
    """A chain of large products of constants: minutes of work from a few bytes."""
    nodes = [nets.node("Expand", ["x", "size"], "m0")]
    nodes += [nets.node("MatMul", [f"m{at}", "m0"], f"m{at + 1}") for at in range(40)]
    nodes.append(nets.node("ReduceMax", ["m40"], "y"))
    return nets.model(nodes, [nets.value("x", [1, 1])], [nets.value("y")], {"size": np.array([3000, 3000], np.int64)})


def bomb() -> onnx.ModelProto:
    nodes = [nets.node("Expand", ["x", "size"], "big"), nets.node("ReduceMax", ["big"], "y")]
    return nets.model(nodes, [nets.value("x", [1])], [nets.value("y")], {"size": np.array([1 << 33], np.int64)})


def test_too_long_is_not_verified_and_nothing_runs_on() -> None:
    started = time.monotonic()
    said: list[str] = []
    result = verify(busy(), busy(), limits=Limits(seconds=3), progress=said.append)
    assert time.monotonic() - started < 10
    assert result.verdict is Verdict.NOT_VERIFIED
    assert "took longer than 3 s (during: original, input 1/4)" in result.reason
    assert said == ["loading", "original, input 1/4"]


def test_too_much_memory_is_not_verified() -> None:
    if sys.platform != "linux":
        pytest.skip("memory is limited on Linux only")
    result = verify(bomb(), bomb(), limits=Limits(memory=GIB))
    assert result.verdict is Verdict.NOT_VERIFIED
    assert "needs more than 1 GiB of memory" in result.reason


def test_memory_that_only_the_rewritten_model_lacks_is_not_its_failure() -> None:
    small = nets.model([nets.node("ReduceMax", ["x"], "y")], [nets.value("x", [1])], [nets.value("y")])
    result = verify(small, bomb(), limits=Limits(memory=GIB))
    assert result.verdict is Verdict.NOT_VERIFIED
    assert "memory" in result.reason


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the engine was ended by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, most likely because the system ran out"),
        ("raise SystemExit(7)", "stopped with exit status 7"),
        ("import sys; sys.exit('terminate: std::bad_alloc')", "GiB of memory"),
        ("print('{}'); print('not json')", "exit status 0: it said nothing"),
    ],
)
def test_a_child_that_dies_is_not_verified(monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    monkeypatch.setattr(process, "child_command", lambda: [sys.executable, "-c", code])
    result = verify(nets.convs(), nets.convs())
    assert result.verdict is Verdict.NOT_VERIFIED
    assert says in result.reason


def test_a_hostile_module_in_the_working_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "numpy", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text(f"open('pwned-{name}', 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert verify(nets.convs(), nets.convs()).verdict is Verdict.OK
    assert not list(tmp_path.glob("pwned*"))


def test_no_engine_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_status() is None
    monkeypatch.setattr("rewriter.checking.status.find_spec", lambda name: None)
    message = engine_status()
    assert message is not None and 'pip install "fxrewrite[cpu]"' in message
    result = verify(nets.convs(), nets.convs())
    assert (result.verdict, result.reason) == (Verdict.NOT_VERIFIED, message)


def test_the_parent_loads_no_engine_and_the_package_loads_nothing() -> None:
    code = """
        import sys
        import rewriter.checking
        assert not {"onnx", "numpy"} & set(sys.modules), "the package is to be light"
        from tests.checking import nets
        from rewriter.checking import verify
        assert verify(nets.convs(), nets.convs()).verdict == "ok"
        assert "onnxruntime" not in sys.modules
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True)


def child_of(parent: int) -> list[int]:
    """Processes whose parent this is."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended, zombies included: whoever inherits them reaps them in its own time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_is_ended_takes_the_child_along_and_leaves_no_files(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import signal
        from tests.checking import test_child
        from rewriter.checking import verify
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        verify(test_child.busy(), test_child.busy(), progress=lambda text: print(text, flush=True))
        """)
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    environment["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "loading\n"
        assert parent.stdout.readline().startswith("original")
        (pid,) = child_of(parent.pid)
        parent.send_signal(how)
        _, errors = parent.communicate(timeout=20)
    assert ("KeyboardInterrupt" in errors) == (how is signal.SIGINT)
    deadline = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)
    assert list(scratch.iterdir()) == []


def test_the_working_folder_and_the_models_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert verify(nets.convs(), nets.nudged(nets.convs(), "w0", 1e-2)).verdict is Verdict.FAILED
    assert list(tmp_path.iterdir()) == []


def test_find_spec_is_what_the_status_asks() -> None:
    assert import_module("rewriter.checking.status").find_spec is util.find_spec


def test_a_deep_chain_needs_no_recursion() -> None:
    nodes = [nets.node("Neg", ["x" if at == 0 else f"v{at}"], f"v{at + 1}") for at in range(5000)]
    net = nets.model(nodes, [nets.value("x", [2])], [nets.value("v5000")])
    assert verify(net, net).verdict is Verdict.OK
