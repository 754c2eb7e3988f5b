"""Writing models: atomic, never onto an input, and with external data that works from where the output lies.

Invariant: the output path holds the old file or the complete new one at every moment, and no failure that the process
survives leaves anything behind. Data goes first, under a name that no older output uses; then the model takes its
place. The message to be written is only read, and never held a second time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from onnx import ModelProto, TensorProto

from rewriter.errors import InputError, LimitError, OutputError
from rewriter.graph.drafts import (
    MARK,
    Draft,
    copy_range,
    is_ours,
    mentions,
    named_in_folder,
    refused_type,
    sweep,
    sync_folder,
)
from rewriter.graph.files import LoadedModel
from rewriter.graph.tensors import (
    External,
    check_range,
    external_bytes,
    external_of,
    is_external,
    open_external,
    raw_bytes,
    shown,
    stored_size,
)
from rewriter.graph.wire import Edits, write_model

_LIMIT: Final = (1 << 31) - 1  # protobuf's, for one message
_SPILL: Final = 1024  # bytes from which a tensor leaves a model that is too large for protobuf
_PAGE: Final = 4096
_BUFFER: Final = 1 << 20
_ORPHAN_AGE: Final = 600.0  # seconds after which data without a model is not one that is being written


def save(
    proto: ModelProto,
    path: Path,
    *,
    source: LoadedModel | None,
    force: bool = False,
    keep_external: bool = True,
    limit: int = _LIMIT,
) -> Path:
    """Write `proto` to `path` and return it; `source` is what it was made from, where external data is found.

    External tensors stay external, in a new file beside the output (inside the model with `keep_external` false).
    A model of more than `limit` bytes gets its large tensors external. An output that exists needs `force`.
    """
    path = Path(path)
    with _our_errors(path):
        target = _Target.of(path, source, force)
        spill = sum(stored_size(t) for t in proto.graph.initializer if not (keep_external and is_external(t))) > limit
        for everything in (False, True)[spill:]:
            with _Publication(target) as publication:
                output = _Output(publication, source, keep_external, everything)
                write_model(proto, output, output.edits())
                output.finish()
                if output.size <= limit:
                    publication.commit()
                    return path
        raise LimitError(f"{shown(path)}: the model is larger than 2 GB even without its weights; split it")


def save_unchanged(source: LoadedModel, path: Path, *, force: bool = False) -> Path:
    """Give `path` the very bytes of the source file, and its folder the data that they name.

    Where something else has the name of a data file already, the model is saved with a fresh name for its data.
    """
    path = Path(path)
    if source.path is None or source.folder is None:
        return save(source.proto, path, source=source, force=force)
    with _our_errors(path):
        target = _Target.of(path, source, force)
        missing: list[str] = []
        if not target.folder.samefile(source.folder):
            missing = [x for x in sorted(source.external) if not _already_there(source.folder, x, target.folder)]
        if any(os.path.lexists(target.folder / location) for location in missing):
            return save(source.proto, path, source=source, force=force)
        with _Publication(target) as publication:
            for location in missing:
                fd, size = open_external(source.folder, location)
                with open(fd, "rb"):
                    copy_range(fd, 0, size, publication.add_data(target.folder / location), shown(location))
            with _reopened(source.path) as file:
                if os.fstat(file.fileno()).st_size != source.bytes:
                    raise InputError(f"{shown(source.path)} was changed while it was worked on; run again")
                copy_range(file.fileno(), 0, source.bytes, publication.model, shown(source.path))
            publication.commit()
    return path


def _reopened(path: Path) -> FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read again: {error.strerror}; keep it until the end") from error


@contextlib.contextmanager
def _our_errors(path: Path) -> Generator[None]:
    """Every OSError as the exception whose message says what to do."""
    try:
        yield
    except OSError as error:
        name, folder = shown(path), shown(path.parent)
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                why = "the disk is full" if error.errno == errno.ENOSPC else "a quota or file size limit was reached"
                raise LimitError(
                    f"{name}: {why}, nothing was written; free some space or choose another folder"
                ) from error
            case errno.ENOENT | errno.ENOTDIR:
                raise OutputError(f"{name}: folder {folder} does not exist; create it: mkdir -p") from error
            case errno.EACCES | errno.EPERM | errno.EROFS:
                raise OutputError(f"{name}: folder {folder} cannot be written; choose another one with -o") from error
            case errno.EEXIST:
                raise OutputError(f"{name} exists; replace it with --force or choose another name") from error
            case _:
                raise OutputError(f"{name} cannot be written: {error.strerror or error}; choose another -o") from error
    except ValueError as error:
        if not isinstance(error, UnicodeEncodeError) and "null" not in str(error):
            raise
        raise OutputError(f"{shown(path)} is not a file name; choose another one") from error


@dataclass(frozen=True, slots=True)
class _Target:
    """A checked output: its folder, what stands there now, and data files that an older output alone used."""

    path: Path
    folder: Path
    exists: bool
    identity: tuple[int, int] | None
    sources: frozenset[tuple[int, int]]
    old_data: frozenset[str]

    @classmethod
    def of(cls, path: Path, source: LoadedModel | None, force: bool) -> _Target:
        folder = path.parent
        if not path.name or path.name == "..":
            raise OutputError(f"{shown(path)} is a directory; name a file in it: -o {shown(path / 'model.onnx')}")
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        sources = frozenset(_sources(source))
        identity, exists = None, os.path.lexists(path)
        if exists:
            with contextlib.suppress(OSError):  # a dangling link
                info = os.stat(path)
                identity = (info.st_dev, info.st_ino)
                if not stat.S_ISREG(info.st_mode):
                    raise OutputError(refused_type(path, info.st_mode))
            if identity in sources:
                raise OutputError(f"{shown(path)} is the input or its data, which is never written; choose another -o")
            if not force:
                raise OutputError(f"{shown(path)} exists; replace it with --force or choose another name")
        sweep(folder)
        return cls(path, folder, exists, identity, sources, _old_data(path, identity is not None))


def _sources(source: LoadedModel | None) -> Iterator[tuple[int, int]]:
    """Device and inode of the input and of every data file it names, links followed."""
    if source is None:
        return
    files = [source.path] if source.path is not None else []
    if source.folder is not None:
        files += [source.folder / location for location in source.external if "\0" not in location]
    for file in files:
        with contextlib.suppress(OSError):
            info = os.stat(file)
            yield info.st_dev, info.st_ino


class _Publication:
    """The files of one output; leaving the `with` block takes everything away that was not committed."""

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.model = Draft(target.folder, target.path.name)
        self.data: list[tuple[Draft, Path]] = []
        self._folders: list[Path] = []

    def __enter__(self) -> _Publication:
        return self

    def __exit__(self, *_: object) -> None:
        committed = self.model.holds(self.target.path)
        self.model.close(keep=True)
        for draft, _path in self.data:
            draft.close(keep=committed)
        for folder in reversed([] if committed else self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def add_data(self, path: Path) -> Draft:
        """A data file that will be called `path`; folders on the way are made."""
        missing = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
        for folder in reversed(missing):
            self._folders.append(folder)
            folder.mkdir()
        draft = Draft(path.parent, path.name)
        self.data.append((draft, path))
        return draft

    def commit(self) -> None:
        """Data first, then the model in one step; each is on the disk before the next appears."""
        for draft, path in self.data:
            draft.complete()
            draft.publish(path)
            sync_folder(path.parent)
        self.model.complete()
        if self.target.exists:
            self.model.replace(self.target.path)
        else:
            self.model.publish(self.target.path)
        sync_folder(self.target.folder)
        _remove_old_data(self.target, {path.name for _, path in self.data})


class _Output:
    """What `write_model` writes into: the model draft, and the data file as soon as a tensor needs one."""

    def __init__(self, publication: _Publication, source: LoadedModel | None, keep_external: bool, spill: bool) -> None:
        self._publication, self._source, self._keep, self._spill = publication, source, keep_external, spill
        self._data: Draft | None = None
        self._location = ""
        self._placed: dict[External, int] = {}
        self._pending: list[bytes] = []
        self._waiting = 0
        self.size = 0

    def edits(self) -> Edits:
        """External tensors move; with `spill` every large one does."""
        return Edits(lambda tensor: is_external(tensor) or self._spills(tensor), self._move, self._spill)

    def write(self, data: bytes) -> None:
        self._pending.append(data)
        self._waiting += len(data)
        self.size += len(data)
        if self._waiting >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Small pieces go together, large ones without a copy."""
        for piece in [b"".join(self._pending)] if len(self._pending) > 1 else self._pending:
            self._publication.model.write(piece)
        self._pending, self._waiting = [], 0

    def rewind(self) -> None:
        self._pending, self._waiting, self.size = [], 0, 0
        self._placed.clear()
        self._publication.model.rewind()
        if self._data is not None:
            self._data.rewind()

    def patch(self, position: int, data: bytes) -> None:
        self.flush()
        self._publication.model.patch(position, data)

    def finish(self) -> None:
        """Everything written; the mark at the end tells our data files from those of other tools."""
        self.flush()
        if self._data is not None:
            self._data.write(MARK)

    def _spills(self, tensor: TensorProto) -> bool:
        return self._spill and stored_size(tensor) >= _SPILL and tensor.data_type != TensorProto.STRING

    def _move(self, tensor: TensorProto) -> None:
        """Give an entry its new place; `tensor` is a copy."""
        if is_external(tensor) and not self._keep and not self._spills(tensor):
            data = bytes(external_bytes(tensor, self._folder()))
            _clear(tensor)
            tensor.raw_data = data
            return
        if is_external(tensor):
            length, offset = external_of(tensor).length, self._copied(tensor)
        else:
            raw = raw_bytes(tensor)
            length, offset = len(raw), self._room(len(raw))
            self._file().write(raw)
        _clear(tensor)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)

    def _copied(self, tensor: TensorProto) -> int:
        """Where the bytes of an external tensor are now; tensors that share bytes go on sharing them."""
        where = external_of(tensor)
        if where not in self._placed:
            fd, size = open_external(self._folder(), where.location)
            try:
                check_range(where, size, tensor.name)
                info = os.fstat(fd)
                if (info.st_dev, info.st_ino) == self._publication.target.identity:
                    raise OutputError(
                        f"{shown(self._publication.target.path)} holds data of the input; choose another -o"
                    )
                offset = self._room(where.length)
                copy_range(fd, where.offset, where.length, self._file(), f"external data {shown(where.location)}")
            finally:
                os.close(fd)
            self._placed[where] = offset
        return self._placed[where]

    def _folder(self) -> Path:
        folder = self._source.folder if self._source is not None else None
        if folder is None:
            raise InputError("the model has external data and no folder to find it in; load it from its file")
        return folder

    def _file(self) -> Draft:
        if self._data is None:
            path = self._publication.target.path
            name = f"{path.name}.data"
            if os.path.lexists(path.with_name(name)):
                name = f"{path.name}.{secrets.token_hex(4)}.data"
            self._location = name
            self._data = self._publication.add_data(path.with_name(name))
        return self._data

    def _room(self, length: int) -> int:
        file = self._file()
        file.align(_PAGE if length >= _PAGE else 64)
        return file.size


def _clear(tensor: TensorProto) -> None:
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(name)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _old_data(path: Path, replaced: bool) -> frozenset[str]:
    """Data files of ours that the output which is about to be replaced names, or that a killed run left without one."""
    ours = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{8})?\.data")
    with os.scandir(path.parent) as entries:
        names = [e.name for e in entries if ours.fullmatch(e.name) and e.is_file(follow_symlinks=False)]
    return frozenset(
        name
        for name in names
        if is_ours(path.with_name(name))
        and ((replaced and mentions(path, name)) or time.time() - path.with_name(name).stat().st_mtime > _ORPHAN_AGE)
    )


def _remove_old_data(target: _Target, new: set[str]) -> None:
    """What no file in the folder names any more; in doubt it stays."""
    with contextlib.suppress(OSError):
        for name in target.old_data - new:
            info = os.lstat(target.path.with_name(name))
            if (info.st_dev, info.st_ino) not in target.sources and not named_in_folder(target.folder, name):
                os.unlink(target.path.with_name(name))


def _already_there(source: Path, location: str, folder: Path) -> bool:
    """True where a folder has these very bytes under this name."""
    ours, size = open_external(source, location)
    with open(ours, "rb", buffering=0) as file:
        try:
            theirs, other = open_external(folder, location)
        except InputError:
            return False
        with open(theirs, "rb", buffering=0) as again:
            return size == other and all(file.read(_BUFFER) == again.read(_BUFFER) for _ in range(0, size, _BUFFER))
