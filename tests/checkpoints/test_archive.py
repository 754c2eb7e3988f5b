"""Archives are examined before torch sees them: one meaning, plain names, stored members, right checksums."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from rewriter.checkpoints.archive import examine
from rewriter.errors import FxRewriteError, InputError
from tests.checkpoints.zips import members, saved, weights, zipped

GOOD = {"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(range(64)), "a/version": b"3\n"}


def test_what_torch_writes_passes(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", weights())
    archive = examine(path.read_bytes(), "w.pt")
    assert archive.root == "w" and {"data.pkl", "data/0", "version"} <= archive.members.keys()
    assert {f"w/{name}": bytes(archive.read(name)) for name in archive.members} == members(path)


def test_an_archive_with_a_large_directory_passes() -> None:
    """More than 65,535 members need the 64-bit end of the directory."""
    data = zipped({f"a/data/{number}": b"" for number in range(70_000)})
    assert len(examine(data, "x").members) == 70_000


def _with_info(change: Callable[[zipfile.ZipInfo], None], name: str = "a/odd", data: bytes = b"x" * 40) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for known, content in GOOD.items():
            archive.writestr(known, content)
        info = zipfile.ZipInfo(name)
        change(info)
        archive.writestr(info, data)
    return made.getvalue()


def _link(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o120777 << 16


def _compressed(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


def _twice(second: str) -> bytes:
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w") as archive,
        pytest.warns(UserWarning, match="Duplicate") if second in GOOD else _no(),
    ):
        for name, content in [*GOOD.items(), (second, b"another")]:
            archive.writestr(name, content)
    return made.getvalue()


class _no:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _local_name(data: bytes) -> bytes:
    return _patched(data, data.index(b"a/data.pkl"), b"a/dada.pkl")


def _bad_byte(data: bytes) -> bytes:
    return _patched(data, data.index(bytes(range(64))) + 9, b"\xff")


def _overlapping(data: bytes) -> bytes:
    """The directory entry of the second member points at the first one's header."""
    end = struct.unpack_from("<I", data, len(data) - 6)[0]
    second = data.index(b"PK\1\2", end + 4)
    return _patched(data, second + 42, bytes(4))


PLAIN = zipped(GOOD)
HOSTILE = {
    "same name": (_twice("a/data.pkl"), "two members are called"),
    "same but for case": (_twice("a/DATA.pkl"), "differ in case"),
    "same but for form": (_twice("a/data\uff0epkl"), "differ in case"),
    "link": (_with_info(_link, data=b"/etc/passwd"), "is a link"),
    "compressed": (_with_info(_compressed, data=bytes(10_000_000)), "is compressed"),
    "parent": (_with_info(lambda _: None, "a/../../x"), "not a plain path"),
    "absolute": (_with_info(lambda _: None, "/a/x"), "not a plain path"),
    "folder": (_with_info(lambda _: None, "a/x/", b""), "not a plain path"),
    "control": (_with_info(lambda _: None, "a/\x1b[2J"), "not a plain path"),
    "backslash": (_with_info(lambda _: None, "a/x\\y"), "not a plain path"),
    "other root": (_with_info(lambda _: None, "b/x"), "2 folders"),
    "no root": (_with_info(lambda _: None, "x"), "not a plain path"),
    "after the end": (PLAIN + b"x", "follows the archive"),
    "a comment": (PLAIN[:-2] + b"\1\0x", "follows the archive"),
    "before the start": (b"PK\3\4" + b"x" * 60 + PLAIN, "not where it says"),
    "header contradicts": (_local_name(PLAIN), "contradicts the directory"),
    "checksum": (_bad_byte(PLAIN), "checksum"),
    "overlap": (_overlapping(PLAIN), "contradicts the directory"),
    "encrypted": (PLAIN.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0", 1), "encrypted"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_has_another_meaning_for_another_reader_is_refused(kind: str) -> None:
    data, said = HOSTILE[kind]
    with pytest.raises(InputError, match=said):
        examine(data, "x.pt")


def test_two_directory_entries_for_the_same_bytes_are_refused() -> None:
    """A zip bomb without compression: many members, all of them the same bytes."""
    name = b"a/data/0"
    body = bytes(1000)
    header = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(body), 1000, 1000, 8, 0) + name + body
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(body), 1000, 1000, 8, 0, 0, 0, 0, 0, 0)
    directory = (entry + name) * 2
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(directory), len(header), 0)
    with pytest.raises(InputError, match="two members"):
        examine(header + directory + end, "x.pt")


def test_cut_off_anywhere_and_any_bit_flipped_is_an_answer_of_ours() -> None:
    """Cut anywhere it is refused; with a bit flipped it is refused, or every member still holds what it held."""
    for length in range(len(PLAIN)):
        with pytest.raises(InputError):
            examine(PLAIN[:length], "x.pt")
    for bit in range(8 * len(PLAIN)):
        flipped = bytearray(PLAIN)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            archive = examine(bytes(flipped), "x.pt")
        except FxRewriteError:
            continue
        assert [bytes(archive.read(name)) for name in archive.members] == [*GOOD.values()]
