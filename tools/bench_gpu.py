"""Latency of nets in training form, rewritten, and converted as their authors do: eager, compiled, as a CUDA graph.

Invariant: the three forms of a net are run in turns on the same input, after warm-up, and medians are shown with their
spread (the middle half of the runs). On a CPU it is a smoke test and no figure of it means anything.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import rewriter
from fixtures.families import FAMILIES
from fixtures.yolov9 import DualModel, build
from fixtures.yolov9.layers import ConvNorm, RepPair

Runner = Callable[[], object]


class Main(nn.Module):
    """A YOLOv9 without its auxiliary rows and head, as its authors ship it."""

    def __init__(self, model: DualModel) -> None:
        super().__init__()
        self.model, self.needed = model, model.variant.main_rows()

    def forward(self, image: Tensor) -> Tensor:
        done: list[Tensor | None] = []
        for index, (row, sources) in enumerate(zip(self.model.rows, self.model.sources, strict=True)):
            read = [image if source < 0 else done[source] for source in sources]
            done.append(row(read if len(read) > 1 else read[0]) if index in self.needed else None)
        head = self.model.head
        raw = head.main.raw([done[row] for row in self.model.variant.main])
        return head.main.decode(raw, image.shape[0], *head.grid(raw))


def converted(model: DualModel) -> nn.Module:
    """The branches of every pair added up, norms folded, the auxiliary part left out."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RepPair):
                setattr(parent, name, _paired(child))
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.filter, module.norm = fuse_conv_bn_eval(module.filter, module.norm), nn.Identity()  # type: ignore[assignment]
    return Main(model)


def _paired(pair: RepPair) -> nn.Module:
    wide, point = (fuse_conv_bn_eval(part.filter, part.norm) for part in (pair.wide, pair.point))
    wide.weight.data += F.pad(point.weight.data, [1, 1, 1, 1])
    wide.bias.data += point.bias.data
    return nn.Sequential(wide, pair.act)


def forms(name: str, size: int) -> tuple[dict[str, nn.Module], Tensor]:
    """The nets by form, and the input that they run on."""
    if name in FAMILIES:
        family = FAMILIES[name]
        net, image = family.build(), torch.randn(family.shape)
        result = rewriter.apply(net, ["deploy"], example_inputs=image)
        return {"training": net, "rewritten": result.model}, image
    model, image = build(name), torch.randn(1, 3, size, size)
    with torch.no_grad():
        model(image)
    result = rewriter.apply(model, ["repconv", "conv-bn", "bypass", "aux-prune"], example_inputs=image)
    return {"training": model, "rewritten": result.model, "converted": converted(model)}, image


def runner(net: nn.Module, image: Tensor, mode: str) -> Runner:
    if mode == "compiled":
        net = torch.compile(net)  # type: ignore[assignment]
    if mode != "graph":
        return lambda: net(image)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            net(image)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(image)
    return graph.replay


def measured(runners: dict[str, Runner], runs: int, cuda: bool) -> dict[str, list[float]]:
    """Milliseconds of every form, which take turns."""
    found: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(runs + max(3, runs // 10)):
        for name, run in runners.items():
            if cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            if turn >= max(3, runs // 10):
                found[name].append(1e3 * (time.perf_counter() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=["c", "e", "repvgg", "mobileone"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--modes", default="eager,compiled,graph")
    parser.add_argument("--types", default="float32,float16")
    words = parser.parse_args()
    cuda = words.device.startswith("cuda")
    print(f"{torch.cuda.get_device_name() if cuda else 'CPU'}, torch {torch.__version__}, {words.runs} runs\n")
    print("| net | type | mode | form | median, ms | middle half, ms | of training |\n|---|---|---|---|---|---|---|")
    warnings.simplefilter("ignore")
    for name in words.nets:
        nets, image = forms(name, words.size)
        for kind in words.types.split(","):
            for mode in words.modes.split(","):
                ready = {form: copy.deepcopy(net).to(words.device, getattr(torch, kind)) for form, net in nets.items()}
                given = image.to(words.device, getattr(torch, kind))
                with torch.no_grad():
                    runners = {form: runner(net, given, mode) for form, net in ready.items()}
                    times = measured(runners, words.runs, cuda)
                base = statistics.median(times["training"])
                for form, each in times.items():
                    low, middle, high = statistics.quantiles(each, n=4)
                    spread = f"{low:.3f} to {high:.3f}"
                    print(
                        f"| {name} | {kind} | {mode} | {form} | {middle:.3f} | {spread} | {middle / base:.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
