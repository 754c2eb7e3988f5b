"""Names in an ONNX model: which are in use, which are read, and renaming that no body of an If, Loop or Scan can hide.

Invariant: a body is a scope of its own: what it defines hides the same name outside, and what it reads and does not
define is the outer value. A renamed outer value keeps its readers there, even where a body has used the new name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from onnx import GraphProto, ModelProto, NodeProto

from rewriter.graph.proto import bodies, captured_names


def value_names(model: ModelProto, nodes: Iterable[NodeProto]) -> set[str]:
    """Every name of a value in the graph (with `nodes` in place of the stored ones) and in the bodies of its nodes."""
    return _interface_names(model.graph) | _names_inside([nodes], of_nodes=False)


def all_names(model: ModelProto) -> set[str]:
    """Every name in use anywhere, of values and of nodes, in bodies, functions and training graphs too."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    names: set[str] = set()
    for graph in graphs:
        names |= _interface_names(graph)
    for function in model.functions:
        names.update((*function.input, *function.output))
    return names | _names_inside([g.node for g in graphs] + [f.node for f in model.functions], of_nodes=True)


def _names_inside(scopes: Iterable[Iterable[NodeProto]], *, of_nodes: bool) -> set[str]:
    """The values that nodes and their bodies name at any depth, and with `of_nodes` the nodes themselves too."""
    names: set[str] = set()
    stack = list(scopes)
    while stack:
        for node in stack.pop():
            if of_nodes:
                names.add(node.name)
            names.update(node.input)
            names.update(node.output)
            if node.attribute:
                for body in bodies(node):
                    names |= _interface_names(body)
                    stack.append(body.node)
    return names


def _interface_names(graph: GraphProto) -> set[str]:
    """What a graph names beside the values that its nodes read and make."""
    names = {tensor.values.name for tensor in graph.sparse_initializer}
    for collection in (graph.input, graph.output, graph.initializer, graph.value_info):
        names.update(element.name for element in collection)
    for annotation in graph.quantization_annotation:
        names.add(annotation.tensor_name)
        names.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return names


def read_names(nodes: Iterable[NodeProto], model: ModelProto) -> set[str]:
    """Names that a node, a body, an output or a training graph reads."""
    read = {output.name for output in model.graph.output}
    for node in nodes:
        read.update(node.input)
        if node.attribute:
            read |= captured_names(node)
    for training in model.training_info:
        for binding in (*training.initialization_binding, *training.update_binding):
            read.update((binding.key, binding.value))
        for graph in (training.initialization, training.algorithm):
            read.update(output.name for output in graph.output)
            for node in graph.node:
                read.update(node.input)
                read |= captured_names(node)
    return read


def quantization_names(graph: GraphProto) -> set[str]:
    """The tensors that hold scales and zero points of annotated values."""
    return {entry.value for a in graph.quantization_annotation for entry in a.quant_parameter_tensor_names}


def rename_in(node: NodeProto, names: Mapping[str, str], fresh: Callable[[str], str]) -> None:
    """Rename what a node and its bodies read and make; `fresh` gives names to values of bodies that would hide one."""
    for ports in (node.input, node.output):
        for position, name in enumerate(ports):
            if name in names:
                ports[position] = names[name]
    if node.attribute and (read := captured_names(node) & names.keys()):
        for body in bodies(node):
            _rename_in_body(body, {old: names[old] for old in sorted(read)}, fresh)


def _rename_in_body(body: GraphProto, names: Mapping[str, str], fresh: Callable[[str], str]) -> None:
    own = {i.name for i in body.input} | {t.name for t in body.initializer}
    own |= {t.values.name for t in body.sparse_initializer} | {name for n in body.node for name in n.output}
    inside = {old: new for old, new in names.items() if old not in own}
    inside |= {new: fresh(new) for new in sorted(own.intersection(inside.values()))}
    rename_values(body, inside)
    for node in body.node:
        rename_in(node, inside, fresh)


def rename_values(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename what a graph names itself, beside its nodes: inputs, outputs, tensors, and notes on values."""
    for collection in (graph.input, graph.output, graph.initializer, graph.value_info):
        for element in collection:
            if element.name in names:
                element.name = names[element.name]
    for tensor in graph.sparse_initializer:
        if tensor.values.name in names:
            tensor.values.name = names[tensor.values.name]
    for annotation in graph.quantization_annotation:
        if annotation.tensor_name in names:
            annotation.tensor_name = names[annotation.tensor_name]
        for entry in annotation.quant_parameter_tensor_names:
            if entry.value in names:
                entry.value = names[entry.value]
