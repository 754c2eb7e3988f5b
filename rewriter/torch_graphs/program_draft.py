"""An exported program under edit, and a program made of it at the end.

Invariant: the program that came is never changed, and what no edit touches is shared with it: tensors, sizes, guards,
the structure of inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rewriter.graph.view import Constant
from rewriter.rewriting.edits import AddNode
from rewriter.rewriting.scrub import Removed
from rewriter.torch_graphs import making, outputs
from rewriter.torch_graphs.calls import FxNode, attribute
from rewriter.torch_graphs.dialect import Aten
from rewriter.torch_graphs.draft import FxDraft, Sources
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
        self.program = program
        self._bodies: dict[str, Any] = {}  # those that were edited, by their names
        self.signature = Signature.of(program, graph)
        super().__init__(program.graph, graph, Aten(program.graph_module), self.signature.tensors)

    def finish(self, sources: Sources) -> Any:
        if not self.edited:
            return self.program
        self._settle()
        made = {
            name: stored(name, constant.load(), constant.dtype)
            for name, constant in self._made.items()
            if any(called == name and n.users for n, called in self._called.items())
        }
        impure = mutations(self.graph, self.dialect).impure
        changed = {n for node in impure for n in node.all_input_nodes}
        return self.signature.finished(self.graph, self._root(), made, sources, changed)

    def scrub(self) -> tuple[Removed, ...]:
        removed = super().scrub()
        if removed:
            self.signature.release()
        return removed

    def take(self, runner: FxNode, leading: int, body: Any, given: Sequence[FxNode | Constant]) -> None:
        """Another body for an operator that runs one: what it is given are values, and tensors that are new."""
        self.edited, self._view = True, None
        operands: list[FxNode] = []
        for one in given:
            if isinstance(one, Constant):
                self._made[one.name] = one
                operands.append(self._input(one.name, {}))
            else:
                operands.append(one)
        runner.args = (*runner.args[:leading], *operands)
        self._bodies[runner.args[leading - 1].target] = body
        self._moved.add(runner)

    def _root(self) -> Any:
        """The module that holds the bodies."""
        whole = self.program.graph_module
        if not self._bodies:
            return whole
        from torch import nn

        root: Any = nn.Module()
        root.meta = whole.meta
        for node in self.graph.nodes:
            if node.op == "get_attr":
                setattr(root, node.target, self._bodies.get(node.target, attribute(whole, node.target)))
        return root

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

    def _idle(self) -> Mapping[str, int]:
        return self.signature.idle()

    def _remove_output(self, node: FxNode) -> None:
        outputs.remove(self.graph, self.signature, node)
