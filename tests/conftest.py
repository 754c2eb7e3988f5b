"""What test processes share: torchvision's operators are named where its compiled extension does not load.

Invariant: names are registered only where they are missing, before timm is imported by a test, and never given a body.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

LIBRARIES: list[object] = []  # a library that is dropped takes its schemas with it


def _loads() -> bool:
    """Whether the extension fits the torch that is here: it must not find its names taken, which ends the process."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    for library in (path for folder in folders for path in folder.glob("_C.*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:  # made for another build of torch
            return False
        return True
    return False


def _register(name: str) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARIES.append(library)


def pytest_configure() -> None:
    if importlib.util.find_spec("timm") is not None and not _loads():
        for name in ("nms", "qnms"):
            _register(name)
