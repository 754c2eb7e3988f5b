"""What can go wrong, as values: the exception tree with its exit codes, and the closed set of refusal reasons.

Invariant: a `Refusal` is an ordinary answer ("this stays as it is, because …") and is never raised; a `FxRewriteError`
ends the command with its `exit_code` and a message that names the file, the node and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why something was left as it is. The set is closed: pattern files (`because …`) and reports share it."""

    OP = "op"  # another operator stands where the pattern wants one
    ESCAPE = "escape"  # an interior value is read outside the match, or is an output of the graph
    ENTRY = "entry"  # the operands do not start from one value
    COUNT = "count"  # too few or too many operands for the branches
    WHERE = "where"  # a `where` clause is false
    COST = "cost"  # the result would cost more than it saves
    EXACT = "exact"  # the fold would not be the same function
    TYPE = "type"  # element types differ, or are not ones that fold
    VALUE = "value"  # a constant is missing, not finite, overridable, or would overflow
    SHAPE = "shape"  # sizes differ or cannot be proved equal
    DYNAMIC = "dynamic"  # depends on something known only at run time
    LIMIT = "limit"  # a budget was spent
    CHOICE = "choice"  # the user has to say which
    SHADOWED = "shadowed"  # a larger or more urgent match covers it


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something was not done: why (`code`), where (`node`, a name a user finds in their file) and in words."""

    code: Reason
    node: str
    detail: str

    def __str__(self) -> str:
        return f"{self.node}: {self.detail} [{self.code}]"


class FxRewriteError(Exception):
    """Base of everything fxrewrite raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code: int = 2


class UsageError(FxRewriteError):
    """Arguments, names or options that cannot be used (exit 2)."""


class PatternError(FxRewriteError):
    """A pattern file that cannot be read as the language; its message carries file, line, column and caret (exit 2)."""


class OutputError(FxRewriteError):
    """The output exists, is an input, or cannot be written (exit 2)."""


class InputError(FxRewriteError):
    """The model is missing, unreadable, not a model, or refused for safety (exit 3)."""

    exit_code = 3


class ChoiceError(FxRewriteError):
    """The user has to choose; the message holds candidates, evidence and the exact `--keep` (exit 4)."""

    exit_code = 4


class VerificationError(FxRewriteError):
    """The rewritten model differs from the original, or could not be compared (exit 5); nothing was written."""

    exit_code = 5


class LimitError(FxRewriteError):
    """A limit on time, memory or disk was reached (exit 6)."""

    exit_code = 6
