"""Random syntax trees that are right: what the parser must read back from their text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from hypothesis import strategies as st

from rewriter.errors import Reason
from rewriter.graph.vocabulary import DTYPES, FOLD_KINDS, OPERATORS, AttributeKind
from rewriter.language import syntax as tree
from rewriter.language.measure import Measure, measure, measure_atom
from rewriter.language.parser import prelude
from rewriter.language.signatures import SIGNATURES, ArgumentKind, NetArgument

STEPS = sorted(name for name, op in OPERATORS.items() if not op.joins)
SENTENCES = st.text(
    st.characters(exclude_categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"]) | st.sampled_from(' "\\\n\t')
)
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
MEASURES: dict[str, Measure] = {}
for _chain in prelude().values():
    MEASURES[_chain.name] = measure(_chain.body, MEASURES)


class _Draw:
    """One draw of a whole file; names are fresh by construction."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.numbers = count()
        self.measures = dict(MEASURES)
        self.parts: list[tuple[str, frozenset[str]]] = []

    def fresh(self, prefix: str = "n") -> str:
        return f"{prefix}{next(self.numbers)}"

    def one(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def some(self, least: int, most: int) -> range:
        return range(self.draw(st.integers(least, most)))

    # --- bodies ------------------------------------------------------------------------------------------------------

    def body(self, depth: int, *, labels: bool, solid: bool = False) -> tree.Body:
        return tree.Body(tuple(self.sequence(depth, labels, solid) for _ in self.some(1, 1 + bool(depth))))

    def sequence(self, depth: int, labels: bool, solid: bool) -> tree.Seq:
        items = [self.item(depth, labels) for _ in self.some(0 if solid else 1, 3)]
        if solid:  # cannot be empty
            items.append(tree.Item(self.operator(labels)))
        return tree.Seq(tuple(items))

    def item(self, depth: int, labels: bool) -> tree.Item:
        item = tree.Item(self.atom(depth, labels))
        size = measure_atom(item, self.measures)
        repeats = [tree.Repeat.ONCE, tree.Repeat.OPTIONAL]
        repeats += [] if size.repeats or size.nullable else [tree.Repeat.ANY, tree.Repeat.SOME]
        return tree.Item(item.atom, self.one(*repeats))

    def atom(self, depth: int, labels: bool) -> tree.Atom:
        kind = self.one("op", "op", "call", *(("group", "sum", "concat") if depth else ()))
        if kind == "op":
            return self.operator(labels)
        if kind == "call":
            chain = self.one(*self.measures)
            return tree.Call(chain, self.label(labels, self.measures[chain].ops))
        if kind == "group":
            return tree.Group(self.body(depth - 1, labels=labels))
        branches = [self.branch(depth - 1, labels, kind) for _ in self.some(2, 3)]
        return tree.Junction(kind, tuple(branches))

    def operator(self, labels: bool) -> tree.OpAtom:
        op = self.one(*STEPS)
        attributes = OPERATORS[op].attributes
        predicates = [self.predicate(op, self.one(*attributes)) for _ in self.some(0, 2)] if attributes else []
        return tree.OpAtom(op, tuple(predicates), self.label(labels, frozenset({op})))

    def label(self, labels: bool, ops: frozenset[str]) -> str | None:
        if not labels or self.draw(st.booleans()):
            return None
        self.parts.append((self.fresh("label-"), ops))
        return self.parts[-1][0]

    def predicate(self, op: str, attribute: Any) -> tree.Predicate:
        if attribute.kind is AttributeKind.FLAG:
            return tree.Predicate(attribute.name)
        if attribute.kind is AttributeKind.TYPE:
            return tree.Predicate(attribute.name, self.one("=", "!="), self.one("to", "from", *DTYPES))
        others = [a.name for a in OPERATORS[op].attributes if a.kind.numeric]
        plain = st.integers(-9, 99) if attribute.kind.whole else NUMBERS
        value = self.draw(plain | st.sampled_from(others))
        return tree.Predicate(attribute.name, self.one("=", "!=", "<", "<=", ">", ">="), value)

    def branch(self, depth: int, labels: bool, kind: str) -> tree.Branch:
        sign = self.one("", "", "-", "±") if kind == "sum" else ""
        least = self.draw(st.integers(0, 3))
        most = self.draw(st.none() | st.integers(max(least, 1), 4))
        passing = kind == "sum" and self.draw(st.booleans())
        name, place = self.fresh("branch_"), len(self.parts)
        bare = tree.Body((tree.Seq((tree.Item(tree.Pass()),)),))
        body = bare if passing else self.body(depth, labels=labels)
        if labels:
            self.parts.insert(place, (name, measure(body, self.measures).ops))
        return tree.Branch(name, body, sign, least, most)

    # --- expressions -------------------------------------------------------------------------------------------------

    def truth(self, depth: int, number: Callable[[int], tree.Expr]) -> tree.Expr:
        kind = self.one("compare", "compare", *(("and", "or", "not") if depth else ()))
        if kind == "not":
            return tree.Not(self.truth(depth - 1, number))
        if kind == "compare":
            op = self.one("=", "!=", "<", "<=", ">", ">=")
            return tree.Binary(op, number(depth), number(depth))
        return tree.Binary(kind, self.truth(depth - 1, number), self.truth(depth - 1, number))

    def number(self, depth: int) -> tree.Expr:
        if depth and self.draw(st.booleans()):
            return tree.Binary(self.one(*"+-*/"), self.number(depth - 1), self.number(depth - 1))
        options: list[tree.Expr] = [tree.Number(self.draw(NUMBERS)), tree.Apply("count", self.one(*OPERATORS))]
        for name, ops in self.parts:
            options.append(tree.Apply("count", name))
            numeric = [
                a.name for op in sorted(ops) if op in OPERATORS for a in OPERATORS[op].attributes if a.kind.numeric
            ]
            options += [tree.Attribute(name, attribute) for attribute in numeric[:1]]
        return self.one(*options)

    def priced(self, depth: int) -> tree.Expr:
        if depth and self.draw(st.booleans()):
            return tree.Binary(self.one(*"+-*/"), self.priced(depth - 1), self.number(depth - 1))
        return tree.Apply(self.one("params", "macs", "nodes"), self.one("after", "before"))

    # --- nets --------------------------------------------------------------------------------------------------------

    def net(self) -> tree.Net:
        if self.one(*range(8)) == 0:
            return tree.Net(file="nets/one.onnx")
        values = [self.fresh("x")]
        shape = (self.one("batch", 1, 2), *(self.draw(st.integers(1, 9)) for _ in range(3)))
        statements: list[tree.NetStatement] = []
        for index in self.some(1, 3):
            head = tree.NetOp(values[0], shape=shape) if index == 0 else tree.NetOp(self.one(*values))
            steps = [self.net_step(values, 2) for _ in self.some(0, 3)]
            values.append(self.fresh("y"))
            statements.append(tree.NetStatement(values[-1], tree.NetChain((head, *steps))))
        return tree.Net(tuple(statements))

    def net_step(self, values: list[str], depth: int) -> tree.NetOp | tree.NetSum:
        kind = self.one("op", "op", *(("sum", "concat") if depth else ()))
        if kind == "op":
            return self.net_op()
        operands: list[tuple[str, tree.NetChain]] = []
        for _ in self.some(2, 3):
            value = tree.NetOp(self.one(*values))
            head = self.net_step(values, depth - 1) if self.draw(st.booleans()) else value
            rest = [self.net_step(values, 0) for _ in self.some(0, 2)]
            operands.append((self.one("", "-") if kind == "sum" else "", tree.NetChain((head, *rest))))
        return tree.NetSum(kind, tuple(operands))

    def net_op(self) -> tree.NetOp:
        signature = SIGNATURES[self.one(*SIGNATURES)]
        arguments: list[tree.Argument] = []
        for place, wanted in enumerate(signature.arguments):
            needed = wanted.default is None and not wanted.optional
            if needed or self.draw(st.booleans()):
                bare = place < signature.positional and len(arguments) == place and self.draw(st.booleans())
                bare = bare and all(argument.name is None for argument in arguments)
                arguments.append(tree.Argument(self.net_value(wanted), None if bare else wanted.name))
        return tree.NetOp(signature.op, tuple(arguments))

    def net_value(self, wanted: NetArgument) -> Any:
        whole = st.integers(1, 64)
        many = st.lists(whole, min_size=1, max_size=4).map(tuple)
        return self.draw(
            {
                ArgumentKind.SWITCH: st.sampled_from(("yes", "no")),
                ArgumentKind.TYPE: st.sampled_from(DTYPES),
                ArgumentKind.NUMBER: NUMBERS,
                ArgumentKind.INTS: many,
                ArgumentKind.WINDOW: whole | many,
                ArgumentKind.PADS: whole | many,
            }.get(wanted.kind, whole)
        )

    # --- patterns ----------------------------------------------------------------------------------------------------

    def param(self) -> tree.Param:
        listed = st.lists(SENTENCES, max_size=3).map(tuple)
        values = {"int": st.integers(-9, 9), "number": NUMBERS, "bool": st.booleans(), "string": SENTENCES}
        kind = self.one("int", "number", "bool", "string", "names", "globs")
        return tree.Param(self.fresh("param-"), kind, self.draw(values.get(kind, listed)))

    def outputs(self, names_param: str) -> tuple[tree.OutputsMatch, tree.Action]:
        main, aux = self.fresh("role"), self.fresh("role")
        kind = self.one("named", "index", "deepest", "rest")
        argument = {"named": names_param, "index": self.draw(st.integers(-3, 3))}.get(kind)
        roles = (tree.Role(main, kind, argument), tree.Role(aux, "twin", main))

        def number(depth: int) -> tree.Expr:
            return tree.Apply(self.one("depth", "params", "macs"), self.one(main, aux))

        votes = [
            tree.Vote(self.fresh("vote"), self.truth(2, number), self.draw(st.booleans())) for _ in self.some(0, 3)
        ]
        return tree.OutputsMatch(roles, tuple(votes)), tree.RemoveOutput(aux)

    def action(self, match: tree.BodyMatch) -> tree.Action:
        kind = self.one("fold", "bypass", "replace")
        if kind == "fold":
            return tree.Fold(tuple(self.draw(st.lists(st.sampled_from(FOLD_KINDS), min_size=1, max_size=3))))
        if kind == "bypass":
            return tree.Bypass()
        chain = tree.NetChain(
            (tree.NetOp(match.entry), tree.NetOp("sigmoid"), tree.NetOp("scale", (tree.Argument(2, "value"),)))
        )
        return tree.ReplaceWith(tree.Net((tree.NetStatement(match.exit, chain),)))

    def pattern(self) -> tree.Pattern:
        self.parts = []
        params = [self.param() for _ in self.some(0, 2)] + [tree.Param(self.fresh("param-"), "names", ())]
        where: tuple[tree.Expr, ...] = ()
        cost: tree.Expr | None = None
        match: tree.BodyMatch | tree.OutputsMatch
        if self.one(0, 0, 1):
            match, action = self.outputs(params[-1].name)
        else:
            region = tree.Body((tree.Seq((tree.Item(tree.LinearRegion()),)),))
            body = region if self.one(*range(6)) == 0 else self.body(2, labels=True, solid=True)
            match = tree.BodyMatch("y", "x", body)
            action = self.action(match)
            where = tuple(self.truth(3, self.number) for _ in self.some(0, 2))
            cost = self.truth(2, self.priced) if self.draw(st.booleans()) else None
        tests = [tree.Test(self.fresh("test "), self.net(), self.gives()) for _ in self.some(0, 2)]
        refuses = [tree.RefuseTest(self.fresh("refuse "), self.net(), self.one(*Reason)) for _ in self.some(0, 2)]
        return tree.Pattern(
            name=self.fresh("pattern-"),
            doc=self.draw(SENTENCES),
            match=match,
            action=action,
            papers=tuple(self.draw(st.lists(SENTENCES, max_size=2))),
            priority=self.draw(st.integers(-99, 99)),
            params=tuple(params),
            where=where,
            cost=cost,
            tests=tuple(tests),
            refuses=tuple(refuses),
        )

    def gives(self) -> tuple[tuple[str, int], ...]:
        found = self.draw(
            st.dictionaries(st.sampled_from(sorted(OPERATORS)), st.integers(1, 99), min_size=1, max_size=3)
        )
        return tuple(found.items())

    def chain(self) -> tree.Chain:
        chain = tree.Chain(self.fresh("chain-"), self.body(1, labels=False))
        self.measures[chain.name] = measure(chain.body, self.measures)
        return chain


@st.composite
def files(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tree.PatternFile:
    """A whole file."""
    whole = _Draw(draw)
    chains = [whole.chain() for _ in whole.some(0, 2)]
    return tree.PatternFile("drawn.fxp", 1, tuple(chains), tuple(whole.pattern() for _ in whole.some(0, 2)))
