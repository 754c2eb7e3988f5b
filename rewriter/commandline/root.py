"""The group of all commands, as click sees it."""

from __future__ import annotations

import click

from rewriter.commandline.apply import apply
from rewriter.commandline.completion import completion
from rewriter.commandline.inspect import inspect
from rewriter.commandline.patterns import patterns
from rewriter.commandline.trace import trace
from rewriter.commandline.verify import verify
from rewriter.version import __version__

EPILOG = """\b
Examples:
  fxrewrite inspect yolov9-c.onnx                      where the parameters are
  fxrewrite apply yolov9-c.onnx --patterns deploy      the model to ship
  fxrewrite verify yolov9-c.onnx yolov9-c.rewritten.onnx
  fxrewrite trace last.pt --model models.net:build --input 1x3x640x640 -o net.onnx
  fxrewrite patterns list

\b
`fxrewrite COMMAND --help` says more. `--debug` on any command shows the traceback of an error."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
    no_args_is_help=True,
)
@click.version_option(__version__, message="fxrewrite %(version)s")
def root() -> None:
    """Turn a training-form ONNX model into the model to ship.

    Patterns say what to look for; every rewrite is proved in float64, the whole model is compared before and after,
    and the report shows what changed.
    """


for command in (apply, inspect, trace, verify, patterns, completion):
    root.add_command(command)
