"""Files that nobody sees until they are complete, and disappear by themselves when they never are.

Invariant: a draft has no name (O_TMPFILE) or a recognisable temporary one, `.NAME.fxrewrite-PID-RANDOM.tmp`, which
`sweep` removes once its writer is dead. Publishing is one link or one rename of a file that was synced before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path
from types import ModuleType
from typing import Final

from rewriter.errors import InputError
from rewriter.graph.tensors import shown

try:
    import fcntl
except ImportError:  # Windows; a live writer is then told by its pid alone
    fcntl: ModuleType | None = None

_LEFTOVER: Final = re.compile(r"^\..*\.fxrewrite-(\d+)-[0-9a-f]{8}\.tmp$", re.DOTALL)
_NO_TMPFILE: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS})
_NO_LINK: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
MARK: Final = b"fxrewrite data\n\0"  # at the end of data files that we wrote
_SCAN: Final = 4 << 30  # bytes of neighbours that are looked through before old data is removed
_BUFFER: Final = 1 << 20
_CHUNK: Final = 16 << 20
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)


class Draft:
    """A file under construction in `folder`; `write` appends, `complete` syncs, then `publish` or `replace`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.size = 0
        self._name = name
        self._temp: Path | None = None
        self._published: Path | None = None
        self._fd = self._nameless()
        if self._fd < 0:
            self._temp = self._temporary()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self._temp, flags | _CLOEXEC, 0o666)
        if fcntl is not None:  # says to `sweep` in any process or container that the writer lives
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        info = os.fstat(self._fd)
        self._identity = (info.st_dev, info.st_ino)

    @property
    def fd(self) -> int:
        """The descriptor, for copying into; tell `size` about what was written there."""
        return self._fd

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view[: 1 << 30])
            self.size += done
            view = view[done:]

    def rewind(self) -> None:
        """Forget what was written."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = 0

    def patch(self, position: int, data: bytes) -> None:
        """Overwrite bytes that were written before."""
        os.lseek(self._fd, position, os.SEEK_SET)
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.EIO, "short write")
        os.lseek(self._fd, self.size, os.SEEK_SET)

    def align(self, step: int) -> None:
        """Zeros up to a multiple of `step`."""
        self.write(bytes(-self.size % step))

    def complete(self) -> None:
        """Everything written is on the disk after this."""
        os.fsync(self._fd)

    def publish(self, target: Path) -> None:
        """Give the file its name; FileExistsError when the name is taken, which is then left alone."""
        self._published = target
        if self._temp is None:
            self._link(target)
            return
        try:
            os.link(self._temp, target)
            os.unlink(self._temp)  # at once: data with two names would be refused as a hard link
        except FileExistsError:
            raise
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LINK:
                raise
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
            self._release()
            os.rename(self._temp, target)

    def replace(self, target: Path) -> None:
        """Take the place of what has the name now, in one step."""
        self._published = target
        if self._temp is None:
            self._temp = self._temporary()
            self._link(self._temp)
        self._release()
        os.replace(self._temp, target)

    def holds(self, target: Path) -> bool:
        """True where `target` is this very file."""
        try:
            info = os.lstat(target)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._identity

    def close(self, *, keep: bool) -> None:
        """Release everything; with `keep` false also take the published name away again, if it is still ours."""
        for path in (self._temp, None if keep else self._published):
            if path is not None and self.holds(path):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _release(self) -> None:
        if os.name == "nt":  # an open file cannot be renamed there
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _nameless(self) -> int:
        flag: int = getattr(os, "O_TMPFILE", 0)
        if not flag or not os.path.isdir("/proc/self/fd"):
            return -1
        try:
            return os.open(self.folder, flag | os.O_RDWR | _CLOEXEC, 0o666)  # less the umask, as for any file
        except OSError as error:
            if error.errno in _NO_TMPFILE:
                return -1
            raise

    def _link(self, target: Path) -> None:
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC)
        try:  # with a folder descriptor this is linkat(AT_SYMLINK_FOLLOW), which is what gives the open file a name
            os.link(f"/proc/self/fd/{self._fd}", target.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def _temporary(self) -> Path:
        short = self._name.encode("utf-8", "surrogateescape")[:120].decode("utf-8", "ignore")
        return self.folder / f".{short}.fxrewrite-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def copy_range(source: int, offset: int, length: int, draft: Draft, what: str) -> None:
    """Append bytes of an open file, inside the kernel where it can (and shared on disk where the filesystem can)."""
    done = 0
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):  # another filesystem, an old kernel: go on by hand from where it stopped
            while done < length:
                step = os.copy_file_range(source, draft.fd, min(length - done, 1 << 30), offset + done)
                if not step:
                    break
                done += step
                draft.size += step
    while done < length:
        os.lseek(source, offset + done, os.SEEK_SET)
        data = os.read(source, min(length - done, _CHUNK))
        if not data:
            raise InputError(f"{what} became shorter while it was copied; try again")
        draft.write(data)
        done += len(data)


def sync_folder(folder: Path) -> None:
    """Make new names durable, where folders can be synced."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some network filesystems do not know it
            raise
    finally:
        os.close(fd)


def sweep(folder: Path) -> None:
    """Remove temporaries of runs that were killed; those of living writers, here or in a container, stay."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if _LEFTOVER.match(entry.name)]:
            found = _LEFTOVER.match(name)
            if found and not _alive(int(found[1])):
                with contextlib.suppress(OSError):
                    _remove_unlocked(folder / name)


def _remove_unlocked(path: Path) -> None:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | _CLOEXEC
    fd = os.open(path, flags)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            if fcntl is not None:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    finally:
        os.close(fd)


def _alive(pid: int) -> bool:
    if os.name == "nt" or not 0 < pid < 1 << 31:
        return os.name == "nt"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def refused_type(path: Path, mode: int) -> str:
    """Why a thing of this mode cannot be an output file."""
    if stat.S_ISDIR(mode):
        return f"{shown(path)} is a directory; name a file in it: -o {shown(path / 'model.onnx')}"
    return f"{shown(path)} is a pipe, a device or a socket; name a regular file"


def named_in_folder(folder: Path, name: str) -> bool:
    """True where a file beside it may name a data file; also when there is too much to look through."""
    budget = _SCAN
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".data") or not entry.is_file():
                continue
            budget -= entry.stat().st_size
            if budget < 0 or mentions(Path(entry.path), name):
                return True
    return False


def is_ours(path: Path) -> bool:
    """True for a data file that `save` wrote."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(-len(MARK), os.SEEK_END)
        return file.read() == MARK
    return False


def mentions(path: Path, name: str) -> bool:
    """True where the bytes of a file contain a name."""
    needle, tail = name.encode("utf-8", "surrogateescape"), b""
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_BUFFER):
            if needle in tail + chunk:
                return True
            tail = chunk[-len(needle) :]
    return False
