"""What an edit makes dead inside of nodes: results of branches that nobody reads any more, functions nobody calls.

Invariant: what was dead before stays, in branches too. A branch keeps the order of its results; all branches of a node
give up the same ones, and one is left at least: a node none of whose results is read is dead itself. Nothing recurses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from rewriter.graph.proto import bodies, captured_names, live_names

Key = tuple[str, str]
"""A function by domain and name."""


def cut_branches(nodes: Sequence[NodeProto], read: AbstractSet[str], read_before: AbstractSet[str]) -> bool:
    """Take out of If nodes the results that were read before and are no longer; True where there were any."""
    found = False
    waiting = [(nodes, read, read_before)]
    while waiting:
        scope, now, before = waiting.pop()
        for node in scope:
            gone = [i for i, name in enumerate(node.output) if name in before and name not in now]
            if node.op_type != "If" or not gone or len(gone) == len(node.output):
                continue
            found = True
            _drop(node.output, gone)
            for branch in bodies(node):
                names = _read_in(branch)
                _shorten(branch, gone)
                waiting.append((branch.node, _read_in(branch), names))
    return found


def _shorten(branch: GraphProto, gone: Sequence[int]) -> None:
    """The branch without some results and what only they needed."""
    before = live_names(branch.node, (output.name for output in branch.output))
    _drop(branch.output, gone)
    after = live_names(branch.node, (output.name for output in branch.output))
    made = [list(node.output) for node in branch.node]
    dying = [i for i, names in enumerate(made) if before.intersection(names) and not after.intersection(names)]
    read = _read_in(branch)
    _drop(branch.node, dying)
    unread = read - _read_in(branch)
    there = {name for i, names in enumerate(made) if i in set(dying) for name in names}
    _drop(branch.initializer, [i for i, tensor in enumerate(branch.initializer) if tensor.name in unread])
    _drop(branch.value_info, [i for i, value in enumerate(branch.value_info) if value.name in there | unread])


def _read_in(graph: GraphProto) -> set[str]:
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        read |= captured_names(node)
    return read


def _drop(field: Any, places: Sequence[int]) -> None:
    for place in reversed(places):
        del field[place]


def called(model: ModelProto, nodes: Iterable[NodeProto]) -> set[Key]:
    """The functions of the model that `nodes`, their bodies, training graphs and such functions call."""
    functions = {(function.domain, function.name): function for function in model.functions}
    found: set[Key] = set()
    waiting: list[Collection[NodeProto]] = [list(nodes)]
    for training in model.training_info:
        waiting += [training.initialization.node, training.algorithm.node]
    while waiting:
        for node in waiting.pop():
            key = (node.domain, node.op_type)
            if key in functions and key not in found:
                found.add(key)
                waiting.append(functions[key].node)
            waiting += [body.node for body in bodies(node)]
    return found


def drop_functions(model: ModelProto, gone: AbstractSet[Key]) -> None:
    _drop(model.functions, [i for i, f in enumerate(model.functions) if (f.domain, f.name) in gone])
