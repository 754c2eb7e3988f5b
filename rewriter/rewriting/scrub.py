"""What exporters and training leave in a model that no runtime needs, removed on request and counted.

Kinds: stack traces and other notes of exporters on nodes, values and the model (dynamo writes source lines and the
paths of the machine that made the file), texts that name files of that machine, entries that tell of the training,
training graphs, functions that nothing calls, and nodes, tensors and notes on values that nothing reads. Invariant:
nothing that computes is touched: operators, attributes, tensors that are read, names, inputs and outputs stay; what
inference code reads of the metadata (class names, strides, sizes) stays too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from rewriter.graph.proto import bodies, live_names
from rewriter.rewriting import names
from rewriter.rewriting.bodies import called

STACK_TRACES, NOTES, PATHS, TRAINING = "stack traces", "exporter notes", "local paths", "training metadata"
GRAPHS, NODES, TENSORS, VALUES = "training graphs", "dead nodes", "unread tensors", "notes on values that are gone"
FUNCTIONS = "uncalled functions"
KINDS = (STACK_TRACES, NOTES, PATHS, TRAINING, GRAPHS, NODES, FUNCTIONS, TENSORS, VALUES)

EXPORTERS = ("pkg.torch.", "pkg.onnxscript.", "pkg.onnx_ir.", "pkg.onnx_shape_inference.")
TRAINED = frozenset(
    {
        *("args", "cmd", "command", "commit", "dataset", "date", "epoch", "epochs", "fitness", "best_fitness", "git"),
        *("hostname", "hyp", "hyperparameters", "lr", "optimizer", "run_id", "train_args", "train_metrics"),
        *("train_results", "username", "wandb_id", "weight_decay"),
    }
)
"""Keys of the model's metadata that tell of its training, whatever case they are in."""

FOLDERS = (
    *("home", "root", "Users", "Volumes", "private", "mnt", "media", "tmp", "var", "opt", "srv", "data", "scratch"),
    *("work", "workspace", "content", "kaggle", "dbfs"),
)
ROOTS = tuple(f"/{folder}/" for folder in FOLDERS)
SUFFIXES = (".py", ".pt", ".pth", ".ckpt", ".yaml", ".yml", ".ipynb", ".safetensors")
QUOTES = str.maketrans(dict.fromkeys("\"'`<>()[]{},;=", " "))

Message: TypeAlias = Any
"""A protobuf message that has metadata_props or a doc_string."""


@dataclass(slots=True)
class Removed:
    """Of one kind: how many things, how many bytes, and the first of them."""

    kind: str
    count: int = 0
    size: int = 0
    example: str = ""

    def add(self, size: int, example: str) -> None:
        self.count, self.size, self.example = self.count + 1, self.size + size, self.example or example


@dataclass(slots=True)
class Scrub:
    """A model under scrubbing; `nodes` stand in place of those that its graph holds."""

    model: ModelProto
    nodes: Sequence[NodeProto]
    removed: dict[str, Removed] = field(default_factory=lambda: {kind: Removed(kind) for kind in KINDS})

    def run(self) -> tuple[list[NodeProto], tuple[Removed, ...]]:
        """The nodes that stay, and what went, by kind."""
        for entry in _taken(self.model.metadata_props, lambda e: e.key.lower() in TRAINED):
            self.removed[TRAINING].add(len(entry.key) + len(entry.value), entry.key)
        for training in self.model.training_info:
            self.removed[GRAPHS].add(training.ByteSize(), "training_info")
        del self.model.training_info[:]
        nodes = self._live()
        self._uncalled(nodes)
        self._unread(nodes)
        for message in self._holders(nodes):
            self._notes(message)
        return nodes, tuple(found for found in self.removed.values() if found.count)

    def _live(self) -> list[NodeProto]:
        live = live_names(self.nodes, (output.name for output in self.model.graph.output))
        kept: list[NodeProto] = []
        for node in self.nodes:
            if live.intersection(node.output):
                kept.append(node)
            else:
                self.removed[NODES].add(node.ByteSize(), node.name or node.op_type)
        return kept

    def _uncalled(self, nodes: Sequence[NodeProto]) -> None:
        known = called(self.model, nodes)
        for function in _taken(self.model.functions, lambda f: (f.domain, f.name) not in known):
            self.removed[FUNCTIONS].add(function.ByteSize(), function.name)

    def _unread(self, nodes: Sequence[NodeProto]) -> None:
        graph = self.model.graph
        read = names.read_names(nodes, self.model) | names.quantization_names(graph) | {i.name for i in graph.input}
        for tensor in _taken(graph.initializer, lambda t: t.name not in read):
            self.removed[TENSORS].add(tensor.ByteSize(), tensor.name)
        there = read | {name for node in nodes for name in node.output}
        for note in _taken(graph.value_info, lambda v: v.name not in there):
            self.removed[VALUES].add(note.ByteSize(), note.name)

    def _holders(self, nodes: Iterable[NodeProto]) -> Iterator[Message]:
        """Every message that may carry notes, in the model, its functions and all bodies."""
        yield self.model
        yield from _of_graph(self.model.graph)
        waiting: list[Iterable[NodeProto]] = [nodes]
        for function in self.model.functions:
            yield function
            yield from function.value_info
            waiting.append(function.node)
        while waiting:
            for node in waiting.pop():
                yield node
                yield from (a.t for a in node.attribute if a.type == AttributeProto.TENSOR)
                for body in bodies(node):
                    yield from _of_graph(body)
                    waiting.append(body.node)

    def _notes(self, message: Message) -> None:
        for entry in _taken(message.metadata_props, lambda e: _kind(e.key, e.value) is not None):
            self.removed[_kind(entry.key, entry.value) or NOTES].add(len(entry.key) + len(entry.value), entry.key)
        kind = _kind("", message.doc_string)
        if kind is not None:
            self.removed[kind].add(len(message.doc_string), message.doc_string.strip().partition("\n")[0][:80])
            message.ClearField("doc_string")


def _taken(field: Any, gone: Callable[[Any], bool]) -> list[Message]:
    """Copies of the elements of a repeated field that go, which they do."""
    places: list[int] = [i for i, element in enumerate(field) if gone(element)]
    copies: list[Message] = [copy.deepcopy(field[i]) for i in places]
    for i in reversed(places):
        del field[i]
    return copies


def _of_graph(graph: GraphProto) -> Iterator[Message]:
    yield graph
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)


def _kind(key: str, text: str) -> str | None:
    """What a note is, where it has to go."""
    if key.endswith("stack_trace") or ('File "' in text and ", line " in text):
        return STACK_TRACES
    if key == "namespace" or key.startswith(EXPORTERS):
        return NOTES
    return PATHS if names_a_local_file(text) else None


def names_a_local_file(text: str) -> bool:
    """Whether a word of it is a path on the machine that it was written on."""
    return any(_is_local(word) for word in text.translate(QUOTES).split())


def _is_local(word: str) -> bool:
    word = word.removeprefix("file://")
    if word.startswith(("~/", "\\\\")) or (word[1:3] in (":\\", ":/") and word[0].isalpha() and word[3:4] != "/"):
        return True
    if word.startswith(ROOTS):
        return True
    return word.startswith("/") and word.count("/") > 1 and word.rstrip(".:").endswith(SUFFIXES)
