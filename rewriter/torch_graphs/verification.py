"""Two programs run whole on the same inputs, and every output judged as on the ONNX path (design: Flow, verify).

Invariant: both run in this process, on copies; nothing is OK that was not run, and the original's own error decides how
close is close.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewriter.checking import compare
from rewriter.checking.compare import Measured
from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.checking.samples import Case
from rewriter.graph.view import Array
from rewriter.torch_graphs.tensors import array_of, name_of

SEEDS = (1, 2, 3)
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
ORDER = (Verdict.FAILED, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE, Verdict.OK)

Tell = Callable[[str], None]
Change = Callable[[Any], Any]


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
    own = _own_errors(before, ran, unit, tell)
    sets: dict[str, list[Measured]] = {}
    for one in ran:
        tell(f"rewritten, {one.case.label}")
        try:
            found = _arrays(after.run(one.inputs))
        except Exception as problem:  # of many types; where the original runs, the result has to
            said = " ".join(str(problem).split())[:200]
            reason = f"the result does not run on {one.case.label}: {said}"
            return Verification(Verdict.FAILED, reason, _engine(before), notes=tuple(notes))
        for name, array in found.items():
            difference = compare.difference(one.outputs[name], array, parts=True)
            taken = own.get((name, one.case.size))
            sets.setdefault(name, []).append(Measured(one.case.label, difference, taken, unit, one.case.anchor))
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


def _own_errors(program: Subject, ran: Sequence[_Ran], unit: float, tell: Tell) -> dict[tuple[str, int], Array]:
    """The original's own change, by output and size, when every float weight is off by at most one rounding."""
    import torch

    own: dict[tuple[str, int], Array] = {}
    for seed in SEEDS:
        tell(f"original, rounding {seed}/{SEEDS[-1]}")
        chance = torch.Generator().manual_seed(seed)

        def off(tensor: Any, chance: Any = chance) -> Any:
            noise = torch.rand(tensor.shape, generator=chance, dtype=torch.float32).mul_(2).sub_(1).mul_(unit)
            exact = tensor.double()
            return (exact + exact * noise.to(exact.device)).to(tensor.dtype)

        for one in ran:
            if one.case.anchor:
                found = _arrays(program.run(one.inputs, off))
                for name, array in found.items():
                    error = compare.own_error(compare.difference(one.outputs[name], array, parts=True))
                    key = (name, one.case.size)
                    own[key] = compare.larger(own.get(key, error), error)
    return own


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
