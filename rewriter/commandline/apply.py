"""`fxrewrite apply`: the main job.

Invariant: everything that can be refused before work is refused before work; a model is written only when the
comparison passed, could not tell, or was declined by the user, and in the last two cases that is said on stderr.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewriter.commandline import console, files, options
from rewriter.errors import VerificationError
from rewriter.reporting import summary

if TYPE_CHECKING:
    from rewriter.api import Result
    from rewriter.reporting.record import Report

EPILOG = """\b
Examples:
  fxrewrite apply yolov9-c.onnx
      every exact pattern; the interface stays as it is
  fxrewrite apply yolov9-c.onnx --patterns deploy -o ship.onnx
      also removes training-only outputs, found by votes that are shown
  fxrewrite apply net.onnx --patterns aux-prune --keep output0 --rename output0=boxes
  fxrewrite apply net.onnx --patterns repconv,./my.fxp --report diff.md
  fxrewrite apply net.onnx --check
      exit 1 if something would change; no model is written

\b
Exit codes (no model is written unless it is 0):
  0  done and verified; with --no-verify, NOT VERIFIED is printed
  1  --check found something that would change
  2  arguments, names, a pattern file, or the output path
  3  the model is missing, unreadable, invalid or refused
  4  a choice is needed: candidates, evidence and the exact --keep are printed
  5  verification failed or was impossible
  6  a limit, or a full disk
  130, 143  interrupted, terminated"""


@dataclass(frozen=True, slots=True)
class Request:
    """The words of the command line, as click hands them over."""

    model: Path
    patterns: tuple[str, ...]
    output: Path | None
    keep: tuple[str, ...]
    settings: tuple[str, ...]
    rename: tuple[str, ...]
    check: bool
    reports: tuple[Path, ...]
    no_verify: bool
    inputs: Path | None
    shape: tuple[str, ...]
    max_rounds: int
    force: bool
    as_json: bool


@click.command(epilog=EPILOG, short_help="Rewrite a model by patterns and write the result.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--patterns",
    multiple=True,
    metavar="A,B,./my.fxp",
    shell_complete=options.complete_patterns,
    help="Names, presets (all, deploy) or files of patterns; `all` if not given. Their order does not matter.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write; MODEL.rewritten.onnx if not given."
)
@click.option(
    "--keep", multiple=True, metavar="NAME[,NAME]|all", help="Outputs that are wanted; nothing is guessed then."
)
@click.option("--set", "settings", multiple=True, metavar="[PATTERN.]PARAM=VALUE", help="Set a parameter of a pattern.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Rename an input or output of the result.")
@click.option("--check", is_flag=True, help="Write no model; exit 1 if something would change.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.json|.md",
    help="Write the report to a file too; may be repeated.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare the models; the result says NOT VERIFIED.")
@options.inputs
@click.option(
    "--max-rounds", type=click.IntRange(min=1), default=100, show_default=True, help="Stop after this many rounds."
)
@click.option("--force", is_flag=True, help="Replace files that exist. An input is never replaced.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, alone on stdout.")
@options.debug
def apply(**words: object) -> int:
    """Rewrite MODEL by patterns, prove every rewrite, compare the models, and write the result.

    MODEL is an ONNX file, which stays as it is. What no rewrite touches is the same, byte for byte, in the output.
    """
    return run(Request(**words))  # pyright: ignore[reportArgumentType]  # click has checked types by the options above


def run(request: Request) -> int:
    """One call of the API between the checks before it and the report after it."""
    from rewriter.checking import engine_status

    model = files.model_file(request.model)
    files.arrays_file(request.inputs)
    output = request.output or files.default_output(model)
    taken = [model] + ([request.inputs] if request.inputs else [])
    if not request.check:
        files.check_target(output, force=request.force, inputs=taken, option="-o")
    files.check_reports(request.reports, force=request.force, taken=[*taken, output])
    missing = None if request.no_verify else engine_status()
    if missing:
        raise VerificationError(missing)
    with console.Progress() as progress:
        result = _apply(request, model, progress)
        report = replace(result.report, output=None if request.check else str(output))
        refused = _refused(report, request.no_verify)
        if refused is None:
            with files.staged(report, request.reports, force=request.force):
                if not request.check:
                    progress(f"writing {output}", None)
                    result.save(output, force=request.force)
    if refused is not None:
        _show(replace(report, output=None), as_json=request.as_json)
        raise VerificationError(refused)
    try:
        _show(report, as_json=request.as_json)
    finally:  # the model is written, even where stdout cannot be
        _conclude(report, check=request.check)
    return 1 if request.check and report.changed else 0


def _apply(request: Request, model: Path, progress: console.Progress) -> Result:
    from rewriter import api

    return api.apply(
        model,
        options.names(request.patterns) or ("all",),
        keep=options.keep(request.keep),
        set_=options.settings(request.settings),
        rename=options.renames(request.rename),
        verify=not request.no_verify,
        inputs=request.inputs,
        shapes=options.shapes(request.shape),
        max_rounds=request.max_rounds,
        progress=progress,
    )


def _refused(report: Report, unverified_allowed: bool) -> str | None:
    """Why the result must not be written; None where it may."""
    from rewriter.checking.record import Verdict

    found = report.verification
    if found.verdict is Verdict.FAILED:
        return f"{summary.verdict_line(found)}\nNothing was written."
    if found.verdict is Verdict.NOT_VERIFIED and not unverified_allowed:
        return (
            f"{summary.verdict_line(found)}\nNothing was written; --no-verify writes the result without a comparison."
        )
    return None


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        from rewriter.reporting.json import dumps

        console.text(dumps(report))
        return
    from rewriter.reporting.text import ReportText

    console.table(ReportText(report))


def _conclude(report: Report, *, check: bool) -> None:
    """The last words, on stderr."""
    from rewriter.checking.record import Verdict

    verdict = summary.verdict_line(report.verification)
    verified = report.verification.verdict is Verdict.OK
    if not verified:
        console.note(verdict)
    if check:
        console.note(f"--check: {'something' if report.changed else 'nothing'} would change; no model was written")
    elif not report.changed:
        console.note(f"wrote {report.output}: nothing to rewrite, so it holds the same bytes")
    else:
        console.note(f"wrote {report.output}" + (f" ({verdict})" if verified else ""))
