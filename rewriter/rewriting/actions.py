"""What may be done with a match: `fold` puts one conv in place of an affine region, `bypass` takes out idle nodes.

Invariant: an action proves what it does, whatever the pattern file claims. It gives a plan and changes nothing itself,
or a refusal with the reason; every plan strictly lowers the number of nodes, so rewriting ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewriter.algebra import cost
from rewriter.algebra.conv import ConvForm, conv_of
from rewriter.algebra.cost import NO_SHAPES, TooDear
from rewriter.algebra.interpret import dtype_of, interpret
from rewriter.algebra.proof import prove
from rewriter.errors import Reason, Refusal
from rewriter.graph.measure import Shapes
from rewriter.graph.view import Graph, Node, Value
from rewriter.language.syntax import Bypass, Fold
from rewriter.matching.find import Match
from rewriter.matching.predicates import Reading, attribute, is_transparent
from rewriter.matching.region import Region
from rewriter.matching.where import Bindings, holds
from rewriter.reporting.record import Cost, Proof
from rewriter.rewriting.edits import AddConstant, AddNode, Edit, Plan, RemoveNode, Rewire

Fresh = Callable[[str], str]
"""Gives a name that nothing has yet, near the hint."""


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A plan with what it costs and what proves it."""

    plan: Plan
    before: Cost | None = None
    after: Cost | None = None
    proof: Proof | None = None


def act(graph: Graph, match: Match, fresh: Fresh, shapes: Shapes = NO_SHAPES) -> Done | Refusal:
    """Carry out the action of the match's pattern, on paper; `shapes` are sizes by value name, where known."""
    match match.query.pattern.action:
        case Fold():
            return fold(match, fresh, shapes)
        case Bypass():
            return bypass(graph, match.region)
        case other:
            name = type(other).__name__
            return Refusal(Reason.LIMIT, match.region.name, f"this version cannot carry out the action {name} yet")


# --- fold ------------------------------------------------------------------------------------------------------------


def fold(match: Match, fresh: Fresh, shapes: Shapes = NO_SHAPES) -> Done | Refusal:
    """One conv in place of a region that computes an affine map of its entry, plus what its sum leaves over.

    The gate looks at the region as if it stood alone: a weight that somebody outside reads too counts as the region's,
    although it stays for them. The totals of the report count each stored tensor once, and show what that costs.
    """
    region = match.region
    affine = interpret(region)
    if isinstance(affine, Refusal):
        return affine
    dtype = dtype_of(region)
    if isinstance(dtype, Refusal):
        return dtype
    conv = conv_of(affine, dtype, at=region.name)
    if isinstance(conv, Refusal):
        return conv
    work = cost.work_of(region.nodes, shapes)
    before, after = cost.cost_of_part(region.nodes, work), cost.cost_of_conv(conv, work, region.exit)
    refused = _too_dear(match, conv, before, after)
    if refused is not None:
        return refused
    proof = prove(region, conv)
    if isinstance(proof, Refusal):
        return proof
    return Done(replace(region, conv, fresh), before, after, proof)


def _too_dear(match: Match, conv: ConvForm, before: Cost, after: Cost) -> Refusal | None:
    """The pattern's own cost clause where it has one, else the default gate; nothing with cost=off."""
    region, clause = match.region, match.query.pattern.cost
    if 1 + len(region.rest) >= len(region.nodes):
        return Refusal(Reason.COST, region.name, "the fold would not save a node")
    if not match.query.cost_gate:
        return None
    if clause is None:
        return cost.gate(before, after, at=region.name, bias=0 if conv.bias is None else conv.bias.size)
    nodes = {"before": len(region.nodes), "after": 1 + len(region.rest)}
    if holds(clause, _CostScope(match.bindings, {"before": before, "after": after}, nodes)):
        return None
    detail = f"the pattern's cost clause is false: folded it would cost {cost.in_words(before, after)}"
    return TooDear(Reason.COST, region.name, detail, before, after)


@dataclass(frozen=True, slots=True)
class _CostScope:
    """A match's bindings, with `params(…)`, `macs(…)` and `nodes(…)` of before, after, or what a label stands for."""

    bindings: Bindings
    costs: Mapping[str, Cost]
    nodes: Mapping[str, int]

    def sizes(self, owner: str) -> int | None:
        return self.bindings.sizes(owner)

    def attribute(self, owner: str, index: int, name: str) -> Reading:
        return attribute(self.bindings.labels[owner][index], name)

    def apply(self, function: str, argument: str) -> Reading:
        if function == "nodes":
            return self.nodes.get(argument, len(self.bindings.labels.get(argument, ())))
        if function not in ("params", "macs"):
            return self.bindings.apply(function, argument)
        found = self.costs.get(argument) or cost.cost_of_nodes(self.bindings.labels.get(argument, ()))
        return found.parameters if function == "params" else found.multiply_adds

    def name(self, name: str) -> Reading:
        return self.bindings.name(name)


def replace(region: Region, conv: ConvForm, fresh: Fresh) -> Plan:
    """exit = conv(entry) + what stays, under the exit's own name."""
    main = _main_conv(region)
    last = region.nodes[-1]
    weight = fresh(
        f"{main.consts['weight'].name.removesuffix('.folded')}.folded" if main else f"{region.exit.name}.weight"
    )
    edits: list[Edit] = [AddConstant(weight, conv.kernel, conv.dtype)]
    inputs = [region.entry.name, weight]
    if conv.bias is not None:
        inputs.append(fresh(f"{weight}.bias"))
        edits.append(AddConstant(inputs[-1], conv.bias, conv.dtype))
    attrs: dict[str, Any] = {
        "strides": conv.strides,
        "pads": conv.pads,
        "dilations": conv.dilations,
        "groups": conv.groups,
        "kernel_shape": conv.kernel.shape[2:],
    }
    name = main.name if main and main.name else fresh(f"{region.exit.name}/conv")
    output = fresh(f"{region.exit.name}.folded") if region.rest else region.exit.name
    edits.append(AddNode("conv", name, tuple(inputs), output, last, attrs, like=main))
    for position, (sign, value) in enumerate(region.rest, 1):
        total = region.exit.name if position == len(region.rest) else fresh(f"{region.exit.name}.folded")
        added = fresh(f"{last.name or region.exit.name}/rest")
        edits.append(AddNode("add" if sign > 0 else "sub", added, (output, value.name), total, last))
        output = total
    return Plan((*edits, *(RemoveNode(node) for node in region.nodes)))


def _main_conv(region: Region) -> Node | None:
    """The largest conv of the region lends its name, so that users find their layer again."""
    convs = [node for node in region.nodes if node.op == "conv"]
    return max(convs, key=lambda node: node.consts["weight"].size, default=None)


# --- bypass ----------------------------------------------------------------------------------------------------------


def bypass(graph: Graph, region: Region) -> Done | Refusal:
    """The readers of the exit read the entry; an output of the model is given to the entry's producer."""
    for node in region.nodes:
        if not is_transparent(node):
            return Refusal(Reason.EXACT, node.name or node.op, f"{node.op} does something at inference")
        if not _keeps_rank(graph, node):
            return Refusal(Reason.SHAPE, node.name or node.op, "its constant may add an axis to what it reads")
    entry, exit_ = region.entry, region.exit
    if not exit_.is_output:
        return Done(Plan((Rewire(exit_.name, entry.name), *(RemoveNode(n) for n in region.nodes))))
    if entry.producer is None or entry.is_output or entry.captured or entry.constant is not None:
        kind = "an input, an output or a constant of the model, or is read by the body of an If, Loop or Scan"
        return Refusal(Reason.ESCAPE, region.name, f"it gives an output of the model and what it reads is {kind}")
    return Done(Plan((Rewire(entry.name, exit_.name), *(RemoveNode(n) for n in region.nodes))))


def _keeps_rank(graph: Graph, node: Node) -> bool:
    """A constant of shape [1] turns a scalar into a vector; one without axes never does."""
    rank = max((len(c.shape) for c in node.consts.values()), default=0)
    return rank == 0 or _least_rank(graph, node.data[0]) >= rank


def _least_rank(graph: Graph, value: Value) -> int:
    """A rank that the value has at least: declared, of an operator on images, or of what it is computed from."""
    for _ in range(MOST_STEPS):
        producer = graph.producer(value)
        if value.shape is not None:
            return len(value.shape)
        if producer is None or producer.op not in RANK_KEPT or not producer.data:
            return 2 if producer is not None and producer.op in ON_IMAGES else 0
        value = producer.data[0]
    return 0


ON_IMAGES = frozenset({"conv", "conv_transpose", "bn", "avg_pool", "max_pool"})
RANK_KEPT = frozenset(
    {"relu", "leaky_relu", "silu", "sigmoid", "tanh", "gelu", "clip", "hardswish", "hardsigmoid", "softmax"}
    | {"identity", "dropout", "cast", "pad", "neg", "scale", "shift", "add", "sub", "mul", "div"}
)
"""What it gives has no lower rank than what it reads first."""

MOST_STEPS = 16
