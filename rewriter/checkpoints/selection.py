"""Which of the weights in a checkpoint are meant: the averaged ones first, else those of the model.

Invariant: the choice is made on the symbols, so that nothing is loaded to make it; where nothing tells, the user does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rewriter.checkpoints.contents import is_module, pairs_of, tensor_of
from rewriter.checkpoints.pickles import Symbol
from rewriter.errors import ChoiceError, InputError, UsageError
from rewriter.graph.tensors import shown

EMA: Final = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema", "ema_weights")
PLAIN: Final = ("model", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params", "teacher")
_MOST_DEPTH: Final = 4
_MOST_LISTED: Final = 20


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A state dict or a module inside a checkpoint, and the keys that lead to it."""

    path: tuple[str, ...]
    value: Symbol

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def averaged(self) -> bool:
        return any(key.casefold() in EMA for key in self.path)


def is_optimizer(value: Symbol) -> bool:
    """True for what an optimizer's `state_dict` gives."""
    pairs = pairs_of(value)
    return pairs is not None and {"state", "param_groups"} <= {*pairs.names()}


def candidates(value: Symbol) -> list[Weights]:
    """Every state dict and module that is not inside another one."""
    found: list[Weights] = []
    seen: set[int] = set()
    waiting: list[Weights] = [Weights((), value)]
    while waiting:
        here = waiting.pop()
        pairs = pairs_of(here.value)
        if is_module(here.value) or (pairs is not None and any(tensor_of(part) for _, part in pairs.items)):
            found.append(here)
        elif pairs is not None and id(pairs) not in seen and len(here.path) < _MOST_DEPTH:
            seen.add(id(pairs))  # what holds no weights holds none under another name either
            if not is_optimizer(here.value):
                waiting += [Weights((*here.path, k), v) for k, v in reversed(pairs.items) if isinstance(k, str)]
    return found


def choose(value: Symbol, key: str | None, file: str) -> Weights:
    """The weights behind `--key`, or those that are meant, of `file`, the name that messages say.

    ChoiceError where several could be meant, InputError where there are none, UsageError for a key that leads nowhere.
    """
    found = candidates(value)
    if key is not None:
        return _named(value, key, found)
    for names in (EMA, PLAIN):
        for name in names:
            for weights in found:
                if weights.path and weights.path[0].casefold() == name:
                    return weights
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{file} holds no weights that could be found: no state dict and no module")
    listed = "\n".join(f"  --key {weights.key}" for weights in found[:_MOST_LISTED])
    raise ChoiceError(f"{file}: {len(found)} entries hold weights, and none is called as usual; say which:\n{listed}")


def _named(value: Symbol, key: str, found: Sequence[Weights]) -> Weights:
    for weights in found:
        if weights.key == key:
            return weights
    inside = [weights for weights in found if weights.path and weights.key.startswith(f"{key}.")]
    if len(inside) == 1:
        return inside[0]
    part = value
    path: list[str] = []
    for name in key.split("."):
        pairs = pairs_of(part)
        if pairs is None or name not in pairs.names():
            break
        path.append(name)
        part = pairs.get(name)
    else:
        if is_module(part) or pairs_of(part) is not None:
            return Weights(tuple(path), part)
    known = ", ".join(shown(weights.key) for weights in found[:_MOST_LISTED]) or "none"
    raise UsageError(f"--key: {shown(key)} leads to no weights; entries that hold some: {known}")
