"""Regions written by hand: a small builder of view nodes, so that a test reads like the block it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.graph.view import Constant, Node, Value
from rewriter.matching.region import Region

Array = npt.NDArray[Any]
Pads = Sequence[tuple[int, int]]


class Block:
    """Collects nodes; every method adds one, reads values by name and returns the name of its result."""

    def __init__(
        self, shape: tuple[int | str | None, ...] | None = None, dtype: str = "float32", *, known: bool = True
    ) -> None:
        self.dtype = dtype
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.known = known  # whether values carry their element type
        self.outside("x", shape)

    def outside(self, name: str, shape: tuple[int | str | None, ...] | None = None, dtype: str | None = None) -> str:
        """A value from outside the region: the entry `x`, or a leftover."""
        found = dtype or (self.dtype if self.known else None)
        self.values[name] = Value(name, None, (), shape=shape, dtype=found)
        return name

    def known_value(self, elements: Any) -> str:
        """A constant that stands among the values a node reads."""
        name = f"k{len(self.values)}"
        constant = self.constant(name, elements)
        self.values[name] = Value(name, None, (), constant=constant, shape=constant.shape, dtype=constant.dtype)
        return name

    def constant(self, name: str, elements: Any, dtype: str | None = None) -> Constant:
        """Elements are rounded to the stored type, as a file would hold them (bfloat16 is given as it is)."""
        stored = dtype or self.dtype
        array = np.asarray(elements, dtype=np.float32 if stored == "bfloat16" else np.dtype(stored))
        return Constant(name, array.shape, stored, lambda: array)

    def node(
        self,
        op: str,
        data: Sequence[str],
        consts: Mapping[str, Any] | None = None,
        problem: str | None = None,
        outputs: int = 1,
        **attrs: Any,
    ) -> str:
        """Any node at all; constants are arrays, or (array, dtype). Of several results the first has the name."""
        index = len(self.nodes)
        name = f"{op}_{index}"
        held: dict[str, Constant] = {}
        for role, elements in (consts or {}).items():
            array, dtype = elements if isinstance(elements, tuple) else (elements, None)
            held[role] = self.constant(f"{name}.{role}", array, dtype)
        names = [f"y{index}", *[f"y{index}.{i}" for i in range(1, outputs)]]
        results = tuple(Value(name, index, (), dtype=self.dtype if self.known else None) for name in names)
        inputs = tuple(self.values[value] for value in data)
        self.nodes.append(Node(index, op, name, inputs, results, held, attrs, "", None, problem))
        self.values.update((result.name, result) for result in results)
        return names[0]

    def spread(
        self,
        x: str,
        weight: Any,
        bias: Any = None,
        *,
        strides: int = 2,
        pads: int = 0,
        dilations: int = 1,
        **attrs: Any,
    ) -> str:
        """A transposed conv; its weight is (in, out / groups, *window)."""
        rank = np.asarray(weight).ndim - 2
        consts = {"weight": weight} | ({} if bias is None else {"bias": bias})
        fixed = {"groups": 1, "output_padding": (0,) * rank} | attrs
        return self.node(
            "conv_transpose", [x], consts, strides=(strides,) * rank, pads=((pads, pads),) * rank,
            dilations=(dilations,) * rank, **fixed,
        )  # fmt: skip

    def linear(self, x: str, weight: Any, bias: Any = None, **attrs: Any) -> str:
        return self.node("linear", [x], {"weight": weight} | ({} if bias is None else {"bias": bias}), **attrs)

    def cut(self, x: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Any = None) -> str:
        lists = {"starts": starts, "ends": ends, "axes": axes, "steps": steps or [1] * len(axes)}
        return self.node("slice", [x], **{key: tuple(numbers) for key, numbers in lists.items()})

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        first = self.node("split", [x], outputs=len(sizes), axis=axis, sizes=tuple(sizes))
        return [first, *[f"{first}.{i}" for i in range(1, len(sizes))]]

    def concat(self, *x: str, axis: int = 1) -> str:
        return self.node("concat", x, axis=axis)

    def conv(
        self,
        x: str,
        weight: Any,
        bias: Any = None,
        *,
        pads: int | Pads = 0,
        strides: int | Sequence[int] = 1,
        dilations: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> str:
        weight = np.asarray(weight)
        rank = weight.ndim - 2
        consts = {"weight": weight} | ({} if bias is None else {"bias": bias})
        return self.node(
            "conv",
            [x],
            consts,
            strides=(strides,) * rank if isinstance(strides, int) else tuple(strides),
            pads=((pads, pads),) * rank if isinstance(pads, int) else tuple(tuple(ends) for ends in pads),
            dilations=(dilations,) * rank if isinstance(dilations, int) else tuple(dilations),
            groups=groups,
        )

    def bn(self, x: str, scale: Any, bias: Any, mean: Any, var: Any, eps: float = 1e-5) -> str:
        stored = float(np.float32(eps))
        return self.node("bn", [x], {"scale": scale, "bias": bias, "mean": mean, "var": var}, eps=stored)

    def norm(self, x: str, channels: int, rng: np.random.Generator) -> str:
        """A batch norm as training leaves it."""
        normal = rng.standard_normal((3, channels))
        return self.bn(x, 1 + 0.3 * normal[0], normal[1], normal[2], rng.uniform(0.3, 3.0, channels), 1e-3)

    def scale(self, x: str, factor: Any) -> str:
        return self.node("scale", [x], {"factor": factor})

    def shift(self, x: str, term: Any, sign: int = 1) -> str:
        return self.node("shift", [x], {"term": term}, sign=sign)

    def add(self, *x: str) -> str:
        return self.node("add" if len(x) == 2 else "sum", x)

    def sub(self, a: str, b: str) -> str:
        return self.node("sub", [a, b])

    def neg(self, x: str) -> str:
        return self.node("neg", [x])

    def region(self, exit: str | None = None, rest: Sequence[tuple[int, str]] = ()) -> Region:
        end = self.nodes[-1].output if exit is None else self.values[exit]
        return Region(self.values["x"], end, tuple(self.nodes), tuple((sign, self.values[v]) for sign, v in rest))


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Gaussian weights scaled as training leaves them: by the root of what one output reads."""
    fan = max(1, int(np.prod(shape[1:])))
    return rng.standard_normal(shape) / np.sqrt(fan)


def repvgg(
    channels: int,
    rng: np.random.Generator,
    *,
    stride: int = 1,
    skip: bool = False,
    normed: bool = True,
    inputs: int = 0,
) -> Block:
    """3x3 and 1x1, each with a norm if `normed`, and a normed skip: RepVGG, or RepConv of YOLOv9 without the skip."""
    block = Block()
    reads = inputs or channels
    branches: list[str] = []
    for kernel in (3, 1):
        weight = normal(rng, channels, reads, kernel, kernel)
        bias = None if normed else rng.standard_normal(channels)
        y = block.conv("x", weight, bias, pads=kernel // 2, strides=stride)
        branches.append(block.norm(y, channels, rng) if normed else y)
    if skip:
        branches.append(block.norm("x", channels, rng))
    total = branches[0]
    for branch in branches[1:]:
        total = block.add(total, branch)
    return block
