"""Random graphs of everything that folds or nearly folds: whatever is rewritten, the outputs stay what they were.

A graph is a function of its seed. Nothing says what must fold; it counts that enough of it did.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from onnx import ModelProto

from rewriter import api
from tests.end_to_end.judging import noise, relative, run
from tests.end_to_end.sketch import C, H, Sketch, W

LIMIT = 2e-5  # of the largest value, after up to eighteen layers in float32; wrong folds are off by 1e-2 and more
BATCH = 50
FAST, ALL = 6, 40  # batches
CONSTANTS = ((1, C, 1, 1), (C, 1, 1), (1,), (), (1, 1, 1, 1))


class Writer:
    """One random graph under way."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.sketch = Sketch(seed=seed)
        self.free = self.chance.random() < 0.3
        self.values = [self.sketch.input(("N", C, "H", "W") if self.free else (1, C, H, W))]

    def pick(self) -> str:
        near = self.chance.random() < 0.7
        return self.chance.choice(self.values[-4:] if near else self.values)

    def constant(self, *, ones: bool = False) -> str:
        shape = self.chance.choice(CONSTANTS)
        return self.sketch.tensor(self.sketch.uniform(*shape) if ones else self.sketch.normal(*shape))

    def conv(self, x: str) -> str:
        kernel = self.chance.choice([1, 3, 5, (1, 3), (3, 1)])
        return self.sketch.conv(x, kernel=kernel, bias=self.chance.random() < 0.5)

    def grouped(self, x: str) -> str:
        return self.sketch.conv(x, kernel=self.chance.choice([1, 3]), groups=self.chance.choice([2, C]))

    def same(self, x: str) -> str:
        mode = self.chance.choice(["SAME_UPPER", "SAME_LOWER"])
        return self.sketch.conv(x, kernel=self.chance.choice([2, 3, 4]), auto_pad=mode)

    def branch(self, x: str) -> str:
        """A branch of a block, or what only looks like one."""
        kind = self.chance.randrange(9)
        if kind < 4:
            return self.sketch.norm((self.conv, self.conv, self.grouped, self.same)[kind](x))
        if kind < 6:
            return self.conv(x)
        if kind == 6:
            return x
        return self.sketch.norm(x) if kind == 7 else self.scaled(self.conv(x))

    def block(self, x: str) -> str:
        branches = [self.branch(x) for _ in range(self.chance.randint(2, 4))]
        while len(branches) > 1:
            self.chance.shuffle(branches)
            kind = "Add" if self.chance.random() < 0.9 else "Sub"
            branches.append(self.sketch.op(kind, branches.pop(), branches.pop()))
        return branches[0]

    def total(self, x: str) -> str:
        return self.sketch.op("Sum", x, *(self.pick() for _ in range(self.chance.randint(0, 3))))

    def arithmetic(self, x: str) -> str:
        return self.sketch.op(self.chance.choice(["Add", "Sub"]), x, self.pick())

    def scaled(self, x: str) -> str:
        kind = self.chance.choice(["Add", "Mul", "Sub"])
        operands = [x, self.constant(ones=kind == "Mul")]
        self.chance.shuffle(operands)
        return self.sketch.op(kind, *operands)

    def nothing(self, x: str) -> str:
        s = self.sketch
        kind = self.chance.randrange(5)
        if kind == 0:
            return s.op("Identity", x)
        if kind == 1:
            return s.op("Dropout", x)
        if kind == 2:
            return s.op("Mul", s.tensor(1.0), x)
        return s.op("Add", x, s.constant(0.0)) if kind == 3 else s.op("LeakyRelu", x, alpha=1.0)

    def active(self, x: str) -> str:
        kind = self.chance.choice(["Relu", "Tanh", "Neg", "gate", "pool"])
        if kind == "gate":
            return self.sketch.op("Mul", x, self.sketch.op("Sigmoid", self.pick()))
        if kind == "pool":
            return self.sketch.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
        return self.sketch.op(kind, x)

    def write(self) -> ModelProto:
        s = self.sketch
        makers: list[Callable[[str], str]] = [self.block, self.block, self.conv, self.grouped, self.same, self.total]
        makers += [self.arithmetic, self.scaled, self.nothing, self.active, self.active, s.norm]
        for _ in range(self.chance.randint(3, 9)):
            self.values.append(self.chance.choice(makers)(self.pick()))
        seen = {value for value in self.values[1:-1] if self.chance.random() < 0.12} - {self.values[0]}
        s.output(*sorted(seen | {s.op("Softsign", self.values[-1])}))
        if self.chance.random() < 0.2:
            self.chance.shuffle(s.nodes)
        return s.finish()


def judge(seed: int) -> Counter[str]:
    writer = Writer(seed)
    before = writer.write()
    result = api.apply(before, ["all"], verify=False)
    again = api.apply(result.model, ["all"], verify=False)
    assert not again.report.changed, f"seed {seed}: the second apply found {again.report.matches}"
    shape = (2, C, 7, 9) if writer.free else (1, C, H, W)
    for turn in range(2):
        feeds = {"x": noise(*shape, seed=turn)}
        wanted, found = run(before, feeds), run(result.model, feeds)
        off = max(relative(found[name], wanted[name]) for name in wanted)
        assert off <= LIMIT, f"seed {seed}: off by {off:g}"
    return Counter(record.pattern for record in result.report.matches)


@pytest.mark.parametrize("batch", [pytest.param(b, marks=() if b < FAST else pytest.mark.slow) for b in range(ALL)])
def test_random_graphs_compute_the_same(batch: int) -> None:
    done: Counter[str] = Counter()
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        done += judge(seed)
    assert done["repconv"] >= 5 and done["conv-bn"] >= 3 and done["bypass"] >= 5, done
