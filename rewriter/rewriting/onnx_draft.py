"""An ONNX model under edit: the seven edits carried out on the parsed protobuf, and the model made whole at the end.

Invariant: nodes and tensors that no edit touches are the very messages that were parsed, in their order. Only what our
own edits made dead is removed: what nothing read before stays. Kernels stay float64 between rounds, are rounded once at
the end, and what is stored is then held against what was proved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeAlias

from onnx import ModelProto, NodeProto, TensorProto, helper

from rewriter.algebra.conv import round_to
from rewriter.algebra.proof import prove_rounded
from rewriter.errors import VerificationError
from rewriter.graph.onnx import view
from rewriter.graph.proto import captured_names, live_names, producers, topological
from rewriter.graph.raw import Extents
from rewriter.graph.settled import settled
from rewriter.graph.tensors import elements, tensor_of
from rewriter.graph.view import Constant, Graph, Node
from rewriter.rewriting import names
from rewriter.rewriting.bodies import called, cut_branches, drop_functions
from rewriter.rewriting.edits import (
    AddConstant,
    AddNode,
    Edit,
    RemoveNode,
    RemoveOutput,
    Reread,
    Rewire,
    Undeclare,
    ends,
)
from rewriter.rewriting.plain import in_plain_terms
from rewriter.rewriting.scrub import Removed, Scrub
from rewriter.rewriting.sized import fixed_sizes

NodeMaker: TypeAlias = Callable[[AddNode], NodeProto]

INITIALIZERS_ALONE = 4
"""The first IR version in which a stored tensor need not be an input of the model as well."""


class OnnxDraft:
    """`model` is edited in place: give it one that is yours. `folder` is where its external data lies."""

    def __init__(self, model: ModelProto, folder: Path | None = None) -> None:
        self.model = model
        self.folder = folder
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.made: dict[str, Constant] = {}
        self.edited = False
        self._finished = False
        self._view: Graph | None = None  # of the draft as it stands; an edit drops it
        self._names = names.all_names(model)
        self._tried: dict[str, int] = {}  # per hint, the numbers behind it that are taken: a shared weight lends many
        self._read_at_first = names.read_names(self.nodes, model) | names.quantization_names(model.graph)
        self._there_at_first = self._there(frozenset())
        self._called_at_first = called(model, self.nodes) if model.functions else set[tuple[str, str]]()
        live = live_names(self.nodes, (o.name for o in model.graph.output))
        self._dead_at_first = [n for n in self.nodes if not live.intersection(n.output)]

    @property
    def dead_before(self) -> tuple[str, ...]:
        """Nodes that no output needed when the model came: they stay, and are reported."""
        return tuple(n.name or n.op_type for n in self._dead_at_first)

    def view(self) -> Graph:
        if self._view is None:
            parts: Any = {"nodes": self.nodes, "folder": self.folder, "made": self.made}
            self._view = view(self.model, **parts)
            if known := fixed_sizes(self._view):
                self._view = view(self.model, **parts, sizes=known)
            self._view = in_plain_terms(self._view, self._part)
        return self._view

    def _part(self, nodes: Sequence[Node], sizes: Mapping[str, Extents]) -> Graph:
        protos = [node.native for node in nodes if isinstance(node.native, NodeProto)]
        return view(self.model, nodes=protos, folder=self.folder, made=self.made, sizes=sizes)

    def fresh(self, hint: str) -> str:
        """A name that nothing in the model has, near `hint`; it is taken from now on."""
        name, count = hint, self._tried.get(hint, 0)
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._tried[hint] = count
        self._names.add(name)
        return name

    def apply(self, edits: Sequence[Edit]) -> None:
        """Carry out edits that do not depend on each other's order, then remove what they made dead.

        No two of them may rewire the same name.
        """
        if not edits:
            return
        before = self.view().as_stored
        self._touched()
        removed = {id(e.node.native) for e in edits if isinstance(e, RemoveNode)}
        added: dict[int, list[NodeProto]] = {}
        for edit in edits:
            match edit:
                case AddConstant():
                    self.made[edit.name] = _constant(edit)
                case AddNode():
                    added.setdefault(id(edit.at.native), []).append(_node(edit))
                case RemoveOutput():
                    self._remove_output(edit.name)
                case Reread():
                    _reread(edit)
                case Undeclare():
                    self._undeclare(edit.name)
                case _:
                    pass
        kept: list[NodeProto] = []
        for node in self.nodes:
            kept += added.get(id(node), ())
            if id(node) not in removed:
                kept.append(node)
        self.nodes = kept
        if any(isinstance(edit, Reread) for edit in edits):
            self._reorder()
        self._rename(ends({e.old: e.new for e in edits if isinstance(e, Rewire)}))
        self._settle(before)
        self._remove_dead()

    def _settle(self, before: Graph) -> None:
        """Constants in place of nodes that read the size or the type of what went (see `graph.settled`).

        What reads it otherwise went on to such nodes alone, or was dead when the model came, and goes too.
        """
        made_by_nodes = {value.name for node in before.nodes for value in node.outputs}
        aside = {id(node.native): node for node in before.nodes if settled(node)}
        while True:
            there = self._there(frozenset()) | self.made.keys()
            gone = {name for node in self.nodes for name in node.input if name not in there} & made_by_nodes
            if not gone:
                return
            going = [native for native in self.nodes if not gone.isdisjoint(native.input)]
            known = [value for native in going if id(native) in aside for value in aside[id(native)].outputs]
            self.made.update((value.name, value.constant) for value in known if value.constant is not None)
            removed = {id(native) for native in going}
            self.nodes = [native for native in self.nodes if id(native) not in removed]

    def rename_interface(self, wanted: Mapping[str, str]) -> str | None:
        """Give inputs and outputs of the model other names, all at once, everywhere they are read.

        Gives back a name that another value of the result has already; then nothing is renamed.
        """
        self._prune()
        taken = (names.value_names(self.model, self.nodes) | self.made.keys()) - wanted.keys()
        clash = next((new for new in wanted.values() if new in taken), None)
        if clash is None and wanted:
            self._touched()
            self._names.update(wanted.values())
            self._rename(wanted)
            names.rename_values(self.model.graph, wanted)
        return clash

    def scrub(self) -> tuple[Removed, ...]:
        """Remove what no runtime needs (see `rewriting.scrub`); gives back what went, by kind."""
        nodes, removed = Scrub(self.model, self.nodes).run()
        if removed:
            self._touched()
            self.nodes, self._dead_at_first = nodes, []
        return removed

    def finish(self) -> ModelProto:
        """The model with everything stored: new tensors rounded, dead ones and stale type information gone.

        The draft ends with it: there are no edits after.
        """
        if not self.edited or self._finished:
            return self.model
        self._finished = True
        graph = self.model.graph
        self._prune()
        read = names.read_names(self.nodes, self.model)
        stored = [_stored(constant) for name, constant in self.made.items() if name in read]
        del graph.node[:]
        if self.model.ir_version < INITIALIZERS_ALONE:
            graph.node.extend(helper.make_node("Constant", [], [t.name], name=t.name, value=t) for t in stored)
        else:
            graph.initializer.extend(stored)
        graph.node.extend(self.nodes)
        self.nodes, self.made, self._view = list(graph.node), {}, None
        return self.model

    def _touched(self) -> None:
        assert not self._finished, "the draft was finished"
        self.edited = True
        self._view = None

    def _reorder(self) -> None:
        """Every node behind what it reads: only an edit of what a node reads can move it."""
        reads = [(*n.input, *captured_names(n)) if n.attribute else n.input for n in self.nodes]
        order = topological(self.nodes, reads, producers([n.output for n in self.nodes]))
        self.nodes = [self.nodes[i] for i in order]

    def _remove_output(self, name: str) -> None:
        _delete(self.model.graph.output, lambda o: o.name == name)

    def _undeclare(self, name: str) -> None:
        _delete(self.model.graph.value_info, lambda v: v.name == name)

    def _rename(self, wanted: Mapping[str, str]) -> None:
        if not wanted:
            return
        for node in self.nodes:
            names.rename_in(node, wanted, self.fresh)

    def _remove_dead(self) -> None:
        """Remove what no output needs, but for what none needed before and what that reads."""
        roots = {o.name for o in self.model.graph.output}
        for node in self._dead_at_first:
            roots.update((*node.input, *node.output, *captured_names(node)))
        live = live_names(self.nodes, roots)
        stays = {id(node) for node in self._dead_at_first}
        self.nodes = [n for n in self.nodes if id(n) in stays or live.intersection(n.output)]
        if any(node.op_type == "If" for node in self.nodes):
            read = names.read_names(self.nodes, self.model)
            if cut_branches(self.nodes, read, self._read_at_first):
                self._remove_dead()

    def _prune(self) -> None:
        """Drop the tensors and notes on values that went with our edits; what was unread or stale before stays."""
        graph = self.model.graph
        if self._called_at_first:
            drop_functions(self.model, self._called_at_first - called(self.model, self.nodes))
        gone = self._read_at_first - names.read_names(self.nodes, self.model)
        stale = self._there_at_first - self._there(gone)
        _delete(graph.quantization_annotation, lambda a: a.tensor_name in stale)
        gone -= names.quantization_names(graph) | {i.name for i in graph.input}
        _delete(graph.initializer, lambda t: t.name in gone)
        _delete(graph.sparse_initializer, lambda t: t.values.name in gone)
        _delete(graph.value_info, lambda v: v.name in stale)

    def _there(self, gone: AbstractSet[str]) -> set[str]:
        """The values that exist: inputs, what nodes make, and stored tensors but for those that are `gone`."""
        graph = self.model.graph
        stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        return {name for node in self.nodes for name in node.output} | {i.name for i in graph.input} | (stored - gone)


def _reread(edit: Reread) -> None:
    if isinstance(edit.node.native, NodeProto):
        ports = edit.node.native.input
        ports[:] = [edit.new if name == edit.old else name for name in ports]


def _constant(edit: AddConstant) -> Constant:
    array = edit.array
    return Constant(edit.name, array.shape, edit.dtype, lambda: array)


def _stored(constant: Constant) -> TensorProto:
    """The tensor as it is written, read back and compared with the unrounded kernel that the proof was about."""
    exact = constant.load()
    tensor = tensor_of(constant.name, round_to(exact, constant.dtype), constant.dtype)
    wrong = prove_rounded(exact, elements(tensor, None), constant.dtype, at=constant.name)
    if wrong is not None:
        raise VerificationError(f"{wrong}; nothing was written, please report this model")
    return tensor


def _node(edit: AddNode) -> NodeProto:
    node = NODES[edit.op](edit)
    if isinstance(edit.at.native, NodeProto):
        node.domain = edit.at.native.domain  # "" and "ai.onnx" are one domain, but a model may import only one of them
    if edit.like is not None and isinstance(edit.like.native, NodeProto):
        node.doc_string = edit.like.native.doc_string
        node.metadata_props.extend(edit.like.native.metadata_props)
    return node


def _conv(op_type: str) -> NodeMaker:
    def made(edit: AddNode) -> NodeProto:
        pads: Sequence[tuple[int, int]] = edit.attrs["pads"]
        beyond: Sequence[int] = edit.attrs.get("output_padding", ())
        more: dict[str, Any] = {"output_padding": beyond} if any(beyond) else {}
        return helper.make_node(
            op_type,
            edit.inputs,
            [edit.output],
            name=edit.name,
            dilations=edit.attrs["dilations"],
            group=edit.attrs["groups"],
            kernel_shape=edit.attrs["kernel_shape"],
            pads=[begin for begin, _ in pads] + [end for _, end in pads],
            strides=edit.attrs["strides"],
            **more,
        )

    return made


def _linear(edit: AddNode) -> NodeProto:
    """x times the weight as (out, in), plus the bias: the Gemm of a matrix."""
    return helper.make_node("Gemm", edit.inputs, [edit.output], name=edit.name, transB=1)


def _concat(edit: AddNode) -> NodeProto:
    return helper.make_node("Concat", edit.inputs, [edit.output], name=edit.name, axis=edit.attrs["axis"])


def _plain(op_type: str) -> NodeMaker:
    return lambda edit: helper.make_node(op_type, edit.inputs, [edit.output], name=edit.name)


NODES: Mapping[str, NodeMaker] = {
    "conv": _conv("Conv"),
    "conv_transpose": _conv("ConvTranspose"),
    "linear": _linear,
    "matmul": _plain("MatMul"),
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "concat": _concat,
    "slice": _plain("Slice"),
}


def _delete(field: Any, dead: Callable[[Any], bool]) -> None:
    """Delete elements of a repeated field in runs, from the back: the others are neither copied nor moved twice."""
    doomed = [i for i, element in enumerate(field) if dead(element)]
    while doomed:
        stop = doomed.pop() + 1
        start = stop - 1
        while doomed and doomed[-1] == start - 1:
            start = doomed.pop()
        del field[start:stop]
