"""What may be done with a match: `fold` puts one conv or matrix in place of a region, `bypass` takes out idle nodes.

Invariant: an action proves what it does, whatever the pattern file claims. It gives a plan and changes nothing itself,
or a refusal with the reason; every plan lowers the number of nodes, or keeps it
and lowers the multiply-adds, so rewriting ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rewriter.algebra import cost
from rewriter.algebra.conv import ConvForm, TransposedForm
from rewriter.algebra.cost import NO_SHAPES, TooDear
from rewriter.algebra.interpret import dtype_of, interpret, space_of
from rewriter.algebra.linear import Form, LinearForm, form_of
from rewriter.algebra.proof import prove
from rewriter.algebra.terms import Aside, ends_behind
from rewriter.errors import Reason, Refusal
from rewriter.graph.measure import Shapes
from rewriter.graph.view import Graph, Node
from rewriter.language.syntax import Bypass, Fold
from rewriter.matching.find import Match
from rewriter.matching.predicates import Reading, attribute, is_neutral, is_transparent
from rewriter.matching.region import Region
from rewriter.matching.where import Bindings, holds
from rewriter.reporting.record import Cost, Proof
from rewriter.rewriting.edits import AddConstant, AddNode, Edit, Plan, RemoveNode, Reread, Rewire
from rewriter.rewriting.sized import Sized

Fresh = Callable[[str], str]
"""Gives a name that nothing has yet, near the hint."""


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A plan with what it costs and what proves it."""

    plan: Plan
    before: Cost | None = None
    after: Cost | None = None
    proof: Proof | None = None


def act(
    graph: Graph, match: Match, fresh: Fresh, shapes: Shapes = NO_SHAPES, sized: Sized | None = None
) -> Done | Refusal:
    """Carry out the action of the match's pattern, on paper; `shapes` are sizes by value name, where known."""
    region, sized = match.region, sized or Sized(graph)
    match match.query.pattern.action:
        case Fold(kinds):
            done = fold(match, kinds, fresh, shapes, sized)
        case Bypass():
            done = bypass(region, sized)
        case other:
            name = type(other).__name__
            return Refusal(Reason.LIMIT, region.name, f"this version cannot carry out the action {name} yet")
    return done if isinstance(done, Refusal) else _measured(graph, region, done.plan) or done


def _measured(graph: Graph, region: Region, plan: Plan) -> Refusal | None:
    """A node that stays while a value goes from whose size its settings are computed."""
    removed = {edit.node.index: edit.node for edit in plan.edits if isinstance(edit, RemoveNode)}
    stay = {edit.old for edit in plan.edits if isinstance(edit, Rewire)} | {region.exit.name}
    for node in removed.values():
        for value in node.outputs:
            others = set(value.measured_by) - removed.keys()
            if others and value.name not in stay:
                reader = graph.nodes[min(others)]
                detail = f"{reader.name or reader.output.name} follows from the size of this value inside the match"
                return Refusal(Reason.ESCAPE, node.name or node.output.name, detail)
    return None


# --- fold ------------------------------------------------------------------------------------------------------------


BIASES_BROADCAST = 7
"""The first opset of ONNX in which Add and Gemm broadcast as numpy does; 0 is no opset."""


def fold(match: Match, kinds: Collection[str], fresh: Fresh, shapes: Shapes, sized: Sized) -> Done | Refusal:
    """One operator in place of a region that computes an affine map of its entry, plus what its sum leaves over.

    The gate looks at the region as if it stood alone: a weight that somebody outside reads too counts as the region's,
    although it stays for them. What the model stores less or more for a fold is said beside it (`storing.Stock`).
    """
    region = sized.entered(match.region)
    found = _form(region)
    if isinstance(found, Refusal):
        return found
    form, views = found
    kind = _kind(form)
    if kind not in kinds:
        return Refusal(
            Reason.OP, region.name, f"it would fold to {kind}, and the pattern folds to {' or '.join(kinds)}"
        )
    if kind == "linear" and form.bias is not None and 0 < sized.graph.opset < BIASES_BROADCAST:
        return Refusal(Reason.LIMIT, region.name, f"before opset {BIASES_BROADCAST} a bias is not simply added")
    work = cost.work_of(region.nodes, shapes)
    before, after = cost.cost_of_part(region.nodes, work), cost.cost_of_form(form, work, region, views)
    refused = _too_dear(match, form, len(views), before, after)
    if refused is not None:
        return refused
    proof = prove(region, form, views)
    if isinstance(proof, Refusal):
        return proof
    return Done(replace(region, form, views, fresh), before, after, proof)


def _form(region: Region) -> tuple[Form, tuple[Node, ...]] | Refusal:
    """What is written, and the views of the region that stay behind it."""
    affine, views = interpret(region), ()
    if isinstance(affine, Aside) and ends_behind(affine, region.exit):
        affine, views = affine.map, affine.views or ()
    if isinstance(affine, Refusal):
        return affine
    dtype, space = dtype_of(region), space_of(region)
    if isinstance(dtype, Refusal):
        return dtype
    form = space if isinstance(space, Refusal) else form_of(affine, dtype, space, at=region.name)
    return form if isinstance(form, Refusal) else (form, views)


def _too_dear(match: Match, form: Form, views: int, before: Cost, after: Cost) -> Refusal | None:
    """The pattern's own cost clause where it has one, else the default gate; nothing with cost=off."""
    region, clause = match.region, match.query.pattern.cost
    stay = form.nodes + views + len(region.rest)
    if not cost.saves(before, after, len(region.nodes), stay):
        return Refusal(Reason.COST, region.name, "the fold would not save a node")
    if not match.query.cost_gate:
        return None
    if clause is None:
        return cost.gate(before, after, at=region.name, bias=0 if form.bias is None else form.bias.size)
    nodes = {"before": len(region.nodes), "after": stay}
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


def replace(region: Region, form: Form, views: Sequence[Node], fresh: Fresh) -> Plan:
    """exit = form(entry) + what stays, under the exit's own name."""
    last = region.nodes[-1]
    if views:
        return _before_views(region, form, views, fresh)
    output = fresh(f"{region.exit.name}.folded") if region.rest else region.exit.name
    edits = _written(region, form, output, last, fresh)
    for position, (sign, value) in enumerate(region.rest, 1):
        total = region.exit.name if position == len(region.rest) else fresh(f"{region.exit.name}.folded")
        added = fresh(f"{last.name or region.exit.name}/rest")
        edits.append(AddNode("add" if sign > 0 else "sub", added, (output, value.name), total, last))
        output = total
    return Plan((*edits, *(RemoveNode(node) for node in region.nodes)))


def _before_views(region: Region, form: Form, views: Sequence[Node], fresh: Fresh) -> Plan:
    """The form in place of what the first view reads, the views joined, the last of them under the exit's name."""
    read = views[0].data[0]
    maker = next(node for node in region.nodes if read in node.outputs)
    edits = _written(region, form, read.name, maker, fresh)
    edits += [Reread(view, view.data[0].name, before.output.name) for before, view in pairwise(views)]
    edits.append(Rewire(views[-1].output.name, region.exit.name))
    return Plan((*edits, *(RemoveNode(node) for node in region.nodes if node not in views)))


def _written(region: Region, form: Form, output: str, last: Node, fresh: Fresh) -> list[Edit]:
    """A conv, a matrix product with its bias, or where there are more axes a product and an addition."""
    main = _main(region)
    weight = fresh(
        f"{main.consts['weight'].name.removesuffix('.folded')}.folded" if main else f"{region.exit.name}.weight"
    )
    apart = isinstance(form, LinearForm) and (
        form.axes != 2 or form.bias is None
    )  # a Gemm needed a bias until opset 11
    edits: list[Edit] = [AddConstant(weight, form.kernel.T if apart else form.kernel, form.dtype)]
    inputs = [region.entry.name, weight]
    if form.bias is not None:
        inputs.append(fresh(f"{weight}.bias"))
        edits.append(AddConstant(inputs[-1], form.bias, form.dtype))
    kind = _kind(form)
    name = main.name if main and main.name else fresh(f"{region.exit.name}/{kind}")
    if not apart:
        attrs = {} if isinstance(form, LinearForm) else _attrs(form)
        return [*edits, AddNode(kind, name, tuple(inputs), output, last, attrs, like=main)]
    if form.bias is None:
        return [*edits, AddNode("matmul", name, tuple(inputs), output, last, like=main)]
    product, added = fresh(f"{output}.product"), fresh(f"{name}/bias")
    edits.append(AddNode("matmul", name, tuple(inputs[:2]), product, last, like=main))
    return [*edits, AddNode("add", added, (product, inputs[2]), output, last)]


def _kind(form: Form) -> str:
    match form:
        case ConvForm():
            return "conv"
        case TransposedForm():
            return "conv_transpose"
        case LinearForm():
            return "linear"


def _attrs(conv: ConvForm | TransposedForm) -> dict[str, Any]:
    beyond = {"output_padding": conv.beyond} if isinstance(conv, TransposedForm) else {}
    return beyond | {
        "strides": conv.strides,
        "pads": conv.pads,
        "dilations": conv.dilations,
        "groups": conv.groups,
        "kernel_shape": conv.kernel.shape[2:],
    }


def _main(region: Region) -> Node | None:
    """The largest kernel of the region lends its name, so that users find their layer again."""
    kernels = [node for node in region.nodes if node.op in ("conv", "conv_transpose", "linear")]
    return max(kernels, key=lambda node: node.consts["weight"].size, default=None)


# --- bypass ----------------------------------------------------------------------------------------------------------


def bypass(region: Region, sized: Sized) -> Done | Refusal:
    """The readers of the exit read the entry; an output of the model is given to the entry's producer."""
    for node in region.nodes:
        if not (is_transparent(node) or is_neutral(node)):
            return Refusal(Reason.EXACT, node.name or node.op, f"{node.op} does something at inference")
        axes = any(constant.shape for constant in node.consts.values())
        if axes and not sized.same(node.data[0], node.output):
            return Refusal(Reason.SHAPE, node.name or node.op, "its constant may add or widen an axis of what it reads")
    entry, exit_ = region.entry, region.exit
    if not exit_.is_output:
        return Done(Plan((Rewire(exit_.name, entry.name), *(RemoveNode(n) for n in region.nodes))))
    if entry.producer is None or entry.is_output or entry.captured or entry.constant is not None:
        kind = "an input, an output or a constant of the model, or is read by the body of an If, Loop or Scan"
        return Refusal(Reason.ESCAPE, region.name, f"it gives an output of the model and what it reads is {kind}")
    return Done(Plan((Rewire(entry.name, exit_.name), *(RemoveNode(n) for n in region.nodes))))
