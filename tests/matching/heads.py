"""Small detection nets with a main and an auxiliary head, written node by node for the tests of outputs.

Invariant: levels are feature maps of 8 and 4 channels wide images; sizes are declared, and names say nothing of roles
unless a test asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rewriter.graph.view import Graph
from rewriter.matching.cones import Cones
from rewriter.matching.outputs import Decision

SIZE = 32
WIDTH = 8


class Net:
    """A graph under construction; every method gives the name of the value it makes."""

    def __init__(self, opset: int = 17) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.image = "image"
        self.opset = opset

    def add(self, op: str, inputs: Sequence[str], name: str = "", **attributes: object) -> str:
        output = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def weight(self, array: np.ndarray, name: str = "") -> str:
        self.weights.append(numpy_helper.from_array(array, name or f"w{len(self.weights)}"))
        return self.weights[-1].name

    def conv(self, x: str, wide: int = WIDTH, out: int = WIDTH, stride: int = 1, name: str = "") -> str:
        weight = self.weight(np.full((out, wide, 3, 3), 0.01, np.float32))
        return self.add("Conv", [x, weight], name, pads=[1, 1, 1, 1], strides=[stride, stride])

    def convs(self, x: str, count: int) -> str:
        for _ in range(count):
            x = self.conv(x)
        return x

    def up(self, x: str) -> str:
        scales = self.weight(np.array([1, 1, 2, 2], np.float32))
        return self.add("Resize", [x, "", scales], mode="nearest")

    def concat(self, *values: str) -> str:
        return self.add("Concat", values, axis=1)

    def decoded(self, maps: Sequence[str], name: str) -> str:
        """[1, 8, N] from maps: flattened and set side by side."""
        shape = self.weight(np.array([1, WIDTH, -1], np.int64))
        return self.add("Concat", [self.add("Reshape", [x, shape]) for x in maps], name, axis=2)

    def model(self, outputs: Sequence[tuple[str, Sequence[int | str]]], dtype: int = TensorProto.FLOAT) -> ModelProto:
        image = helper.make_tensor_value_info(self.image, TensorProto.FLOAT, [1, 3, SIZE, SIZE])
        made = [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, "net", [image], made, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


class Detector(Net):
    """Two pyramid levels on a backbone, an auxiliary head on a top-down path, the main one on a bottom-up path after.

    `aux_convs` deepens the auxiliary head; `pan` false leaves out the main bottom-up path. `main` and `aux` are the two
    raw maps of either head, the finer first.
    """

    def __init__(self, aux_convs: int = 0, main_convs: int = 0, *, pan: bool = True) -> None:
        super().__init__()
        fine = self.conv(self.image, 3, stride=2)
        coarse = self.conv(fine, stride=2)
        self.aux = self._topdown(fine, coarse, aux_convs)
        main_fine, main_coarse = self._topdown(fine, coarse, main_convs)
        if pan:
            down = self.conv(main_fine, stride=2)
            main_coarse = self.conv(self.concat(down, main_coarse), 2 * WIDTH)
        self.main = (main_fine, main_coarse)
        self.aux = (self.conv(self.aux[0]), self.conv(self.aux[1]))
        self.main = (self.conv(self.main[0]), self.conv(self.main[1]))

    def _topdown(self, fine: str, coarse: str, extra: int) -> tuple[str, str]:
        top = self.convs(coarse, 1 + extra)
        return self.conv(self.concat(self.up(top), fine), 2 * WIDTH), top


FINE, COARSE = (1, WIDTH, SIZE // 2, SIZE // 2), (1, WIDTH, SIZE // 4, SIZE // 4)
POINTS = (1, WIDTH, SIZE * SIZE // 4 + SIZE * SIZE // 16)


def dual(aux_convs: int = 0, main_convs: int = 0, *, pan: bool = True, raw: bool = False) -> ModelProto:
    """Decoded outputs `first` (auxiliary) and `second` (main), perhaps with the raw maps, auxiliary first."""
    net = Detector(aux_convs, main_convs, pan=pan)
    outputs = [(net.decoded(net.aux, "first"), POINTS), (net.decoded(net.main, "second"), POINTS)]
    if raw:
        outputs += list(zip((*net.aux, *net.main), (FINE, COARSE, FINE, COARSE), strict=True))
    return net.model(outputs)


def raw_maps(*, aux: bool = True, main: bool = True) -> tuple[ModelProto, tuple[str, str], tuple[str, str]]:
    """A model whose outputs are raw maps alone, and the names of the auxiliary and the main ones."""
    net = Detector()
    maps = [*(net.aux if aux else ()), *(net.main if main else ())]
    shapes = (FINE, COARSE, FINE, COARSE)[: len(maps)]
    return net.model(list(zip(maps, shapes, strict=True))), net.aux, net.main


def removal(graph: Graph, decision: Decision) -> tuple[int, int]:
    """How many nodes, and how many float parameters, only the removed outputs need."""
    cones = Cones.of(graph)
    mask = cones.mask(decision.removed)
    return len(cones.exclusive(mask)), cones.parameters(mask)
