"""What an exported program says beside its graph: which placeholder is which tensor, and the tensors themselves.

Invariant: placeholders and input specs go in step, in the order parameters, buffers, constants, inputs of the user. A
tensor goes only with the last placeholder of ours that read it; one that nothing read before stays, but for the counter
of a norm whose statistics go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rewriter.graph.constants import FLOATS
from rewriter.graph.view import Constant
from rewriter.torch_graphs.calls import FxNode, fake
from rewriter.torch_graphs.tensors import constant_of

COUNTER = "num_batches_tracked"

TENSORS = ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")
"""Kinds of placeholders that are stored tensors."""


@dataclass(slots=True, eq=False)
class Signature:
    program: Any
    specs: dict[FxNode, Any]  # by placeholder, in order
    outputs: list[Any]  # the output specs, as the output node has them
    stored: Mapping[FxNode, Constant]  # the tensors that nothing changes
    names: Mapping[FxNode, str]  # of stored tensors, tied ones under one
    parameters: Mapping[str, Any]  # under these names
    unread: Collection[FxNode]  # placeholders that nothing read when the program came
    device: Any
    mode: Any  # in which tensors without elements are made; None where no node has one
    last: dict[Any, FxNode | None] = field(default_factory=dict[Any, "FxNode | None"])  # by kind, behind which it grows
    out_spec: Any = None  # of what the user gets, where outputs went

    @classmethod
    def of(cls, program: Any, graph: Any) -> Signature:
        given = program.graph_signature
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        specs = dict(zip(placeholders, given.input_specs, strict=True))
        changed = set(given.buffers_to_mutate.values())
        stored: dict[FxNode, Constant] = {}
        names: dict[FxNode, str] = {}
        parameters: dict[str, Any] = {}
        first: dict[object, str] = {}
        taken = {n.name for n in graph.nodes}
        for node, spec in specs.items():
            tensor = _tensor(program, spec)
            if tensor is None:
                continue
            name = spec.target if spec.target not in taken else node.name
            names[node] = first.setdefault(identity(tensor), name)
            if spec.kind.name == "PARAMETER":
                parameters.setdefault(names[node], tensor)
            constant = None if spec.target in changed else constant_of(names[node], tensor)
            if constant is not None:
                stored[node] = constant
        unread = [n for n in placeholders if not n.users]
        mode = next((m for n in graph.nodes if (m := getattr(fake(n), "fake_mode", None)) is not None), None)
        specs_out = list(given.output_specs)
        return cls(program, specs, specs_out, stored, names, parameters, unread, _device(program), mode)

    @property
    def tensors(self) -> list[str]:
        return [*self.program.state_dict, *self.program.constants, *self.names.values()]

    @property
    def inputs(self) -> list[FxNode]:
        """What the user gives, of tensors."""
        return [n for n, spec in self.specs.items() if spec.kind.name == "USER_INPUT" and fake(n) is not None]

    def add(self, graph: Any, name: str, constant: Constant) -> FxNode:
        """A placeholder for a new tensor, behind the last parameter; one of whole numbers behind the last constant."""
        from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

        kind = InputKind.PARAMETER if constant.dtype in FLOATS else InputKind.CONSTANT_TENSOR
        if kind not in self.last:
            before = [k for k in InputKind if k is not InputKind.USER_INPUT and (k is kind or kind.name != "PARAMETER")]
            self.last[kind] = next((n for n in reversed(self.specs) if self.specs[n].kind in before), None)
        last = self.last[kind]
        with graph.inserting_before(next(iter(graph.nodes))) if last is None else graph.inserting_after(last):
            made = graph.placeholder(f"p_{name.replace('.', '_')}")
        self.last[kind] = made
        made.meta["val"] = self.without_elements(constant)
        self.specs[made] = InputSpec(kind, TensorArgument(made.name), name)
        return made

    def without_elements(self, constant: Constant) -> Any:
        """A tensor that stands for a new one in the graph."""
        import torch

        with _nothing() if self.mode is None else self.mode:
            return torch.empty(constant.shape, dtype=getattr(torch, constant.dtype), device=self.device)

    def idle(self) -> dict[str, int]:
        """The stored tensors that nothing reads or writes, by name, with their bytes."""
        held = {str(self.specs[node].target): _tensor(self.program, self.specs[node]) for node in self._idle()}
        return {name: t.numel() * t.element_size() for name, t in held.items() if t is not None}

    def release(self) -> None:
        """Let tensors go at the end that nothing read when the program came."""
        idle = self._idle()
        self.unread = [node for node in self.unread if node not in idle]

    def _idle(self) -> list[FxNode]:
        written = set(self.program.graph_signature.buffers_to_mutate.values())
        return [n for n, s in self.specs.items() if not n.users and s.kind.name in TENSORS and s.target not in written]

    # --- the end -----------------------------------------------------------------------------------------------------

    def finished(
        self,
        graph: Any,
        root: Any,
        made: Mapping[str, Any],
        sources: Mapping[str, Sequence[str]],
        changed: Collection[FxNode],
    ) -> Any:
        """The program of an edited graph with its new tensors, everything else shared with the one that came.

        `root` holds its bodies. A tensor is trained where one of the parameters is that it was made of. What a run of
        either program may change, as what nodes `changed` give, each has for itself.
        """
        import torch
        from torch.export import ExportedProgram
        from torch.export.graph_signature import ExportGraphSignature, TensorArgument

        state, constants = dict(self.program.state_dict), dict(self.program.constants)
        orphans = [(node, self.specs.pop(node)) for node in self._orphans()]
        read = {spec.target for spec in self.specs.values()}
        for node, spec in orphans:
            graph.erase_node(node)
            if spec.target is not None and spec.target not in read:
                state.pop(spec.target, None)
                constants.pop(spec.target, None)
        self.specs = {n: self.specs[n] for n in graph.nodes if n.op == "placeholder"}
        for spec in self.specs.values():
            if spec.target in made:
                tensor = made[spec.target].to(self.device)
                if spec.kind.name == "PARAMETER":
                    trains = self._trains(sources.get(spec.target, ()))
                    state[spec.target] = torch.nn.Parameter(tensor, requires_grad=trains)
                else:
                    constants[spec.target] = tensor
        shown = nodes_of(graph)
        specs = [
            replace(s, arg=TensorArgument(n.name)) if isinstance(s.arg, TensorArgument) else s
            for s, n in zip(self.outputs, shown, strict=True)
        ]
        running = set(self.program.graph_signature.buffers_to_mutate.values())
        running |= {self.specs[n].target for n in changed if n in self.specs}
        for held in (state, constants):
            held.update({name: _copied(held[name]) for name in running & held.keys()})
        graph.lint()
        program = ExportedProgram(
            root=root,
            graph=graph,
            graph_signature=ExportGraphSignature([*self.specs.values()], specs),
            state_dict=_ordered(state, self.specs.values()),
            range_constraints=self.program.range_constraints,
            module_call_graph=self._calls(),
            example_inputs=self.program.example_inputs,
            constants=constants,
            verifiers=self.program.verifiers,
        )
        guards: Any = program  # else a loaded program would take sizes that it refused
        guards._guards_code = self.program._guards_code
        return program

    def _trains(self, sources: Sequence[str]) -> bool:
        found = [self.parameters[name] for name in sources if name in self.parameters]
        return any(p.requires_grad for p in found or self.parameters.values())

    def _orphans(self) -> list[FxNode]:
        """The placeholders that our edits left without a reader, the counters of norms that went, and other names of
        these: a module that is registered twice has all its tensors twice, of which one is read."""
        gone = [
            n for n, s in self.specs.items() if not n.users and n not in self.unread and s.kind.name != "USER_INPUT"
        ]
        norms = {str(self.specs[n].target).rpartition(".")[0] for n in gone if _is_statistic(self.specs[n].target)}
        for node in self.unread:
            path, _, last = str(self.specs[node].target).rpartition(".")
            if last == COUNTER and path in norms:
                gone.append(node)
        read = {self.names[n] for n in self.specs if n.users and n in self.names}
        tied = {self.names[n] for n in gone if n in self.names} - read
        return gone + [n for n in self.unread if n not in gone and self.names.get(n) in tied]

    def _calls(self) -> list[Any]:
        """The structure of what modules are given and give; that of inner ones is dropped, whose values may be gone."""
        root, *inner = self.program.module_call_graph
        if self.out_spec is not None:
            root = replace(root, signature=replace(root.signature, out_spec=self.out_spec))
        return [root, *[replace(entry, signature=None) for entry in inner]]


def nodes_of(graph: Any) -> list[Any]:
    """What the output node gives, item by item; not all of it need be nodes."""
    return list(graph.output_node().args[0])


def _tensor(program: Any, spec: Any) -> Any:
    """The tensor behind a placeholder; those that no checkpoint holds lie among the constants."""
    if spec.kind.name not in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
        return None
    found = program.state_dict.get(spec.target, program.constants.get(spec.target))
    return found if hasattr(found, "untyped_storage") else None


def identity(tensor: Any) -> object:
    """The same for tied tensors, which are one object when fresh and two on one storage when loaded."""
    if not tensor.numel() or tensor.device.type == "meta":
        return id(tensor)
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride())


def _copied(tensor: Any) -> Any:
    import torch

    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
    return tensor.clone()


def _is_statistic(target: object) -> bool:
    return str(target).endswith(("running_mean", "running_var"))


def _ordered(state: Mapping[str, Any], specs: Collection[Any]) -> dict[str, Any]:
    """The state in the order of the specs, then what no spec names."""
    named = [s.target for s in specs if s.target in state]
    return {name: state[name] for name in dict.fromkeys([*named, *state])}


def _device(program: Any) -> Any:
    import torch

    tensors = [*program.state_dict.values(), *program.constants.values()]
    return next((t.device for t in tensors if hasattr(t, "device")), torch.device("cpu"))


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
