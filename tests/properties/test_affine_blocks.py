"""Generated affine blocks: `collapse` leaves one convolution, near-misses keep what they must, numbers stay.

A block is a function of its seed. Foldability is labelled by how the block was built, never by asking the engine: a sum
of convolutions of one entry whose windows line up by their pads is one convolution; a branch that passes through a
non-linear step, a reader outside, or an output inside is not to be folded away. Numbers are held against a float64 run
by torch of the block as it was built, not of the file.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from onnx import ModelProto

from fixtures.judge import op_histogram
from rewriter import api
from tests.end_to_end.judging import doubled, noise, run, run_double
from tests.end_to_end.sketch import Sketch

BATCH = 250
FAST, ALL = 8, 40  # batches
SIZE = (7, 6)
NEAR_MISSES = ("relu inside", "second reader", "output inside")


@dataclass
class Block:
    """A block under way, with the label its construction gives it."""

    seed: int
    miss: str = ""
    widths: int = 4
    sequential: bool = False
    foldable: bool = True
    extra: list[str] = field(default_factory=list[str])

    def write(self) -> ModelProto:
        chance = random.Random(self.seed)
        sketch = Sketch(seed=self.seed)
        x = sketch.input((1, self.widths, *SIZE))
        self.miss = chance.choice(NEAR_MISSES) if chance.random() < 0.3 else ""
        self.foldable = not self.miss
        stride, groups = chance.choice([1, 1, 1, 2]), chance.choice([1, 1, 2, 4])
        branches = [self.branch(sketch, chance, x, stride, groups) for _ in range(chance.randint(2, 4))]
        if stride == 1 and chance.random() < 0.4:
            branches.append(x if chance.random() < 0.5 else sketch.norm(x, self.widths))
        if self.miss == "relu inside":
            branches[0] = sketch.op("Relu", branches[0])
        chance.shuffle(branches)
        total = _joined(sketch, chance, branches)
        inner = total
        if self.miss in ("second reader", "output inside") or chance.random() < 0.3:
            total = sketch.norm(total, self.widths)
        if self.miss == "second reader":
            self.extra.append(sketch.op("Sigmoid", inner))
        elif self.miss == "output inside":
            self.extra.append(inner)
        sketch.output(total, *self.extra)
        return sketch.finish()

    def branch(self, sketch: Sketch, chance: random.Random, x: str, stride: int, groups: int) -> str:
        """A convolution of any window that keeps the grid, perhaps normed, scaled or behind a pointwise one."""
        width = self.widths
        window = [chance.choice([1, 2, 3, 5]) for _ in SIZE]
        dilation = [chance.choice([1, 2]) for _ in SIZE]
        spare = [d * (k - 1) for k, d in zip(window, dilation, strict=True)]
        first = [chance.randint(0, total) for total in spare]
        pads = [*first, *(total - begin for total, begin in zip(spare, first, strict=True))]
        entry = x
        if self.sequential and chance.random() < 0.5:  # exact: without a bias it gives zero where the next one pads
            entry = sketch.conv(x, width, 1, inputs=width)
        made = sketch.conv(
            entry, width, window, inputs=width, groups=groups, pads=pads, bias=chance.random() < 0.5,
            strides=[stride] * 2, dilations=dilation,
        )  # fmt: skip
        if chance.random() < 0.6:
            made = sketch.norm(made, width)
        if chance.random() < 0.2:
            made = sketch.op("Mul", made, sketch.tensor(sketch.uniform(1, width, 1, 1)))
        return made


def _joined(sketch: Sketch, chance: random.Random, branches: list[str]) -> str:
    """The sum in any nesting."""
    terms = list(branches)
    while len(terms) > 1:
        first, second = terms.pop(chance.randrange(len(terms))), terms.pop(chance.randrange(len(terms)))
        terms.append(sketch.op("Add", first, second))
    return terms[0]


def check(seed: int, sequential: bool = False) -> tuple[bool, str]:
    """Whether the block of `seed` is foldable, and what is wrong with what became of it; empty when nothing is."""
    block = Block(seed, sequential=sequential)
    model = block.write()
    after = api.apply(model, ["collapse"], set_=["cost=off"], verify=False).model
    counts = op_histogram(after)
    feeds = {"x": noise(1, block.widths, *SIZE, seed=seed)}
    exact = run_double(doubled(model), {"x": feeds["x"].astype(np.float64)})
    for name, value in run(after, feeds).items():
        scale = max(float(np.abs(exact[name]).max()), 1.0)
        if float(np.abs(value - exact[name]).max()) > 2e-5 * scale:
            return block.foldable, f"seed {seed}: {name} is off ({block.miss or 'foldable'})"
    whole = dict(counts) == {"Conv": 1}
    if block.foldable and not whole:
        return True, f"seed {seed}: foldable, left {dict(counts)}"
    if not block.foldable and whole:
        return False, f"seed {seed}: {block.miss}, yet one convolution is left"
    return block.foldable, ""


@pytest.mark.parametrize("batch", [pytest.param(n, marks=[pytest.mark.slow] if n >= FAST else []) for n in range(ALL)])
def test_foldable_blocks_become_one_convolution_and_near_misses_do_not(batch: int) -> None:
    results = [check(seed) for seed in range(batch * BATCH, (batch + 1) * BATCH)]
    assert [wrong for _, wrong in results if wrong] == []
    assert sum(foldable for foldable, _ in results) >= 0.6 * BATCH


def test_a_pointwise_convolution_without_bias_folds_into_a_padded_one() -> None:
    assert [wrong for _, wrong in (check(seed, sequential=True) for seed in range(40)) if wrong] == []
