"""What test processes share: torchvision's operators are named where its compiled extension does not load.

Invariant: names are registered only where they are missing, before timm is imported by a test, and never given a body.
"""

from __future__ import annotations

import importlib.util

LIBRARIES: list[object] = []  # a library that is dropped takes its schemas with it


def _register(name: str) -> None:
    import torch

    try:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # the extension is there and has it
        return
    LIBRARIES.append(library)


def pytest_configure() -> None:
    if importlib.util.find_spec("timm") is not None:
        for name in ("nms", "qnms"):
            _register(name)
