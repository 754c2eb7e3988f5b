"""A GraphModule under edit: new layers become modules of torch.nn under names of their own.

Invariant: the module that came is never changed; what no edit touches is shared with it, parameters and modules alike.
The result keeps the mode, device and types of the original; a module that nothing calls any longer is gone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MethodType
from typing import Any

from rewriter.checkpoints.lazytorch import silenced
from rewriter.errors import UsageError
from rewriter.graph.view import Constant
from rewriter.rewriting.edits import AddNode
from rewriter.torch_graphs import layers, structures
from rewriter.torch_graphs.calls import FxNode, Held, attribute, fake, is_node, is_tensor
from rewriter.torch_graphs.draft import FxDraft, Sources
from rewriter.torch_graphs.module_dialect import Modules
from rewriter.torch_graphs.picture import Surroundings
from rewriter.torch_graphs.propagation import propagate
from rewriter.torch_graphs.tensors import constant_of, nodes_in, stored


class ModuleDraft(FxDraft):
    """`module` is a GraphModule, which is read and not changed; `inputs` are what it is called with."""

    def __init__(self, module: Any, inputs: Sequence[Any]) -> None:
        from torch.fx import GraphModule

        self.given = module
        with silenced():  # of torch about itself
            self.work = GraphModule(module, copy.deepcopy(module.graph))  # shares modules and tensors
        propagate(self.work, inputs)
        names: dict[int, str] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            names.setdefault(id(tensor), name)
        self._tensors = names
        modules = [name for name, _ in module.named_modules()]
        dialect = Modules(self.work, names)
        self.modules = dialect
        super().__init__(module.graph, self.work.graph, dialect, [*names.values(), *modules, *module.state_dict()])

    def finish(self, sources: Sources) -> Any:
        from torch.fx import GraphModule

        if not self.edited:
            return self.given
        self._settle()
        for path, roles in self.modules.made.items():
            module = self.work.get_submodule(path)
            for role, held in roles.items():
                tensor = stored(held.name, held.constant.load(), held.constant.dtype)
                setattr(module, role, self._place_of(held.name, sources).parameter(tensor))
        for name, constant in self._made.items():
            if any(called == name and n.users for n, called in self._called.items()):
                tensor = stored(name, constant.load(), constant.dtype)
                layers.register(self.work, name, tensor, self._place_of(name, sources))
        self.graph.lint()
        made = GraphModule(self.work, self.graph, type(self.given).__name__)
        modules: Any = made
        there: dict[str, Any] = dict(modules.named_modules())
        for path in self.modules.made.keys() & there.keys():
            there[path].train(self.given.training)
        _carry(self.given, made)
        return made

    def _place_of(self, name: str, sources: Sources) -> layers.Place:
        """Of a new tensor: that of the parameters it was made of, or of all where it was made of none."""
        parameters: dict[str, Any] = dict(self.given.named_parameters())
        found = [parameters[source] for source in sources.get(name, ()) if source in parameters]
        return layers.Place.of(found or [*parameters.values()] or [*self.given.buffers()])

    # --- what the view asks ------------------------------------------------------------------------------------------

    def _surroundings(self) -> Surroundings:
        held: dict[FxNode, Constant] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr" and node not in self._called:
                constant = self._stored(node)
                if constant is not None:
                    held[node] = constant
        held |= {n: self._made[name] for n, name in self._called.items() if name in self._made}
        inputs = [n for n in self.graph.nodes if n.op == "placeholder" and is_tensor(fake(n))]
        given = [n for n in dict.fromkeys(nodes_in(self.graph.output_node().args)) if is_tensor(fake(n))]
        return Surroundings(held, inputs, given, self._kept(), self._names_of_nodes())

    def _stored(self, node: FxNode) -> Constant | None:
        tensor = attribute(self.work, node.target)
        return constant_of(self._named(node), tensor) if is_tensor(tensor) else None

    def _named(self, node: FxNode) -> str:
        return self._tensors.get(id(attribute(self.work, node.target))) or node.target

    def _names_of_nodes(self) -> dict[FxNode, str]:
        taken = {n.name for n in self.graph.nodes}
        names: dict[FxNode, str] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr":
                name = self._named(node)
                names[node] = name if name not in taken else node.name
        return {**names, **self._called}

    # --- edits -------------------------------------------------------------------------------------------------------

    def _make(self, edit: AddNode, table: dict[str, FxNode], at: FxNode) -> FxNode:
        """A module with its tensors for a layer; an operator for a sum; the bias of a product joins its module."""
        if edit.op in layers.MODULES:
            return self._layer(edit, table, at)
        if edit.op == "add" and self._joins(edit.inputs[1], product := table[edit.inputs[0]], table):
            return product
        inputs = [self._input(name, table) for name in edit.inputs]
        with self.graph.inserting_before(at):
            return layers.sum_of(self.graph, edit.op, inputs)

    def _joins(self, name: str, product: FxNode, table: dict[str, FxNode]) -> bool:
        """Whether a tensor is the bias of the module that gives `product`, which it is made if it is new."""
        if name in self._made and name not in table:
            bias = self._made.pop(name)
            self.modules.made[product.target]["bias"] = Held(name, bias)
            layers.promise(self.work.get_submodule(product.target), "bias", bias)
            return True
        held = self.modules.made.get(product.target, {}).get("bias")
        return held is not None and held.name == name

    def _layer(self, edit: AddNode, table: dict[str, FxNode], at: FxNode) -> FxNode:
        """The call of a module, which is new unless a fold before made it: a layer that is called twice stays one."""
        x, weight, *bias = edit.inputs
        path = weight.removesuffix(".weight")
        if weight in self._made:
            self._add_module(path, edit, weight, bias)
        with self.graph.inserting_before(at):
            return layers.called(self.graph, path, edit, self._input(x, table))

    def _add_module(self, path: str, edit: AddNode, weight: str, bias: Sequence[str]) -> None:
        held = {"weight": self._made.pop(weight), **({"bias": self._made.pop(bias[0])} if bias else {})}
        if edit.op == "matmul":
            held["weight"] = _turned(held["weight"])
        names = {"weight": weight, "bias": bias[0] if bias else ""}
        module = layers.MODULES[edit.op](edit.attrs, held)
        for role, constant in held.items():
            layers.promise(module, role, constant)
        if not self.work.add_submodule(path, module):
            raise UsageError(f"the module {path!r} cannot be added: a part of its path is no module")
        self.modules.made[path] = {role: Held(names[role], constant) for role, constant in held.items()}

    def _measure(self, node: FxNode, at: FxNode) -> None:
        node.meta["val"] = fake(at)  # of the same type and number of axes

    def _remeasure(self) -> None:
        """What is known of values here are types and numbers of axes, which no edit changes."""

    def _place(self, name: str, constant: Constant) -> FxNode:
        layers.register(self.work, name, layers.empty(constant), layers.Place("meta", trains=False))
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        with self.graph.inserting_before(first):
            made = self.graph.get_attr(name)
        made.meta["val"] = layers.empty(constant)
        return made

    def _remove_output(self, node: FxNode) -> None:
        output = self.graph.output_node()
        info = structures.leaves_info(self.work)
        if info is not None:
            given = list(output.args[0])
            places = {i for i, n in enumerate(given) if n is node}
            leaves, spec = structures.without_leaves(info.out_spec, len(given), places)
            output.args = (tuple([None if i is None else given[i] for i in leaves]),)
            self.graph._codegen.pytree_info = info._replace(out_spec=spec)
            return
        found = structures.without(output.args[0], node)
        if found is structures.GONE or is_node(output.args[0]):
            raise UsageError("the module would give nothing any more")
        output.args = (found,)
        if node in output.all_input_nodes:  # in a structure whose places all stay
            output.args = _blanked(found, node)


def _blanked(found: Any, gone: FxNode) -> tuple[Any]:
    from torch.fx.node import map_arg

    map_: Any = map_arg
    return (map_(found, lambda node: None if node is gone else node),)  # pyright: ignore[reportUnknownLambdaType]


def _carry(given: Any, made: Any) -> None:
    """The mode, the hooks of the module itself, and whatever a user has put on it."""
    for name in ("training", "_is_full_backward_hook", *_HOOKS):
        setattr(made, name, copy.copy(getattr(given, name)))
    found: dict[str, Any] = given.__dict__
    for name, value in found.items():
        if not name.startswith("_") and name not in made.__dict__ and not isinstance(value, MethodType):
            setattr(made, name, value)
    made.meta = dict(given.meta)


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def _turned(constant: Constant) -> Constant:
    """A product's matrix as a module has it: (out, in)."""
    array = constant.load().T
    return Constant(constant.name, array.shape, constant.dtype, lambda: array)
