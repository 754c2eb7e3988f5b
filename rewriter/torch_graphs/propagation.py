"""What a traced module's values are: their types and numbers of axes, found by running it without elements.

Invariant: sizes of inputs are open, so that a number seen is one that the module itself makes; nothing of the module is
changed, and no hook of it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter.checkpoints.lazytorch import silenced
from rewriter.errors import InputError


def propagate(module: Any, inputs: Sequence[Any]) -> None:
    """Put the value that every node gives, without elements, into its `meta["val"]`."""
    import torch
    from torch._dispatch import python as python_dispatch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx import Interpreter
    from torch.fx.experimental import symbolic_shapes

    symbolic: Any = symbolic_shapes
    mode = FakeTensorMode(
        allow_non_fake_inputs=True, shape_env=symbolic.ShapeEnv(duck_shape=False, specialize_zero_one=False)
    )

    class Seen(Interpreter):
        def run_node(self, n: Any) -> Any:
            n.meta["val"] = super().run_node(n)
            return n.meta["val"]

        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            found: Any = self.fetch_attr(target)
            return found.forward(*args, **kwargs)

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dynamic = symbolic.StatelessSymbolicContext(dynamic_sizes=[symbolic.DimDynamic.DYNAMIC] * value.dim())
        return mode.from_tensor(value, symbolic_context=dynamic)

    with torch.no_grad(), silenced(), python_dispatch.enable_python_dispatcher(), mode:
        try:
            Seen(module).run(*[fake(value) for value in inputs])
        except Exception as problem:
            said = " ".join(str(problem).split())[:300]
            name = type(module).__name__
            raise InputError(
                f"{name} cannot be followed on these inputs: {type(problem).__name__}: {said}"
            ) from problem
