"""A read-only, indexed picture of a model in canonical terms; every front end builds one and nothing else reads models.

Invariant: the picture hides nothing and changes nothing. Each native node appears exactly once, in an order in which
every value is produced before it is read; `native` leads back to what it was made from. Known tensors load lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = "int | str | None"
"""An extent: a number, a symbol ("batch"), or None where nothing is known."""


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A tensor whose elements are known without running the model.

    `name` is the value that holds it; `dtype` its stored element type ("float32", "float16", "bfloat16", "int64", …).
    `load` gives the elements; an unrounded kernel of an earlier round is float64 whatever `dtype` says. `made_of` names
    the stored tensors whose elements it is computed from, which may be none (sizes); None: it is stored itself.
    `prompt` says whether computing it takes so little that a view may wait for it; None: there is nothing to compute.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]
    made_of: tuple[str, ...] | None = None
    prompt: Callable[[], bool] | None = None

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of the stored tensors behind it."""
        return (self.name,) if self.made_of is None else self.made_of

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def floats(self) -> Array:
        """The elements in float64, exactly."""
        return self.load().astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An edge of the graph. `readers` are indices into `Graph.nodes`, once per reading input slot.

    `captured` says that the body of an If, Loop or Scan reads it; such a reader counts like any other. `unknown` says
    why a value that is computed from constants alone is none. `measured_by` are nodes that are no readers, but follow
    from its size: who takes the value away takes them with it.
    """

    name: str
    producer: int | None
    readers: tuple[int, ...]
    is_input: bool = False
    is_output: bool = False
    captured: bool = False
    constant: Constant | None = None
    shape: tuple[Dim, ...] | None = None
    dtype: str | None = None
    unknown: str | None = None
    measured_by: tuple[int, ...] = ()

    @property
    def private(self) -> bool:
        """True where exactly one node of this graph reads it and nobody else can see it."""
        return len(self.readers) == 1 and not self.is_output and not self.captured


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation. `op` is a word of the vocabulary, or the native operator in lower case where it has none.

    `data` are the inputs that carry activations, `consts` the known tensors by role ("weight", "bias", "mean", …),
    `attrs` the attributes with defaults filled in (pads as ((begin, end), …) per spatial axis). `problem` says why
    the node is not the clean form of its op (a weight that is not constant, batch statistics, …): such a node matches
    nothing and the refusal quotes it. `captures` are the values of this graph that the node's bodies read. `layered`
    says that layers may hide in it: in its bodies, in a function of the model, or in an operator of another domain.
    """

    index: int
    op: str
    name: str
    data: tuple[Value, ...]
    outputs: tuple[Value, ...]
    consts: Mapping[str, Constant]
    attrs: Mapping[str, Any]
    scope: str
    native: object = field(repr=False)
    problem: str | None = None
    captures: tuple[Value, ...] = ()
    layered: bool = False

    @property
    def output(self) -> Value:
        return self.outputs[0]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The picture: nodes in topological order, values by name, inputs and outputs in the model's order.

    `shapes_hold` says that the shapes of all values were proved by whoever traced the graph: two extents of one name
    are equal there, whatever values they belong to. `stored` is the same graph with every node reading what it reads in
    the model, where this one has known settings in place of what computes them from sizes.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opset: int
    shapes_hold: bool = False
    stored: Graph | None = None

    @property
    def as_stored(self) -> Graph:
        return self.stored or self

    def producer(self, value: Value) -> Node | None:
        return None if value.producer is None else self.nodes[value.producer]

    def readers(self, value: Value) -> list[Node]:
        return [self.nodes[i] for i in value.readers]
