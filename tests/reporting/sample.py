"""A small report written by hand: one of everything that a renderer has words for."""

from __future__ import annotations

from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.reporting.record import (
    Cost,
    Inspection,
    MatchRecord,
    OutputInfo,
    OutputNeeds,
    OutputsDecision,
    PatternOutlook,
    PatternSource,
    Proof,
    RefusalRecord,
    Report,
    ShadowRecord,
    Share,
    SizeRecord,
    Totals,
    VoteRecord,
)

BOXES = OutputInfo("boxes", "float32", (1, "N", None))
AUX = OutputInfo("aux", "float32", None)
BEFORE = Totals(1274, (("Conv", 255), ("Mul", 2), ("Add", 1)), 51_182_080, 118_000_000_000, 205_131_776, (AUX, BOXES))
AFTER = Totals(701, (("Conv", 145), ("Mul", 2), ("Relu", 3)), 25_286_016, 51_000_000_000, 101_000_000, (BOXES,))

OK = Verification(
    Verdict.OK,
    engine="onnxruntime 1.31.1, optimisation off",
    outputs=(OutputCheck("boxes", "out", 3.1e-5, 1e-5, 512.0, 4.9e-4, Verdict.OK, "ones 1x3x64x64", "index 3"),),
    inputs=("ones 1x3x64x64", "zeros 1x3x64x64"),
    seconds=1.5,
    peak_bytes=123_456_789,
    notes=("memory was not limited",),
)

MATCHES = tuple(
    MatchRecord(
        pattern="repconv",
        round=1,
        exit=f"sum{number}",
        entry=f"x{number}",
        nodes=("a", "b", "c"),
        summary="sum of dense (conv->bn), skip (bn)",
        made=("a_fused",),
        leftovers=("residual",) if number == 0 else (),
        before=Cost(700, 63.0, bytes=3_200),
        after=Cost(600, 54.0, bytes=2_400),
        proof=Proof(1e-15 * (number + 1), 1e-12, 6, (9, 7)),
        saved_parameters=100,
    )
    for number in range(2)
)

REPORT = Report(
    model="net.onnx",
    output="ship.onnx",
    before=BEFORE,
    after=AFTER,
    patterns=(PatternSource("repconv", "repconv.fxp", "ab" * 32), PatternSource("mine", "./my.fxp", "cd" * 32)),
    parameters=(("aux-prune.keep", "boxes"),),
    decisions=(
        OutputsDecision(
            pattern="aux-prune",
            kept=("boxes",),
            removed=("aux",),
            how="by votes",
            votes=(VoteRecord("depth", "true", True, "96 < 109"), VoteRecord("params", "false", False, "7 < 6")),
            removed_nodes=508,
            removed_parameters=25_000_000,
            sizes=(
                SizeRecord("shape1", "aux_map", "main_map", "[1, N, N/8]", ("N % 8 == 0",)),
                SizeRecord("shape2", "aux_map", None, "no value of equal size stays"),
            ),
        ),
    ),
    matches=MATCHES,
    refusals=(
        *(RefusalRecord("bypass", f"mul{number}", "value", "its value is 0.5") for number in range(1200)),
        RefusalRecord("repconv", "sum9", "escape", "it is read twice"),
        RefusalRecord(
            "repconv", "sum8", "cost", "too dear", Cost(52, 5.2e6, False, 208), Cost(144, 1.44e7, False, 576)
        ),
    ),
    shadowed=(ShadowRecord("conv-bn", "n1", "repconv", "sum0"),),
    covered=2,
    renamed=(("boxes", "out"),),
    dead_before=("lost",),
    rounds=2,
    end="fixpoint",
    verification=OK,
    versions=(("fxrewrite", "0.1.0"), ("onnx", "1.16")),
    seconds=3.25,
)

INSPECTION = Inspection(
    model="net.onnx",
    totals=BEFORE,
    outputs=(
        OutputNeeds(
            "aux", Share(860, 26_000_000, 60_000_000_000, 104_000_000), Share(508, 25_591_040, None, 102_400_000)
        ),
        OutputNeeds(
            "boxes", Share(766, 25_600_000, 50_000_000_000, 102_500_000), Share(414, 25_182_080, 1, 100_800_000)
        ),
    ),
    shared=Share(352, 408_960, 8_000_000_000, 1_700_000),
    patterns=(
        PatternOutlook("aux-prune", 1, 25_591_040, None, "removes aux"),
        PatternOutlook("bypass", 25, 0),
        PatternOutlook("repconv", 24, 232_000, 6_100_000_000),
        PatternOutlook("replk", 0, 0),
    ),
    dead=("lost",),
    versions=(("fxrewrite", "0.1.0"),),
)
