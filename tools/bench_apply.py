"""Time and memory of `fxrewrite apply` beside `onnx.load` + `onnx.save`, as whole processes, in pairs, in one run.

Invariant: every figure is a ratio against a command that ran next to it; the two take turns, so a machine that slows
down slows both. Region proof is on, whole-model verification off; what verification costs is measured apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = "repconv,conv-bn,bypass,aux-prune"
LOAD_SAVE = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"


@dataclass(frozen=True, slots=True)
class Run:
    """One process: wall seconds and peak resident bytes."""

    seconds: float
    peak: int


def export(variant: str, form: str, size: int) -> Path:
    """The file to measure on, made in a process of its own: a child's peak counts what its parent held at the fork."""
    code = "import sys; from fixtures.cache import cached_export as c; print(c(*sys.argv[1:3], int(sys.argv[3])))"
    command = [sys.executable, "-c", code, variant, form, str(size)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return Path(said.splitlines()[-1])


def run(command: Sequence[str]) -> Run:
    """Run a command to its end, with its own accounting; a failure ends the benchmark."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode(errors='replace')}")
    return Run(seconds, usage.ru_maxrss * 1024)


def pair(model: Path, folder: Path, runs: int) -> tuple[list[Run], list[Run]]:
    """Both commands in turn, `runs` times, after one warm-up of each."""
    out = folder / "out.onnx"
    apply = [sys.executable, "-m", "rewriter", "apply", str(model), "--patterns", PATTERNS, "-o", str(out), "--force"]
    commands = ([*apply, "--no-verify"], [sys.executable, "-c", LOAD_SAVE, str(model), str(out)])
    for command in commands:
        run(command)
    measured: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(runs):
        for kept, command in zip(measured, commands, strict=True):
            kept.append(run(command))
    return measured


def report(label: str, ours: Sequence[Run], theirs: Sequence[Run]) -> None:
    ratios = sorted(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))
    peaks = sorted(a.peak / b.peak for a, b in zip(ours, theirs, strict=True))
    seconds = [statistics.median(r.seconds for r in side) for side in (ours, theirs)]
    memory = [statistics.median(r.peak for r in side) / 2**20 for side in (ours, theirs)]
    print(
        f"{label:<12} time {statistics.median(ratios):.2f} x (from {ratios[0]:.2f} to {ratios[-1]:.2f}; "
        f"{seconds[0]:.2f} s against {seconds[1]:.2f} s)   peak {statistics.median(peaks):.2f} x "
        f"({memory[0]:.0f} MiB against {memory[1]:.0f} MiB)"
    )


def verification(model: Path, folder: Path) -> None:
    """What the comparison of the whole models takes, in the child's own figures."""
    out = folder / "verified.json"
    command = [sys.executable, "-m", "rewriter", "apply", str(model), "--patterns", PATTERNS]
    run([*command, "-o", str(folder / "out.onnx"), "--force", "--report", str(out)])
    found = json.loads(out.read_text())["verification"]
    peak = found["peak_bytes"] / 2**20
    print(f"verifying    {found['verdict']}, {found['seconds']:.1f} s, peak {peak:.0f} MiB (child)")


def start_up(runs: int) -> None:
    """`fxrewrite --help` beside a bare interpreter."""
    helps = [run([sys.executable, "-m", "rewriter", "--help"]).seconds for _ in range(runs)]
    bare = [run([sys.executable, "-c", "pass"]).seconds for _ in range(runs)]
    print(f"--help       {statistics.median(helps):.3f} s (bare interpreter {statistics.median(bare):.3f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="c", help="YOLOv9 variant (default: c)")
    parser.add_argument("--size", type=int, default=320, help="input size of the export (default: 320)")
    parser.add_argument("--runs", type=int, default=5, help="counted pairs (default: 5)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form in ("legacy", "legacy-bn"):
            model = export(given.variant, form, given.size)
            report(form, *pair(model, folder, given.runs))
        verification(export(given.variant, "legacy", given.size), folder)
    start_up(given.runs)


if __name__ == "__main__":
    main()
