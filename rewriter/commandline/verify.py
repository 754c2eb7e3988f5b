"""`fxrewrite verify`: are two models the same function, within what the first one's own rounding allows?

Invariant: exit 0 never means less than that every output was compared, or that the report says in words why not.
"""

from __future__ import annotations

from pathlib import Path

import click

from rewriter.commandline import console, files, options
from rewriter.errors import VerificationError

EPILOG = """\b
Examples:
  fxrewrite verify before.onnx after.onnx
  fxrewrite verify before.onnx after.onnx --shape images=1x3x640x640
  fxrewrite verify before.onnx after.onnx --inputs sample.npz --tolerance 1e-3

\b
Exit codes:
  0  every output that both have is equal within the tolerance, or the original
     is too inexact in itself to tell (INCONCLUSIVE is printed)
  5  an output differs, or the models could not be compared"""


@click.command(epilog=EPILOG, short_help="Compare two models on the same inputs.")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@options.inputs
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="T",
    help="Largest absolute difference allowed; from the original's own rounding error if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@options.debug
def verify(
    before: Path, after: Path, inputs: Path | None, shape: tuple[str, ...], tolerance: float | None, as_json: bool
) -> int:
    """Run the models BEFORE and AFTER on the same inputs and compare every output that both have."""
    from rewriter.checking import engine_status

    paths = files.model_file(before), files.model_file(after)
    files.arrays_file(inputs)
    shapes = options.shapes(shape)
    missing = engine_status()
    if missing:
        raise VerificationError(missing)
    from rewriter import api
    from rewriter.checking.record import Verdict
    from rewriter.reporting import summary

    with console.Progress() as progress:
        found = api.verify(*paths, inputs=inputs, shapes=shapes, tolerance=tolerance, progress=progress)
    if as_json:
        from rewriter.reporting.json import dumps

        console.text(dumps(found))
    else:
        from rewriter.reporting.inspection_text import VerificationText

        console.table(VerificationText(found))
    if found.verdict in (Verdict.FAILED, Verdict.NOT_VERIFIED):
        raise VerificationError(summary.verdict_line(found))
    if found.verdict is not Verdict.OK:
        console.note(summary.verdict_line(found))
    return 0
