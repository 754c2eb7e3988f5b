"""Values that nodes compute from constants alone, known without running the model: kernels, biases, norms and sizes.

One rule per operator says, from the extents and types of its inputs, what it gives: first the shape and the type, then
how the elements are computed. Invariant: nothing is allocated before its size is known and within the budget, and the
work behind a constant is bounded before any of it is done; elements are computed when somebody asks for them.

What is read here is what a runtime computes, node by node: float arithmetic is done in float64 and rounded to the
stored type at every node, which for + - * / and roots is the correctly rounded result (float64 has more than twice the
digits), so that overflow, underflow and cancellation in float16 show here as they do there. Whole numbers are exact and
wrap as the type does. Sums, products of matrices and transcendental functions differ from a runtime's in the last
digits; what is computed from them is *inexact*, and nothing that jumps (a comparison, a cast to whole numbers, a
rounding) is evaluated on it. A kernel of an earlier round is more exact than its type, and stays so under views.

Operators without a rule, malformed nodes and whatever runtimes read differently stay unknown, with a reason. So does
everything that depends on an input of the model, on a stored tensor that is an input as well, or on a random operator.
"""

from __future__ import annotations

from rewriter.graph.evaluation.calls import Call, Unknown
from rewriter.graph.evaluation.resolve import RULES, computed, extents, resolve
from rewriter.graph.evaluation.steps import BUDGET, WORK, Ledger, derived

__all__ = ["BUDGET", "RULES", "WORK", "Call", "Ledger", "Unknown", "computed", "derived", "extents", "resolve"]
