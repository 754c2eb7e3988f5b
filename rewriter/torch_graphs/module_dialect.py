"""Graphs of `torch.fx.symbolic_trace`: modules, functions and methods, whose kinds tell what no schema does.

What an exported program gives as a module is such a graph too, of ATen operators; these say of themselves what they do.
Invariant: what is not known to give a new tensor may give its input; what is not known to leave its inputs alone may
change them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewriter.graph.view import Value
from rewriter.torch_graphs.calls import Call, FxNode, Held, call_of, is_getitem, is_node, is_tensor, operator_of
from rewriter.torch_graphs.dialect import RANDOM, Aten
from rewriter.torch_graphs.functions import call_of_function, method_or_function
from rewriter.torch_graphs.modules import call_of_module, hooked
from rewriter.torch_graphs.tensors import constant_of

FRESH = frozenset(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm linear matmul bmm mm addmm add
    sub rsub mul div neg exp log sqrt abs erf sigmoid tanh relu silu mish gelu hardswish hardsigmoid relu6 leaky_relu
    hardtanh softmax layer_norm group_norm avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d cat concat clone mean sum where clamp upsample_nearest2d""".split()  # noqa: SIM905
)
"""Operators that give a new tensor, where they are not asked to work in place."""

HARMLESS = frozenset(
    {"getattr", "getitem", "size", "dim", "numel", "floordiv", "mod", "pow", "eq", "ne", "lt", "le", "gt", "ge"}
)


ATEN = Aten(None, shapes_hold=False)


@dataclass(frozen=True, slots=True)
class Modules:
    """The dialect of one module; `made` are modules of ours whose tensors are not stored yet."""

    root: Any
    names: Mapping[int, str]  # of stored tensors, by identity: tied ones under one name
    made: dict[str, dict[str, Held]] = field(default_factory=dict[str, dict[str, Held]])
    shapes_hold: bool = False

    def call(self, node: FxNode, values: Callable[[Any], Value]) -> Call | None:
        if operator_of(node) is not None:
            return call_of(node, values)
        found = self._found(node)
        return None if found is None else Call(node, found[0], "", found[1], values)

    def _found(self, node: FxNode) -> tuple[str, dict[str, Any]] | None:
        if node.op == "call_module":
            return self._of_module(node)
        found = call_of_function(node)
        if found is None:
            return None
        op, args = found
        for one, other in (("self", "input"), ("input", "self")):
            if one in args:
                args.setdefault(other, args[one])
        if "other" in args:
            args.setdefault("mat2", args["other"])
        return op, args

    def _of_module(self, node: FxNode) -> tuple[str, dict[str, Any]] | None:
        module = self.module(node)
        found = call_of_module(module)
        if found is None or len(node.args) != 1 or node.kwargs:
            return None
        op, args = found
        made = self.made.get(node.target, {})
        for name, value in args.items():
            if name in made:
                args[name] = made[name]
            elif is_tensor(value):
                held = self.held(f"{node.target}.{name}", value)
                if held is None:
                    return None
                args[name] = held
        return op, {**args, "self": node.args[0], "input": node.args[0]}

    def held(self, name: str, tensor: Any) -> Held | None:
        known = self.names.get(id(tensor), name)
        constant = constant_of(known, tensor)
        return None if constant is None else Held(known, constant)

    def module(self, node: FxNode) -> Any:
        return self.root.get_submodule(node.target)

    def name(self, node: FxNode) -> str:
        if operator_of(node) is not None:
            return ATEN.name(node)
        if node.op == "call_module":
            return f"module.{type(self.module(node)).__name__}".lower()
        return f"torch.{method_or_function(node) or getattr(node.target, '__name__', node.target)}".lower()

    def scope(self, node: FxNode) -> str:
        stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
        path = str(node.target) if node.op == "call_module" else next(reversed(stack), "")
        return f"/{path.replace('.', '/')}" if path else ""

    # --- what changes and what is shared -----------------------------------------------------------------------------

    def written(self, node: FxNode) -> list[FxNode]:
        if node.op in ("placeholder", "get_attr", "output") or self._checks(node):
            return []
        if operator_of(node) is not None:
            return ATEN.written(node)
        if node.op == "call_module":
            if call_of_module(self.module(node)) is None or hooked(self.module(node)):
                return list(node.all_input_nodes) if self._is_foreign(node) else []
            return node.all_input_nodes[:1] if getattr(self.module(node), "inplace", False) else []
        if self._in_place(node):
            return [n for n in node.args[:1] if is_node(n)]
        known = method_or_function(node) is not None or getattr(node.target, "__name__", "") in HARMLESS
        return [] if known else list(node.all_input_nodes)

    def _is_foreign(self, node: FxNode) -> bool:
        """Whether it is no module of torch's own, or something else runs with it."""
        module = self.module(node)
        return (
            hooked(module) or not type(module).__module__.startswith("torch.nn") or bool(getattr(module, "inplace", 0))
        )

    def _checks(self, node: FxNode) -> bool:
        """Whether it only holds inputs against the sizes that an exported program was made for."""
        return (
            node.op == "call_module"
            and type(self.module(node)).__module__.startswith("torch.export.")
            and not node.users
        )

    def _in_place(self, node: FxNode) -> bool:
        name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
        if name.endswith("_") and not name.startswith("__"):
            return True
        found = call_of_function(node)
        return name in ("setitem", "iadd", "isub", "imul", "itruediv") or bool(found and found[1].get("inplace"))

    def aliased(self, node: FxNode) -> list[FxNode]:
        if node.op in ("placeholder", "get_attr", "output"):
            return []
        if is_getitem(node) or operator_of(node) is not None:
            return ATEN.aliased(node)
        found = self._found(node)
        return [] if found is not None and found[0] in FRESH else list(node.all_input_nodes)

    def trains(self, node: FxNode) -> bool:
        if operator_of(node) is not None:
            return ATEN.trains(node)
        if node.op == "call_module" and self._is_foreign(node):
            return True
        found = self._found(node)
        return found is not None and found[0] == "batch_norm" and bool(found[1].get("training"))

    def separable(self, node: FxNode) -> bool:
        if operator_of(node) is not None:
            return ATEN.separable(node)
        found = self._found(node)
        return found is not None and found[0] in FRESH

    def detach(self, node: FxNode) -> None:
        if operator_of(node) is not None:
            ATEN.detach(node)
        elif node.op == "call_module" and getattr(self.module(node), "inplace", False):
            apart = copy.deepcopy(self.module(node))  # others may call the module that is there
            apart.inplace = False
            path = f"{node.target}_apart"
            self.root.add_submodule(path, apart)
            node.target = path
        elif node.op == "call_method" and str(node.target).endswith("_"):
            node.target = str(node.target).rstrip("_")
        elif node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}

    def loosen(self, node: FxNode) -> None:
        if operator_of(node) is not None:
            ATEN.loosen(node)
        elif node.op == "call_method" and node.target == "view" and call_of_function(node) is not None:
            node.target = "reshape"

    def function(self, node: FxNode) -> Callable[..., Any] | None:
        if operator_of(node) is not None:
            return ATEN.function(node)
        name = method_or_function(node)
        if name is None or name in RANDOM or self._in_place(node):
            return None
        if node.op == "call_function":
            return node.target

        def method(value: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(value, node.target)(*args, **kwargs)

        return method

    def problem(self, node: FxNode) -> str | None:
        if node.op == "call_module" and hooked(self.module(node)):
            return "hooks run when it is called"
        return None

    def layered(self, node: FxNode) -> bool:
        if node.op != "call_module" or self._checks(node):
            return False
        return call_of_module(self.module(node)) is None and self._is_foreign(node)
