"""Saving: the same bytes, atomic whatever happens, never onto an input, external data that works from the output."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rewriter.errors import InputError, LimitError, OutputError
from rewriter.graph import drafts
from rewriter.graph.files import LoadedModel, each_tensor, load, validate
from rewriter.graph.saving import save, save_unchanged
from rewriter.graph.tensors import constant_of

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = b"\xf2\x3f\x05later" + b"\xf8\x3f\x07" + b"\xfd\x3f1234" + b"\xf9\x3f12345678" + b"\xfb\x3f\x08\x01\xfc\x3f"


def model_of(*tensors: TensorProto, constant: TensorProto | None = None, nodes: int = 1) -> ModelProto:
    chain = [helper.make_node("Relu", ["x" if not i else f"v{i}"], [f"v{i + 1}"], doc_string="d") for i in range(nodes)]
    if constant is not None:
        chain.append(helper.make_node("Constant", [], ["c"], value=constant))
    x, y = (helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", f"v{nodes}"))
    model = helper.make_model(helper.make_graph(chain, "g", [x], [y], list(tensors), doc_string="g doc"), ir_version=10)
    model.graph.value_info.append(x)
    model.graph.metadata_props.add(key="a", value="b")
    model.metadata_props.add(key="k", value="v")
    return model


def array(seed: int, size: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def weight(name: str, seed: int, size: int = 2000) -> TensorProto:
    return numpy_helper.from_array(array(seed, size), name)


def outside(name: str, location: str, offset: int, size: int = 2000) -> TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=[size], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", 4 * size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def external_model(folder: Path) -> LoadedModel:
    """Three tensors in one file (two share their bytes), one of a node in another, and one inside the model."""
    folder.mkdir(exist_ok=True)
    (folder / "in.data").write_bytes(array(1).tobytes() + array(2).tobytes())
    (folder / "b.bin").write_bytes(array(3).tobytes())
    first, second, twin = (outside(n, "in.data", o) for n, o in (("w1", 0), ("w2", 8000), ("w3", 8000)))
    model = model_of(first, second, twin, weight("w4", 4), constant=outside("k", "b.bin", 0))
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    return load(folder / "in.onnx")


def contents(path: Path) -> dict[str, np.ndarray]:
    model = load(path)
    validate(model)
    return {t.name: constant_of(t, model.folder).load() for t in each_tensor(model.proto)}


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize("nodes", [1, 10, 3000])
@pytest.mark.parametrize("size", [0, 1, 31, 4080, 4096, 600_000])
def test_what_was_not_touched_is_written_byte_for_byte(nodes: int, size: int, tmp_path: Path) -> None:
    model = model_of(weight("w", 1, size), weight("u", 2), constant=weight("c", 3), nodes=nodes)
    model.training_info.add().initialization.name = "t"
    graph = model.graph.SerializeToString() + UNKNOWN
    data = model.SerializeToString() + UNKNOWN
    proto = ModelProto.FromString(data)
    proto.graph.ParseFromString(graph)
    saved = save(proto, tmp_path / "out.onnx", source=None)
    assert saved.read_bytes() == proto.SerializeToString()
    assert names(tmp_path) == {"out.onnx"}


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(model_of(), tmp_path / "a.onnx", source=None)
        save(model_of(), tmp_path / "a.onnx", source=None, force=True)
    finally:
        os.umask(before)
    assert (tmp_path / "a.onnx").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("force", [False, True])
def test_without_nameless_files_the_result_is_the_same(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts.Draft, "_nameless", lambda self: -1)
    source = external_model(tmp_path / "in")
    for _ in range(1 + force):
        save(source.proto, tmp_path / "out.onnx", source=source, force=force)
    assert np.array_equal(contents(tmp_path / "out.onnx")["w2"], array(2))
    assert len(names(tmp_path)) == 3
    if not force:
        with pytest.raises(OutputError, match="exists"):
            save(source.proto, tmp_path / "out.onnx", source=source)


def test_external_tensors_stay_external_and_work_from_the_output(tmp_path: Path) -> None:
    source = external_model(tmp_path / "in")
    before = source.proto.SerializeToString()
    (tmp_path / "out").mkdir()
    out = save(source.proto, tmp_path / "out" / "m.onnx", source=source)
    assert names(tmp_path / "out") == {"m.onnx", "m.onnx.data"}
    assert source.proto.SerializeToString() == before
    for child in (tmp_path / "in").iterdir():
        child.unlink()
    found = contents(out)
    for name, seed in (("w1", 1), ("w2", 2), ("w3", 2), ("w4", 4), ("k", 3)):
        assert np.array_equal(found[name], array(seed))
    entries = [{e.key: e.value for e in t.external_data} for t in load(out).proto.graph.initializer]
    assert entries[1] == entries[2]
    assert all(int(e.get("offset", 0)) % 4096 == 0 for e in entries)
    assert not entries[3]
    onnx.checker.check_model(str(out))


def test_external_tensors_can_be_taken_into_the_model(tmp_path: Path) -> None:
    source = external_model(tmp_path / "in")
    out = save(source.proto, tmp_path / "m.onnx", source=source, keep_external=False)
    assert names(tmp_path) == {"in", "m.onnx"}
    assert np.array_equal(contents(out)["w2"], array(2))


def test_a_model_too_large_for_protobuf_gets_its_large_tensors_external(tmp_path: Path) -> None:
    typed = helper.make_tensor("f", TensorProto.FLOAT, [2000], array(5))
    proto = model_of(weight("w", 1), typed, weight("s", 2, 3), constant=weight("c", 3))
    before = proto.SerializeToString()
    out = save(proto, tmp_path / "m.onnx", source=None, limit=4000)
    loaded = load(out)
    assert (loaded.bytes < 4000, loaded.external) == (True, {"m.onnx.data"})
    found = contents(out)
    assert all(np.array_equal(found[n], array(seed)) for n, seed in (("w", 1), ("f", 5), ("c", 3)))
    assert np.array_equal(found["s"], array(2, 3))
    assert proto.SerializeToString() == before
    # the weights of nodes alone: noticed only once the message is written
    save(model_of(constant=weight("c", 3)), tmp_path / "n.onnx", source=None, limit=4000)
    assert load(tmp_path / "n.onnx").external == {"n.onnx.data"}
    with pytest.raises(LimitError, match="larger than 2 GB even without its weights"):
        save(model_of(nodes=3000), tmp_path / "o.onnx", source=None, limit=4000)
    assert names(tmp_path) == {"m.onnx", "m.onnx.data", "n.onnx", "n.onnx.data"}


def test_old_data_goes_with_the_output_that_used_it(tmp_path: Path) -> None:
    source = external_model(tmp_path / "in")
    out = tmp_path / "m.onnx"
    for _ in range(3):
        save(source.proto, out, source=source, force=True)
        assert len(names(tmp_path)) == 3
        assert np.array_equal(contents(out)["w1"], array(1))
    used = next(iter(load(out).external))
    (tmp_path / "copy.onnx").write_bytes(out.read_bytes())
    save(source.proto, out, source=source, force=True)
    assert used in names(tmp_path)  # the copy names it
    assert np.array_equal(contents(tmp_path / "copy.onnx")["w1"], array(1))


def test_data_that_another_tool_wrote_is_left_alone(tmp_path: Path) -> None:
    source = external_model(tmp_path / "in")
    (tmp_path / "m.onnx").write_bytes(model_of(outside("w", "m.onnx.data", 0)).SerializeToString())
    (tmp_path / "m.onnx.data").write_bytes(array(9).tobytes())
    save(source.proto, tmp_path / "m.onnx", source=source, force=True)
    assert (tmp_path / "m.onnx.data").read_bytes() == array(9).tobytes()
    assert np.array_equal(contents(tmp_path / "m.onnx")["w1"], array(1))


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"m\.onnx' exists; replace it with --force or choose another name"):
        save(model_of(), out, source=None)
    assert out.read_bytes() == b"old"
    save(model_of(), out, source=None, force=True)
    assert load(out).proto == model_of()


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, complete = tmp_path / "m.onnx", drafts.Draft.complete

    def racing(draft: drafts.Draft) -> None:
        complete(draft)
        out.write_bytes(b"theirs")

    monkeypatch.setattr(drafts.Draft, "complete", racing)
    with pytest.raises(OutputError, match="exists; replace it with --force"):
        save(model_of(), out, source=None)
    assert (out.read_bytes(), names(tmp_path)) == (b"theirs", {"m.onnx"})


@pytest.mark.parametrize("writer", [save, save_unchanged])
@pytest.mark.parametrize(
    "target", ["in.onnx", "in.data", "b.bin", "soft.onnx", "hard.onnx", "softdata", "up/../in.onnx"]
)
def test_inputs_are_never_written(target: str, writer: Callable[..., Path], tmp_path: Path) -> None:
    source = external_model(tmp_path)
    (tmp_path / "up").mkdir()
    (tmp_path / "soft.onnx").symlink_to("in.onnx")
    (tmp_path / "softdata").symlink_to(tmp_path / "in.data")
    (tmp_path / "hard.onnx").hardlink_to(tmp_path / "in.onnx")
    del source.proto.graph.initializer[:]  # what no longer names the data is still its owner
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(OutputError, match="is the input or its data, which is never written; choose another -o"):
        if writer is save:
            save(source.proto, tmp_path / target, source=source, force=True)
        else:
            save_unchanged(source, tmp_path / target, force=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("folder", "is a directory; name a file in it: -o .*model.onnx"),
        ("pipe", "is a pipe, a device or a socket; name a regular file"),
        ("gone/m.onnx", "folder .*gone' does not exist; create it: mkdir -p"),
        ("file/m.onnx", "folder .*file' does not exist; create it"),
        ("a\0b", "is not a file name; choose another one"),
        ("n" * 300, "cannot be written: File name too long"),
        ("..", "is a directory"),
    ):
        with pytest.raises(OutputError, match=message):
            save(model_of(), tmp_path / name, source=None, force=True)
    with pytest.raises(OutputError, match="is a pipe, a device or a socket"):
        save(model_of(), Path("/dev/null"), source=None, force=True)
    assert names(tmp_path) == {"folder", "file", "pipe"}


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException, after: int = 0) -> None:
    """Let a system call fail once `after` calls of it went well."""
    real, seen = getattr(os, call), [0]

    def failing(*args: object, **options: object) -> object:
        seen[0] += 1
        if seen[0] > after:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(os, call, failing)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("call", ["write", "fsync", "link", "replace"])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("error", [FULL, OSError(errno.EDQUOT, "Quota exceeded"), KeyboardInterrupt()])
def test_a_failure_at_any_call_leaves_nothing_new(
    error: BaseException, after: int, call: str, nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        monkeypatch.setattr(drafts.Draft, "_nameless", lambda self: -1)
    source, out = external_model(tmp_path / "in"), tmp_path / "m.onnx"
    save(model_of(weight("old", 7)), out, source=None)
    before = out.read_bytes()
    try:
        with monkeypatch.context() as patch:
            fail_at(patch, call, error, after)
            save(source.proto, out, source=source, force=True)
    except (LimitError, KeyboardInterrupt) as caught:
        assert isinstance(caught, KeyboardInterrupt) or caught.exit_code == 6
        assert names(tmp_path) == {"in", "m.onnx"}
        assert out.read_bytes() == before
    else:
        assert np.array_equal(contents(out)["w1"], array(1))
        assert names(tmp_path) == {"in", "m.onnx", "m.onnx.data"}


def test_a_file_size_limit_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from tests.graph.test_saving import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: save(model_of(weight('w', 1, 100_000)), Path(sys.argv[1]) / 'm.onnx', source=None)\n"
        "except LimitError as e: print(e, e.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert "a quota or file size limit was reached, nothing was written; free some space" in done.stdout, done.stderr
    assert names(tmp_path) == set()


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, "open", PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(OutputError, match=r"folder .* cannot be written; choose another one with -o"):
        save(model_of(), tmp_path / "m.onnx", source=None)


KILL = """
import os, signal, sys
from pathlib import Path
from rewriter.graph import drafts
from rewriter.graph.files import load
from rewriter.graph.saving import save
folder, call, after, nameless = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
real, seen = getattr(os, call), 0
def deadly(*args, **options):
    global seen
    seen += 1
    if seen > after: os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
if not nameless: drafts.Draft._nameless = lambda self: -1
source = load(folder / "in" / "in.onnx")
setattr(os, call, deadly)
save(source.proto, folder / "m.onnx", source=source, force=True)
"""


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize(
    ("call", "after"),
    [("write", 1), ("fsync", 0), ("fsync", 2), ("fsync", 3), ("link", 0), ("link", 1), ("replace", 0), ("unlink", 0)],
)
def test_after_sigkill_the_old_or_the_new_output_is_complete(
    call: str, after: int, nameless: bool, tmp_path: Path
) -> None:
    source, out = external_model(tmp_path / "in"), tmp_path / "m.onnx"
    old = model_of(weight("w1", 7))
    save(old, out, source=None, limit=4000)
    args = [sys.executable, "-c", KILL, str(tmp_path), call, str(after), str(nameless)]
    killed = subprocess.run(args, cwd=ROOT, capture_output=True)
    assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
    assert any(np.array_equal(contents(out)["w1"], array(seed)) for seed in (1, 7))
    for left in tmp_path.glob("m.onnx*.data"):
        os.utime(left, (0, 0))  # as an hour later
    save(source.proto, out, source=source, force=True)
    assert np.array_equal(contents(out)["w1"], array(1))
    assert names(tmp_path) == {"in", "m.onnx", *load(out).external}


def test_temporaries_of_the_living_stay(tmp_path: Path) -> None:
    mine = tmp_path / f".m.onnx.fxrewrite-{os.getpid()}-00000000.tmp"
    dead = tmp_path / ".m.onnx.fxrewrite-2147483646-00000000.tmp"
    named = tmp_path / ".m.onnx.fxrewrite-1-xx.tmp"
    for path in (mine, dead, named):
        path.write_bytes(b"x")
    save(model_of(), tmp_path / "m.onnx", source=None)
    assert names(tmp_path) == {"m.onnx", mine.name, named.name}


def test_nothing_to_do_gives_the_same_bytes_and_the_data(tmp_path: Path) -> None:
    source = external_model(tmp_path / "in")
    (tmp_path / "out").mkdir()
    out = save_unchanged(source, tmp_path / "out" / "m.onnx")
    assert out.read_bytes() == (tmp_path / "in" / "in.onnx").read_bytes()
    assert names(tmp_path / "out") == {"m.onnx", "in.data", "b.bin"}
    assert np.array_equal(contents(out)["w2"], array(2))
    save_unchanged(source, out, force=True)  # the same data is there already
    beside = save_unchanged(source, tmp_path / "in" / "again.onnx")
    assert beside.read_bytes() == out.read_bytes()
    assert names(tmp_path / "in") == {"in.onnx", "again.onnx", "in.data", "b.bin"}


def test_nothing_to_do_with_other_data_in_the_way(tmp_path: Path) -> None:
    source = external_model(tmp_path / "in")
    (tmp_path / "in.data").write_bytes(b"theirs")
    out = save_unchanged(source, tmp_path / "m.onnx")
    assert (tmp_path / "in.data").read_bytes() == b"theirs"
    assert np.array_equal(contents(out)["w2"], array(2))
    assert names(tmp_path) == {"in", "in.data", "m.onnx", "m.onnx.data"}


def test_nothing_to_do_with_data_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "w.bin").write_bytes(array(1).tobytes())
    (tmp_path / "in" / "m.onnx").write_bytes(model_of(outside("w", "sub/w.bin", 0)).SerializeToString())
    source = load(tmp_path / "in" / "m.onnx")
    with monkeypatch.context() as patch, pytest.raises(LimitError, match="the disk is full"):
        fail_at(patch, "fsync", FULL)
        save_unchanged(source, tmp_path / "m.onnx")
    assert names(tmp_path) == {"in"}
    out = save_unchanged(source, tmp_path / "m.onnx")
    assert np.array_equal(contents(out)["w"], array(1))


def test_an_input_that_changed_or_went_is_said(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(model_of(weight("w", 1)).SerializeToString())
    source = load(path)
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="was changed while it was worked on; run again"):
        save_unchanged(source, tmp_path / "m.onnx")
    path.unlink()
    with pytest.raises(InputError, match="cannot be read again"):
        save_unchanged(source, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="external data and no folder to find it in"):
        save(model_of(outside("w", "w.bin", 0)), tmp_path / "m.onnx", source=None)
    assert names(tmp_path) == set()


def test_copying_goes_on_by_hand_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, "copy_file_range", OSError(errno.EXDEV, "Invalid cross-device link"))
    source = external_model(tmp_path / "in")
    out = save(source.proto, tmp_path / "m.onnx", source=source)
    assert np.array_equal(contents(out)["w2"], array(2))
