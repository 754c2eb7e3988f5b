"""Nets of tests as models.

Invariant: the same net, form and seed give the same bytes, and the model is valid.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rewriter.errors import PatternError, UsageError
from rewriter.language.netbuilder import Builder, error
from rewriter.language.source import clean, quote
from rewriter.language.syntax import Net

if TYPE_CHECKING:
    import onnx

IR_VERSION = 10
OPSET = 17
MAX_FILE = 64 << 20
FORMS = ("onnx",)


def build_net(net: Net, form: str = "onnx", seed: int = 0, folder: Path | None = None) -> onnx.ModelProto:
    """The model that a net describes; `folder` is where `file("…")` is looked for."""
    if form not in FORMS:
        raise UsageError(f"unknown form {quote(form)} of a net; there is {', '.join(FORMS)}")
    if net.file is not None:
        return _load(net, net.file, folder)
    builder = Builder(np.random.default_rng(seed))
    for statement in net.statements:
        builder.statement(statement.name, statement.chain)
    return _model(builder)


def _model(builder: Builder) -> onnx.ModelProto:
    import onnx
    from onnx import helper

    inputs = [
        helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, value.shape)
        for value in builder.inputs.values()
    ]
    names = [name for name in builder.values if name not in builder.read and name not in builder.inputs]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    graph = helper.make_graph(builder.nodes, "net", inputs, outputs, builder.tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fxrewrite")
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model)  # pyright: ignore[reportUnknownMemberType]
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as problem:
        raise PatternError(f"the net is not a valid model: {clean(str(problem))[:400]}") from None
    del model.graph.value_info[:]
    return model


def _load(net: Net, name: str, folder: Path | None) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if folder is None:
        raise error(net, f"the model {quote(name)} has no folder to be looked for in")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise error(net, f"there is no model {quote(name)} beside the pattern file")
    if path.stat().st_size > MAX_FILE:
        raise error(net, f"the model {quote(name)} is larger than {MAX_FILE >> 20} MiB")
    try:
        return onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise error(net, f"{quote(name)} is not an ONNX model") from None
