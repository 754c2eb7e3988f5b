"""Outputs that a choice decides: is a difference in them explained by differences before the choice?

Invariant: an output is OK here only if the choosing part of the other model, fed the original's own frontier, gives the
original's output; how far the frontiers differ is judged apart, as outputs of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ValueInfoProto

from rewriter.checking import compare, perturb
from rewriter.checking.compare import Measured, difference
from rewriter.checking.engines import CannotLoad, CannotRun
from rewriter.checking.net import Net, extract, tensor_info
from rewriter.checking.record import OutputCheck, Verdict
from rewriter.checking.wire import Array

if TYPE_CHECKING:
    from rewriter.checking.trial import Ran, Trial

_SEEDS = (1, 2, 3)


def check(trial: Trial, names: Sequence[str], direct: dict[str, list[Measured]]) -> list[OutputCheck]:
    """Verdicts of the decided outputs whose values differ as they stand."""
    pairs = trial.request.pairs
    trial.say("outputs after a choice")
    try:
        fed = _fed(trial, trial.after, [pairs[name] for name in names])
        found = {
            name: [difference(ran.outputs[name], out[pairs[name]], trial.parts) for ran, out in fed] for name in names
        }
        own = _own(trial, names) if trial.request.tolerance is None else {}
    except (CannotLoad, CannotRun) as error:
        note = f"differs after {_after(trial)}, and the part behind it cannot be run alone: {error}"
        return [_judged(trial, name, direct[name], note, Verdict.INCONCLUSIVE) for name in names]
    missing = [name for name in trial.found.frontier if name not in trial.names]
    checks: list[OutputCheck] = []
    for name in names:
        sets = [
            replace(m, found=other, own=own.get((name, m.case), np.zeros(1)), own_taken_here=(name, m.case) in own)
            for m, other in zip(direct[name], found[name], strict=True)
        ]
        most = max(direct[name], key=lambda m: m.found.differing)
        note = f"after {_after(trial)}: compared behind the choice, both fed the original's values before it"
        if most.found.differing:
            note += f" (as they stand, {most.found.differing} of {most.found.count} elements differ, on {most.case})"
        fallback = None
        if missing:
            fallback = Verdict.INCONCLUSIVE
            note += f"; {missing[0]!r} is not in the other model, so ties there cannot be told from errors"
        checks.append(_judged(trial, name, sets, note, fallback))
    return checks


def _judged(trial: Trial, name: str, sets: list[Measured], note: str, instead_of_failed: Verdict | None) -> OutputCheck:
    result = compare.judge(name, trial.request.pairs[name], sets, trial.request.tolerance, note)
    if result.verdict is Verdict.FAILED and instead_of_failed is not None:
        return replace(result, verdict=instead_of_failed)
    return result


def _after(trial: Trial) -> str:
    nodes = trial.found.nodes
    return ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def _fed(trial: Trial, net: Net, outputs: Sequence[str]) -> list[tuple[Ran, dict[str, Any]]]:
    """`outputs` of `net` on every input set, the frontier being the original's."""
    first = trial.ran[0].outputs
    cut = {name: _declared(name, first[name]) for name in trial.frontier if isinstance(first[name], np.ndarray)}
    tail = extract(net, list(dict.fromkeys(outputs)), cut)
    session = trial.engine.open(tail)
    return [(ran, session.run({**ran.case.feeds, **{name: ran.outputs[name] for name in cut}})) for ran in trial.ran]


def _declared(name: str, value: np.ndarray[Any, Any]) -> ValueInfoProto:
    return tensor_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.ndim)


def _own(trial: Trial, names: Sequence[str]) -> dict[tuple[str, str], Array]:
    """The own error of the part behind the choice."""
    own: dict[tuple[str, str], Array] = {}
    for seed in _SEEDS:
        for ran, outputs in _fed(trial, perturb.perturbed(trial.before, seed, trial.engine.unit), names):
            for name in names:
                key = (name, ran.case.label)
                error = compare.own_error(difference(ran.outputs[name], outputs[name], trial.parts))
                own[key] = compare.larger(own.get(key, error), error)
    return own
