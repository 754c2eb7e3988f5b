"""What a region and its fold cost, and the gate between them.

Invariant: figures are per output pixel of the region and exact, so "not more" is a comparison of whole numbers wherever
strides divide. A conv costs out * in / groups * taps multiply-adds, a norm or scale one per channel; additions (sums,
shifts, biases) are free. Parameters are float elements that reach a weight, bias, scale or shift, each stored tensor
once; running statistics are buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from rewriter.algebra.conv import ConvForm
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Node
from rewriter.reporting.record import Cost

PARAMETER_ROLES = frozenset({"weight", "bias", "scale", "factor", "term"})


def cost_of_nodes(nodes: Sequence[Node]) -> Cost:
    """Parameters and multiply-adds of the nodes of a region, in topological order; the last gives the output pixels."""
    parameters = {
        constant.name: constant.size
        for node in nodes
        for role, constant in node.consts.items()
        if role in PARAMETER_ROLES
    }
    channels = _channels(nodes)
    pixels = {nodes[-1].output.name: 1.0} if nodes else {}  # of a value, per output pixel
    operations = 0.0
    for node in reversed(nodes):
        share = pixels.get(node.output.name, 1.0)
        operations += share * _multiply_adds(node, channels.get(node.output.name, 1))
        for value in node.data:
            pixels[value.name] = share * prod(node.attrs["strides"]) if node.op == "conv" else share
    return Cost(parameters=sum(parameters.values()), multiply_adds=operations)


def cost_of_conv(conv: ConvForm) -> Cost:
    return Cost(parameters=conv.parameters, multiply_adds=float(conv.kernel.size))


def gate(before: Cost, after: Cost, *, at: str, bias: int = 0) -> Refusal | None:
    """A Refusal where the fold would cost more: in multiply-adds, or in parameters beyond its own bias.

    `bias` is the number of bias elements of the result: a conv without bias followed by `+ 0.5` needs one per channel,
    which is no reason to leave it.
    """
    if after.multiply_adds <= before.multiply_adds and after.parameters - bias <= before.parameters:
        return None
    unit = "multiply-adds per output pixel" if before.per_pixel else "multiply-adds"
    detail = (
        f"folded it would cost {after.multiply_adds:,.0f} {unit} instead of {before.multiply_adds:,.0f}"
        f" and {after.parameters:,} parameters instead of {before.parameters:,}"
    )
    return Refusal(Reason.COST, at, detail)


def _multiply_adds(node: Node, channels: int) -> int:
    """Per pixel of the node's own output. A conv's weight is (out, in / groups, *window): its size is the count."""
    if node.op == "conv":
        return node.consts["weight"].size
    return channels if node.op in ("bn", "scale") else 0


def _channels(nodes: Iterable[Node]) -> dict[str, int]:
    """Channels of every value that the nodes give, from the weights, norms and shapes on the way."""
    known: dict[str, int] = {}
    for node in nodes:
        given = [known[value.name] for value in node.data if value.name in known]
        for value in (node.output, *node.data):
            shape = value.shape
            if shape is not None and len(shape) > 1 and isinstance(shape[1], int):
                given.append(shape[1])
        if node.op == "conv":
            given = [node.consts["weight"].shape[0]]
        elif node.op == "bn":
            given = [node.consts["scale"].size]
        elif node.op == "scale" and not given:
            given = [node.consts["factor"].size]
        if given:
            known[node.output.name] = max(given)
    return known
