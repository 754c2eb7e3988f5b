"""Archives as torch writes them and as nobody should, and programs that say when they are run."""

from __future__ import annotations

import io
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rewriter.checkpoints.bytesource import Source, read


class Mine:
    """Runs code while it is unpickled: makes a folder, whose presence a test can look for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def weights() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    return OrderedDict(
        [("conv.weight", torch.randn(4, 3, 3, 3)), ("conv.bias", torch.randn(4)), ("steps", torch.tensor(7))]
    )


def saved(path: Path, value: object, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def source(path: Path, data: bytes | None = None) -> Source:
    if data is not None:
        path.write_bytes(data)
    return read(path)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(content: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these members, each as plain as zipfile makes it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return made.getvalue()
