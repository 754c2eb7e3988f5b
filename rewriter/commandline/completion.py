"""`fxrewrite completion`: the script that a shell needs to complete commands, options and pattern names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from rewriter.commandline import console

EPILOG = """\b
Examples, one for each shell:
  fxrewrite completion bash > ~/.local/share/bash-completion/completions/fxrewrite
  fxrewrite completion zsh > "${fpath[1]}/_fxrewrite"
  fxrewrite completion fish > ~/.config/fish/completions/fxrewrite.fish"""


@click.command(epilog=EPILOG, short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the completion script for SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None  # Choice lists what click has
    root = context.find_root()
    console.text(kind(root.command, {}, "fxrewrite", "_FXREWRITE_COMPLETE").source())
    return 0
