"""From a node and its constant inputs to constants: the table of rules, and the reasons where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from rewriter.graph.evaluation import elementwise, norms, places, products, sums, views
from rewriter.graph.evaluation.calls import Call, Made, Unknown, cast
from rewriter.graph.evaluation.steps import Ledger, derived
from rewriter.graph.view import Array, Constant

Rule: TypeAlias = "Callable[[Call], Made | Constant | Sequence[Made]]"
"""One output, an input handed on as it is, or several outputs."""

RULES: Mapping[str, Rule] = {
    **views.RULES,
    **elementwise.RULES,
    **sums.RULES,
    **products.RULES,
    **norms.RULES,
    **places.RULES,
}

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def resolve(call: Call, names: Sequence[str], ledger: Ledger | None = None) -> list[Constant]:
    """The constants that a node makes of its constant inputs: its outputs, or the first of them.

    Raises Unknown with the reason where the operator, the sizes or the work are out of reach.
    """
    rule = RULES.get(call.op)
    if rule is None:
        raise Unknown("it is random" if call.op in RANDOM else f"{call.op} is not evaluated")
    try:
        made = rule(call)
        outputs = [made] if isinstance(made, Made | Constant) else [*made]
        return [_constant(one, name, ledger) for one, name in zip(outputs, names, strict=False)]
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise Unknown(f"{call.op} is malformed or read in different ways ({error})") from error


def computed(call: Call, name: str, ledger: Ledger | None = None) -> Constant | None:
    """The one constant that a node makes, or None where it is unknown."""
    try:
        (made,) = resolve(call, [name], ledger)
    except Unknown:
        return None
    return made


def extents(name: str, shape: Sequence[int], *, scalar: bool = False) -> Constant:
    """What Shape gives, or Size: numbers that no stored tensor is behind."""
    array = np.array(shape, dtype=np.int64).reshape(() if scalar else -1)
    return Constant(name, array.shape, "int64", lambda: array, ())


def _constant(made: Made | Constant, name: str, ledger: Ledger | None) -> Constant:
    if isinstance(made, Constant):
        return replace(made, name=name, made_of=made.stored)
    if made.view:
        compute = made.compute
    else:

        def compute(*arrays: Array) -> Array:
            return cast(np.asarray(made.compute(*arrays)), made.dtype)

    return derived(made.sources, name, made.shape, compute, made.dtype, work=made.work, exact=made.exact, ledger=ledger)
