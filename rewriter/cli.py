"""The command `fxrewrite`: arguments in, an exit code out.

Invariant: this module and what it imports load neither onnx, numpy, torch nor rich, so that `--help` is quick; whatever
happens ends in an exit code of `guard`, never in a traceback that was not asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rewriter.commandline.guard import Settings, drop_stdout, flushed, guarded, open_streams
from rewriter.reporting import escape

# Read when numpy loads its BLAS. Folds and proofs are many small float64 products, which two threads make slower than
# one: on YOLOv9-c, repconv and its proofs take 1.5 to 2.2 s of CPU time with two threads and 0.9 s with one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `argv` (default: those of the process) and exit."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """As `main`, returning the exit code."""
    settings = Settings()
    open_streams()
    code = guarded(lambda: _invoke(argv, settings), settings)
    return flushed() or code


def _invoke(argv: Sequence[str] | None, settings: Settings) -> int:
    import click

    from rewriter.commandline.root import root

    arguments = None if argv is None else list(argv)
    try:
        code: object = root.main(arguments, prog_name="fxrewrite", standalone_mode=False, obj=settings)
    except SystemExit:  # what click makes of a closed pipe
        drop_stdout()
        return 0
    except click.exceptions.NoArgsIsHelpError as problem:
        problem.show()
        return problem.exit_code
    except click.ClickException as problem:
        context = problem.ctx if isinstance(problem, click.UsageError) else None
        if context is not None:
            sys.stderr.write(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n\n")
        sys.stderr.write(f"fxrewrite: error: {escape.lines(problem.format_message())}\n")
        return problem.exit_code
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else 0
