"""`fxrewrite trace`: from a checkpoint to a graph, without running what the checkpoint names.

Invariant: what is written holds the graph and the chosen weights only; it is written when it was held against torch, or
when the user declined that, which is said.
"""

from __future__ import annotations

from pathlib import Path

import click

from rewriter.checkpoints.requests import TraceRequest
from rewriter.commandline import console, files, options, tracing
from rewriter.errors import UsageError, VerificationError

EPILOG = """\b
Examples:
  fxrewrite inspect last.pt
      what it holds: weights, EMA, optimizer state, arguments, dates
  fxrewrite trace last.pt --model models.net:build --arg nc=80 \\
      --input images=1x3x640x640 -o net.onnx
  fxrewrite trace net.safetensors --model models.net:build --input 1x3x224x224 \\
      --dynamic 0:batch -o net.pt2
  fxrewrite trace yolo.pt --trust --code ./yolov9 --input images=1x3x640x640 -o yolo.onnx
      a whole module, which runs code of whoever made it: only for files of your own

\b
Exit codes:
  0  written, and equal to torch's own outputs within rounding
  2  arguments, names, the factory, or the output path
  3  the checkpoint is missing, damaged, refused, or does not fit the model
  4  a choice is needed: the exact --key is printed
  5  the exported model gives other numbers than torch, or could not be run
  6  a limit, or a full disk"""
SUFFIXES = (".onnx", ".pt2")


@click.command(epilog=EPILOG, short_help="Turn a checkpoint into ONNX or .pt2.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="MODEL.onnx or MODEL.pt2.")
@tracing.options
@click.option("--no-verify", is_flag=True, help="Do not hold the exported ONNX model against torch.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@options.debug
def trace(checkpoint: Path, output: Path, no_verify: bool, force: bool, **words: object) -> int:
    """Load the weights of CHECKPOINT safely, lay them into a model, and export it.

    Optimizer state, dates, arguments and duplicates stay behind. Files whose loading could run code are refused, or
    read as data; --trust says otherwise, for files of your own.
    """
    request = tracing.taken(words)
    path = files.model_file(checkpoint)
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"-o: {output} is of no kind that trace writes; name it MODEL.onnx or MODEL.pt2")
    files.check_target(output, force=force, inputs=[path], option="-o")
    with console.Progress() as progress:
        notes = _write(path, output, request, progress, force=force, verify=not no_verify)
    for note in notes:
        console.note(note)
    console.note(f"wrote {output}")
    return 0


def _write(
    path: Path, output: Path, request: TraceRequest, progress: console.Progress, *, force: bool, verify: bool
) -> list[str]:
    from rewriter.checkpoints import agreement, tracing
    from rewriter.graph import saving

    prepared = tracing.prepare(path, request, progress)
    progress("exporting", None)
    if output.suffix.lower() == ".pt2":
        from rewriter.checkpoints import program

        program.save(tracing.to_program(prepared, request), output, force=force)
        return [*prepared.notes]
    with tracing.to_onnx(prepared, request) as loaded:
        words = "NOT VERIFIED: the comparison with torch was turned off (--no-verify)"
        if verify:
            progress("comparing with torch", None)
            found = agreement.compare(prepared, loaded)
            if not found.passed:
                raise VerificationError(
                    f"{found.words}\nNothing was written; --no-verify writes it without comparison."
                )
            words = found.words
        progress(f"writing {output}", None)
        saving.save(loaded.proto, output, source=loaded, force=force)
    return [*prepared.notes, words]
