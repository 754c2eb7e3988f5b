"""Tensors in and out: every stored form, exact values, one rounding, and refusals of what does not add up."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from rewriter.errors import InputError
from rewriter.graph.tensors import (
    constant_of,
    dtype_enum,
    dtype_name,
    is_float,
    numpy_dtype,
    open_external,
    raw_bytes,
    shown,
    tensor_of,
)

FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]


def external(location: str = "w.bin", **entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_raw_data_goes_both_ways(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]], numpy_dtype(dtype))
    tensor = tensor_of("w", array, dtype)
    constant = constant_of(tensor, None)
    assert (constant.name, constant.shape, constant.dtype) == ("w", (2, 2), dtype)
    assert constant.load().dtype == numpy_dtype(dtype)
    assert np.array_equal(constant.load(), array)
    assert constant.floats().dtype == np.float64
    assert np.array_equal(numpy_helper.to_array(tensor), array)
    assert is_float(dtype) == (dtype in FLOATS)
    assert dtype_name(dtype_enum(dtype)) == dtype


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "complex64", "complex128", "int4", "uint4"])
def test_typed_fields_hold_the_same_elements(dtype: str) -> None:
    values = [0, 1, 1, 0, 1] if dtype in ("bool", "uint8", "uint16", "uint32", "uint64", "uint4") else [0, 1, -1, 2, -2]
    array = np.array(values).astype(numpy_dtype(dtype))
    tensor = helper.make_tensor("w", dtype_enum(dtype), [5], array)
    assert not tensor.HasField("raw_data")
    assert np.array_equal(constant_of(tensor, None).load(), array)
    raw = TensorProto(data_type=tensor.data_type, dims=[5], raw_data=raw_bytes(tensor))
    assert np.array_equal(numpy_helper.to_array(raw), numpy_helper.to_array(tensor))


def test_strings_and_scalars_and_empty_tensors() -> None:
    assert list(constant_of(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]), None).load()) == [
        b"a",
        b"b",
    ]
    scalar = constant_of(helper.make_tensor("s", TensorProto.FLOAT, [], [3.0]), None)
    assert (scalar.load().shape, float(scalar.load())) == ((), 3.0)
    assert constant_of(helper.make_tensor("e", TensorProto.FLOAT, [0, 3], []), None).load().shape == (0, 3)


def test_bfloat16_floats_are_exact() -> None:
    bits = np.arange(0, 1 << 16, 7, dtype=np.uint16)
    bits = bits[(bits & 0x7FFF) <= 0x7F80]  # infinities, no NaN
    tensor = TensorProto(name="b", data_type=TensorProto.BFLOAT16, dims=[bits.size], raw_data=bits.tobytes())
    expected = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    assert np.array_equal(constant_of(tensor, None).floats(), expected)


def test_float64_is_rounded_once_into_bfloat16() -> None:
    halves = np.array([1 + 2**-8 + 2**-30, 1 + 2**-8, 1 + 3 * 2**-8 - 2**-30, -(1 + 2**-8 + 2**-30)])
    twice = halves.astype(ml_dtypes.bfloat16).astype(np.float64)
    once = constant_of(tensor_of("w", halves, "bfloat16"), None).floats()
    assert list(once) == [1 + 2**-7, 1.0, 1 + 2**-7, -(1 + 2**-7)]
    assert not np.array_equal(once, twice)  # the library's own way goes through float32


def test_overflow_and_unrepresentable_integers_are_not_written() -> None:
    with pytest.raises(ValueError, match="w: a finite element overflows float16"):
        tensor_of("w", np.array([1e6]), "float16")
    with pytest.raises(ValueError, match="w: a finite element overflows bfloat16"):
        tensor_of("w", np.array([3.4e38 * 1.01]), "bfloat16")
    with pytest.raises(ValueError, match="w: an element is not representable in int8"):
        tensor_of("w", np.array([300]), "int8")
    assert np.isinf(constant_of(tensor_of("w", np.array([np.inf]), "float16"), None).load()).all()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorProto(name="w", data_type=1, dims=[2], raw_data=b"1234567"), "7 bytes of raw_data, but dims .* need 8"),
        (TensorProto(name="w", data_type=1, dims=[1], raw_data=b"12345"), "5 bytes of raw_data"),
        (TensorProto(name="w", data_type=1, dims=[2], float_data=[1.0]), "1 elements of float_data"),
        (TensorProto(name="w", data_type=1, dims=[-1], raw_data=b""), r"negative dim in \[-1\]"),
        (TensorProto(name="w", data_type=1, dims=[1 << 60, 16], raw_data=b""), "are larger than any file"),
        (TensorProto(name="w", data_type=1, dims=[1 << 32, 1 << 32], raw_data=b""), "are larger than any file"),
        (TensorProto(name="w", data_type=1, dims=[1 << 40], raw_data=b"1234"), "need 4398046511104"),
        (TensorProto(name="w", data_type=99, dims=[1], raw_data=b"1"), "element type 99 is not known"),
        (TensorProto(name="w", data_type=0, dims=[1], raw_data=b"1"), "element type 0 is not known"),
        (TensorProto(name="w", data_type=1, segment=TensorProto.Segment(begin=0, end=1)), "stored in segments"),
    ],
)
def test_what_does_not_add_up_is_refused(tensor: TensorProto, message: str) -> None:
    with pytest.raises(InputError, match=message):
        constant_of(tensor, None).load()


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="sparse tensor 'v' is not supported; store it dense"):
        constant_of(SparseTensorProto(values=TensorProto(name="v")), None)


def test_external_data_is_read_where_it_lies(tmp_path: Path) -> None:
    data = np.arange(8, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(data.tobytes())
    tensor = external("sub/w.bin", offset=16, length=16)
    assert list(constant_of(tensor, tmp_path).load()) == [4, 5, 6, 7]
    assert list(constant_of(external("./sub/w.bin"), tmp_path).load()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external("../w.bin"), "leaves the folder of the model"),
        (external("a/../../w.bin"), "leaves the folder of the model"),
        (external("a\\..\\..\\w.bin"), "leaves the folder of the model"),
        (external("/etc/passwd"), "is not relative to the model"),
        (external("C:\\w.bin"), "is not relative to the model"),
        (external("*/_ORT_MEM_ADDR_/*"), "is not relative to the model"),
        (external("w.bin\0.txt"), "NUL in external location"),
        (external(""), "without a usable location"),
        (external("."), "is not a regular file"),
        (external("gone.bin"), "is missing in"),
        (external("w.bin", offset=12), r"bytes 12 to 28 of external data 'w.bin', which has 16"),
        (external("w.bin", offset=1 << 50), "the data file is truncated or belongs to another model"),
        (external("w.bin", offset=-4), "external offset '-4' is not a byte count"),
        (external("w.bin", offset="0x4"), "is not a byte count"),
        (external("w.bin", length=12), "external length 12, but dims .* need 16"),
        (external("w.bin", length=1 << 62), "is not a byte count"),
        (external("link.bin"), "is a symbolic link; replace it by a copy of the file"),
        (external("linked/w.bin"), "goes through a link"),
        (external("hard.bin"), "is a hard link, which may lead out of the folder; copy the file"),
        (external("pipe"), "is not a regular file"),
        (external("folder"), "is not a regular file"),
        (external("hole.bin"), "is mostly a hole"),
    ],
)
def test_hostile_external_data_is_refused(tensor: TensorProto, message: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for made in (folder, outside, folder / "folder"):
        made.mkdir()
    (folder / "w.bin").write_bytes(bytes(16))
    (outside / "w.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(outside / "w.bin")
    (folder / "linked").symlink_to(outside)
    (folder / "hard.bin").hardlink_to(outside / "w.bin")
    os.mkfifo(folder / "pipe")
    with open(folder / "hole.bin", "wb") as file:
        file.truncate(64 << 30)
    with pytest.raises(InputError, match=message):
        constant_of(tensor, folder).load()


def test_a_device_as_external_data_is_not_read(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a device node needs root")
    try:
        os.mknod(tmp_path / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("device nodes are not allowed here")
    with pytest.raises(InputError, match="is not a regular file"):
        open_external(tmp_path, "zero")


def test_external_data_without_a_folder_and_strings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of a model without a folder; load the model from its file"):
        constant_of(external(), None).load()
    strings = external()
    strings.data_type = TensorProto.STRING
    with pytest.raises(InputError, match="strings cannot be external data"):
        constant_of(strings, tmp_path).load()


def test_small_holes_are_padding_not_bombs(tmp_path: Path) -> None:
    with open(tmp_path / "w.bin", "wb") as file:
        file.seek(1 << 20)
        file.write(np.ones(4, np.float32).tobytes())
    assert list(constant_of(external(offset=1 << 20), tmp_path).load()) == [1, 1, 1, 1]


def test_names_in_messages_are_escaped_and_short() -> None:
    assert shown("a\x1b[31m\n") == "'a\\x1b[31m\\n'"
    assert len(shown("x" * 10_000)) < 130
