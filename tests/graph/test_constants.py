"""Constants that nodes compute: bit for bit what a runtime computes, within budgets, unknown where that is unclear."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rewriter.graph.constants import BUDGET, integers, resolve
from rewriter.graph.onnx import view
from rewriter.graph.tensors import numpy_dtype
from rewriter.graph.view import Constant

Array = npt.NDArray[Any]
DTYPES = ("float16", "bfloat16", "float32", "float64")


def constant(elements: Any, dtype: str = "float32", name: str = "c") -> Constant:
    array = np.asarray(elements).astype(numpy_dtype(dtype))
    return Constant(name, array.shape, dtype, lambda: array)


def whole(*elements: int) -> Constant:
    return constant(np.array(elements, dtype=np.int64), "int64", "list")


def made(op: str, *inputs: Constant, **attrs: Any) -> Constant | None:
    return resolve(op, "out", inputs, attrs)


def values(op: str, *inputs: Constant, **attrs: Any) -> Array:
    found = made(op, *inputs, **attrs)
    assert found is not None
    loaded = found.load()
    assert (found.name, loaded.shape, loaded.dtype) == ("out", found.shape, numpy_dtype(found.dtype))
    return loaded


def random(shape: Sequence[int], dtype: str, seed: int = 0) -> Constant:
    spread = np.random.default_rng(seed).standard_normal(shape) * 10.0 ** np.arange(-3, shape[-1] - 3)
    return constant(spread, dtype, f"r{seed}")


# --- the same numbers as a runtime ---------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic_rounds_at_every_node_as_the_stored_type_does(op: str, dtype: str) -> None:
    a, b = random((3, 1, 7), dtype), random((5, 7), dtype, 1)
    function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op]
    with np.errstate(all="ignore"):
        native = function(a.load(), b.load())  # numpy and ml_dtypes round each operation to the type
    assert native.dtype == numpy_dtype(dtype)
    np.testing.assert_array_equal(values(op, a, b), native)
    found = made(op, a, b)
    assert found is not None and found.made_of == ("r0", "r1") and found.dtype == dtype


@given(st.lists(st.floats(width=32), min_size=2, max_size=2), st.sampled_from(["Add", "Sub", "Mul", "Div"]))
@settings(max_examples=200, deadline=None)
def test_float32_arithmetic_is_the_correctly_rounded_one(pair: list[float], op: str) -> None:
    a, b = (np.float32(x) for x in pair)
    with np.errstate(all="ignore"):
        native = {"Add": a + b, "Sub": a - b, "Mul": a * b, "Div": a / b}[op]
    np.testing.assert_array_equal(values(op, constant(a), constant(b)), native)


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_one_constant(dtype: str) -> None:
    a = constant([4.0, 0.1, 2.0, 0.0], dtype)
    exact = a.floats()
    np.testing.assert_array_equal(values("Neg", a), -a.load())
    np.testing.assert_array_equal(values("Sqrt", a), np.sqrt(exact).astype(numpy_dtype(dtype)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(values("Reciprocal", a), (1 / exact).astype(numpy_dtype(dtype)))


def test_overflow_and_cancellation_of_float16_are_seen() -> None:
    big = constant([60000.0], "float16")
    total = made("Add", big, big)
    assert total is not None and np.isinf(total.floats()).all()
    tiny = made("Add", constant([1.0], "float16"), constant([1e-4], "float16"))
    assert tiny is not None and tiny.floats() == 1.0


VIEWS: list[tuple[str, tuple[int, ...], tuple[Constant, ...], Mapping[str, Any]]] = [
    ("Identity", (2, 3), (), {}),
    ("Transpose", (2, 3, 4), (), {}),
    ("Transpose", (2, 3, 4), (), {"perm": (1, 2, 0)}),
    ("Transpose", (), (), {}),
    ("Reshape", (2, 3, 4), (whole(4, -1),), {}),
    ("Reshape", (2, 3, 4), (whole(0, 12),), {}),
    ("Reshape", (2, 3, 4), (whole(0, 0, -1, 2),), {}),
    ("Reshape", (0, 3), (whole(3, 0),), {"allowzero": 1}),
    ("Reshape", (1,), (whole(),), {}),
    ("Unsqueeze", (2, 3), (whole(0, -1),), {}),
    ("Unsqueeze", (2, 3), (whole(2, 1),), {}),
    ("Squeeze", (1, 2, 1, 3), (), {}),
    ("Squeeze", (1, 2, 1, 3), (whole(-2),), {}),
]


@pytest.mark.parametrize(("op", "shape", "others", "attrs"), VIEWS)
def test_views_are_those_of_the_reference(
    op: str, shape: tuple[int, ...], others: tuple[Constant, ...], attrs: Mapping[str, Any]
) -> None:
    source = constant(np.arange(np.prod(shape, dtype=int)).reshape(shape))
    inputs = [source, *others]
    names = [f"i{n}" for n in range(len(inputs))]
    node = helper.make_node(op, names, ["y"], **attrs)
    tensors = [numpy_helper.from_array(np.asarray(c.load()), n) for c, n in zip(inputs, names, strict=True)]
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, None)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = np.asarray(ReferenceEvaluator(model).run(None, {})[0])
    np.testing.assert_array_equal(values(op, *inputs, **attrs), expected)
    assert values(op, *inputs, **attrs).shape == expected.shape


def test_axes_as_attributes_before_opset_13() -> None:
    assert values("Unsqueeze", constant([1, 2]), axes=(0, 2)).shape == (1, 2, 1)
    assert values("Squeeze", constant([[1, 2]]), axes=(0,)).shape == (2,)


def test_casts_round_once_and_truncate_towards_zero() -> None:
    source = constant([1.7, -1.7, 0.1], "float32")
    np.testing.assert_array_equal(values("Cast", source, to="int64"), [1, -1, 0])
    np.testing.assert_array_equal(values("Cast", source, to="bool"), [True, True, True])
    np.testing.assert_array_equal(values("Cast", source, to="float16"), source.load().astype(np.float16))
    np.testing.assert_array_equal(values("Cast", source, to="bfloat16"), source.load().astype(ml_dtypes.bfloat16))


def test_an_unrounded_kernel_of_an_earlier_round_stays_so_under_views() -> None:
    exact = np.array([[1 / 3, 2 / 3]])
    kernel = Constant("k", (1, 2), "float32", lambda: exact)
    for op, attrs in (("Identity", {}), ("Transpose", {})):
        found = made(op, kernel, **attrs)
        assert found is not None and found.load().dtype == np.float64 and found.dtype == "float32"


# --- what is not known ---------------------------------------------------------------------------------------------

SIX = constant(np.ones((2, 3)))
UNKNOWN: list[tuple[str, tuple[Constant, ...], Mapping[str, Any]]] = [
    ("Softmax", (SIX,), {}),
    ("DequantizeLinear", (SIX, SIX), {}),
    ("Identity", (), {}),
    ("Identity", (SIX, SIX), {}),
    ("Add", (SIX,), {}),
    ("Add", (SIX, SIX, SIX), {}),
    ("Neg", (SIX, SIX), {}),
    ("Add", (SIX, constant(np.ones((2, 3)), "float64")), {}),
    ("Add", (whole(1), whole(2)), {}),
    ("Add", (SIX, constant([1.0, 2.0])), {}),
    ("Add", (SIX, constant([1.0, 2.0, 3.0])), {"broadcast": 1, "axis": 1}),
    ("Cast", (SIX,), {}),
    ("Cast", (SIX,), {"to": None}),
    ("Cast", (SIX,), {"to": "string"}),
    ("Cast", (SIX,), {"to": "float8_e4m3fn"}),
    ("Cast", (Constant("t", (), "string", lambda: np.array(b"1", object)),), {"to": "float32"}),
    ("Transpose", (SIX,), {"perm": (0,)}),
    ("Transpose", (SIX,), {"perm": (0, 0)}),
    ("Transpose", (SIX,), {"perm": (0, -1)}),
    ("Transpose", (SIX,), {"perm": 3}),
    ("Reshape", (SIX,), {"shape": (3, 2)}),
    ("Reshape", (SIX, whole(-2, -3)), {}),
    ("Reshape", (SIX, whole(-1, -1)), {}),
    ("Reshape", (SIX, whole(4, -1)), {}),
    ("Reshape", (SIX, whole(0, 0, 0)), {}),
    ("Reshape", (SIX, whole(0, -1)), {"allowzero": 1}),
    ("Reshape", (constant(np.ones((0, 3))), whole(0, -1)), {}),
    ("Reshape", (constant(np.ones((0,))), whole(1 << 32, 1 << 32)), {}),
    ("Reshape", (SIX, constant([3.0, 2.0])), {}),
    ("Reshape", (SIX, constant([[3, 2]], "int64")), {}),
    ("Reshape", (SIX, whole(*[1] * 70)), {}),
    ("Unsqueeze", (SIX,), {}),
    ("Unsqueeze", (SIX, whole(1, 1)), {}),
    ("Unsqueeze", (SIX, whole(7)), {}),
    ("Unsqueeze", (SIX, whole(0, -4)), {}),
    ("Unsqueeze", (SIX,), {"axes": 1}),
    ("Squeeze", (SIX, whole(0)), {}),
    ("Squeeze", (constant([[1.0]]), whole()), {}),
    ("Squeeze", (constant(np.ones((0, 0))), whole(0)), {}),
    ("Squeeze", (SIX, whole(9)), {}),
]


@pytest.mark.parametrize(("op", "inputs", "attrs"), UNKNOWN)
def test_malformed_or_unclear_nodes_are_not_known(
    op: str, inputs: tuple[Constant, ...], attrs: Mapping[str, Any]
) -> None:
    assert made(op, *inputs, **attrs) is None


def test_integers_reads_short_lists_only() -> None:
    assert integers(whole(1, -2)) == (1, -2)
    assert integers(constant([3], "int32")) == (3,)
    unread = Constant("long", (1 << 40,), "int64", lambda: pytest.fail("it was read"))
    for other in (None, constant([1.0]), constant(3, "int64"), unread):
        assert integers(other) is None


# --- budgets -------------------------------------------------------------------------------------------------------


def test_nothing_is_allocated_before_its_size_is_within_the_budget() -> None:
    wide, tall = (
        Constant(n, s, "float32", lambda: np.ones((1, 1))) for n, s in (("w", (1, 1 << 20)), ("t", (1 << 20, 1)))
    )
    tracemalloc.start()
    assert made("Add", wide, tall) is None
    assert made("Neg", Constant("c", (BUDGET + 1,), "float32", lambda: np.ones(1))) is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def graph_of(nodes: list[NodeProto]) -> Any:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "c0")
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", 1, None)], [tensor])
    return view(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_constant_that_doubles_at_every_step_is_given_up_in_time() -> None:
    nodes = [helper.make_node("Add", [f"c{i}", f"c{i}"], [f"c{i + 1}"]) for i in range(60)]
    known = [n.output.constant for n in graph_of(nodes).nodes if n.output.constant is not None]
    assert 5 < len(known) < 30
    assert known[-1].load().tolist() == [2.0 ** len(known)] * 4


def test_long_chains_neither_recurse_nor_count_what_does_nothing() -> None:
    alike = [helper.make_node("Identity", [f"c{i}"], [f"c{i + 1}"]) for i in range(5000)]
    last = graph_of(alike).nodes[-1].output.constant
    assert last.load().tolist() == [1] * 4 and last.made_of == ("c0",)
    turned = [helper.make_node("Neg", [f"c{i}"], [f"c{i + 1}"]) for i in range(5000)]
    known = [n.output.constant for n in graph_of(turned).nodes if n.output.constant is not None]
    assert 32 <= len(known) < 200
    assert known[-1].load().tolist() == [(-1.0) ** len(known)] * 4
