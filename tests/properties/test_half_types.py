"""Generated affine blocks in float16 and bfloat16: the error of a fold stays that of the type.

The judge rounds after every node, as a runtime of that type does, and is held against the same file in float64.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rewriter import api
from tests.end_to_end.judging import doubled, noise, run, run_double
from tests.properties.test_affine_blocks import WIDTH, Block

RMS, LARGEST = 2.0, 4.0  # times the original's own error, as the algebra bounds a fold
SEEDS = range(40)


def single(model: ModelProto, kind: int, *, rounding: bool) -> ModelProto:
    """The model with every number of type `kind` as float32, rounded to `kind` after every node or not at all."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    del copy.graph.value_info[:]
    tensors = [a.t for node in copy.graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    for tensor in (*copy.graph.initializer, *tensors):
        if tensor.data_type == kind:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    if rounding:
        nodes = [made for node in copy.graph.node for made in _rounded(node, kind)]
        del copy.graph.node[:]
        copy.graph.node.extend(nodes)
    return copy


def _rounded(node: NodeProto, kind: int) -> list[NodeProto]:
    made: list[NodeProto] = [node]
    for place, name in enumerate(node.output):
        node.output[place] = f"{name}:exact"
        made.append(helper.make_node("Cast", [f"{name}:exact"], [f"{name}:rounded"], to=kind))
        made.append(helper.make_node("Cast", [f"{name}:rounded"], [name], to=TensorProto.FLOAT))
    return made


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt((values**2).mean()))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
def test_the_error_stays_within_that_of_the_type(kind: int) -> None:
    folded = 0
    for seed in SEEDS:
        block = Block(seed, kind)
        model = block.write()
        result = api.apply(model, ["collapse"], verify=False)
        folded += result.report.changed
        image = noise(1, WIDTH, *block.size, seed=seed)
        exact = run_double(doubled(single(model, kind, rounding=False)), {"x": image.astype(np.float64)})
        before, after = (run(single(m, kind, rounding=True), {"x": image}) for m in (model, result.model))
        for name, wanted in exact.items():
            own, found = (values[name].astype(np.float64) - wanted for values in (before, after))
            assert rms(found) <= RMS * rms(own), f"seed {seed}: {name}"
            assert np.abs(found).max() <= LARGEST * np.abs(own).max(), f"seed {seed}: {name}"
    assert folded >= 0.6 * len(SEEDS)
