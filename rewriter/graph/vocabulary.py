"""The one table of operators: canonical names, what they are called elsewhere, and what a pattern may ask of them.

Invariant: every place that knows an operator by name reads it from here (front ends, pattern files, the reference page,
the schema). A native operator outside the table appears in views under its own name in lower case, and no pattern
file can name it. The module imports nothing of the project, so that reading pattern files stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class AttributeKind(StrEnum):
    """What an attribute of an operator is, which decides what a predicate may compare it with."""

    AXES = "whole number per axis"
    INT = "whole number"
    NUMBER = "number"
    FLAG = "flag"
    TYPE = "element type"

    @property
    def numeric(self) -> bool:
        return self in (AttributeKind.AXES, AttributeKind.INT, AttributeKind.NUMBER)

    @property
    def whole(self) -> bool:
        return self in (AttributeKind.AXES, AttributeKind.INT)


@dataclass(frozen=True, slots=True)
class Attribute:
    name: str
    kind: AttributeKind
    doc: str


@dataclass(frozen=True, slots=True)
class Operator:
    """One canonical operator.

    `onnx`, `aten` and `modules` are its native forms; `also` says in words what else reads as it. `joins` marks ones
    of several data inputs (or outputs), which no path of a pattern can step through. `consts` are the roles of its
    constants.
    """

    name: str
    doc: str
    onnx: tuple[str, ...] = ()
    aten: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    consts: tuple[str, ...] = ()
    shape: str = "same"
    joins: bool = False
    also: str = ""

    def attribute(self, name: str) -> Attribute | None:
        return next((a for a in self.attributes if a.name == name), None)


DTYPES = (
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
)
"""The element types that `cast[to=…]` may name."""

_OUT = Attribute("out", AttributeKind.INT, "channels or features it gives")
_IN = Attribute("in", AttributeKind.INT, "channels or features it reads")
_K = Attribute("k", AttributeKind.AXES, "extent of the window")
_STRIDE = Attribute("stride", AttributeKind.AXES, "step of the window")
_PAD = Attribute("pad", AttributeKind.AXES, "padding on both sides of an axis; compared for every side")
_DILATION = Attribute("dilation", AttributeKind.AXES, "distance between the taps")
_REACH = Attribute("reach", AttributeKind.AXES, "dilation * (k - 1) + 1, the extent of what one output reads")
_GROUPS = Attribute("groups", AttributeKind.INT, "number of channel groups")
_DEPTHWISE = Attribute("depthwise", AttributeKind.FLAG, "as many groups as input channels, and more than one")
_POINTWISE = Attribute("pointwise", AttributeKind.FLAG, "window 1 and stride 1 on every axis")
_COMPUTED = Attribute("computed", AttributeKind.FLAG, "its kernel is computed in the graph, of stored tensors")
_CONV = (_K, _STRIDE, _PAD, _DILATION, _GROUPS, _OUT, _IN, _REACH, _DEPTHWISE, _POINTWISE, _COMPUTED)
_POOL = (_K, _STRIDE, _PAD)
_VALUE = "the constant, where all its elements are equal"

_TABLE = (
    Operator(
        "conv",
        "Convolution of any rank, groups, stride and dilation, with or without bias.",
        onnx=("Conv",),
        aten=("conv1d", "conv2d", "conv3d", "convolution"),
        modules=("Conv1d", "Conv2d", "Conv3d"),
        attributes=_CONV,
        consts=("weight", "bias"),
        shape="window",
    ),
    Operator(
        "conv_transpose",
        "Transposed convolution.",
        onnx=("ConvTranspose",),
        aten=("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        modules=("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
        attributes=_CONV,
        consts=("weight", "bias"),
        shape="window",
    ),
    Operator(
        "linear",
        "Features times a constant matrix, with or without bias.",
        aten=("linear", "addmm", "mm"),
        onnx=("Gemm",),
        modules=("Linear",),
        attributes=(_OUT, _IN),
        consts=("weight", "bias"),
        shape="features",
        also="MatMul by a constant, with the Add of its bias",
    ),
    Operator(
        "bn",
        "Batch norm in its inference form, with constant statistics.",
        onnx=("BatchNormalization",),
        aten=("batch_norm", "_native_batch_norm_legit_no_training"),
        modules=("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"),
        attributes=(Attribute("eps", AttributeKind.NUMBER, "added to the variance"),),
        consts=("scale", "bias", "mean", "var"),
    ),
    Operator(
        "scale",
        "Multiplication by a constant number or by a constant per channel.",
        attributes=(Attribute("value", AttributeKind.NUMBER, _VALUE),),
        consts=("factor",),
        also="Mul or Div with one constant operand",
    ),
    Operator(
        "shift",
        "Addition of a constant number or of a constant per channel.",
        attributes=(Attribute("value", AttributeKind.NUMBER, _VALUE),),
        consts=("term",),
        also="Add or Sub with one constant operand",
    ),
    Operator("add", "Sum of two values.", onnx=("Add",), aten=("add",), joins=True),
    Operator("sub", "Difference of two values.", onnx=("Sub",), aten=("sub", "rsub"), joins=True),
    Operator("sum", "Sum of any number of values.", onnx=("Sum",), aten=("sum",), joins=True),
    Operator("mul", "Product of two values.", onnx=("Mul",), aten=("mul",), joins=True),
    Operator("div", "Quotient of two values.", onnx=("Div",), aten=("div",), joins=True),
    Operator("neg", "Change of sign.", onnx=("Neg",), aten=("neg",)),
    Operator("identity", "Its input as it is.", onnx=("Identity",), aten=("clone", "alias"), modules=("Identity",)),
    Operator(
        "dropout",
        "Dropout in its inference form.",
        onnx=("Dropout",),
        aten=("dropout", "feature_dropout"),
        modules=("Dropout", "Dropout1d", "Dropout2d", "Dropout3d"),
    ),
    Operator(
        "cast",
        "Change of element type.",
        onnx=("Cast", "CastLike"),
        aten=("_to_copy", "to"),
        attributes=(
            Attribute("to", AttributeKind.TYPE, "element type it gives"),
            Attribute("from", AttributeKind.TYPE, "element type it reads"),
        ),
    ),
    Operator(
        "pad",
        "Padding of spatial axes as an operator of its own.",
        onnx=("Pad",),
        aten=("pad", "constant_pad_nd"),
        modules=("ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "ConstantPad2d"),
        attributes=(Attribute("amount", AttributeKind.INT, "the most it adds or removes on any side of any axis"),),
        shape="window",
    ),
    Operator(
        "border",
        "A ring written around a value, as exporters write the padding of DBB and ECB.",
        shape="window",
        also="Pad, ScatterND or Concat that together write constants around a core",
    ),
    Operator("relu", "max(x, 0).", onnx=("Relu",), aten=("relu",), modules=("ReLU",)),
    Operator(
        "leaky_relu",
        "x where positive, slope * x elsewhere.",
        onnx=("LeakyRelu",),
        aten=("leaky_relu",),
        modules=("LeakyReLU",),
        attributes=(Attribute("slope", AttributeKind.NUMBER, "the factor of negative elements"),),
    ),
    Operator("sigmoid", "1 / (1 + exp(-x)).", onnx=("Sigmoid",), aten=("sigmoid",), modules=("Sigmoid",)),
    Operator("silu", "x * sigmoid(x) as one operator.", onnx=("Swish",), aten=("silu",), modules=("SiLU",)),
    Operator("tanh", "Hyperbolic tangent.", onnx=("Tanh",), aten=("tanh",), modules=("Tanh",)),
    Operator("gelu", "Gaussian error linear unit.", onnx=("Gelu",), aten=("gelu",), modules=("GELU",)),
    Operator("hardswish", "x * clip(x/6 + 1/2).", onnx=("HardSwish",), aten=("hardswish",), modules=("Hardswish",)),
    Operator(
        "clip",
        "Limits below and above.",
        onnx=("Clip",),
        aten=("clamp", "hardtanh"),
        modules=("ReLU6", "Hardtanh"),
        consts=("min", "max"),
    ),
    Operator(
        "avg_pool",
        "Mean over a window.",
        onnx=("AveragePool",),
        aten=("avg_pool1d", "avg_pool2d", "avg_pool3d"),
        modules=("AvgPool1d", "AvgPool2d", "AvgPool3d"),
        attributes=_POOL,
        shape="window",
    ),
    Operator(
        "max_pool",
        "Maximum over a window.",
        onnx=("MaxPool",),
        aten=("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"),
        modules=("MaxPool1d", "MaxPool2d", "MaxPool3d"),
        attributes=(*_POOL, _DILATION),
        shape="window",
    ),
    Operator(
        "softmax",
        "Exponentials that sum to one along an axis.",
        onnx=("Softmax",),
        aten=("softmax", "_softmax"),
        modules=("Softmax",),
    ),
    Operator(
        "layer_norm",
        "Norm over the last axes.",
        onnx=("LayerNormalization",),
        aten=("layer_norm", "native_layer_norm"),
        modules=("LayerNorm",),
        consts=("scale", "bias"),
    ),
    Operator(
        "slice",
        "Part of a value along axes.",
        onnx=("Slice",),
        aten=("slice", "narrow", "select"),
        shape="free",
    ),
    Operator(
        "concat",
        "Values one after another along an axis.",
        onnx=("Concat",),
        aten=("cat",),
        shape="free",
        joins=True,
    ),
    Operator(
        "split",
        "A value cut into several along an axis.",
        onnx=("Split",),
        aten=("split", "split_with_sizes", "chunk"),
        shape="free",
        joins=True,
    ),
    Operator("reshape", "The elements under other extents.", onnx=("Reshape",), aten=("view", "reshape"), shape="free"),
    Operator("transpose", "Axes in another order.", onnx=("Transpose",), aten=("permute", "transpose"), shape="free"),
    Operator(
        "expand",
        "Axes of extent one repeated.",
        onnx=("Expand",),
        aten=("expand",),
        shape="free",
    ),
    Operator(
        "gather",
        "Places along an axis, in a constant order.",
        onnx=("Gather",),
        aten=("index_select",),
        consts=("indices",),
        shape="free",
    ),
    Operator(
        "scatter_nd",
        "A value with constants written into it.",
        onnx=("ScatterND",),
        aten=("index_put", "slice_scatter", "select_scatter"),
        consts=("indices", "updates"),
    ),
    Operator(
        "assign",
        "A value with constants written over a slice of it.",
        consts=("values",),
    ),
    Operator(
        "where",
        "One of two values, element by element, by a constant condition.",
        onnx=("Where",),
        aten=("where",),
        consts=("condition",),
        joins=True,
    ),
    Operator("squeeze", "Axes of extent one removed.", onnx=("Squeeze",), aten=("squeeze",), shape="free"),
    Operator("unsqueeze", "Axes of extent one added.", onnx=("Unsqueeze",), aten=("unsqueeze",), shape="free"),
    Operator(
        "resize",
        "Interpolation to another size.",
        onnx=("Resize", "Upsample"),
        aten=("upsample_nearest2d", "upsample_bilinear2d"),
        modules=("Upsample",),
        shape="free",
    ),
)

OPERATORS: Mapping[str, Operator] = MappingProxyType({operator.name: operator for operator in _TABLE})
"""The table, by canonical name, in the order of the reference page."""

FOLD_KINDS = ("conv", "conv_transpose", "linear")
"""What `do fold to …` may name."""

_BY_ONNX: Mapping[str, str] = MappingProxyType({native: op.name for op in _TABLE for native in op.onnx})


def canonical_name(onnx_type: str) -> str:
    """The canonical name of an ONNX operator of the default domain; its own in lower case where the table has none."""
    return _BY_ONNX.get(onnx_type, onnx_type.lower())
