"""`fxrewrite inspect`: where the parameters and multiply-adds of a model are. Invariant: nothing is written."""

from __future__ import annotations

from pathlib import Path

import click

from rewriter.commandline import console, files, options

EPILOG = """\b
Example:
  fxrewrite inspect yolov9-c.onnx"""


@click.command(epilog=EPILOG, short_help="Show where parameters and multiply-adds are.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@options.debug
def inspect(model: Path, as_json: bool) -> int:
    """Show what each output of MODEL needs, alone and together, and what each shipped pattern would save."""
    path = files.model_file(model)
    from rewriter import api

    with console.Progress() as progress:
        progress(f"reading {model}", None)
        found = api.inspect(path)
    if as_json:
        from rewriter.reporting.json import dumps

        console.text(dumps(found))
        return 0
    from rewriter.reporting.inspection_text import InspectionText

    console.table(InspectionText(found))
    return 0
