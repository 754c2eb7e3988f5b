"""The report: one frozen record of everything a run found and did; renderers and JSON read it and nothing else.

Invariant: it holds plain data only (strings, numbers, tuples, other records), so that it outlives the model, turns into
JSON field by field, and two runs over the same bytes give equal records but for `seconds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.checking.record import Verification

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class OutputInfo:
    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Totals:
    """A model in numbers. `parameters` as design.md defines them; `multiply_adds` is None where sizes are unknown.

    `at` are the sizes of inputs that somebody said, for which the multiply-adds are counted.
    """

    nodes: int
    ops: tuple[tuple[str, int], ...]  # op type -> count, by falling count then name
    parameters: int
    multiply_adds: int | None
    bytes: int
    outputs: tuple[OutputInfo, ...]
    at: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one region: parameters, multiply-adds per output pixel (per image where sizes are known), stored bytes."""

    parameters: int
    multiply_adds: float
    per_pixel: bool = True
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """Largest |difference| / S over the probing inputs of one region (algebra.md, "Proof"); `limit` is 1e-12."""

    error: float
    limit: float
    inputs: int  # how many probing inputs
    size: tuple[int, ...]  # spatial size they had


@dataclass(frozen=True, slots=True)
class FoldRecord:
    """A new tensor and the stored tensors of the original that it was made of."""

    tensor: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MatchRecord:
    """One rewrite that was done."""

    pattern: str
    round: int
    exit: str  # the value that stays
    entry: str
    nodes: tuple[str, ...]  # names of the nodes that went, in topological order
    summary: str  # "sum of dense (conv->bn), dense (conv->bn), skip (bn); then relu stays outside"
    made: tuple[str, ...]  # names of the nodes that came
    leftovers: tuple[str, ...] = ()  # operands of the sum that stay
    before: Cost | None = None
    after: Cost | None = None
    proof: Proof | None = None
    tensors: tuple[FoldRecord, ...] = ()  # that came; their sources may be of an earlier round
    saved_parameters: int = 0  # that the model stores less; fewer than 0 where others still read what it was made of


@dataclass(frozen=True, slots=True)
class RefusalRecord:
    """Something that looked like the pattern and was left as it is; with its figures where that was for its cost."""

    pattern: str
    node: str
    code: str
    detail: str
    before: Cost | None = None
    after: Cost | None = None  # what it would have cost


@dataclass(frozen=True, slots=True)
class ShadowRecord:
    pattern: str
    exit: str
    by: str  # pattern whose match covered it
    by_exit: str


@dataclass(frozen=True, slots=True)
class VoteRecord:
    """A vote on one ordered pair of output groups; `value` is "true", "false" or "silent", `detail` the figures."""

    name: str
    value: str
    counts: bool
    detail: str


@dataclass(frozen=True, slots=True)
class SizeRecord:
    """A Shape that the kept outputs need and that read from a branch which only the removed ones needed.

    `new` is the value of provably equal size that it reads now, or None where it stayed; `because` are the common
    extents, or why it stayed; `assumptions` are equations of operators that the proof rests on, each asserted by a node
    that stays too, but for the `lost` ones: only nodes that went asserted those, so inputs that failed may pass now.
    """

    node: str
    old: str
    new: str | None
    because: str
    assumptions: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StackRecord:
    """Heads that ran on a stack of values of which some were wanted, and run on those now.

    `places` are the numbers of the operands that stay among the `operands` of the stack; `taken` the nodes that take of
    the result. Only nodes that went made sure of what is `lost`: inputs that failed may pass now.
    """

    stack: str
    kept: tuple[str, ...]
    places: tuple[int, ...]
    operands: int
    taken: tuple[str, ...]
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputsDecision:
    """What an outputs pattern decided: the kept group, the removed ones, the evidence, and the shapes re-rooted.

    `stacks` are heads that ran on more than what is kept; `notes` what else people should know about the outputs.
    """

    pattern: str
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    how: str  # "by votes" | "by --keep" | "nothing auxiliary"
    votes: tuple[VoteRecord, ...] = ()
    removed_nodes: int = 0
    removed_parameters: int = 0
    sizes: tuple[SizeRecord, ...] = ()
    stacks: tuple[StackRecord, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScrubRecord:
    """What `--scrub` removed of one kind: how many, their bytes, and the first of them."""

    kind: str
    count: int
    bytes: int
    example: str


@dataclass(frozen=True, slots=True)
class PatternSource:
    name: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Report:
    model: str  # path or kind of object
    output: str | None
    before: Totals
    after: Totals
    patterns: tuple[PatternSource, ...]
    parameters: tuple[tuple[str, str], ...]  # pattern parameters that were set: "aux-prune.keep" -> "output0"
    decisions: tuple[OutputsDecision, ...]
    matches: tuple[MatchRecord, ...]
    refusals: tuple[RefusalRecord, ...]
    shadowed: tuple[ShadowRecord, ...]
    covered: int  # matches wholly inside a winner: counted, not listed
    renamed: tuple[tuple[str, str], ...]  # interface names: old -> new
    dead_before: tuple[str, ...]  # nodes that nothing read before any edit; they stay
    rounds: int
    end: str  # "fixpoint" | "limit"
    verification: Verification
    versions: tuple[tuple[str, str], ...]  # fxrewrite, python, onnx, numpy, engine
    seconds: float
    folds: tuple[FoldRecord, ...] = ()  # every new tensor of the result, over all rounds
    scrubbed: tuple[ScrubRecord, ...] = ()
    sizes: tuple[SizeRecord, ...] = ()  # read elsewhere, since they kept values from being folded
    notes: tuple[str, ...] = ()  # how the model came, and what was not looked into
    schema: int = SCHEMA_VERSION

    @property
    def changed(self) -> bool:
        return bool(
            self.matches
            or self.sizes
            or self.renamed
            or self.scrubbed
            or any(d.removed or d.stacks for d in self.decisions)
        )


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a model in numbers; `multiply_adds` is None where sizes are unknown, `bytes` are of its tensors."""

    nodes: int
    parameters: int
    multiply_adds: int | None
    bytes: int


@dataclass(frozen=True, slots=True)
class OutputNeeds:
    """What one output costs: everything it needs, and the part of that which no other output needs.

    What is read only for its size, and could be read elsewhere, is not needed.
    """

    name: str
    needed: Share
    exclusive: Share


@dataclass(frozen=True, slots=True)
class PatternOutlook:
    """What one pattern would do, each pattern alone on the model as it is (so the figures do not add up)."""

    pattern: str
    matches: int
    saved_parameters: int
    saved_multiply_adds: int | None = 0  # None where sizes are unknown
    note: str = ""  # why it would do nothing, or what it would have to be told


@dataclass(frozen=True, slots=True)
class Inspection:
    """Where the nodes, parameters and multiply-adds of a model are; nothing is changed to find out."""

    model: str
    totals: Totals
    outputs: tuple[OutputNeeds, ...]
    shared: Share  # what every output needs
    patterns: tuple[PatternOutlook, ...]
    dead: tuple[str, ...]  # nodes that no output needs
    versions: tuple[tuple[str, str], ...] = ()
    hidden: tuple[str, ...] = ()  # nodes with layers in bodies or functions, which nothing here counts
    schema: int = SCHEMA_VERSION
