"""An ONNX model under edit: the five edits carried out on the parsed protobuf, and the model made whole at the end.

Invariant: nodes and tensors that no edit touches are the very messages that were parsed, in their order. Only what our
own edits made dead is removed: what nothing read before stays. Kernels stay float64 between rounds, are rounded once at
the end, and what is stored is then held against what was proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from onnx import ModelProto, NodeProto, TensorProto, helper

from rewriter.algebra.conv import round_to
from rewriter.algebra.proof import prove_rounded
from rewriter.errors import VerificationError
from rewriter.graph.onnx import bodies, captured_names, live_names, view
from rewriter.graph.tensors import elements, tensor_of
from rewriter.graph.view import Array, Constant, Graph
from rewriter.rewriting.edits import AddConstant, AddNode, Edit, RemoveNode, RemoveOutput, Rewire

NodeMaker: TypeAlias = Callable[[AddNode], NodeProto]


class OnnxDraft:
    """`model` is edited in place: give it one that is yours. `folder` is where its external data lies."""

    def __init__(self, model: ModelProto, folder: Path | None = None) -> None:
        self.model = model
        self.folder = folder
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.made: dict[str, Constant] = {}
        self.edited = False
        self._view: Graph | None = None  # of the draft as it stands; an edit drops it
        self._names = _all_names(model)
        self._read_at_first = _read_names(self.nodes, model)
        live = live_names(self.nodes, (o.name for o in model.graph.output))
        self._dead_at_first = [n for n in self.nodes if not live.intersection(n.output)]

    @property
    def dead_before(self) -> tuple[str, ...]:
        """Nodes that nothing read when the model came: they stay, and are reported."""
        return tuple(n.name or n.op_type for n in self._dead_at_first)

    def view(self) -> Graph:
        if self._view is None:
            self._view = view(self.model, nodes=self.nodes, folder=self.folder, made=self.made)
        return self._view

    def fresh(self, hint: str) -> str:
        """A name that nothing in the model has, near `hint`; it is taken from now on."""
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names.add(name)
        return name

    def apply(self, edits: Sequence[Edit]) -> None:
        """Carry out edits that do not depend on each other's order, then remove what they made dead."""
        if not edits:
            return
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
                case _:
                    pass
        kept: list[NodeProto] = []
        for node in self.nodes:
            kept += added.get(id(node), ())
            if id(node) not in removed:
                kept.append(node)
        self.nodes = kept
        self._rename({e.old: e.new for e in edits if isinstance(e, Rewire)})
        self._remove_dead()

    def rename_interface(self, old: str, new: str) -> None:
        """Give an input or output of the model another name, everywhere it is read."""
        self._touched()
        self._rename({old: new})
        for info in (*self.model.graph.input, *self.model.graph.output, *self.model.graph.value_info):
            if info.name == old:
                info.name = new
        for tensor in self.model.graph.initializer:
            if tensor.name == old:
                tensor.name = new

    def finish(self) -> ModelProto:
        """The model with everything stored: new tensors rounded, dead ones and stale type information gone."""
        if not self.edited:
            return self.model
        graph = self.model.graph
        read = _read_names(self.nodes, self.model)
        gone = self._read_at_first - read
        inputs = {i.name for i in graph.input}
        _delete(graph.initializer, lambda t: t.name in gone and t.name not in inputs)
        _delete(graph.sparse_initializer, lambda t: t.values.name in gone)
        made = {name for node in self.nodes for name in node.output}
        known = made | inputs | {t.name for t in graph.initializer}
        _delete(graph.value_info, lambda v: v.name in self._names and v.name not in known)
        _delete(graph.quantization_annotation, lambda a: a.tensor_name in self._names and a.tensor_name not in known)
        graph.initializer.extend(_stored(c) for name, c in self.made.items() if name in read)
        del graph.node[:]
        graph.node.extend(self.nodes)
        return self.model

    def _touched(self) -> None:
        self.edited = True
        self._view = None

    def _remove_output(self, name: str) -> None:
        _delete(self.model.graph.output, lambda o: o.name == name)

    def _rename(self, names: Mapping[str, str]) -> None:
        if not names:
            return
        for node in self.nodes:
            _rename_in(node, names)

    def _remove_dead(self) -> None:
        roots = [o.name for o in self.model.graph.output]
        roots += [name for node in self._dead_at_first for name in node.output if name]
        live = live_names(self.nodes, roots)
        stays = {id(node) for node in self._dead_at_first}
        self.nodes = [n for n in self.nodes if id(n) in stays or live.intersection(n.output)]


def _rename_in(node: NodeProto, names: Mapping[str, str]) -> None:
    for ports in (node.input, node.output):
        for position, name in enumerate(ports):
            if name in names:
                ports[position] = names[name]
    for body in bodies(node):
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {o for inner in body.node for o in inner.output}
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            _rename_in(inner, outer)
        for output in body.output:
            output.name = outer.get(output.name, output.name)


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
    if edit.like is not None and isinstance(edit.like.native, NodeProto):
        node.doc_string = edit.like.native.doc_string
        node.metadata_props.extend(edit.like.native.metadata_props)
    return node


def _conv(edit: AddNode) -> NodeProto:
    pads: Sequence[tuple[int, int]] = edit.attrs["pads"]
    weight: Array = edit.attrs["kernel_shape"]
    return helper.make_node(
        "Conv",
        edit.inputs,
        [edit.output],
        name=edit.name,
        dilations=edit.attrs["dilations"],
        group=edit.attrs["groups"],
        kernel_shape=weight,
        pads=[begin for begin, _ in pads] + [end for _, end in pads],
        strides=edit.attrs["strides"],
    )


def _binary(op_type: str) -> NodeMaker:
    return lambda edit: helper.make_node(op_type, edit.inputs, [edit.output], name=edit.name)


NODES: Mapping[str, NodeMaker] = {"conv": _conv, "add": _binary("Add"), "sub": _binary("Sub")}


def _delete(field: Any, dead: Callable[[Any], bool]) -> None:
    """Delete elements of a repeated field in runs, from the back: the others are neither copied nor moved twice."""
    doomed = [i for i, element in enumerate(field) if dead(element)]
    while doomed:
        stop = doomed.pop() + 1
        start = stop - 1
        while doomed and doomed[-1] == start - 1:
            start = doomed.pop()
        del field[start:stop]


def _all_names(model: ModelProto) -> set[str]:
    """Every name in use anywhere, in bodies too: a fresh one must differ from all of them."""
    names: set[str] = set()
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for collection in (graph.input, graph.output, graph.initializer, graph.value_info):
            names.update(element.name for element in collection)
        names.update(t.values.name for t in graph.sparse_initializer)
        for node in graph.node:
            names.add(node.name)
            names.update(node.input)
            names.update(node.output)
            if node.attribute:
                graphs.extend(bodies(node))
    return names


def _read_names(nodes: Iterable[NodeProto], model: ModelProto) -> set[str]:
    """Names that a node, a body or an output reads."""
    read = {output.name for output in model.graph.output}
    for node in nodes:
        read.update(node.input)
        if node.attribute:
            read |= captured_names(node)
    return read
