"""The child process: reads two models from stdin, compares them, writes progress and one result as JSON lines.

Invariant: it reads no file of the user's and writes none; limits are set before the first byte of a model is parsed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, BinaryIO

from rewriter.checking import budget, sizes, trial, wire
from rewriter.checking.engines import CannotLoad, Engine, OnnxRuntime, Reference, can_upcast
from rewriter.checking.limits import Limits, peak_bytes, restrict
from rewriter.checking.net import Net, extract, input_names, unpack
from rewriter.checking.record import Verdict, Verification
from rewriter.checking.trial import NothingRuns, Request


def main() -> int:
    source = sys.stdin.buffer
    # What native libraries print must not get between our lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(message: dict[str, object]) -> None:
        answers.write(json.dumps({**message, "peak": peak_bytes()}) + "\n")
        answers.flush()

    header = wire.receive_json(source)
    engine = OnnxRuntime()
    limits = Limits(header["seconds"], header["memory"])
    unenforced = restrict(limits)
    try:
        result = _compare(source, header, engine, lambda text: tell({"progress": text}))
        answer: dict[str, Any] = asdict(result)
    except MemoryError:
        gib = limits.memory / (1 << 30)
        answer = {"verdict": Verdict.NOT_VERIFIED, "reason": f"the comparison needs more than {gib:.3g} GiB of memory"}
    if unenforced:
        answer["notes"] = [*answer.get("notes", ()), unenforced]
    tell({"result": answer})
    return 0


def _compare(source: BinaryIO, header: dict[str, Any], engine: Engine, say: Callable[[str], None]) -> Verification:
    say("loading")
    shapes = {name: tuple(int(size) for size in shape) for name, shape in header["shapes"].items()}
    request = Request(header["pairs"], shapes, wire.receive_blobs(source), header["tolerance"])
    before, after = _net(source), _net(source)
    reasons: list[str] = []
    for candidate in (lambda: engine, lambda: _reference(before, request, reasons), lambda: _upcast(before)):
        chosen = candidate()
        if chosen is None:
            continue
        try:
            found = trial.run(chosen, request, before, after, say)
        except NothingRuns as error:
            if not isinstance(chosen, Reference):
                remedy = (
                    "give sizes that suit the model with --shape NAME=1x3x640x640, or inputs with --inputs FILE.npz"
                )
                return _not_verified(f"the original does not run: {error}; {remedy}", chosen)
            reasons.append(f"{chosen.name}: {error}")
        except CannotLoad as error:
            reasons.append(f"{chosen.name}: {error}")
        else:
            return found
    return _not_verified(f"no engine runs it: {'; '.join(reasons)}; --no-verify goes on without", engine)


def _not_verified(reason: str, engine: Engine) -> Verification:
    return Verification(Verdict.NOT_VERIFIED, reason, engine.name)


def _net(source: BinaryIO) -> Net:
    proto = wire.receive_bytes(source)
    return unpack(proto, wire.receive_blobs(source))


def _reference(before: Net, request: Request, reasons: list[str]) -> Engine | None:
    """onnx's own evaluator, if what is compared is small enough for it."""
    net = extract(before, list(request.pairs))
    specs, bound = sizes.bind(sizes.input_specs(before.graph), request.shapes)
    read = set(input_names(net.graph))
    used = tuple(spec for spec in specs if spec.name in read and spec.name not in request.given)
    given = {name: array.shape for name, array in request.given.items() if name in read}
    known, from_given = sizes.bind([s for s in sizes.input_specs(before.graph) if s.name in given], given, "--inputs")
    tries = sizes.candidates(used, {**bound, **from_given}, sizes.total_stride(net))
    reason = budget.too_large(net, (*used, *known), tries[0])
    if reason:
        reasons.append(reason)
        return None
    return Reference()


def _upcast(before: Net) -> Engine | None:
    return OnnxRuntime(upcast=True) if can_upcast(before) else None


if __name__ == "__main__":
    sys.exit(main())
