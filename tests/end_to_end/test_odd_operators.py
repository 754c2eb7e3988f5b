"""Operators with attributes and sizes that no runtime takes: a refusal or an error of ours, never anything else."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from rewriter import api
from rewriter.errors import FxRewriteError
from tests.end_to_end.sketch import C, Sketch

I64 = TensorProto.INT64
FAR = 1 << 40


def whole(s: Sketch, *numbers: int) -> list[str]:
    return [s.tensor([number], dtype=I64) for number in numbers]


def into_conv(s: Sketch, y: str, inputs: int = C) -> str:
    return s.conv(y, inputs=inputs)


def into_product(s: Sketch, y: str) -> str:
    return s.op("MatMul", y, s.tensor(s.normal(C, 3)))


def spread(s: Sketch, **attrs: object) -> str:
    return s.norm(s.op("ConvTranspose", s.input(), s.tensor(s.normal(C, C, 3, 3)), **attrs))


CASES = {
    "a slice of step 0": lambda s: into_conv(s, s.op("Slice", s.input(), *whole(s, 0, 3, 1, 0)), 3),
    "a slice of places of step 0": lambda s: into_conv(s, s.op("Slice", s.input(), *whole(s, 0, 3, 2, 0))),
    "a slice of axis 9": lambda s: into_conv(s, s.op("Slice", s.input(), *whole(s, 0, 3, 9, 1)), 3),
    "a split into nothing": lambda s: into_conv(s, s.op("Split", s.input(), *whole(s, 0), axis=1)),
    "a split of axis 7": lambda s: into_conv(s, s.op("Split", s.input(), axis=7)),
    "a sequence of nothing": lambda s: into_conv(
        s,
        s.op("SequenceAt", s.op("SplitToSequence", s.input(), s.tensor(0, dtype=I64), axis=1), s.tensor(0, dtype=I64)),
    ),
    "a concat of axis 9": lambda s: into_conv(s, s.op("Concat", s.input(), s.x, axis=9), 2 * C),
    "a transposition of fewer axes": lambda s: into_conv(s, s.op("Transpose", s.input(), perm=[0, 1])),
    "a reshape with two unknowns": lambda s: s.norm(
        s.op("Reshape", into_conv(s, s.input()), s.tensor([-1, -1, 0, 5, 0, 0], dtype=I64))
    ),
    "endless pads": lambda s: into_conv(s, s.op("Pad", s.input(), s.tensor([0, 0, FAR, 0, 0, 0, 0, 0], dtype=I64))),
    "endless cuts": lambda s: into_conv(s, s.op("Pad", s.input(), s.tensor([0, 0, -FAR, 0, 0, 0, 0, 0], dtype=I64))),
    "a transposed conv of stride 0": lambda s: spread(s, strides=[0, 1]),
    "a transposed conv of endless stride": lambda s: spread(s, strides=[FAR, 1]),
    "a transposed conv without groups": lambda s: spread(s, group=0),
    "a transposed conv that cuts all": lambda s: spread(s, pads=[9, 9, 9, 9]),
    "a transposed conv with too few sizes": lambda s: spread(s, output_padding=[1]),
    "an axis that is a text": lambda s: into_product(s, s.op("Flatten", s.norm(s.input((3, C))), axis="x")),
    "an axis named twice": lambda s: into_product(
        s, s.op("Squeeze", s.norm(s.input((3, C))), s.tensor([0, 0], dtype=I64))
    ),
    "an index out of range": lambda s: into_conv(
        s, s.op("Gather", s.input(), s.tensor([0, FAR], dtype=I64), axis=1), 2
    ),
    "an index that is a float": lambda s: into_conv(s, s.op("Gather", s.input(), s.tensor([0.5, 1]), axis=1), 2),
    "a product of nothing": lambda s: s.norm(s.op("MatMul", s.input((3, 0)), s.tensor(np.zeros((0, C)))), C),
    "a product of a vector": lambda s: s.op("Mul", into_product(s, s.input((C,))), s.tensor(s.normal(3))),
    "a product of a number": lambda s: s.op("Mul", into_product(s, s.input(())), s.tensor(s.normal(3))),
    "a pool of endless stride": lambda s: into_conv(
        s, s.op("AveragePool", s.input(), kernel_shape=[3, 3], strides=[FAR, 1])
    ),
    "convs of endless dilation": lambda s: into_conv(
        s, s.conv(s.input(), dilations=[1 << 30, 1], pads=[1 << 30, 1] * 2)
    ),
}


def model_of(name: str) -> ModelProto:
    sketch = Sketch()
    sketch.output(CASES[name](sketch))
    graph = helper.make_graph(sketch.nodes, "net", sketch.inputs, sketch.outputs, sketch.tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_a_refusal_or_an_error_of_ours(name: str) -> None:
    try:
        result = api.apply(model_of(name), ["all"], set_=["cost=off"], verify=False)
    except FxRewriteError:
        return
    assert result.report.end == "fixpoint"
