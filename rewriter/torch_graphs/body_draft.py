"""The body of a region without gradients or without autocast under edit, within the program that runs it.

Invariant: a body is edited only where it changes nothing of what it is given, and the edit stands only where what it
gives shares memory with no more of that, or of each other, than before: the program around it may work in place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from rewriter.errors import UsageError
from rewriter.graph.view import Constant
from rewriter.rewriting.edits import AddNode
from rewriter.torch_graphs import making
from rewriter.torch_graphs.bodies import bodies
from rewriter.torch_graphs.calls import FxNode, fake, is_tensor
from rewriter.torch_graphs.dialect import Aten
from rewriter.torch_graphs.draft import FxDraft, Sources
from rewriter.torch_graphs.mutations import mutations, sharing
from rewriter.torch_graphs.picture import Surroundings
from rewriter.torch_graphs.program_draft import ProgramDraft
from rewriter.torch_graphs.tensors import nodes_in

_LEADING = {"wrap_with_set_grad_enabled": 2, "wrap_with_autocast": 5}
"""By the operator, how many arguments stand before what its body is given; the last of them is the body."""


def body_drafts(outer: ProgramDraft) -> list[BodyDraft]:
    """A draft for every body that computes what the same operators in the program itself would."""
    return [BodyDraft(node, outer) for node in outer.graph.nodes if _is_plain(node, outer.dialect.root)]


def _is_plain(node: FxNode, root: Any) -> bool:
    name = str(getattr(node.target, "__name__", ""))
    found = bodies(node, root)
    if name not in _LEADING or len(found) != 1 or "." in str(node.args[_LEADING[name] - 1].target):
        return False
    casts = name == "wrap_with_autocast" and node.args[2] is not False
    return not casts and not mutations(found[0].graph, Aten(found[0])).impure


class BodyDraft(FxDraft):
    """`runner` is the node of the program's graph that runs the body."""

    def __init__(self, runner: FxNode, outer: ProgramDraft) -> None:
        leading = _LEADING[runner.target.__name__]
        (self.body,) = bodies(runner, outer.dialect.root)
        self.runner, self.outer, self.leading = runner, outer, leading
        graph = copy.deepcopy(self.body.graph)
        for node, original in zip(graph.nodes, self.body.graph.nodes, strict=True):
            node.name = original.name
        super().__init__(self.body.graph, graph, Aten(self.body), ())
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        self.operands = dict(zip(placeholders, runner.args[leading:], strict=True))
        taken = {n.name for n in graph.nodes}
        self.stored: dict[FxNode, Constant] = {}
        self.names: dict[FxNode, str] = {}
        for node, operand in self.operands.items():
            constant = outer.signature.stored.get(operand)
            if constant is not None:
                self.stored[node] = constant
                name = outer.signature.names[operand]
                self.names[node] = name if name not in taken else node.name
        self._unread = {n for n in placeholders if not n.users}
        self._shared = sharing(graph, Aten(self.body))
        self.unused = outer.unused  # one state dict holds what is made of either
        self.unused.avoid(taken)

    @property
    def target(self) -> str:
        """The name of the body in the program."""
        return str(self.runner.args[self.leading - 1].target)

    def stands(self) -> bool:
        """Whether the body may take the place of the one that it was made of."""
        return self.edited and sharing(self.graph, self.dialect) <= self._shared

    def finish(self, sources: Sources) -> Any:
        from torch.fx import GraphModule

        del sources
        self._settle()
        for node in [n for n in self.operands if not n.users and n not in self._unread]:
            del self.operands[node]
            self.graph.erase_node(node)
        self.graph.lint()
        return GraphModule(self.body, self.graph, type(self.body).__name__)

    def given(self) -> list[Any]:
        """What each placeholder is given: a node of the program, or a new tensor."""
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        return [self.operands[n] if n in self.operands else self._made[self._called[n]] for n in placeholders]

    # --- what a draft is asked ---------------------------------------------------------------------------------------

    def _surroundings(self) -> Surroundings:
        held = {**self.stored, **{n: self._made[name] for n, name in self._called.items() if name in self._made}}
        inputs = [n for n in self.operands if n not in self.stored and is_tensor(fake(n))]
        outputs = [n for n in dict.fromkeys(nodes_in(self.graph.output_node().args)) if is_tensor(fake(n))]
        return Surroundings(held, inputs, outputs, self._kept(), self._names_of_nodes())

    def _names_of_nodes(self) -> dict[FxNode, str]:
        return {**self.names, **self._called}

    def _make(self, edit: AddNode, table: dict[str, FxNode], at: FxNode) -> FxNode:
        inputs: Sequence[FxNode] = [self._input(name, table) for name in edit.inputs]
        with self.graph.inserting_before(at):
            return making.MAKERS[edit.op](self.graph, edit, [*inputs])

    def _place(self, name: str, constant: Constant) -> FxNode:
        last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            made = self.graph.placeholder(f"p_{name.replace('.', '_')}")
        made.meta["val"] = self.outer.signature.without_elements(constant)
        return made

    def _remove_output(self, node: FxNode) -> None:
        raise UsageError(f"the output {node.name!r} of a body cannot be removed")
