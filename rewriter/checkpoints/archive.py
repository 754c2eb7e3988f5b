"""The zip archives that torch writes, examined before torch sees them.

Invariant: an `Archive` has one meaning for every reader. Its members are stored as they are, do not overlap, have
unique plain names under one folder, agree with their local headers and their checksums, and nothing precedes or
follows them; so what was examined is what is loaded, and its size is that of the file.
"""

from __future__ import annotations

import io
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rewriter.errors import InputError, LimitError
from rewriter.graph.tensors import shown

MOST_MEMBERS: Final = 200_000
MOST_NAME: Final = 1024
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_END: Final = struct.Struct("<4s4H2IH")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_FLAGS: Final = 0x0808  # UTF-8 names, sizes after the data: what torch's writer sets
_UNKNOWN: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """The members of an archive by their name below the root folder."""

    data: bytes
    root: str
    members: Mapping[str, tuple[int, int]]  # name -> where its bytes begin and end

    def read(self, name: str) -> memoryview:
        begin, end = self.members[name]
        return memoryview(self.data)[begin:end]


def examine(data: bytes, what: str) -> Archive:
    """The archive in `data`, or InputError in which `what` names the file and the reason says what is wrong."""
    try:
        return _Examination(data).run()
    except _Wrong as wrong:
        raise InputError(f"{shown(what)}: {wrong}; it is not loaded, save or download it again") from None
    except (zipfile.BadZipFile, struct.error, ValueError, IndexError, NotImplementedError, EOFError, OverflowError):
        raise InputError(f"{shown(what)}: its directory is damaged or cut off; save or download it again") from None


class _Wrong(Exception):
    """What is wrong with an archive, in words that come after its name."""


class _Examination:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def run(self) -> Archive:
        begin, count = self._directory()
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            infos = archive.infolist()
        if len(infos) != count:
            raise _Wrong(f"its directory holds {len(infos)} members and says {count}")
        if count > MOST_MEMBERS:
            raise LimitError(f"an archive of {count:,} members; {MOST_MEMBERS:,} are the most that are read")
        for info in infos:
            self._check_entry(info)
        _check_unique([info.filename for info in infos])
        places = {info.filename: self._place(info, begin) for info in infos}
        self._check_order(sorted((info.header_offset, places[info.filename][1]) for info in infos))
        for info in infos:
            first, last = places[info.filename]
            if zlib.crc32(memoryview(self.data)[first:last]) != info.CRC:
                raise _Wrong(f"the checksum of {shown(info.filename)} is wrong: it was damaged or changed")
        roots = {name.partition("/")[0] for name in places}
        if len(roots) != 1:
            raise _Wrong(f"it has {len(roots)} folders at its top where torch writes one")
        root = roots.pop()
        return Archive(self.data, root, {name[len(root) + 1 :]: place for name, place in places.items()})

    def _directory(self) -> tuple[int, int]:
        """Where the directory begins and how many members it names; nothing may lie between it and the end."""
        end = len(self.data) - _END.size
        mark, disk, first, here, count, size, offset, comment = _END.unpack_from(self.data, end)
        if mark != b"PK\5\6" or comment:
            raise _Wrong("something follows the archive, or it is cut off")
        place = end - _LOCATOR.size
        if place >= 0 and self.data[place : place + 4] == b"PK\6\7":
            _, _, at, disks = _LOCATOR.unpack_from(self.data, place)
            mark, length, _, _, disk, first, here, count, size, offset = _END64.unpack_from(self.data, at)
            if mark != b"PK\6\6" or disks != 1 or length != _END64.size - 12 or at + _END64.size != place:
                raise _Wrong("the end of its directory contradicts itself")
            end = at
        if disk or first or here != count or offset + size != end:
            raise _Wrong("its directory is not where it says")
        return offset, count

    def _check_entry(self, info: zipfile.ZipInfo) -> None:
        name = shown(info.filename[:200])
        if not _is_plain(info.orig_filename):
            raise _Wrong(f"a member is called {name}, which is not a plain path")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _Wrong(f"{name} is a link or no regular file")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise _Wrong(f"{name} is compressed, which torch never does ({info.file_size:,} bytes when unpacked)")
        if info.flag_bits & ~_FLAGS:
            raise _Wrong(f"{name} is encrypted or has other flags that torch never sets")

    def _place(self, info: zipfile.ZipInfo, directory: int) -> tuple[int, int]:
        """Where the bytes of a member are, its local header read and held against the directory."""
        fields = _LOCAL.unpack_from(self.data, info.header_offset)
        mark, _, flags, method, _, _, _, packed, size, name_length, extra = fields
        at = info.header_offset + _LOCAL.size
        name = self.data[at : at + name_length]
        begin = at + name_length + extra
        end = begin + info.file_size
        expected = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        sizes = {size, packed} - {info.file_size, _UNKNOWN} - ({0} if flags & 8 else set())
        if mark != b"PK\3\4" or name != expected or method or flags != info.flag_bits or sizes:
            raise _Wrong(f"the header of {shown(info.filename)} contradicts the directory")
        if end > directory:
            raise _Wrong(f"{shown(info.filename)} reaches beyond the end of the archive")
        return begin, end

    def _check_order(self, spans: Sequence[tuple[int, int]]) -> None:
        behind = 0
        for begin, end in spans:
            if begin < behind:
                raise _Wrong("two members share bytes")
            behind = end
        if not spans or spans[0][0] != 0:
            raise _Wrong("something precedes its first member")


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    odd = any(part in ("", ".", "..") for part in parts) or not name.isprintable()
    return not odd and not set(name) & set('\\:*?"<>|') and len(parts) > 1 and len(name) <= MOST_NAME


def _check_unique(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFKC", name).casefold()
        if key in seen:
            raise _Wrong(f"two members are called {shown(name)}, or differ in case only ({shown(seen[key])})")
        seen[key] = name
