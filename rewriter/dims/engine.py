"""The sizes of every value of a graph as expressions of the sizes of its inputs, in one pass in topological order.

Invariant: what is said is right for every run that gets past the node, as long as no axis of an input is empty; what
is not followed is a fresh symbol, equal to nothing else. Each axis of an input is a symbol of its own: a dim_param is
a label, never parsed, and two axes of one name are two symbols, since no runtime holds them to be equal. Whole numbers
that pass through float32 count as exact, which they are up to 2^24.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto

from rewriter.dims import shapes, tensors
from rewriter.dims.polynomials import Atom, Poly, nonnegative, raised, symbols
from rewriter.dims.sizes import Assertion, Assumption, Dims, Elements, Log, Size, fixed
from rewriter.errors import InputError
from rewriter.graph.canonical import cast_type
from rewriter.graph.constants import at_hand
from rewriter.graph.evaluation import Call, Ledger, computed
from rewriter.graph.evaluation.steps import is_exact
from rewriter.graph.proto import DEFAULT_DOMAINS, attributes
from rewriter.graph.raw import Foreign
from rewriter.graph.view import Constant, Graph, Node, Value

ROOM = 16
"""How far below a number an extent is looked for that is no more than it."""

ROUNDS = 4
"""Passes that may follow the first."""

SMALL = 256
"""Elements up to which a tensor of whole numbers is followed."""

WINDOWS = frozenset({"conv", "avg_pool", "max_pool"})

NUMBERS = frozenset({"int64", "int32", "float32", "float64", "bool"})
"""Element types that may hold followed numbers."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known: extents and small tensors by value name, and what operators assert.

    A value of unknown rank is absent from `dims`.
    """

    dims: Mapping[str, Dims]
    elements: Mapping[str, Elements]
    assumptions: Sequence[Assumption]
    assertions: Sequence[Assertion]


def sizes(graph: Graph) -> Sizes:
    """The sizes of all values of `graph`."""
    found = measured(graph)
    return Sizes(found.dims, found.elements, found.log.assumptions, found.log.assertions)


def measured(graph: Graph) -> Pass:
    """The pass over `graph`, done: for those who ask it for more.

    What a rule could not tell may follow from extents of values that come later, whatever their order. Then they are
    told to a pass that starts anew, so that what is known does not depend on the order of nodes.
    """
    found = Pass(graph)
    found.run()
    for _ in range(ROUNDS):
        if not found.asked_in_vain():
            break
        found = Pass(graph, extents={expr for expr in found.extents if symbols(expr) <= found.positive})
        found.run()
    return found


@dataclass(slots=True)
class Pass:
    """The state of the pass; rules read and ask through it."""

    graph: Graph
    log: Log = field(default_factory=Log)
    dims: dict[str, Dims] = field(default_factory=dict[str, Dims])
    elements: dict[str, Elements] = field(default_factory=dict[str, Elements])
    extents: set[Poly] = field(default_factory=set[Poly])  # of values: not negative, whatever they look like
    positive: set[Atom] = field(default_factory=set[Atom])  # open extents of inputs: at least one each
    vain: set[Poly] = field(default_factory=set[Poly])  # what could not be told to be no less than 0
    numbers: dict[str, Constant] = field(default_factory=dict[str, Constant])  # what sizes that are numbers come to
    ledger: Ledger = field(default_factory=Ledger)
    node: Node | None = None  # whose turn it is

    def run(self) -> None:
        for value in self.graph.inputs:
            self._input(value)
        if self.graph.shapes_hold:
            self._take_shapes()
        for node in self.graph.nodes:
            self.node = node
            for step in (self._hold, self._measure):
                with suppress(LookupError, ValueError, TypeError, InputError):  # a malformed node tells nothing
                    step(node)

    # --- what rules ask ----------------------------------------------------------------------------------------------

    def operands(self, node: Node) -> list[Value | None]:
        """The inputs by position, None where an optional one is absent."""
        match node.native:
            case NodeProto():
                return [self.graph.values.get(name) if name else None for name in node.native.input]
            case Foreign(raw) if raw is not None:
                return [*raw.inputs]
            case _:
                return [*node.data]

    def attribute(self, node: Node, *names: str) -> Any:
        """An attribute as the file has it, which the canonical reading may have left out; None where there is none."""
        match node.native:
            case NodeProto():
                given: Mapping[str, Any] = attributes(node.native)
            case Foreign(raw) if raw is not None:
                given = raw.attrs
            case _:
                return None
        return next((given[name] for name in names if name in given), None)

    def dims_of(self, value: Value | None) -> Dims | None:
        if value is None:
            return None
        known = self.dims.get(value.name)
        if known is None and value.constant is not None:
            known = tuple([fixed(extent) for extent in value.constant.shape])
            self.dims[value.name] = known
        return known

    def elements_of(self, value: Value | None) -> Elements | None:
        if value is None:
            return None
        known = self.elements.get(value.name)
        if known is None and value.constant is not None:
            known = _elements(value.constant)
            if known is not None:
                self.elements[value.name] = known
        return known

    def ints_of(self, value: Value | None) -> tuple[int, ...] | None:
        """The elements, where all of them are numbers."""
        known = self.elements_of(value)
        if known is None:
            return None
        found = tuple([item.expr.constant for item in known.items])
        return None if None in found else tuple([n for n in found if n is not None])

    def unknown(self) -> Size:
        return self.log.symbol()

    def nonnegative(self, expr: Poly) -> bool:
        """Whether it is so for every input of which no axis is empty: by its form, or as it is not below an extent."""
        if nonnegative(expr) or nonnegative(raised(expr, self.positive)):
            return True
        if any(expr - above in self.extents for above in range(ROOM)):
            return True
        self.vain.add(expr)
        return False

    def asked_in_vain(self) -> bool:
        """Whether a rule could not tell what can be told now."""
        vain, self.vain = self.vain, set()
        return any(self.nonnegative(expr) for expr in vain if symbols(expr) <= self.positive)

    def equal(self, same: Sequence[Size]) -> Size:
        """One of sizes that the node at hand needs to be equal."""
        assert self.node is not None
        return self.log.equal(same, self.node.index)

    # --- the pass ----------------------------------------------------------------------------------------------------

    def _input(self, value: Value) -> None:
        if value.shape is None:
            return
        made: list[Size] = []
        for axis, extent in enumerate(value.shape):
            if isinstance(extent, int):
                made.append(fixed(extent))
            else:
                name = f"{value.name}[{axis}]"
                made.append(self.log.symbol(f"{extent}" if extent and self._once(extent) else name))
                self.positive |= symbols(made[-1].expr)
        self.dims[value.name] = tuple(made)

    def _take_shapes(self) -> None:
        """The sizes of a graph whose shapes are proved; a rule is asked only for what has none."""
        named: dict[str, Size] = {}
        for value in self.graph.values.values():
            if value.shape is None or None in value.shape or value.constant is not None:
                continue
            made: list[Size] = []
            for extent in value.shape:
                if not isinstance(extent, int) and f"{extent}" not in named:
                    named[f"{extent}"] = self.log.symbol(f"{extent}")
                made.append(fixed(extent) if isinstance(extent, int) else named[f"{extent}"])
            self.dims[value.name] = tuple(made)
            self.extents.update([size.expr for size in made])

    def _once(self, name: str) -> bool:
        return sum(extent == name for value in self.graph.inputs for extent in value.shape or ()) == 1

    def _hold(self, node: Node) -> None:
        if len(node.outputs) != 1:
            return
        rule = tensors.RULES.get(node.op)
        held = None if rule is None else rule(self, node)
        if held is None and node.output.constant is None:
            held = self._computed(node)
        if held is not None and len(held.items) <= SMALL:
            self.elements[node.output.name] = held

    def _computed(self, node: Node) -> Elements | None:
        """What a node makes of numbers alone, fractions among them, as a runtime does; None where it is not whole."""
        if not isinstance(node.native, NodeProto) or node.native.domain not in DEFAULT_DOMAINS:
            return None
        operands = self.operands(node)
        inputs = [None if value is None else self._number(value) for value in operands]
        if any(known is None and value is not None for value, known in zip(operands, inputs, strict=True)):
            return None
        attrs = dict(attributes(node.native))
        if node.native.op_type == "Cast":
            attrs["to"] = cast_type(attrs)
        call = Call(node.native.op_type, inputs, attrs, self.graph.opset)
        made = computed(call, node.output.name, self.ledger)
        if made is None or made.size > SMALL or not at_hand(made):
            return None
        self.numbers[made.name] = made
        return _elements(made)

    def _number(self, value: Value) -> Constant | None:
        """The constant that a value is where the model's inputs have the sizes that are declared."""
        if value.constant is not None:
            return value.constant
        known = self.numbers.get(value.name)
        if known is None and value.dtype in NUMBERS and (held := self.elements.get(value.name)) is not None:
            found = [item.expr.constant for item in held.items if not item.uses]
            whole = [n for n in found if n is not None]
            if len(whole) == len(held.items):
                array = np.array(whole).astype(value.dtype).reshape(() if held.scalar else -1)
                known = Constant(value.name, array.shape, value.dtype, lambda: array, ())
                self.numbers[value.name] = known
        return known

    def _measure(self, node: Node) -> None:
        if isinstance(node.native, Foreign) and node.native.raw is None:
            return  # nothing says what its inputs are
        rule = shapes.RULES.get(node.op)
        for value, dims in zip(node.outputs, () if rule is None else rule(self, node), strict=False):
            if dims is not None and value.name and not (self.graph.shapes_hold and value.name in self.dims):
                self.dims[value.name] = dims
                self.extents.update([size.expr for size in dims])
                if node.op in WINDOWS:
                    self._filled(node, dims)

    def _filled(self, node: Node, dims: Dims) -> None:
        """A window that fits an image which is not empty gives one that is not."""
        read = self.dims_of(node.data[0]) or ()
        if len(read) == len(dims):
            pairs = zip(read[2:], dims[2:], strict=True)
            self.extents.update([out.expr - 1 for size, out in pairs if self.nonnegative(size.expr - 1)])


def _elements(constant: Constant) -> Elements | None:
    if len(constant.shape) > 1 or prod(constant.shape) > SMALL or constant.dtype not in NUMBERS:
        return None
    if not is_exact(constant):  # a runtime may compute a last digit less, and jump to the number below
        return None
    numbers = np.asarray(constant.load()).reshape(-1).astype(np.float64 if "float" in constant.dtype else np.int64)
    if not np.isfinite(numbers).all() or (numbers != np.trunc(numbers)).any():
        return None
    return Elements(tuple([fixed(int(number)) for number in numbers]), scalar=not constant.shape)
