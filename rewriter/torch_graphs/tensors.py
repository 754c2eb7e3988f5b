"""Tensors of torch as constants of a view, and back.

Invariant: elements are copied only when a constant is loaded, and bfloat16, which numpy has not, passes unrounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from rewriter.algebra.conv import round_to
from rewriter.algebra.proof import prove_rounded
from rewriter.errors import VerificationError
from rewriter.graph.constants import FLOATS, INTEGERS
from rewriter.graph.evaluation import Unknown, derived
from rewriter.graph.tensors import numpy_dtype
from rewriter.graph.view import Array, Constant
from rewriter.torch_graphs.calls import FxNode, dtype_of, fake, is_node, is_tensor, items, op_of


def constant_of(name: str, tensor: Any) -> Constant | None:
    """A stored tensor; None for one of a type that no file could hold, or of another layout."""
    dtype = name_of(tensor.dtype)
    if dtype not in FLOATS | INTEGERS or not _is_plain(tensor):
        return None
    return Constant(name, tuple(tensor.shape), dtype, lambda: array_of(tensor))


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _is_plain(tensor: Any) -> bool:
    import torch

    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"


def array_of(tensor: Any) -> Array:
    """The elements as numpy has them."""
    import torch

    found = tensor.detach().cpu()
    if found.dtype == torch.bfloat16:
        return found.float().numpy().astype(numpy_dtype("bfloat16"))
    return found.numpy()


def tensor_of(array: Array, dtype: str) -> Any:
    """Elements that numpy has, as a tensor of a type that can hold them."""
    import torch

    untyped: Any = torch
    wide = array.astype(np.float32) if dtype == "bfloat16" else array
    return untyped.from_numpy(np.array(wide, order="C")).to(getattr(untyped, dtype))


def stored(name: str, exact: Array, dtype: str) -> Any:
    """A proved tensor rounded once to the type that it gets, and held against what was proved."""
    if dtype not in FLOATS:
        return tensor_of(exact, dtype)
    made = tensor_of(round_to(exact, dtype), dtype)
    wrong = prove_rounded(exact, array_of(made), dtype, at=name)
    if wrong is not None:
        raise VerificationError(f"{wrong}; nothing was made, please report this model")
    return made


MADE = frozenset({"arange", "full", "zeros", "ones", "eye", "linspace", "scalar_tensor"})
"""Operators that make a tensor of numbers."""


def computed(node: FxNode, inputs: Sequence[Constant], function: Callable[..., Any]) -> Constant | None:
    """What a node makes of constants alone, known by running it; None where it is not one tensor of known extents."""
    found = fake(node)
    if not is_tensor(found) or not (inputs or op_of(node) in MADE):
        return None
    shape, dtype = tuple(found.shape), dtype_of(node)
    if not all(type(extent) is int for extent in shape) or dtype not in FLOATS | INTEGERS:
        return None
    types = {n: constant.dtype for n, constant in zip(node.all_input_nodes, inputs, strict=True)}
    try:
        return derived(inputs, node.name, shape, lambda *arrays: _run(node, types, arrays, function), dtype)
    except Unknown:  # more work than a constant may be
        return None


def _run(node: FxNode, types: dict[FxNode, str], given_arrays: Sequence[Array], function: Callable[..., Any]) -> Array:
    """In the stored types, as the program does; in float64 where a constant is more exact than its type."""
    import torch
    from torch.fx.node import map_arg

    arrays = dict(zip(types, given_arrays, strict=True))
    exact = any(arrays[n].dtype == np.float64 and dtype != "float64" for n, dtype in types.items())

    def given(n: Any) -> Any:
        return tensor_of(arrays[n], "float64" if exact and types[n] in FLOATS else types[n])

    map_: Any = map_arg
    kwargs = {key: value for key, value in node.kwargs.items() if key not in ("device", "pin_memory")}
    with torch.no_grad():
        return array_of(function(*map_(node.args, given), **map_(kwargs, given)))


def nodes_in(found: Any) -> list[FxNode]:
    """The nodes among arguments, in order, as often as they stand there."""
    if isinstance(found, dict):
        return nodes_in([*cast("dict[str, Any]", found).values()])
    if isinstance(found, list | tuple):
        return [n for item in items(found) for n in nodes_in(item)] if found else []
    return [found] if is_node(found) else []
