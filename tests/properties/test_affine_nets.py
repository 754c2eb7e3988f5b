"""Random nets of everything the algebra reads: convs in rows, borders, channels, views and products, in any order.

A net is a function of its seed and keeps its extents known to the runtime only. Nothing says what must fold; it is held
that outputs stay, that no fold was planned which the proof then refused, and that enough nets become smaller.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

import pytest
from onnx import ModelProto, TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, RuntimeException

from rewriter import api
from tests.end_to_end.judging import noise, relative, run
from tests.end_to_end.sketch import Sketch

Image: TypeAlias = "tuple[str, int]"
"""A value and its channels."""

LIMIT = 2e-5  # of the largest value, after up to nine layers in float32; wrong folds are off by 1e-2 and more
BATCH = 60
FAST, ALL = 4, 40  # batches
WHOLE = TensorProto.INT64
UNRUNNABLE = (Fail, InvalidArgument, InvalidGraph, RuntimeException)
"""What the runtime raises for a net whose sizes do not work out, as some drawn ones do not."""


class Net:
    """One random net under way."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.sketch = Sketch(seed=seed)
        self.size = (self.chance.choice([1, 2]), self.chance.choice([2, 4]), *self.chance.choice([(8, 7), (9, 10)]))
        free = ("n", self.size[1], "h", "w")
        self.images: list[Image] = [
            (self.sketch.input(self.size if self.chance.random() < 0.5 else free), self.size[1])
        ]

    def whole(self, *numbers: int) -> str:
        return self.sketch.tensor(list(numbers), dtype=WHOLE)

    def conv(self, x: str, width: int) -> Image:
        made = self.chance.choice([2, 4])
        kernel, groups = self.chance.choice([1, 1, 2, 3]), self.chance.choice([1, 2])
        groups = groups if width % groups == 0 else 1
        stride, dilation = self.chance.choice([1, 1, 1, 2]), self.chance.choice([1, 1, 2])
        pads = [self.chance.choice([0, 0, 1]) for _ in range(4)]
        y = self.sketch.conv(
            x, made, kernel, inputs=width, groups=groups, pads=pads, bias=self.chance.random() < 0.3,
            strides=[stride] * 2, dilations=[dilation] * 2,
        )  # fmt: skip
        return y, made

    def spread(self, x: str, width: int) -> Image:
        made, stride = self.chance.choice([2, 4]), self.chance.choice([1, 2])
        weight = self.sketch.tensor(self.sketch.normal(width, made, 2, 2))
        pads = [self.chance.choice([0, 1]) for _ in range(4)]
        return self.sketch.op("ConvTranspose", x, weight, strides=[stride] * 2, pads=pads), made

    def per_channel(self, x: str, width: int) -> Image:
        kind = self.chance.choice(["norm", "Mul", "Add"])
        if kind == "norm":
            return self.sketch.norm(x, width), width
        return self.sketch.op(kind, x, self.sketch.tensor(self.sketch.normal(width, 1, 1))), width

    def pad(self, x: str, width: int) -> Image:
        sides = [self.chance.choice([0, 1, -1]) for _ in range(4)]
        fill = [self.sketch.tensor(0.5)] if self.chance.random() < 0.3 else []
        return self.sketch.op("Pad", x, self.whole(0, 0, *sides[:2], 0, 0, *sides[2:]), *fill), width

    def pool(self, x: str, width: int) -> Image:
        window, stride = self.chance.choice([1, 2, 3]), self.chance.choice([1, 2])
        counts, rounds = self.chance.choice([0, 1]), self.chance.choice([0, 0, 1])
        pads = [self.chance.choice([0, window // 2])] * 4
        more = {"count_include_pad": counts, "ceil_mode": rounds, "pads": pads}
        return self.sketch.op("AveragePool", x, kernel_shape=[window] * 2, strides=[stride] * 2, **more), width

    def channels(self, x: str, width: int) -> Image:
        if self.chance.random() < 0.5:
            chosen = [self.chance.randrange(-width, width) for _ in range(self.chance.choice([2, 4]))]
            return self.sketch.op("Gather", x, self.whole(*chosen), axis=1), len(chosen)
        first = self.chance.randrange(width)
        last = self.chance.randrange(first + 1, width + 1)
        return self.sketch.op("Slice", x, self.whole(first), self.whole(last), self.whole(1)), last - first

    def places(self, x: str, width: int) -> Image:
        start, end = self.chance.choice([0, 1, -3]), self.chance.choice([2**31 - 1, -1, 5, 2**62])
        axis, step = self.chance.choice([2, 3, -1]), self.chance.choice([1, 2])
        return self.sketch.op("Slice", x, *map(self.whole, (start, end, axis, step))), width

    def product(self, x: str, width: int) -> Image:
        made = self.chance.choice([2, 4])
        y = self.sketch.op("Transpose", x, perm=[0, 2, 3, 1])
        y = self.sketch.op("MatMul", y, self.sketch.tensor(self.sketch.normal(width, made)))
        if self.chance.random() < 0.5:
            y = self.sketch.op("Add", y, self.sketch.tensor(self.sketch.normal(made)))
        return self.sketch.op("Transpose", y, perm=[0, 3, 1, 2]), made

    def joined(self) -> None:
        (a, width), (b, other) = self.chance.choice(self.images), self.chance.choice(self.images)
        kind = self.chance.choice(["Add", "Sub", "Concat"])
        if kind == "Concat":
            self.images.append((self.sketch.op(kind, a, b, axis=1), width + other))
        elif width == other:
            self.images.append((self.sketch.op(kind, a, b), width))

    def tokens(self, x: str, width: int) -> str:
        """Rows of channels: a view, perhaps a norm, a product, perhaps a norm behind another view."""
        y = self.sketch.op("Reshape", x, self.whole(0, width, -1))
        y = self.sketch.norm(y, width) if self.chance.random() < 0.5 else y
        y = self.sketch.op("Transpose", y, perm=[0, 2, 1])
        y = self.sketch.op("MatMul", y, self.sketch.tensor(self.sketch.normal(width, 3)))
        if self.chance.random() < 0.5:
            y = self.sketch.op("Mul", y, self.sketch.tensor(self.sketch.normal(3)))
        if self.chance.random() < 0.5:
            y = self.sketch.norm(self.sketch.op("Reshape", y, self.whole(-1, 3)), 3)
        return y

    def write(self) -> ModelProto:
        steps: list[Callable[[str, int], Image]] = [self.conv, self.conv, self.conv, self.per_channel, self.per_channel]
        steps += [self.pad, self.pool, self.channels, self.places, self.product, self.spread]
        for _ in range(self.chance.randint(3, 9)):
            if len(self.images) > 1 and self.chance.random() < 0.35:
                self.joined()
                continue
            base = self.images[-1] if self.chance.random() < 0.7 else self.chance.choice(self.images)
            self.images.append(self.chance.choice(steps)(*base))
        last = self.images[-1]
        self.sketch.output(self.tokens(*last) if self.chance.random() < 0.3 else self.sketch.op("Relu", last[0]))
        if self.chance.random() < 0.3:
            self.sketch.output(self.sketch.op("Sigmoid", self.chance.choice(self.images)[0]))
        return self.sketch.finish()


def check(seed: int) -> tuple[bool, str]:
    """Whether a net became smaller, and what is wrong with what became of it; empty when nothing is."""
    net = Net(seed)
    model = net.write()
    feeds = {"x": noise(*net.size, seed=seed)}
    try:
        before = run(model, feeds)
    except UNRUNNABLE:
        return False, ""
    if not all(value.size for value in before.values()):
        return False, ""
    result = api.apply(model, ["all"], set_=["cost=off"] if seed % 2 else [], verify=False)
    doubted = [r for r in result.report.refusals if "differs by" in r.detail or "cannot be proved" in r.detail]
    if doubted:
        return True, f"seed {seed}: {doubted[0].node}: {doubted[0].detail}"
    for name, value in run(result.model, feeds).items():
        if value.shape != before[name].shape or relative(value, before[name]) > LIMIT:
            return True, f"seed {seed}: {name} is off"
    return result.report.changed, ""


@pytest.mark.parametrize("batch", [pytest.param(n, marks=[pytest.mark.slow] if n >= FAST else []) for n in range(ALL)])
def test_nets_compute_what_they_did(batch: int) -> None:
    results = [check(seed) for seed in range(batch * BATCH, (batch + 1) * BATCH)]
    assert [wrong for _, wrong in results if wrong] == []
    assert sum(changed for changed, _ in results) >= 0.1 * BATCH
