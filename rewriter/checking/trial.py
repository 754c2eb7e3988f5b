"""One comparison, start to end, inside the child: run the original, measure its own error, run the other, judge.

Invariant: one session is open at a time, and every session is run on the very same arrays. Nothing is OK here that was
not run: an output leaves this module with a verdict of its own or the whole comparison leaves with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from rewriter.checking import compare, decided, perturb, samples, sizes
from rewriter.checking.compare import Measured, difference
from rewriter.checking.discrete import Choices, choices, random_nodes
from rewriter.checking.engines import CannotLoad, CannotRun, Engine, Session
from rewriter.checking.net import Net, extract, input_names, value_names
from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.checking.samples import Case
from rewriter.checking.wire import Array

SEEDS = (1, 2, 3)
MORE_SEEDS = range(4, 13)
NEAR = 8.0  # times the limit: further off is no bad luck with three runs
_WANTED_SIZES = 2


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare: `pairs` names each compared output in the original and in the other model."""

    pairs: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    given: Mapping[str, Array]
    tolerance: float | None


class NothingRuns(Exception):
    """The original runs on none of the inputs that were tried."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The original's outputs on one input set."""

    case: Case
    outputs: Mapping[str, Any]


@dataclass(slots=True)
class Trial:
    """A comparison under way. `names` maps what is compared, outputs and frontier, from the original to the other."""

    engine: Engine
    request: Request
    before: Net
    after: Net
    found: Choices
    frontier: tuple[str, ...]
    say: Callable[[str], None]
    unit: float  # u of what the weights are stored in, and of what the engine computes in
    parts: bool = True  # judge by index too
    notes: list[str] = field(default_factory=list[str])
    ran: list[Ran] = field(default_factory=list[Ran])
    varying: set[str] = field(default_factory=set[str])
    own: dict[tuple[str, str], Array] = field(default_factory=dict[tuple[str, str], Array])  # e0, by part

    @property
    def names(self) -> dict[str, str]:
        return {**{name: name for name in self.frontier}, **self.request.pairs}


def run(engine: Engine, request: Request, before: Net, after: Net, say: Callable[[str], None]) -> Verification:
    """The verdict of `engine`; CannotLoad or NothingRuns where another engine may be asked."""
    pairs = request.pairs
    cut_before, cut_after = extract(before, list(pairs)), extract(after, list(dict.fromkeys(pairs.values())))
    found = choices(cut_before, list(pairs))
    there = value_names(cut_after.graph)
    frontier = tuple(name for name in found.frontier if name in there and name not in pairs)
    unit = max(perturb.roundoff(cut_before), engine.unit)
    parts = request.tolerance is None and not perturb.coarse(cut_before, unit)
    trial = Trial(engine, request, cut_before, cut_after, found, frontier, say, unit, parts)
    dropped = len(before.graph.node) - len(cut_before.graph.node)
    if dropped:
        trial.notes.append(f"{dropped} nodes of the original that the compared outputs do not need were not run")
    run_original(trial, sizes.input_specs(before.graph))
    missing = set(input_names(cut_after.graph)) - set(trial.ran[0].case.feeds)
    if missing:
        return finished(trial, (), Verdict.FAILED, f"it needs an input that the original has not: {', '.join(missing)}")
    if request.tolerance is None:
        measure_own(trial, [ran for ran in trial.ran if ran.case.anchor])
    try:
        differences = run_other(trial)
    except CannotRun as error:
        return finished(trial, (), Verdict.FAILED, str(error))
    except CannotLoad as error:
        if error.lacking:
            raise
        return finished(trial, (), Verdict.FAILED, f"the rewritten model does not load: {error}")
    return finished(trial, check_outputs(trial, differences))


def run_original(trial: Trial, specs: Sequence[sizes.InputSpec]) -> None:
    """Fill `ran`: the first sizes that the original can run, on every kind of input that it can run there."""
    net = trial.before
    bound_specs, bound = sizes.bind(specs, trial.request.shapes)
    # What only the other model reads is fed too, as long as the original declares it.
    read = {*input_names(net.graph), *input_names(trial.after.graph)}
    used = tuple(spec for spec in bound_specs if spec.name in read)
    given = {name: array for name, array in trial.request.given.items() if name in read}
    _, from_given = sizes.bind(
        [s for s in specs if s.name in given], {n: a.shape for n, a in given.items()}, "--inputs"
    )
    reason = samples.unsupported(used, given)
    if reason:
        raise NothingRuns(reason)
    outputs = list(trial.names)
    session = trial.engine.open(extract(net, outputs))
    made = [spec for spec in used if spec.name not in given]
    tries = sizes.candidates(made, {**bound, **from_given}, sizes.total_stride(net))
    bounds = samples.integer_bounds(net)
    wanted = min(_WANTED_SIZES, len(tries))
    accepted = 0
    for chosen in tries:
        if accepted == wanted:
            break
        if any(np.prod(spec.shape(chosen), dtype=np.float64) > samples.LARGEST for spec in made):
            reason = reason or "its inputs are too large to be made up"
            continue
        todo = samples.cases(used, chosen, accepted, bounds, given)
        reason_here = run_size(trial, session, todo, wanted * len(todo))
        accepted += not reason_here
        reason = reason or reason_here
    if not trial.ran:
        raise NothingRuns(reason)
    again = session.run(trial.ran[0].case.feeds)
    first = trial.ran[0].outputs
    trial.varying = {name for name in outputs if not _identical(first[name], again[name])}


def run_size(trial: Trial, session: Session, todo: Sequence[Case], total: int) -> str:
    """Run the original at one size; why it cannot, if its anchor fails. Other kinds that fail are noted."""
    for case in todo:
        trial.say(f"original, input {len(trial.ran) + 1}/{total}")
        try:
            trial.ran.append(Ran(case, session.run(case.feeds)))
        except CannotRun as error:
            trial.notes.append(f"the original does not run on {case.label}, which was left out: {error}")
            if case.anchor:
                return f"{case.label}: {error}"
    return ""


def _identical(first: Any, second: Any) -> bool:
    found = difference(first, second)
    return not found.problem and found.error == 0


def measure_own(
    trial: Trial, sets: Sequence[Ran], names: Sequence[str] | None = None, seeds: Sequence[int] = SEEDS
) -> None:
    """e0 on `sets` into `own`: the largest change over runs with every weight off by one rounding."""
    wanted = list(names if names is not None else trial.names)
    net = extract(trial.before, wanted)
    for seed in seeds:
        trial.say(f"original, rounding {seed}/{max(SEEDS[-1], seeds[-1])}")
        try:
            _measure_once(trial, net, seed, sets, wanted)
        except (CannotLoad, CannotRun):
            trial.own.update({(name, ran.case.label): np.array([np.inf]) for name in wanted for ran in sets})
            trial.notes.append("the original does not run with perturbed weights, so its own error is not known")
            return


def _measure_once(trial: Trial, net: Net, seed: int, sets: Sequence[Ran], wanted: Sequence[str]) -> None:
    """One perturbed run; a function of its own, so that its weights are gone before the next ones are made."""
    session = trial.engine.open(perturb.perturbed(net, seed, trial.engine.unit))
    for ran in sets:
        outputs = session.run(ran.case.feeds)
        for name in wanted:
            key = (name, ran.case.label)
            error = compare.own_error(difference(ran.outputs[name], outputs[name], trial.parts))
            trial.own[key] = compare.larger(trial.own.get(key, error), error)


def run_other(trial: Trial) -> dict[str, list[Measured]]:
    """The other model on what the original ran on: one difference for each name and input set."""
    names = trial.names
    session = trial.engine.open(extract(trial.after, list(dict.fromkeys(names.values()))))
    result: dict[str, list[Measured]] = {name: [] for name in names}
    for at, ran in enumerate(trial.ran):
        trial.say(f"rewritten, input {at + 1}/{len(trial.ran)}")
        try:
            outputs = session.run(ran.case.feeds)
        except CannotRun as error:
            raise CannotRun(f"it fails on {ran.case.label}, where the original runs: {error}") from error
        for name, renamed in names.items():
            result[name].append(
                measured(trial, name, ran, difference(ran.outputs[name], outputs[renamed], trial.parts))
            )
    return result


def measured(trial: Trial, name: str, ran: Ran, found: compare.Difference) -> Measured:
    """A difference with the original's own error: taken here, else that of the same size's anchor."""
    anchors = (o.case.label for o in trial.ran if o.case.anchor and o.case.size == ran.case.size)
    known = [trial.own[name, label] for label in {ran.case.label, *anchors} if (name, label) in trial.own]
    own = reduce(compare.larger, known) if known else np.zeros(1)
    unit = max(trial.unit, perturb.roundoff_of(ran.outputs[name]))
    return Measured(ran.case.label, found, own, unit, (name, ran.case.label) in trial.own)


def check_outputs(trial: Trial, differences: dict[str, list[Measured]]) -> tuple[OutputCheck, ...]:
    """A verdict for each output and frontier value; what fails is looked at again before it is said to."""
    tolerance = trial.request.tolerance
    remeasure(trial, differences)
    checks: list[OutputCheck] = []
    late: list[str] = []
    for name, renamed in trial.names.items():
        note = "compared before the choice that follows" if name in trial.frontier else ""
        if name in trial.varying:
            checks.append(_random(trial, name, renamed))
        elif name in trial.found.outputs and not all(compare.passes(m, tolerance) for m in differences[name]):
            late.append(name)
        else:
            checks.append(compare.judge(name, renamed, differences[name], tolerance, note))
    if late:
        checks.extend(decided.check(trial, late, differences))
    return tuple(checks)


def remeasure(trial: Trial, differences: dict[str, list[Measured]]) -> None:
    """What fails is looked at again: with e0 of that very input set, and near the limit with e0 of more runs."""
    if trial.request.tolerance is not None:
        return
    _remeasure(trial, differences, SEEDS, lambda m: not m.own_taken_here)
    for seed in MORE_SEEDS:
        if not _remeasure(trial, differences, (seed,), lambda m: compare.badness(m) <= NEAR):
            break


def _remeasure(
    trial: Trial, differences: dict[str, list[Measured]], seeds: Sequence[int], wanted: Callable[[Measured], bool]
) -> bool:
    """Measure e0 again for what fails and is `wanted`; whether there was any."""
    plain = [n for n in differences if n not in trial.found.outputs and n not in trial.varying]
    failing = {
        (name, m.case)
        for name in plain
        for m in differences[name]
        if not m.found.problem and not m.found.exact and not compare.passes(m, None) and wanted(m)
    }
    if not failing:
        return False
    labels = {label for _, label in failing}
    names = sorted({name for name, _ in failing})
    measure_own(trial, [ran for ran in trial.ran if ran.case.label in labels], names, seeds)
    for name in names:
        pairs = zip(trial.ran, differences[name], strict=True)
        differences[name] = [measured(trial, name, ran, m.found) for ran, m in pairs]
    return True


def _random(trial: Trial, name: str, renamed: str) -> OutputCheck:
    nodes = ", ".join(random_nodes(extract(trial.before, [name]))[:5]) or "no random operator is known in it"
    note = f"the original differs from itself between two equal runs ({nodes})"
    return OutputCheck(name, renamed, 0.0, 0.0, 0.0, 0.0, Verdict.NOT_VERIFIED, trial.ran[0].case.label, note)


def finished(
    trial: Trial, checks: Sequence[OutputCheck], verdict: Verdict | None = None, reason: str = ""
) -> Verification:
    """The record of this engine, its verdict that of the worst output."""
    order = (Verdict.FAILED, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE, Verdict.OK)
    if verdict is None:
        verdict = min((check.verdict for check in checks), key=order.index)
        reason = "; ".join(_sentence(check) for check in checks if check.verdict is verdict is not Verdict.OK)
    labels = tuple(ran.case.label for ran in trial.ran)
    return Verification(verdict, reason, trial.engine.name, tuple(checks), labels, notes=tuple(trial.notes))


def _sentence(check: OutputCheck) -> str:
    if check.verdict is Verdict.NOT_VERIFIED:
        return f"random ops: output {check.name!r}: {check.note}"
    numbers = f"differs by {check.error:.3g} on {check.inputs}, allowed {check.tolerance:.3g}"
    own = f", the original's own error is {check.own_error:.3g}, its largest value {check.scale:.3g}"
    note = f" ({check.note})" if check.note else ""
    return f"{check.name!r} {numbers}{own}{note}"
