"""Stored tensors: TensorProto to Constant and back, and the only way by which external data is opened.

Invariant: nothing is allocated, mapped or read because a file *declares* a size; sizes are compared with what is really
there first. External data is a plain, unlinked file inside the model's folder or an InputError, checked on the opened
descriptor, so that what was checked is what is read. Nothing is cached: `load` reads again on every call.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from onnx import SparseTensorProto, TensorProto, numpy_helper

from rewriter.errors import InputError
from rewriter.graph.view import Array, Constant

_TYPES: Final[dict[int, tuple[str, int]]] = {  # ONNX element type -> name (as ml_dtypes and numpy say it), bits
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32),
    13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8), 20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1fn", 4), 24: ("float8_e8m0fnu", 8), 25: ("uint2", 2),
    26: ("int2", 2),
}  # fmt: skip
_ENUMS: Final = {name: enum for enum, (name, _) in _TYPES.items()}
_FLOATS: Final = frozenset(name for name, _ in _TYPES.values() if "float" in name)
_FIELDS: Final = {"float32": "float_data", "complex64": "float_data", "float64": "double_data",
                  "complex128": "double_data", "int64": "int64_data", "uint32": "uint64_data",
                  "uint64": "uint64_data", "string": "string_data"}  # fmt: skip
_HOLES: Final = 1 << 30  # bytes a data file may leave unwritten before it is taken for a bomb


def shown(text: object) -> str:
    """A name from a file, quoted and escaped so that it is safe in a message, and not longer than a line."""
    quoted = repr(str(text) if isinstance(text, Path) else text)
    return quoted if len(quoted) <= 120 else f"{quoted[:100]}…{quoted[-16:]}"


def dtype_name(data_type: int) -> str:
    """The name of an ONNX element type: "float32", "bfloat16", "int64", …; InputError for one nobody defined."""
    if data_type not in _TYPES:
        raise InputError(f"element type {data_type} is not known to this version; export the tensor as float32")
    return _TYPES[data_type][0]


def dtype_enum(name: str) -> int:
    """The ONNX element type of a name that `dtype_name` gives."""
    return _ENUMS[name]


def is_float(dtype: str) -> bool:
    """True for every real floating type, from float8 to float64."""
    return dtype in _FLOATS


def numpy_dtype(name: str) -> np.dtype[Any]:
    """What the elements look like in memory; bfloat16, float8 and the like come from ml_dtypes."""
    if name == "string":
        return np.dtype(object)
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def stored_bytes(dtype: str, count: int) -> int:
    """Bytes of `count` elements as raw or external data; sub-byte types are packed."""
    return (count * _TYPES[_ENUMS[dtype]][1] + 7) // 8


def stored_size(tensor: TensorProto) -> int:
    """Bytes that the elements of a tensor take as its dims say, nothing checked; 0 where the type does not tell."""
    return (math.prod(tensor.dims) * _TYPES.get(tensor.data_type, ("", 0))[1] + 7) // 8


def element_count(tensor: TensorProto) -> int:
    """The product of the dims, refused when a dim is negative or the product does not fit the format."""
    dims = tuple(tensor.dims)
    if any(d < 0 for d in dims):
        raise InputError(f"tensor {shown(tensor.name)}: negative dim in {list(dims)}; export the model again")
    count = math.prod(dims)
    if count >= 1 << 60 or any(d >= 1 << 60 for d in dims):
        raise InputError(f"tensor {shown(tensor.name)}: dims {list(dims)} are larger than any file; export it again")
    return count


@dataclass(frozen=True, slots=True)
class External:
    """Where a tensor's bytes lie: `length` is what dims and type ask for, already compared with what is declared."""

    location: str
    offset: int
    length: int


def is_external(tensor: TensorProto) -> bool:
    """True where the elements lie in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def external_of(tensor: TensorProto) -> External:
    """The checked external entry of a tensor; nothing is opened."""
    entries: dict[str, object] = {entry.key: entry.value for entry in tensor.external_data}
    who, need = f"tensor {shown(tensor.name)}", stored_bytes(dtype_name(tensor.data_type), element_count(tensor))
    if dtype_name(tensor.data_type) == "string":
        raise InputError(f"{who}: strings cannot be external data; store them in the model")
    numbers: dict[str, int] = {}
    for key, default in (("offset", 0), ("length", need)):
        text = entries.get(key, str(default))
        if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19):
            raise InputError(f"{who}: external {key} {shown(text)} is not a byte count; export the model again")
        numbers[key] = int(text)
    if numbers["length"] != need:
        raise InputError(
            f"{who}: external length {numbers['length']}, but dims {list(tensor.dims)} of "
            f"{dtype_name(tensor.data_type)} need {need} bytes; export the model again"
        )
    return External(_plain_location(who, entries.get("location", "")), numbers["offset"], need)


def _plain_location(who: str, location: object) -> str:
    """A relative path that stays inside the folder whatever the disk looks like; links are met when it is opened."""
    remedy = "put the data file beside the model and set `location` to its relative name"
    if not isinstance(location, str) or not location:
        raise InputError(f"{who}: external data without a usable location; {remedy}")
    if "\0" in location:
        raise InputError(f"{who}: NUL in external location {shown(location)}; {remedy}")
    if location.startswith(("/", "\\", "*")) or (len(location) > 1 and location[1] == ":"):
        raise InputError(f"{who}: external location {shown(location)} is not relative to the model; {remedy}")
    parts = location.replace("\\", "/").split("/")
    if ".." in parts:
        raise InputError(f"{who}: external location {shown(location)} leaves the folder of the model; {remedy}")
    return location


def open_external(folder: Path | None, location: str) -> tuple[int, int]:
    """A read-only descriptor of a data file and its size; refused unless it is a plain file that only this folder has.

    Every component is opened relative to the one before without following links, and the checks look at the opened
    descriptor: swapping a file between check and use changes nothing.
    """
    if folder is None:
        raise InputError(f"external data {shown(location)} of a model without a folder; load the model from its file")
    _plain_location("external data", location)
    label, parts = f"external data {shown(location)}", [p for p in location.split("/") if p not in ("", ".")]
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        fd = _open_inside(folder, parts, flags)
    except OSError as error:
        raise InputError(_why_not(label, folder, error)) from error
    try:
        return fd, _plain_size(fd, label)
    except BaseException:
        os.close(fd)
        raise


def _open_inside(folder: Path, parts: list[str], flags: int) -> int:
    if os.open not in os.supports_dir_fd:  # Windows: no openat; its links need privileges
        target = folder.joinpath(*parts)
        if any(p.is_symlink() for p in (target, *target.parents) if p != folder and folder in p.parents):
            raise OSError(errno.ELOOP, "link")
        return os.open(target, flags)
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            deeper = os.open(part, flags | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = deeper
        return os.open(parts[-1] if parts else ".", flags, dir_fd=here)
    finally:
        os.close(here)


def _why_not(label: str, folder: Path, error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return f"{label} is a symbolic link; replace it by a copy of the file"
    if error.errno == errno.ENOTDIR:
        return f"{label} goes through a link or a file that is no folder; replace it by a copy of the files"
    if error.errno == errno.ENOENT:
        return f"{label} is missing in {shown(folder)}; keep the data file beside the model"
    if error.errno == errno.ENXIO:
        return f"{label} is not a regular file; replace it by a copy of the data"
    return f"{label} cannot be read: {error.strerror}"


def _plain_size(fd: int, label: str) -> int:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{label} is not a regular file; replace it by a copy of the data")
    if info.st_nlink > 1:
        raise InputError(f"{label} is a hard link, which may lead out of the folder; copy the file (cp, not cp -l)")
    if info.st_size - getattr(info, "st_blocks", 1 << 62) * 512 > _HOLES and _holes(fd, info.st_size) > _HOLES:
        raise InputError(f"{label} is mostly a hole ({info.st_size} bytes declared); write it out: cp --sparse=never")
    return info.st_size


def _holes(fd: int, size: int) -> int:
    """Unwritten bytes of a file; compression also makes a file use fewer blocks and is no hole."""
    total = position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_HOLE)
        except (OSError, AttributeError):  # the system cannot tell
            return 0
        if start >= size:
            break
        try:
            position = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # no data after the hole
            position = size
        total += position - start
        if total > _HOLES:
            break
    return total


def check_range(where: External, size: int, name: str) -> None:
    """Refuse a tensor that begins or ends past the end of its file."""
    if where.offset + where.length > size:
        raise InputError(
            f"tensor {shown(name)}: bytes {where.offset} to {where.offset + where.length} of external data "
            f"{shown(where.location)}, which has {size}; the data file is truncated or belongs to another model"
        )


def check_inline(tensor: TensorProto) -> None:
    """Refuse a tensor whose stored elements are more or fewer than its dims say, or that is stored twice."""
    name, count = dtype_name(tensor.data_type), element_count(tensor)
    if tensor.HasField("segment"):
        raise InputError(f"tensor {shown(tensor.name)} is stored in segments, which nothing writes; export it again")
    field = _FIELDS.get(name, "int32_data")
    if tensor.HasField("raw_data") and name != "string":
        have, need, what = len(tensor.raw_data), stored_bytes(name, count), "bytes of raw_data"
    else:
        per = 2 if name.startswith("complex") else 1
        need = stored_bytes(name, count) if 0 < _TYPES[tensor.data_type][1] < 8 else count * per
        have, what = len(getattr(tensor, field)), f"elements of {field}"
    if have != need:
        raise InputError(
            f"tensor {shown(tensor.name)}: {have} {what}, but dims {list(tensor.dims)} of {name} need {need}; "
            "the file is damaged or was written by hand, export it again"
        )


def constant_of(tensor: TensorProto | SparseTensorProto, folder: Path | None, name: str | None = None) -> Constant:
    """The tensor as a lazy Constant; external data is looked for in `folder`, and checked again at every `load`."""
    if isinstance(tensor, SparseTensorProto):
        raise InputError(f"sparse tensor {shown(tensor.values.name)} is not supported; store it dense")
    element_count(tensor)
    dtype, shape = dtype_name(tensor.data_type), tuple(tensor.dims)

    def load() -> Array:
        return elements(tensor, folder)

    return Constant(tensor.name if name is None else name, shape, dtype, load)


def elements(tensor: TensorProto, folder: Path | None) -> Array:
    """The elements, in the stored type; without a copy of our own where the layout allows."""
    dtype, shape = dtype_name(tensor.data_type), tuple(tensor.dims)
    if is_external(tensor):
        return _decode(external_bytes(tensor, folder), tensor.data_type, shape)
    check_inline(tensor)
    if dtype == "string":
        return np.array(list(tensor.string_data), dtype=object).reshape(shape)
    if tensor.HasField("raw_data"):
        return _decode(tensor.raw_data, tensor.data_type, shape)
    stored: Any = getattr(tensor, _FIELDS.get(dtype, "int32_data"))
    kind = numpy_dtype(dtype)
    if kind.kind == "c":
        return np.array(stored, dtype=kind.type(0).real.dtype).view(kind).reshape(shape)
    if dtype in _FIELDS or dtype == "int32":
        return np.array(stored, dtype=kind).reshape(shape)
    # int32_data holds bit patterns: 16-bit floats as their bits, small integers sign-extended, nibbles packed
    wide = np.array(stored, dtype=np.int64)
    bits = wide.astype(np.uint16 if stored_bytes(dtype, 1) == 2 else np.uint8)
    return _decode(bits.astype(bits.dtype.newbyteorder("<")).tobytes(), tensor.data_type, shape)


def raw_bytes(tensor: TensorProto) -> bytes:
    """The elements of a tensor inside the model as raw_data holds them, whatever field they are in."""
    check_inline(tensor)
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if stored_bytes(dtype_name(tensor.data_type), 8) < 8:  # packed: int32_data holds the bytes
        return bytes(byte & 255 for byte in tensor.int32_data)
    array = elements(tensor, None)
    return (array.byteswap() if sys.byteorder == "big" else array).tobytes()


def external_bytes(tensor: TensorProto, folder: Path | None) -> bytearray:
    """The bytes of an external tensor, read through a descriptor that passed every check."""
    where = external_of(tensor)
    fd, size = open_external(folder, where.location)
    with open(fd, "rb", buffering=0) as file:
        check_range(where, size, tensor.name)
        file.seek(where.offset)
        data = bytearray(where.length)
        view, done = memoryview(data), 0
        while done < where.length:
            got = file.readinto(view[done : done + (1 << 30)])
            if not got:
                raise InputError(f"external data {shown(where.location)} became shorter while it was read; try again")
            done += got
    return data


def _decode(data: bytes | bytearray, data_type: int, shape: tuple[int, ...]) -> Array:
    dtype = dtype_name(data_type)
    if stored_bytes(dtype, 8) < 8:  # packed nibbles and pairs
        return numpy_helper.to_array(TensorProto(data_type=data_type, dims=shape, raw_data=bytes(data)))
    array: Array = np.frombuffer(data, dtype=numpy_dtype(dtype)).reshape(shape)
    return array.byteswap() if sys.byteorder == "big" else array


def tensor_of(name: str, array: Array, dtype: str) -> TensorProto:
    """A tensor with little-endian raw_data, each element rounded once, to nearest even, into `dtype`.

    ValueError when an element would overflow to infinity or an integer would change: planning refuses those before.
    """
    kind = numpy_dtype(dtype)
    if kind.kind == "O" or stored_bytes(dtype, 8) < 8:
        raise ValueError(f"{dtype} tensors are never written")
    source = np.asarray(array)
    with np.errstate(over="ignore", invalid="ignore"):
        out = _narrow(source, kind)
    if is_float(dtype):
        if not np.array_equal(np.isfinite(source), np.isfinite(out)):
            raise ValueError(f"{name}: a finite element overflows {dtype}")
    elif not np.array_equal(out, source):
        raise ValueError(f"{name}: an element is not representable in {dtype}")
    raw = np.ascontiguousarray(out.byteswap() if sys.byteorder == "big" else out).tobytes()
    return TensorProto(name=name, dims=source.shape, data_type=_ENUMS[dtype], raw_data=raw)


def _narrow(source: Array, kind: np.dtype[Any]) -> Array:
    """`source` in `kind`, rounded once. ml_dtypes goes from float64 through float32, which rounds twice.

    Rounding to odd on the way (inexact values keep an odd last bit) makes the second rounding the only one.
    """
    if source.dtype != np.float64 or kind.kind != "V" or kind.name not in _FLOATS:
        return source.astype(kind, copy=False)
    single = source.astype(np.float32)
    even = (single.view(np.uint32) & 1) == 0
    nudge = even & np.isfinite(source) & (single.astype(np.float64) != source)
    toward = np.where(source > single.astype(np.float64), np.float32(np.inf), np.float32(-np.inf))
    return np.where(nudge, np.nextafter(single, toward), single).astype(kind)
