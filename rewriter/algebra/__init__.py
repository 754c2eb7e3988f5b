"""The algebra of the folds: a region as one affine map, that map as one conv, what both cost, and the proof.

    region -> interpret -> Affine -> form_of -> ConvForm | LinearForm -> gate -> prove -> Proof

Every step gives its result or a `Refusal`. The algebra reads view nodes only and knows no file format or framework.
"""

from rewriter.algebra.affine import Affine
from rewriter.algebra.conv import ConvForm, bfloat16_bits, conv_of, round_to
from rewriter.algebra.cost import cost_of_form, cost_of_nodes, gate
from rewriter.algebra.interpret import dtype_of, interpret, space_of
from rewriter.algebra.linear import LinearForm, form_of
from rewriter.algebra.proof import prove, prove_stored

__all__ = [
    "Affine",
    "ConvForm",
    "LinearForm",
    "bfloat16_bits",
    "conv_of",
    "cost_of_form",
    "cost_of_nodes",
    "dtype_of",
    "form_of",
    "gate",
    "interpret",
    "prove",
    "prove_stored",
    "round_to",
    "space_of",
]
