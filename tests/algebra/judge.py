"""A slow second opinion: every op by its definition, one output position and one tap at a time, in float64.

It shares nothing with rewriter.algebra, neither the maps nor the proof; one test compares it with torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.algebra import ConvForm
from rewriter.graph.view import Node
from rewriter.matching.region import Region

Array = npt.NDArray[np.float64]


def convolve(
    x: Array,
    weight: Array,
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    dilations: tuple[int, ...],
    groups: int,
) -> Array:
    sizes, window = x.shape[2:], weight.shape[2:]
    axes = range(len(sizes))
    reach = [dilations[a] * (window[a] - 1) + 1 for a in axes]
    out = [(sizes[a] + sum(pads[a]) - reach[a]) // strides[a] + 1 for a in axes]
    outs, ins = len(weight) // groups, weight.shape[1]
    y = np.zeros((len(x), len(weight), *out))
    for position in product(*map(range, out)):
        for tap in product(*map(range, window)):
            at = [position[a] * strides[a] - pads[a][0] + dilations[a] * tap[a] for a in axes]
            if any(not 0 <= at[a] < sizes[a] for a in axes):
                continue
            for g in range(groups):
                rows, columns = slice(g * outs, (g + 1) * outs), slice(g * ins, (g + 1) * ins)
                kernel = weight[(rows, slice(None), *tap)]
                y[(slice(None), rows, *position)] += x[(slice(None), columns, *at)] @ kernel.T
    return y


def spread(x: Array, weight: Array, attrs: Mapping[str, Any]) -> Array:
    """A transposed convolution, one input place and one tap at a time."""
    groups, window = attrs["groups"], weight.shape[2:]
    axes = range(len(window))
    strides, pads, dilations, beyond = (attrs[key] for key in ("strides", "pads", "dilations", "output_padding"))
    sizes = [
        strides[a] * (x.shape[2 + a] - 1) + dilations[a] * (window[a] - 1) + 1 + beyond[a] - sum(pads[a]) for a in axes
    ]
    ins, outs = len(weight) // groups, weight.shape[1]
    y = np.zeros((len(x), outs * groups, *sizes))
    for place in product(*map(range, x.shape[2:])):
        for tap in product(*map(range, window)):
            at = [place[a] * strides[a] - pads[a][0] + dilations[a] * tap[a] for a in axes]
            if any(not 0 <= at[a] < sizes[a] for a in axes):
                continue
            for g in range(groups):
                read, made = slice(g * ins, (g + 1) * ins), slice(g * outs, (g + 1) * outs)
                y[(slice(None), made, *at)] += x[(slice(None), read, *place)] @ weight[(read, slice(None), *tap)]
    return y


def along(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


def evaluate(node: Node, data: list[Array]) -> Any:
    consts = {role: constant.floats() for role, constant in node.consts.items()}
    x, attrs = data[0], node.attrs
    match node.op:
        case "conv":
            y = convolve(x, consts["weight"], attrs["strides"], attrs["pads"], attrs["dilations"], attrs["groups"])
            return y + along(consts["bias"], y) if "bias" in consts else y
        case "conv_transpose":
            y = spread(x, consts["weight"], attrs)
            return y + along(consts["bias"], y) if "bias" in consts else y
        case "splittosequence":  # a list stands for a sequence
            return [
                x.take(range(i, min(i + attrs["each"], x.shape[1])), 1) for i in range(0, x.shape[1], attrs["each"])
            ]
        case "sequenceat":
            return x[attrs["index"]]
        case "bn":
            centred = (x - along(consts["mean"], x)) / np.sqrt(along(consts["var"], x) + attrs["eps"])
            return centred * along(consts["scale"], x) + along(consts["bias"], x)
        case "scale":
            return x * consts["factor"]
        case "shift":
            return attrs["sign"] * x + consts["term"]
        case "add" | "sum":
            return np.sum(np.stack(data), axis=0)
        case "sub":
            return data[0] - data[1]
        case "neg":
            return -x
        case "pad":
            return padded(x, attrs["pads"], attrs["value"]) if attrs["amount"] else x
        case "avg_pool":
            kernel = np.ones((x.shape[1], 1, *attrs["window"]))
            total = convolve(x, kernel, attrs["strides"], attrs["pads"], attrs["dilations"], x.shape[1])
            return total / kernel[0].size
        case "linear":
            y = np.einsum("...i,oi->...o", x, consts["weight"])
            return y + consts["bias"] if "bias" in consts else y
        case "slice":
            for start, end, axis, step in zip(*(attrs[k] for k in ("starts", "ends", "axes", "steps")), strict=True):
                x = x.take(list(range(x.shape[axis]))[start:end:step], axis)
            return x
        case "concat":
            return np.concatenate(data, attrs["axis"])
        case "gather":
            return x.take(node.consts["indices"].load(), attrs["axis"])
        case "scatter_nd":
            y, indices = x.copy(), node.consts["indices"].load()
            for at in np.ndindex(*indices.shape[:-1]):
                y[tuple(indices[at])] = consts["updates"][at]
            return y
        case "assign":
            y, ends = x.copy(), zip(attrs["starts"], attrs["stops"], x.shape, strict=True)
            every = [range(n)[start:stop] for start, stop, n in ends]
            for at in product(*every):
                shape = consts["values"].shape
                y[at] = consts["values"][
                    tuple([a - r[0] if n > 1 else 0 for a, r, n in zip(at, every, shape, strict=True)])
                ]
            return y
        case "where":
            return np.where(node.consts["condition"].load(), *data)
        case "reshape":
            return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(attrs["shape"])])
        case "flatten":
            return x.reshape(int(np.prod(x.shape[: attrs["axis"]])), -1)
        case "transpose":
            return x.transpose(attrs["perm"])
        case "squeeze":
            return x.squeeze(attrs["axes"])
        case "unsqueeze":
            return np.expand_dims(x, attrs["axes"])
        case _:
            return x


def split(node: Node, x: Array) -> list[Array]:
    axis, count = node.attrs["axis"], len(node.outputs)
    sizes = node.attrs.get("sizes") or [x.shape[axis] // count] * count
    return [x.take(range(sum(sizes[:i]), sum(sizes[: i + 1])), axis) for i in range(count)]


def padded(x: Array, pads: tuple[tuple[int, int], ...], value: float) -> Array:
    y = np.full([n + begin + end for n, (begin, end) in zip(x.shape, pads, strict=True)], value)
    for at in np.ndindex(*y.shape):
        inside = [p - begin for p, (begin, _) in zip(at, pads, strict=True)]
        if all(0 <= p < n for p, n in zip(inside, x.shape, strict=True)):
            y[at] = x[tuple(inside)]
    return y


def run(region: Region, x: Array, rest: dict[str, Array] | None = None) -> Array:
    values: dict[str, Any] = {region.entry.name: x, **(rest or {})}
    for node in region.nodes:
        data = [values[v.name] if v.constant is None else v.constant.floats() for v in node.data]
        made: list[Any] = split(node, data[0]) if node.op == "split" else [evaluate(node, data)]
        values.update((output.name, y) for output, y in zip(node.outputs, made, strict=True))
    return values[region.exit.name]


def apply(conv: ConvForm, x: Array) -> Array:
    y = convolve(x, conv.kernel, conv.strides, conv.pads, conv.dilations, conv.groups)
    return y if conv.bias is None else y + along(conv.bias, y)


def same(region: Region, conv: ConvForm, sizes: list[tuple[int, ...]], seed: int = 0) -> bool:
    """Whether conv computes what the region does, borders included."""
    rng = np.random.default_rng(seed)
    channels = conv.kernel.shape[1] * conv.groups
    for size in sizes:
        x = rng.standard_normal((2, channels, *size))
        expected, found = run(region, x), apply(conv, x)
        if expected.shape != found.shape or not np.allclose(found, expected, rtol=1e-11, atol=1e-11):
            return False
    return True
