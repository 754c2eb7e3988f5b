"""`fxrewrite apply`: the main job.

Invariant: everything that can be refused before work is refused before work; a model is written only when the
comparison passed, could not tell, or was declined by the user, and in the last two cases that is said on stderr.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewriter.commandline import console, files, options, tracing
from rewriter.errors import UsageError, VerificationError
from rewriter.reporting import summary

if TYPE_CHECKING:
    from rewriter.api import Result
    from rewriter.checkpoints.requests import TraceRequest
    from rewriter.graph.files import LoadedModel
    from rewriter.reporting.record import Report
    from rewriter.torch_graphs.applying import Program

EPILOG = """\b
Examples:
  fxrewrite apply yolov9-c.onnx
      every exact pattern; the interface stays as it is
  fxrewrite apply yolov9-c.onnx --patterns deploy -o ship.onnx
      also removes training-only outputs, found by votes that are shown
  fxrewrite apply net.onnx --patterns aux-prune --keep output0 --rename output0=boxes
  fxrewrite apply net.onnx --patterns repconv,./my.fxp --report diff.md
  fxrewrite apply last.pt --model models.net:build --input images=1x3x640x640 --patterns deploy
      a checkpoint: traced (see fxrewrite trace --help), then rewritten
  fxrewrite apply net.pt2 -o ship.pt2
      a program of torch.export, rewritten in its own graph; a checkpoint with --model may become one too
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
    scrub: bool
    check: bool
    reports: tuple[Path, ...]
    no_verify: bool
    inputs: Path | None
    shape: tuple[str, ...]
    max_rounds: int
    force: bool
    as_json: bool
    trace: TraceRequest


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
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="MODEL.rewritten.onnx if not given; .pt2 for a program, .safetensors for weights.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="NAME[,NAME]|all",
    help="Outputs that are wanted, by name, position (0, -1) or glob (main*); nothing is guessed then.",
)
@click.option("--set", "settings", multiple=True, metavar="[PATTERN.]PARAM=VALUE", help="Set a parameter of a pattern.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Rename an input or output of the result.")
@click.option(
    "--scrub",
    is_flag=True,
    help="Remove exporters' notes, stack traces, local paths, training metadata and what nothing reads.",
)
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
@tracing.options
@options.debug
def apply(**words: object) -> int:
    """Rewrite MODEL by patterns, prove every rewrite, compare the models, and write the result.

    MODEL is an ONNX file, which stays as it is. What no rewrite touches is the same, byte for byte, in the output.
    A checkpoint (.pt, .safetensors, .pt2) is traced first: --model, --arg, --key, --input and the options below them.
    """
    request = tracing.taken(words)
    return run(Request(**words, trace=request))  # pyright: ignore[reportArgumentType]  # click has checked types by the options above


def run(request: Request) -> int:
    """One call of the API between the checks before it and the report after it."""
    from rewriter.checking import engine_status
    from rewriter.checkpoints.bytesource import is_checkpoint

    model = files.model_file(request.model)
    files.arrays_file(request.inputs)
    traced = is_checkpoint(model)
    if request.trace.model is not None and not traced:
        raise UsageError(f"--model: {model} is no checkpoint; --model builds what the weights of one are laid in")
    output = request.output or files.default_output(model)
    if output.suffix.lower() in (".pt", ".pth", ".ckpt"):
        raise UsageError(f"-o: {output}: a result is written as .onnx, .pt2 or .safetensors")
    kinds = output.suffix.lower(), model.suffix.lower()
    as_program = kinds[0] == ".pt2" or kinds == (".safetensors", ".pt2")
    if as_program and not traced:
        raise UsageError(f"-o: {output}: an ONNX model cannot become a program of torch; write it as .onnx")
    taken = [model] + ([request.inputs] if request.inputs else [])
    if not request.check:
        for target in files.outputs(output):
            files.check_target(target, force=request.force, inputs=taken, option="-o")
    files.check_reports(request.reports, force=request.force, taken=[*taken, output])
    missing = None if request.no_verify or as_program else engine_status()
    if missing:
        raise VerificationError(missing)
    with console.Progress() as progress, _opened(request, model, progress, traced, as_program) as given:
        result = _apply(request, given, progress)
        report = replace(result.report, model=str(model), output=None if request.check else str(output))
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
        _conclude(report, check=request.check, traced=traced)
    return 1 if request.check and report.changed else 0


@contextmanager
def _opened(
    request: Request, model: Path, progress: console.Progress, traced: bool, as_program: bool
) -> Generator[Path | LoadedModel | Program]:
    """What is rewritten: the file itself, or what a checkpoint becomes when it is traced.

    For a .pt2 file that is torch's own program, else an ONNX model that is held against torch.
    """
    if not traced:
        yield model
        return
    from rewriter.checkpoints import agreement
    from rewriter.checkpoints.tracing import prepare, to_onnx, to_program

    prepared = prepare(model, request.trace, progress)
    progress("exporting", None)
    if as_program:
        for note in prepared.notes:
            console.note(note)
        yield to_program(prepared, request.trace)
        return
    with to_onnx(prepared, request.trace) as loaded:
        words = "the export was not held against torch (--no-verify)"
        if not request.no_verify:
            progress("comparing the export with torch", None)
            found = agreement.compare(prepared, loaded)
            if not found.passed:
                raise VerificationError(f"the export: {found.words}\nNothing was written; --no-verify goes on anyway.")
            words = f"the export: {found.words}"
        for note in (*prepared.notes, words):
            console.note(note)
        yield loaded


def _apply(request: Request, model: Path | LoadedModel | Program, progress: console.Progress) -> Result:
    from rewriter import api

    return api.apply(
        model,
        options.names(request.patterns) or ("all",),
        keep=options.keep(request.keep),
        set_=options.settings(request.settings),
        rename=options.renames(request.rename),
        scrub=request.scrub,
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


def _conclude(report: Report, *, check: bool, traced: bool) -> None:
    """The last words, on stderr."""
    from rewriter.checking.record import Verdict

    verdict = summary.verdict_line(report.verification)
    verified = report.verification.verdict is Verdict.OK
    if not verified:
        console.note(verdict)
    if check:
        console.note(f"--check: {'something' if report.changed else 'nothing'} would change; no model was written")
    elif not report.changed and traced:
        console.note(f"wrote {report.output}: nothing to rewrite, so it holds the traced model")
    elif not report.changed:
        console.note(f"wrote {report.output}: nothing to rewrite, so it holds the same bytes")
    else:
        console.note(f"wrote {report.output}" + (f" ({verdict})" if verified else ""))
