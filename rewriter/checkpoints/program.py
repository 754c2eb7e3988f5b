"""torch.export archives (.pt2): loaded without trust only when a strict validator passes them.

torch.export.load has no safe mode: pickled weights and sample inputs, opaque objects, size expressions, guards,
descriptions of nested inputs and the older layouts can each run code. Invariant: an archive that passes has none of
these but in a form that is data, whatever it was made for. This is a defence in depth and no sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from rewriter.checkpoints.archive import Archive, examine
from rewriter.checkpoints.bytesource import Kind, Source
from rewriter.checkpoints.expressions import is_word, wrong_guard, wrong_size, wrong_treespec
from rewriter.checkpoints.torchfile import open_torch
from rewriter.errors import FxRewriteError, InputError
from rewriter.graph.tensors import shown

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SCHEMA: Final = 8
MOST_JSON: Final = 256 << 20
_MEMBERS: Final = re.compile(
    r"data/weights/(weight_\d{1,9}|model_weights_config\.json)|data/constants/(tensor_\d{1,9}|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|extra/[\w.\-]{1,100}"
)
_SAMPLE: Final = "data/sample_inputs/model.pt"
_CONFIGS: Final = {"data/weights/": "model_weights_config.json", "data/constants/": "model_constants_config.json"}
_WIDTHS: Final[Mapping[int, int]] = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2, 29: 1, 30: 1,
    34: 4, 35: 8,
}  # fmt: skip
_ATEN: Final = re.compile(r"torch\.ops\.(aten|prims)\.[A-Za-z_]\w{0,100}(\.[A-Za-z_]\w{0,100})?")
_FILES: Final = ("from_file", "_from_file", "save", "_save")  # the operators that touch files
_OPERATORS: Final = frozenset(
    {"getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "eq", "ne", "lt", "le", "gt", "ge"}
    | {"and_", "or_"}
)
_ARITHMETIC: Final = frozenset(
    {f"_operator.{name}" for name in _OPERATORS}
    | {f"math.{name}" for name in ("floor", "ceil", "trunc", "sqrt")}
    | {f"torch.sym_{name}" for name in ("int", "float", "max", "min", "not", "ite", "sum")}
)
_RUNNERS: Final = frozenset(  # they run graphs that lie in the file, and those are walked as the program's own is
    f"torch.ops.higher_order.{name}"
    for name in ("cond", "map_impl", "while_loop", "wrap_with_set_grad_enabled", "wrap_with_autocast")
)
_DOTTED: Final = re.compile(r"[A-Za-z0-9_]{1,200}(\.[A-Za-z0-9_]{1,200}){0,60}|")
_METADATA: Final = frozenset({"stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "custom", "from_node"})


class Wrong(Exception):
    """What the validator objects to, in words."""


def load(source: Source, *, trust: bool = False) -> ExportedProgram:
    """The program of a .pt2 archive. InputError where it is damaged, or may run code and is not trusted."""
    import io

    if source.kind is not Kind.PT2:
        raise InputError(f"{shown(source.path)} is a {source.kind}, not a torch.export archive")
    problem = problem_of(source)
    if problem is not None and not trust:
        raise InputError(
            f"{shown(source.path)}: {problem}. Loading it could run code of whoever made it: add --trust only if "
            "you trust its origin as you would a program's"
        )
    from rewriter.checkpoints.lazytorch import quiet

    with quiet(f"{shown(source.path)} cannot be loaded by torch.export"):
        import torch

        if problem is None:
            archive = examine(source.data, str(source.path))
            if sample := _sample(archive):  # a pickle that fails here would be loaded again without safety
                torch.load(io.BytesIO(sample), weights_only=True)
        return torch.export.load(io.BytesIO(source.data))


def save(made: ExportedProgram, path: Path, *, force: bool = False) -> None:
    """Write a program as a .pt2 file, whole or not at all."""
    import io

    from rewriter.checkpoints.lazytorch import quiet
    from rewriter.checkpoints.publishing import publish

    with quiet(f"{shown(path)} cannot be written as a torch.export archive"):
        import torch

        whole = io.BytesIO()
        torch.export.save(made, whole)
    publish({path: [whole.getbuffer()]}, force=force)


def problem_of(source: Source) -> str | None:
    """Why an archive needs trust; None where it is data in every part. InputError where it is damaged."""
    archive = examine(source.data, str(source.path))
    try:
        validate(archive, source)
    except Wrong as wrong:
        return str(wrong)
    except FxRewriteError as problem:
        return str(problem)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, UnicodeDecodeError):
        return "its description of the program is not what torch.export writes"
    return None


def validate(archive: Archive, source: Source) -> None:
    """Raises `Wrong` at the first thing that is not plain data."""
    for name in archive.members:
        if not _MEMBERS.fullmatch(name):
            raise Wrong(f"the member {shown(name)} is none that a program of plain weights needs")
    for name, wanted in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        if bytes(archive.read(name)).strip() != wanted:
            raise Wrong(f"{name} is not {wanted.decode()!r}")
    for folder, config in _CONFIGS.items():
        if folder + config in archive.members:
            _check_payload(archive, folder, _json(archive, folder + config))
    if sample := _sample(archive):
        _check_sample(Source(source.path, sample, Kind.TORCH))
    _check_program(_json(archive, "models/model.json"))


def _sample(archive: Archive) -> bytes:
    """The pickled example inputs; nothing where the program was saved without."""
    return bytes(archive.read(_SAMPLE)) if _SAMPLE in archive.members else b""


def _json(archive: Archive, name: str) -> dict[str, Any]:
    data = archive.read(name)
    if len(data) > MOST_JSON:
        raise Wrong(f"{name} has {len(data):,} bytes")
    return json.loads(bytes(data), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Wrong("its description names something twice")
    return made


def _check_payload(archive: Archive, folder: str, config: dict[str, Any]) -> None:
    """Weights and constants are bytes of the archive, as many as their type and shape need."""
    for name, entry in config["config"].items():
        _dotted(name)
        if entry["use_pickle"] is not False:
            raise Wrong(f"{shown(name)} is stored as a pickle")
        begin, end = archive.members[folder + entry["path_name"]]
        meta = entry["tensor_meta"]
        sizes, strides = _numbers(meta["sizes"]), _numbers(meta["strides"])
        (offset,) = _numbers([meta["storage_offset"]])
        if meta["device"]["type"] != "cpu" or meta["layout"] != 7 or len(sizes) != len(strides):
            raise Wrong(f"{shown(name)} is no dense tensor in main memory")
        width = _WIDTHS[meta["dtype"]]
        reach = offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True)) + 1
        if prod(sizes) * width > end - begin or (prod(sizes) and reach * width > end - begin):
            raise Wrong(f"{shown(name)} is larger than the bytes that are there for it")


def _numbers(found: list[dict[str, Any]]) -> list[int]:
    numbers = [entry["as_int"] for entry in found if len(entry) == 1]
    if len(numbers) != len(found) or any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
        raise Wrong("a stored tensor has sizes that are no numbers")
    return numbers


def _check_sample(source: Source) -> None:
    code = open_torch(source).code
    if code:
        raise Wrong(f"its sample inputs would import {', '.join(code[:3])}")


def _check_program(found: dict[str, Any]) -> None:
    if found["schema_version"]["major"] != SCHEMA:
        raise Wrong(f"its schema is {found['schema_version']['major']}, not {SCHEMA}")
    if found["graph_module"].get("treespec_namedtuple_fields"):
        raise Wrong("its inputs or outputs are named tuples")
    waiting: list[tuple[str, Any]] = [("program", found)]
    while waiting:
        key, value = waiting.pop()
        rule = RULES.get(key)
        if rule is not None:
            rule(value)
        if key == "metadata":
            continue
        if isinstance(value, dict):
            for name, part in cast("dict[str, Any]", value).items():
                (_size if key == "range_constraints" else _dotted)(name)
                waiting.append((name, part))
        elif isinstance(value, list):
            # what lies in a list is judged by the rule of the list, and its own fields by theirs
            waiting += [("", part) for part in cast("list[Any]", value)]


def _dotted(name: object) -> None:
    if not isinstance(name, str) or not _DOTTED.fullmatch(name):
        raise Wrong(f"{shown(str(name))} is no dotted name")


def _word(name: object) -> None:
    if name is not None and name != "" and not is_word(name) and not isinstance(name, dict):
        raise Wrong(f"{shown(str(name))} is no identifier")


def _words(names: object) -> None:
    for name in cast("list[object]", names or []):
        _word(name)


def _target(name: object) -> None:
    known = isinstance(name, str) and (name in _ARITHMETIC | _RUNNERS or _ATEN.fullmatch(name) is not None)
    if not known or str(name).split(".")[3:4] in [[word] for word in _FILES]:
        raise Wrong(f"it calls {shown(str(name))}, which is not of aten, prims, arithmetic or control flow")


def _never(value: object) -> None:
    if value:
        raise Wrong("it holds an object or an operator as an argument")


def _size(text: object) -> None:
    if why := wrong_size(text):
        raise Wrong(f"the size {shown(str(text))} {why}")


def _guards(texts: object) -> None:
    for text in cast("list[object]", texts):
        if why := wrong_guard(text):
            raise Wrong(f"the guard {shown(str(text))} {why}")


def _treespec(text: object) -> None:
    if why := wrong_treespec(text):
        raise Wrong(f"the description of its inputs or outputs {why}")


def _metadata(found: object) -> None:
    for key, value in cast("dict[str, object]", found).items():
        if key not in _METADATA or not isinstance(value, str):
            raise Wrong(f"the node metadata {shown(key)} is none that torch writes")
        if key == "source_fn_stack" and not re.fullmatch(r"[\w.,;]*", value):
            raise Wrong("the node metadata names functions in an odd way")


RULES: Final[Mapping[str, Callable[[object], None]]] = {
    "name": _word, "as_name": _word, "user_input_name": _word, "forward_arg_names": _words, "verifiers": _words,
    "parameter_name": _dotted, "buffer_name": _dotted, "tensor_constant_name": _dotted, "fqn": _dotted,
    "target": _target, "as_operator": _never, "as_custom_obj": _never, "custom_obj": _never,
    "custom_obj_values": _never, "expr_str": _size, "guards_code": _guards, "in_spec": _treespec,
    "out_spec": _treespec, "metadata": _metadata,
}  # fmt: skip
"""By the name of a field, what is demanded of it; the walk over everything else demands plain names only."""
