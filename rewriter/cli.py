"""The command `fxrewrite`: arguments in, an exit code out.

Invariant: this module and what it imports load neither onnx, numpy, torch nor rich, so that `--help` is quick; whatever
happens ends in an exit code of `guard`, never in a traceback that was not asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from rewriter.commandline.guard import Settings, guarded


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `argv` (default: those of the process) and exit."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """As `main`, returning the exit code."""
    settings = Settings()
    return guarded(lambda: _invoke(argv, settings), settings)


def _invoke(argv: Sequence[str] | None, settings: Settings) -> int:
    import click

    from rewriter.commandline.root import root

    arguments = None if argv is None else list(argv)
    try:
        code: object = root.main(arguments, prog_name="fxrewrite", standalone_mode=False, obj=settings)
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else 0
