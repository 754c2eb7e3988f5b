"""`rewriter.apply` on an exported YOLOv9 beside one copy of its parameters and the float64 work of its regions.

Invariant: all figures are of one process and one thread, medians of several runs; the copy takes turns with `apply`.
The whole-model comparison is off.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import rewriter
from fixtures.yolov9 import build
from rewriter.rewriting import engine

PATTERNS = ["repconv", "conv-bn", "bypass", "aux-prune"]
SIZE = 64


def program(variant: str) -> torch.export.ExportedProgram:
    model, image = build(variant), torch.zeros(1, 3, SIZE, SIZE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(image)  # anchors of this size become constants
        return torch.export.export(model, (image,))


def copied(before: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in before.state_dict.items()}


def timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", default=["t", "c"])
    parser.add_argument("--runs", type=int, default=3)
    words = parser.parse_args()
    torch.set_num_threads(1)
    inside = [0.0]
    act = engine.act

    def counted(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return act(*args, **kwargs)
        finally:
            inside[0] += time.perf_counter() - started

    engine.act = counted  # folding and proving, which every region needs
    print("| variant | nodes | parameters | apply, s | of that float64 work, s | one copy of the parameters, s |")
    print("|---|---|---|---|---|---|")
    for variant in words.variants:
        before = program(variant)
        whole: list[float] = []
        regions: list[float] = []
        copies: list[float] = []
        for _ in range(words.runs + 1):  # the first one warms up
            copies.append(timed(partial(copied, before)))
            inside[0] = 0.0
            whole.append(timed(partial(rewriter.apply, before, PATTERNS, verify=False)))
            regions.append(inside[0])
        figures = [statistics.median(each[1:]) for each in (whole, regions, copies)]
        size = sum(p.numel() for p in before.parameters())
        print(
            f"| {variant} | {len(before.graph.nodes):,} | {size:,} | " + " | ".join(f"{f:.3f}" for f in figures) + " |"
        )


if __name__ == "__main__":
    main()
