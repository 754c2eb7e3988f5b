"""Two programs run whole on the same inputs, and every output judged as on the ONNX path (design: Flow, verify).

Invariant: both run in this process, on copies; nothing is OK that was not run, and the original's own error decides how
close is close.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.checking import compare, samples
from rewriter.checking.compare import Measured
from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.checking.samples import Case
from rewriter.checking.sizes import InputSpec
from rewriter.graph.tensors import dtype_enum
from rewriter.graph.view import Array
from rewriter.torch_graphs import running
from rewriter.torch_graphs.tensors import array_of, name_of, tensor_of

SEEDS = (1, 2, 3)
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
ORDER = (Verdict.FAILED, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE, Verdict.OK)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Ran:
    case: Case
    inputs: list[Any]
    outputs: dict[str, Array]


def verify(before: Any, after: Any, tell: Tell) -> Verification:
    """Run both on the sizes of the export and, where sizes are open, on others."""
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
        found = _arrays(running.run(after, one.inputs))
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


def _originals(program: Any, tell: Tell, notes: list[str]) -> list[_Ran]:
    """What the original gives on every input set that it runs on; it has to run on those of the export's sizes."""
    ran: list[_Ran] = []
    for case, inputs in _cases(program):
        tell(f"original, {case.label}")
        try:
            ran.append(_Ran(case, inputs, _arrays(running.run(program, inputs))))
        except Exception as problem:  # of many types; each says that these inputs are none for the program
            said = " ".join(str(problem).split())[:200]
            if case.size == 0:
                raise ValueError(f"the program does not run on {case.label}: {said}") from problem
            notes.append(f"the original does not run on {case.label}, which was left out: {said}")
    return ran


def _varying(program: Any, ran: _Ran) -> list[str]:
    """The outputs that are others in a second run on the same inputs."""
    again = _arrays(running.run(program, ran.inputs))
    found = {name: compare.difference(array, again[name]) for name, array in ran.outputs.items()}
    return [name for name, difference in found.items() if difference.problem or difference.error]


def _cases(program: Any) -> list[tuple[Case, list[Any]]]:
    nodes = running.inputs_of(program)
    given = running.examples(program)
    made: list[tuple[Case, list[Any]]] = []
    for number, chosen in enumerate(running.sizes(program)):
        specs: list[InputSpec] = []
        for node in nodes:
            fake = node.meta.get("val")
            if hasattr(fake, "untyped_storage"):
                specs.append(InputSpec(node.name, dtype_enum(name_of(fake.dtype)), running.shape_at(node, chosen)))
            elif given is None:
                raise ValueError(f"its input {node.name} is no tensor, and it holds no example inputs")
        for case in samples.cases(specs, {}, number, {}, {}):
            made.append((case, _inputs(nodes, case, given)))
    return made


def _inputs(nodes: Sequence[Any], case: Case, given: list[Any] | None) -> list[Any]:
    """Noise where the user gives floats; whole numbers (ids, masks) as in the export, where they fit."""
    found: list[Any] = []
    for place, node in enumerate(nodes):
        example = None if given is None else given[place]
        array = case.feeds.get(node.name)
        if array is None:
            found.append(example)
            continue
        whole = array.dtype.kind in "biu" and example is not None and tuple(example.shape) == array.shape
        made: Any = example if whole else tensor_of(array, name_of(node.meta["val"].dtype))
        found.append(made.to(node.meta["val"].device))
    return found


def _own_errors(program: Any, ran: Sequence[_Ran], unit: float, tell: Tell) -> dict[tuple[str, int], Array]:
    """The original's own change, by output and size, when every float weight is off by at most one rounding."""
    import torch

    own: dict[tuple[str, int], Array] = {}
    for seed in SEEDS:
        tell(f"original, rounding {seed}/{SEEDS[-1]}")
        chance = torch.Generator().manual_seed(seed)

        def off(tensor: Any, chance: Any = chance) -> Any:
            noise = torch.rand(tensor.shape, generator=chance, dtype=torch.float32).mul_(2).sub_(1).mul_(unit)
            exact = tensor.double()
            return exact.add_(exact * noise.to(exact.device)).to(tensor.dtype)

        for one in ran:
            if one.case.anchor:
                found = _arrays(running.run(program, one.inputs, off))
                for name, array in found.items():
                    error = compare.own_error(compare.difference(one.outputs[name], array, parts=True))
                    key = (name, one.case.size)
                    own[key] = compare.larger(own.get(key, error), error)
    return own


def _types(program: Any) -> set[str]:
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return {name_of(t.dtype) for t in tensors if hasattr(t, "dtype") and t.is_floating_point()}


def _arrays(outputs: dict[str, Any]) -> dict[str, Array]:
    """Outputs as numpy has them; bfloat16 by its values."""
    return {
        name: array_of(value.float() if name_of(value.dtype) == "bfloat16" else value)
        for name, value in outputs.items()
        if hasattr(value, "detach")
    }


def _engine(program: Any) -> str:
    import torch

    tensors = [t for t in program.state_dict.values() if hasattr(t, "device")]
    return f"torch {torch.__version__}, {tensors[0].device if tensors else 'cpu'}, eager"


def _sentence(check: OutputCheck) -> str:
    note = f" ({check.note})" if check.note else ""
    return f"{check.name!r} differs by {check.error:.3g} on {check.inputs}, allowed {check.tolerance:.3g}{note}"
