"""An exported program under edit, and a program made of it at the end.

Invariant: the program that came is never changed, and what no edit touches is shared with it: tensors, sizes, guards,
the structure of inputs. Writes in place that nobody can tell from others are out of place while the draft is edited.
"""

from __future__ import annotations

import copy
from typing import Any

from rewriter.graph.view import Constant
from rewriter.rewriting.edits import AddNode
from rewriter.torch_graphs import making, outputs, writes
from rewriter.torch_graphs.calls import FxNode, alike, fake
from rewriter.torch_graphs.dialect import Aten
from rewriter.torch_graphs.draft import FxDraft
from rewriter.torch_graphs.mutations import mutations
from rewriter.torch_graphs.picture import Surroundings
from rewriter.torch_graphs.signature import Signature
from rewriter.torch_graphs.tensors import stored


class ProgramDraft(FxDraft):
    """`program` is an ExportedProgram; it is read and not changed."""

    def __init__(self, program: Any) -> None:
        graph = copy.deepcopy(program.graph)  # copies no tensors
        for node, original in zip(graph.nodes, program.graph.nodes, strict=True):
            node.name = original.name  # a copy renames what is called as a builtin is (`input`)
        _name_sizes(graph)
        self._writes = writes.out_of_place(graph)
        self.program = program
        self.signature = Signature.of(program, graph)
        super().__init__(graph, Aten(program.graph_module), self.signature.tensors)

    def finish(self) -> Any:
        if not self.edited:
            return self.program
        self._loosen()
        made = {
            name: stored(name, constant.load(), constant.dtype)
            for name, constant in self._made.items()
            if any(called == name and n.users for n, called in self._called.items())
        }
        writes.in_place(self.graph, self._writes)
        self._writes = []
        impure = mutations(self.graph, self.dialect).impure
        return self.signature.finished(self.graph, made, {n for node in impure for n in node.all_input_nodes})

    def _stands_for(self, node: FxNode) -> tuple[str, ...]:
        return writes.as_given(node, self._writes) or super()._stands_for(node)

    def _surroundings(self) -> Surroundings:
        held = {n: constant for n, constant in self.signature.stored.items() if n not in self._called}
        held |= {n: self._made[name] for n, name in self._called.items() if name in self._made}
        wanted = outputs.wanted(self.graph, self.signature)
        return Surroundings(held, self.signature.inputs, wanted, self._kept(), self._names_of_nodes())

    def _names_of_nodes(self) -> dict[FxNode, str]:
        return {**self.signature.names, **self._called}

    def _make(self, edit: AddNode, table: dict[str, FxNode], at: FxNode) -> FxNode:
        inputs = [self._input(name, table) for name in edit.inputs]
        with self.graph.inserting_before(at):
            return making.MAKERS[edit.op](self.graph, edit, inputs)

    def _place(self, name: str, constant: Constant) -> FxNode:
        return self.signature.add(self.graph, name, constant)

    def _remove_output(self, node: FxNode) -> None:
        outputs.remove(self.graph, self.signature, node)


def _name_sizes(graph: Any) -> None:
    """Where a value is read for its sizes alone, and these are known, they are written out: it may go then."""
    import torch

    aten = torch.ops.aten
    targets = {aten.reshape_as.default: aten.reshape.default, aten.view_as.default: aten.reshape.default}
    for node in graph.nodes:
        target = targets.get(node.target) if node.op == "call_function" else None
        shape = [extent if type(extent) is int else -1 for extent in fake(node).shape] if target is not None else []
        if target is not None and shape.count(-1) < 2:
            node.target, node.args = target, (node.args[0], shape)
        if node.target is aten.expand_as.default and all(type(extent) is int for extent in fake(node).shape):
            node.target, node.args = aten.expand.default, (node.args[0], [*fake(node).shape])
        if node.target is aten.copy.default and alike(*node.args[:2]):
            like, source = node.args[:2]
            node.target, node.args = aten.clone.default, (source,)
            if not like.users and like.target in (aten.slice.Tensor, aten.select.int):
                graph.erase_node(like)
