"""Names for new tensors and values of a torch graph.

The one idea: a folded kernel lies in a module of its own, beside the one whose weight lends the name: `cv1.conv.weight`
gives `cv1.conv_folded.weight` and `cv1.conv_folded.bias`. So no checkpoint of the training form fits by accident, and
no module needs to go for another to come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

FOLDED = "_folded"


class Names:
    """All names in use, of values and of stored tensors; what `fresh` gives is taken from then on."""

    def __init__(self, values: Iterable[str], tensors: Collection[str]) -> None:
        self._used = {*values, *tensors}
        self._tensors = set(tensors)

    def avoid(self, values: Iterable[str]) -> None:
        """Names that values of another graph have, for which these names are meant too."""
        self._used.update(values)

    def fresh(self, hint: str) -> str:
        """A name near `hint`, which for a tensor tells what it is made of."""
        base, _, kind = hint.rpartition(".")
        if kind == "folded":  # of a kernel, which may be computed and have no name in the state dict
            return self._taken(_module(base), ".weight")
        if kind == "weight" and base in self._used:  # of a region without a kernel of its own
            return self._taken(base + FOLDED, ".weight")
        if kind == "bias" and base in self._tensors and base.endswith(f"{FOLDED}.weight"):
            return self._kept(base.removesuffix("weight") + "bias")
        if kind == "bias" and base in self._tensors:
            return self._taken(base.removesuffix(".weight"), ".bias")
        return self._free(hint)

    def _taken(self, module: str, role: str) -> str:
        count, name = 0, module
        while name + role in self._used or name in self._used:
            count += 1
            name = f"{module}{count}"
        return self._kept(name + role)

    def _kept(self, tensor: str) -> str:
        self._used.add(tensor)
        self._tensors.add(tensor)
        return tensor

    def _free(self, hint: str) -> str:
        count, name = 0, hint
        while name in self._used:
            count += 1
            name = f"{hint}_{count}"
        self._used.add(name)
        return name


def _module(tensor: str) -> str:
    """The module that a folded kernel gets, from the name of the kernel that it is made of."""
    path, _, last = tensor.rpartition(".")
    base = path if last == "weight" and path else tensor
    return base.rstrip("0123456789") if FOLDED in base and base.rstrip("0123456789").endswith(FOLDED) else base + FOLDED
