"""Two programs run whole on the same inputs, and every output judged as on the ONNX path (design: Flow, verify).

Invariant: both run in this process, on copies; nothing is OK that was not run, and the original's own error decides how
close is close.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, TypeAlias

from rewriter.checking import compare
from rewriter.checking.compare import Difference, Measured
from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.checking.samples import Case
from rewriter.checking.trial import MORE_SEEDS, NEAR, SEEDS
from rewriter.graph.view import Array
from rewriter.torch_graphs.tensors import array_of, name_of

UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
ORDER = (Verdict.FAILED, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE, Verdict.OK)

Tell = Callable[[str], None]
Change = Callable[[Any], Any]
Own: TypeAlias = "dict[tuple[str, str], Array]"
"""The original's own error, by output and input set."""


@dataclass(frozen=True, slots=True)
class _Ran:
    case: Case
    inputs: list[Any]
    outputs: dict[str, Array]


class Subject(Protocol):
    """A model that can be run."""

    def cases(self) -> list[tuple[Case, list[Any]]]:
        """Input sets, those of the sizes that it came with first (as size 0)."""
        ...

    def run(self, inputs: Sequence[Any], change: Change | None = None) -> dict[str, Any]:
        """Its outputs by name, on copies of what a run might change; `change` is made of every stored tensor."""
        ...

    def tensors(self) -> list[Any]: ...


def verify(before: Subject, after: Subject, tell: Tell) -> Verification:
    """Run both on the sizes that the model came with and, where sizes are open, on others."""
    started = time.monotonic()
    notes: list[str] = []
    try:
        ran = _originals(before, tell, notes)
    except ValueError as problem:
        return Verification(Verdict.NOT_VERIFIED, f"{problem}; verify=False goes on without a comparison")
    unit = max([UNITS.get(dtype, 0.0) for dtype in _types(before)], default=UNITS["float32"])
    varying = _varying(before, ran[0])
    if varying:
        return Verification(Verdict.NOT_VERIFIED, f"random ops: the original differs from itself: {', '.join(varying)}")
    own: Own = {}
    _measure_own(before, [one for one in ran if one.case.anchor], unit, own, SEEDS, tell)
    found: dict[str, list[tuple[Case, Difference]]] = {}
    for one in ran:
        tell(f"rewritten, {one.case.label}")
        try:
            arrays = _arrays(after.run(one.inputs))
        except Exception as problem:  # of many types; where the original runs, the result has to
            said = " ".join(str(problem).split())[:200]
            reason = f"the result does not run on {one.case.label}: {said}"
            return Verification(Verdict.FAILED, reason, _engine(before), notes=tuple(notes))
        for name, array in arrays.items():
            found.setdefault(name, []).append((one.case, compare.difference(one.outputs[name], array, parts=True)))
    sets = _measured(found, own, unit)
    for seeds, wanted in ((SEEDS, _taken_elsewhere), *[((seed,), _is_near) for seed in MORE_SEEDS]):
        failing = {m.case for measured in sets.values() for m in measured if _fails(m) and wanted(m)}
        if failing:
            _measure_own(before, [one for one in ran if one.case.label in failing], unit, own, seeds, tell)
            sets = _measured(found, own, unit)
    checks = [compare.judge(name, name, measured, None, "") for name, measured in sets.items()]
    verdict = min((check.verdict for check in checks), key=ORDER.index, default=Verdict.NOT_VERIFIED)
    reason = "; ".join(_sentence(check) for check in checks if check.verdict is not Verdict.OK)
    return Verification(
        verdict, reason or ("" if checks else "no output is a tensor"), _engine(before), tuple(checks),
        tuple([one.case.label for one in ran]), time.monotonic() - started, 0, tuple(notes),
    )  # fmt: skip


def _originals(program: Subject, tell: Tell, notes: list[str]) -> list[_Ran]:
    """What the original gives on every input set that it runs on; it has to run on those of the export's sizes."""
    ran: list[_Ran] = []
    for case, inputs in program.cases():
        tell(f"original, {case.label}")
        try:
            ran.append(_Ran(case, inputs, _arrays(program.run(inputs))))
        except Exception as problem:  # of many types; each says that these inputs are none for the program
            said = " ".join(str(problem).split())[:200]
            if case.size == 0:
                raise ValueError(f"the model does not run on {case.label}: {said}") from problem
            notes.append(f"the original does not run on {case.label}, which was left out: {said}")
    return ran


def _varying(program: Subject, ran: _Ran) -> list[str]:
    """The outputs that are others in a second run on the same inputs."""
    again = _arrays(program.run(ran.inputs))
    found = {name: compare.difference(array, again[name]) for name, array in ran.outputs.items()}
    return [name for name, difference in found.items() if difference.problem or difference.error]


def _measure_own(
    program: Subject, ran: Sequence[_Ran], unit: float, own: Own, seeds: Sequence[int], tell: Tell
) -> None:
    """Into `own`, the original's own change, by output and input set, when every float weight is off by at most one
    rounding."""
    import torch

    for seed in seeds:
        tell(f"original, rounding {seed}/{max(SEEDS[-1], seeds[-1])}")
        chance = torch.Generator().manual_seed(seed)

        def off(tensor: Any, chance: Any = chance) -> Any:
            noise = torch.rand(tensor.shape, generator=chance, dtype=torch.float32).mul_(2).sub_(1).mul_(unit)
            exact = tensor.double()
            return (exact + exact * noise.to(exact.device)).to(tensor.dtype)

        for one in ran:
            for name, array in _arrays(program.run(one.inputs, off)).items():
                error = compare.own_error(compare.difference(one.outputs[name], array, parts=True))
                key = (name, one.case.label)
                own[key] = compare.larger(own.get(key, error), error)


def _measured(
    found: Mapping[str, Sequence[tuple[Case, Difference]]], own: Own, unit: float
) -> dict[str, list[Measured]]:
    """Differences with the original's own error: that of the same input set, and of the same size's anchor."""
    anchors = {case.size: case.label for pairs in found.values() for case, _ in pairs if case.anchor}
    sets: dict[str, list[Measured]] = {}
    for name, pairs in found.items():
        for case, difference in pairs:
            labels = dict.fromkeys((case.label, anchors[case.size]))
            known = [own[name, label] for label in labels if (name, label) in own]
            taken = reduce(compare.larger, known) if known else None
            here = (name, case.label) in own
            sets.setdefault(name, []).append(Measured(case.label, difference, taken, unit, here))
    return sets


def _fails(measured: Measured) -> bool:
    return not measured.found.problem and not measured.found.exact and not compare.passes(measured, None)


def _taken_elsewhere(measured: Measured) -> bool:
    """Whether it is judged by the error on another input set: a norm of the image makes much of what rounding leaves on
    a constant one, and little of it on noise."""
    return not measured.own_taken_here


def _is_near(measured: Measured) -> bool:
    return compare.badness(measured) <= NEAR


def _types(program: Subject) -> set[str]:
    return {name_of(t.dtype) for t in program.tensors() if t.is_floating_point()}


def _arrays(outputs: dict[str, Any]) -> dict[str, Array]:
    """Outputs as numpy has them; bfloat16 by its values."""
    return {
        name: array_of(value.float() if name_of(value.dtype) == "bfloat16" else value)
        for name, value in outputs.items()
        if hasattr(value, "detach")
    }


def _engine(program: Subject) -> str:
    import torch

    tensors = program.tensors()
    return f"torch {torch.__version__}, {tensors[0].device if tensors else 'cpu'}, eager"


def _sentence(check: OutputCheck) -> str:
    note = f" ({check.note})" if check.note else ""
    return f"{check.name!r} differs by {check.error:.3g} on {check.inputs}, allowed {check.tolerance:.3g}{note}"
