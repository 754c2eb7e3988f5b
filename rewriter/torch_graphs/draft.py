"""An fx graph under edit: the seven edits, whatever kind of model the graph is of.

Invariant: the graph is a copy, in which nodes that no edit touches stay as they are and in their order. Only what our
own edits orphaned is removed. Kernels stay float64 between rounds; the kinds of model round them once, at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from rewriter.graph.view import Constant, Graph, Node
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
from rewriter.rewriting.scrub import NODES, STACK_TRACES, TENSORS, Removed
from rewriter.torch_graphs import making, writes
from rewriter.torch_graphs.calls import FxNode, fake, is_assert
from rewriter.torch_graphs.dialect import Dialect
from rewriter.torch_graphs.mutations import mutations
from rewriter.torch_graphs.naming import Names
from rewriter.torch_graphs.picture import Native, Surroundings, picture
from rewriter.torch_graphs.tensors import nodes_in
from rewriter.torch_graphs.tidying import tidied

Sources: TypeAlias = "Mapping[str, Sequence[str]]"
"""By the name of a new tensor, those of the original that it was made of."""


class FxDraft(ABC):
    """`graph` is a copy of the `given` one and ours to edit; what a kind of graph does in its own way is left to the
    classes below. Writes in place that nobody can tell from others are out of place until the draft ends.
    """

    def __init__(self, given: Any, graph: Any, dialect: Dialect, tensors: Collection[str]) -> None:
        tidied(graph)
        self._given = given
        self._writes = writes.out_of_place(graph)
        self.graph = graph
        self.dialect = dialect
        self.edited = False
        self._made: dict[str, Constant] = {}
        self._called: dict[FxNode, str] = {}  # nodes that the engine gave a name of its own
        self._moved: set[FxNode] = set()  # nodes that are new or read another value than before
        self._view: Graph | None = None
        self.unused = Names({n.name for n in graph.nodes}, tensors)
        self._dead_at_first = self._dead()
        self._idle_at_first = frozenset(self._idle())

    @abstractmethod
    def finish(self, sources: Sources) -> Any:
        """The model with everything stored, each new tensor as its sources are; the draft ends with it."""

    @abstractmethod
    def _surroundings(self) -> Surroundings: ...

    @abstractmethod
    def _names_of_nodes(self) -> dict[FxNode, str]:
        """The nodes that are called otherwise in the view than in the graph."""

    @abstractmethod
    def _make(self, edit: AddNode, table: dict[str, FxNode], at: FxNode) -> FxNode:
        """The node of an edit, and those that it needs before it, inserted before `at`."""

    @abstractmethod
    def _place(self, name: str, constant: Constant) -> FxNode:
        """A node that gives a new tensor."""

    @abstractmethod
    def _remove_output(self, node: FxNode) -> None: ...

    @property
    def dead_before(self) -> tuple[str, ...]:
        return tuple(n.name for n in self.graph.nodes if n in self._dead_at_first)

    def operators(self) -> list[str]:
        """The operators of the graph as it stands, by name, one entry for each node that is one."""
        graph = self.graph if self.edited else self._given
        called = [n for n in graph.nodes if n.op.startswith("call_") and not is_assert(n)]
        return [self.dialect.name(node).rpartition(".")[2] for node in called]

    def view(self) -> Graph:
        if self._view is None:
            self._view = picture(self.graph, self._surroundings(), self.dialect)
        return self._view

    def fresh(self, hint: str) -> str:
        return self.unused.fresh(hint)

    def apply(self, edits: Sequence[Edit]) -> None:
        if not edits:
            return
        table = self._table()
        self.edited, self._view = True, None
        removed = {node for edit in edits if isinstance(edit, RemoveNode) for node in _native(edit.node).nodes}
        self._made |= {e.name: _constant(e) for e in edits if isinstance(e, AddConstant)}
        for edit in edits:
            if isinstance(edit, AddNode):
                self._add(edit, table)
        for edit in edits:
            match edit:
                case RemoveOutput():
                    self._remove_output(table[edit.name])
                case Reread():
                    self._reread(edit, table)
                case _:
                    pass
        self._rewire(ends({e.old: e.new for e in edits if isinstance(e, Rewire)}), table, removed)
        self._remove_dead(removed)
        if any(isinstance(edit, Reread) for edit in edits):
            reorder(self.graph)
        if any(isinstance(edit, Undeclare) for edit in edits):
            self._remeasure()

    def scrub(self) -> tuple[Removed, ...]:
        """Remove what no output needs and the stack traces of what stays; gives back what went, by kind."""
        found = {kind: Removed(kind) for kind in (STACK_TRACES, NODES, TENSORS)}
        replaced = self._idle().keys() - self._idle_at_first  # by folds, whose tensors go anyway
        dead = [node for node in self.graph.nodes if node in self._dead_at_first]
        for node in dead:
            found[NODES].add(0, node.name)
        for node in reversed(dead):
            self._erase(node)
        for node in self.graph.nodes:
            if (trace := node.meta.pop("stack_trace", None)) is not None:
                found[STACK_TRACES].add(len(trace), node.name)
        for name, size in self._idle().items():
            if name not in replaced:
                found[TENSORS].add(size, name)
        removed = tuple([each for each in found.values() if each.count])
        if removed:
            self.edited, self._view, self._dead_at_first = True, None, set[FxNode]()
        return removed

    def _idle(self) -> Mapping[str, int]:
        """The stored tensors that nothing reads or writes, with their bytes; modules hold none that nobody calls."""
        return {}

    # --- names -------------------------------------------------------------------------------------------------------

    def _kept(self) -> set[FxNode]:
        return set(nodes_in(self.graph.output_node().args))

    def _table(self) -> dict[str, FxNode]:
        """The fx node of every value, by the name that the view gives it."""
        names = self._names_of_nodes()
        table: dict[str, Any] = {}
        for node in self.graph.nodes:
            table.setdefault(names.get(node) or node.name, node)
        return table

    # --- edits -------------------------------------------------------------------------------------------------------

    def _add(self, edit: AddNode, table: dict[str, FxNode]) -> None:
        at, old = _native(edit.at).node, table.get(edit.output)
        like = _native(edit.like).node if edit.like is not None else at
        made = self._make(edit, table, at)
        for node in making.fresh(made):
            making.describe(node, like)
            if node is not made or old is None:
                self._measure(node, at)
        if old is None:
            self._called[made] = edit.output
        else:
            made.meta["val"] = fake(old)
            _replace(old, made)
            self._take_name(made, old)
        table[edit.output] = made
        self._moved.add(made)

    def _take_name(self, node: FxNode, old: FxNode) -> None:
        """`node` gives what `old`, which goes, gave; readers outside the graph know it by that name."""
        old.name, node.name = node.name, old.name
        if old in self._called:
            self._called[node] = self._called.pop(old)

    def _input(self, name: str, table: dict[str, FxNode]) -> FxNode:
        if name not in table:
            table[name] = self._place(name, self._made[name])
            self._called[table[name]] = name
        return table[name]

    def _reread(self, edit: Reread, table: dict[str, FxNode]) -> None:
        node = _native(edit.node).node
        if edit.old not in table and edit.new in self._made:  # an index that the operator holds as an argument
            index = int(self._made.pop(edit.new).load().reshape(-1)[0])
            node.args = (*node.args[:2], index)
            return
        node.replace_input_with(table[edit.old], self._input(edit.new, table))
        self._moved.add(node)
        self.dialect.detach(node)

    def _rewire(self, rewires: Mapping[str, str], table: dict[str, FxNode], removed: set[FxNode]) -> None:
        """What changed a value in place changes it no longer: another, with other readers, is in its place."""
        for old, new in rewires.items():
            one, other = table[old], table[new]
            for user in (*one.users, *other.users):
                self._moved.add(user)
                self.dialect.detach(user)
            if one in removed:
                _replace(one, other)
            else:  # what made `old` makes `new`, which nobody else makes any longer
                _replace(other, one)
                self._take_name(one, other)
                table[new] = one

    def _remove_dead(self, removed: set[FxNode]) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node in removed:
                self._erase(node)
        dead = self._dead() - self._dead_at_first
        for node in reversed(list(self.graph.nodes)):
            if node in dead and all(is_assert(user) for user in node.users):  # what was dead before goes on reading
                self._erase(node)

    def _settle(self) -> None:
        """What no edit took as it was, and what an edit moved so that it holds wherever it stands."""
        self._loosen()
        writes.in_place(self.graph, self._writes)
        self._writes = []

    def _loosen(self) -> None:
        """What an edit made may lie in memory otherwise than what stood there: a view of it must not depend on that."""
        behind, changed = set[FxNode](), mutations(self.graph, self.dialect).changed
        for node in self.graph.nodes:
            if node in self._moved or not behind.isdisjoint(node.all_input_nodes):
                behind.add(node)
                if node not in changed:
                    self.dialect.loosen(node)

    def _erase(self, node: FxNode) -> None:
        for user in list(node.users):
            if is_assert(user):
                self.graph.erase_node(user)
        self.graph.erase_node(node)
        self._called.pop(node, None)

    def _dead(self) -> set[FxNode]:
        """The nodes that no output needs and that change nothing."""
        impure = mutations(self.graph, self.dialect).impure
        dead: set[FxNode] = set()
        for node in reversed(self.graph.nodes):
            if node.op in ("placeholder", "output") or node in impure or fake(node) is None:
                continue
            if all(user in dead or is_assert(user) for user in node.users):
                dead.add(node)
        return dead

    def _measure(self, node: FxNode, at: FxNode) -> None:
        """Find what a new node gives, which stands where `at` stood."""
        del at
        making.revalue(node)

    def _remeasure(self) -> None:
        """Sizes behind a stack that went are others than they were."""
        for node in self.graph.nodes:
            if node.op == "call_function" and fake(node) is not None:
                making.revalue(node)


def _native(node: Node) -> Native:
    assert isinstance(node.native, Native)
    return node.native


def _constant(edit: AddConstant) -> Constant:
    array = edit.array
    return Constant(edit.name, array.shape, edit.dtype, lambda: array)


def _replace(old: FxNode, new: FxNode) -> None:
    """Whoever read `old` reads `new`."""

    def another(user: FxNode) -> bool:
        return user is not new

    old.replace_all_uses_with(new, delete_user_cb=another)


def reorder(graph: Any) -> None:
    """Every node behind what it reads, the others as they stood."""
    place = {node: index for index, node in enumerate(graph.nodes)}
    if all(place[read] < place[node] for node in place for read in node.all_input_nodes):
        return
    done: set[FxNode] = set()
    last = graph.output_node()
    for first in list(graph.nodes):
        waiting = [first]
        while waiting:
            node = waiting[-1]
            missing = [n for n in node.all_input_nodes if n not in done]
            if missing and node not in done:
                waiting += missing
                continue
            waiting.pop()
            if node not in done and node is not last:
                done.add(node)
                last.prepend(node)
