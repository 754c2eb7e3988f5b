"""`fxrewrite inspect`: where the parameters and multiply-adds of a model are, or what a checkpoint holds.

Invariant: nothing is written, and nothing that a file names is run.
"""

from __future__ import annotations

from pathlib import Path

import click

from rewriter.commandline import console, files, options

EPILOG = """\b
Examples:
  fxrewrite inspect yolov9-c.onnx
  fxrewrite inspect dynamic.onnx --shape images=1x3x640x640
  fxrewrite inspect yolov9-c.pt        what a checkpoint holds; runs nothing in it"""


@click.command(epilog=EPILOG, short_help="Show where parameters and multiply-adds are.")
@click.argument("model", type=click.Path(path_type=Path))
@options.shape
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@options.debug
def inspect(model: Path, shape: tuple[str, ...], as_json: bool) -> int:
    """Show what each output of MODEL needs, alone and together, and what each shipped pattern would save.

    Of a checkpoint (.pt, .pth, .ckpt, .safetensors, .pt2) it shows the entries: weights, averaged weights, optimizer
    state, dates, arguments. It is read and never loaded, so this is safe for any file.
    """
    path = files.model_file(model)
    from rewriter.checkpoints.bytesource import is_checkpoint

    if is_checkpoint(path):
        return _inspect_checkpoint(path, as_json)
    from rewriter import api

    with console.Progress() as progress:
        progress(f"reading {model}", None)
        found = api.inspect(path, shapes=options.shapes(shape))
    if as_json:
        from rewriter.reporting.json import dumps

        console.text(dumps(found))
        return 0
    from rewriter.reporting.inspection_text import InspectionText

    console.table(InspectionText(found))
    return 0


def _inspect_checkpoint(path: Path, as_json: bool) -> int:
    from rewriter.checkpoints import bytesource, listing

    with console.Progress() as progress:
        progress(f"reading {path}", None)
        found = listing.inspect(bytesource.read(path))
    if as_json:
        from rewriter.reporting.json import dumps

        console.text(dumps(found))
        return 0
    from rewriter.reporting.checkpoint_text import CheckpointText

    console.table(CheckpointText(found))
    return 0
