"""Options that say how a checkpoint becomes a graph, shared by `trace` and `apply`.

Invariant: the words are read before torch is imported, so that a wrong one costs no time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from rewriter.checkpoints.requests import DTYPES, EXPORTERS, TraceRequest, dynamic, inputs
from rewriter.commandline.options import names

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--model", "factory", metavar="PKG.MOD:FACTORY", help="What builds the model that the weights are for."
    ),
    click.option("--arg", "arguments", multiple=True, metavar="[NAME=]VALUE", help="An argument of the factory."),
    click.option(
        "--key", metavar="KEY", help="Entry of the checkpoint that holds the weights; EMA first if not given."
    ),
    click.option(
        "--input",
        "examples",
        multiple=True,
        metavar="[NAME=]1x3x640x640[:TYPE]",
        help="An input that the model is called with, in the order of its parameters.",
    ),
    click.option("--output-names", multiple=True, metavar="NAME[,NAME]", help="Names of the outputs."),
    click.option(
        "--dynamic", "open_axes", multiple=True, metavar="[NAME=]0:batch,2:32*high", help="Axes that stay open."
    ),
    click.option(
        "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Type of the weights."
    ),
    click.option(
        "--opset", type=click.IntRange(7, 30), help="ONNX opset; 18 with dynamo, 17 with legacy if not given."
    ),
    click.option(
        "--exporter", type=click.Choice(EXPORTERS), default="dynamo", show_default=True, help="torch's exporter."
    ),
    click.option(
        "--trust", is_flag=True, help="Let the file run its own code while it loads. Only for files of your own."
    ),
    click.option(
        "--code",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Source tree that a module in the checkpoint was made with; needs --trust.",
    ),
)
_WORDS = (
    "factory",
    "arguments",
    "key",
    "examples",
    "output_names",
    "open_axes",
    "dtype",
    "opset",
    "exporter",
    "trust",
    "code",
)


def options(command: F) -> F:
    """Adds every option of a trace."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def taken(words: dict[str, object]) -> TraceRequest:
    """The request in the words of a command, which are taken out of them."""
    found: dict[str, Any] = {name: words.pop(name) for name in _WORDS}
    given = inputs(cast("tuple[str, ...]", found["examples"]))
    return TraceRequest(
        model=found["factory"],
        inputs=given,
        arguments=found["arguments"],
        key=found["key"],
        output_names=names(found["output_names"]),
        dynamic=dynamic(found["open_axes"], given),
        dtype=found["dtype"],
        opset=found["opset"],
        exporter=found["exporter"],
        trust=found["trust"],
        code=found["code"],
    )
