"""onnx-graphsurgeon objects in and out: a `gs.Graph` becomes a ModelProto, is rewritten, and comes back.

Invariant: the argument is never changed, and the package is imported only when somebody hands in such an object. Its
round trip drops metadata and doc strings, so files never take this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from onnx import ModelProto, defs, helper

from rewriter.errors import InputError, UsageError

if TYPE_CHECKING:
    from onnx_graphsurgeon import Graph as SurgeonGraph
else:
    SurgeonGraph = Any


def to_proto(graph: SurgeonGraph) -> ModelProto:
    """A model that computes what the graph does; its IR version is the graph's, or the oldest that its opset allows."""
    surgeon, native = _surgeon(), cast("Any", graph)
    if not isinstance(graph, surgeon.Graph):
        raise UsageError(f"a graphsurgeon graph is wanted, not {type(graph).__name__}; load files by their path")
    ir_version = native.ir_version or _ir_version(int(native.opset))
    owners = [native, *native.functions]
    domains = [None if owner.import_domains is None else list(owner.import_domains) for owner in owners]
    try:  # not a copy of the graph: copying loses the types of sequences
        return surgeon.export_onnx(graph, ir_version=ir_version)
    except Exception as error:  # it raises whatever its own code or numpy raises
        raise InputError(f"graphsurgeon cannot export the graph: {error}; call graph.cleanup().toposort()") from error
    finally:
        for owner, before in zip(owners, domains, strict=True):  # exporting fills them in
            owner.import_domains = before


def from_proto(model: ModelProto) -> SurgeonGraph:
    """The model as a graph of its own: later changes of one do not show in the other."""
    copy = ModelProto()  # elements load lazily from the message, which therefore has to be theirs alone
    copy.CopyFrom(model)
    return _surgeon().import_onnx(copy)


def _surgeon() -> Any:
    try:
        import onnx_graphsurgeon
    except ImportError as error:
        raise UsageError("onnx-graphsurgeon is not installed; pip install 'fxrewrite[gs]'") from error
    return onnx_graphsurgeon


def _ir_version(opset: int) -> int:
    """The oldest IR version that may hold this opset, and no older than 8, which every reader in use knows."""
    try:
        return max(8, int(helper.find_min_ir_version_for([helper.make_opsetid(defs.ONNX_DOMAIN, opset)])))
    except ValueError as error:
        raise InputError(f"opset {opset} is newer than this onnx package knows; pip install -U onnx") from error
