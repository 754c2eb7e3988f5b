"""`--set [PATTERN.]PARAM=VALUE`: values for the parameters of patterns, typed by their declarations.

Invariant: what comes out are new `LoadedPattern`s; a setting that no pattern takes is an error, never ignored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from rewriter.errors import UsageError
from rewriter.language.lexer import MAX_INTEGER
from rewriter.language.library import LoadedPattern
from rewriter.language.source import clean, nearest, quote
from rewriter.language.syntax import Literal, Param

COST = "cost"
_SWITCH = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}


def set_parameters(patterns: Sequence[LoadedPattern], settings: Sequence[str]) -> list[LoadedPattern]:
    """The patterns with `settings` applied in order; without a pattern's name, a setting goes to all that have it."""
    result = list(patterns)
    for setting in settings:
        target, equals, value = setting.partition("=")
        if not equals or not target:
            raise UsageError(f"cannot read the setting {quote(setting)}; write [PATTERN.]PARAM=VALUE")
        owner, _, param = target.rpartition(".")
        if owner and owner not in [loaded.name for loaded in result]:
            names = [loaded.name for loaded in result]
            hint = nearest(owner, names) or f"there are {', '.join(names)}"
            raise UsageError(f"no pattern {quote(owner)} is in use, which {quote(setting)} would set; {hint}")
        takers = [i for i, loaded in enumerate(result) if (not owner or loaded.name == owner) and _takes(loaded, param)]
        if not takers:
            raise UsageError(_unknown(result, owner, param))
        for index in takers:
            result[index] = _set(result[index], param, value)
    return result


def _takes(loaded: LoadedPattern, param: str) -> bool:
    return param == COST or any(p.name == param for p in loaded.pattern.params)


def _unknown(patterns: Sequence[LoadedPattern], owner: str, param: str) -> str:
    concerned = [loaded for loaded in patterns if not owner or loaded.name == owner]
    known = [f"{loaded.name}.{p.name}" for loaded in concerned for p in loaded.pattern.params]
    near = nearest(param, [COST, *(name.rpartition(".")[2] for name in known)])
    there = f"there are {', '.join(['cost (of every pattern)', *known])}"
    return f"unknown parameter {quote(f'{owner}.{param}' if owner else param)}; {f'{near} ' if near else ''}{there}"


def _set(loaded: LoadedPattern, param: str, value: str) -> LoadedPattern:
    if param == COST:
        if value not in ("on", "off"):
            raise UsageError(f"'cost' is on or off, not {quote(value)}")
        return dataclasses.replace(loaded, gated=value == "on")
    declared = next(p for p in loaded.pattern.params if p.name == param)
    return dataclasses.replace(loaded, settings={**loaded.settings, param: _typed(loaded, declared, value)})


def _typed(loaded: LoadedPattern, param: Param, value: str) -> Literal | tuple[Literal, ...]:
    match param.type:
        case "names" | "globs":
            return tuple(item.strip() for item in value.split(",") if item.strip())
        case "string":
            return value
        case "bool" if value in _SWITCH:
            return _SWITCH[value]
        case "int" | "number" if (number := _number(value, whole=param.type == "int")) is not None:
            return number
        case _:
            wanted = {"bool": "true or false", "int": "a whole number"}.get(param.type, "a number")
            raise UsageError(f"{loaded.name}.{param.name} is {wanted}, not {quote(clean(value))}")


def _number(text: str, *, whole: bool) -> int | float | None:
    """A number that JSON can hold exactly; None for anything else."""
    if not re.fullmatch(r"[+-]?[0-9]{1,20}" if whole else r"[+-]?[0-9]{1,20}(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?", text):
        return None
    value = int(text) if text.lstrip("+-").isdigit() else float(text)
    return value if abs(value) <= MAX_INTEGER else None
