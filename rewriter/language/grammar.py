"""Pattern files: the header, chains, and patterns with their clauses.

Invariant: a tree leaves this module only after every name in it was resolved, so nothing later meets an unknown word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rewriter.graph.vocabulary import OPERATORS
from rewriter.language import names
from rewriter.language.bodies import Scope, whole_body
from rewriter.language.clauses import fold_kind, histogram, net_ops, outputs, param, reason
from rewriter.language.expressions import expression
from rewriter.language.lexer import Cursor, Token
from rewriter.language.measure import Measure, measure
from rewriter.language.netparser import net
from rewriter.language.signatures import SIGNATURES
from rewriter.language.source import Source, nearest, quote
from rewriter.language.syntax import (
    Action,
    BodyMatch,
    Bypass,
    Chain,
    Expr,
    Fold,
    Net,
    OutputsMatch,
    Param,
    Pattern,
    PatternFile,
    Pos,
    RefuseTest,
    RemoveOutput,
    ReplaceWith,
    Test,
)

VERSION = 1
"""The newest version of the language that this package reads."""

CLAUSES = ("doc", "paper", "priority", "param", "match", "where", "cost", "do", "test", "refuse")
ACTIONS = ("fold", "bypass", "remove-output", "replace")


@dataclass
class _Draft:
    """What was read of a pattern so far; `seen` are the clauses that may occur once, with their places."""

    name: Token
    seen: dict[str, Pos] = field(default_factory=dict[str, Pos])
    tests_seen: dict[str, Pos] = field(default_factory=dict[str, Pos])
    doc: str = ""
    papers: list[str] = field(default_factory=list[str])
    priority: int = 0
    params: list[Param] = field(default_factory=list[Param])
    match: BodyMatch | OutputsMatch | None = None
    where: list[Expr] = field(default_factory=list[Expr])
    cost: Expr | None = None
    action: Action | None = None
    tests: list[Test] = field(default_factory=list[Test])
    refuses: list[RefuseTest] = field(default_factory=list[RefuseTest])


def parse_source(source: Source, prelude: Mapping[str, Chain]) -> PatternFile:
    """The tree of a whole file in which the chains of `prelude` are known."""
    cursor = Cursor(source)
    version = _header(cursor)
    chains: dict[str, Chain] = dict(prelude)
    measures: dict[str, Measure] = {}
    for chain in prelude.values():
        measures[chain.name] = measure(chain.body, measures)
    own: list[Chain] = []
    patterns: dict[str, Pattern] = {}
    while cursor.peek().kind != "end":
        if cursor.at("chain"):
            chain, size = _chain(cursor, Scope(chains, measures, labels=False), prelude)
            chains[chain.name], measures[chain.name] = chain, size
            own.append(chain)
        elif cursor.at("pattern"):
            pattern = _pattern(cursor, Scope(chains, measures))
            if pattern.name in patterns:
                first = patterns[pattern.name].pos
                raise source.error(pattern.pos, f"pattern {quote(pattern.name)} is defined twice", first=first)
            patterns[pattern.name] = pattern
        else:
            raise cursor.unexpected("'chain' or 'pattern'", nearest(cursor.peek().text, ("chain", "pattern")))
    return PatternFile(source.path, version, tuple(own), tuple(patterns.values()))


def _header(cursor: Cursor) -> int:
    cursor.expect("fxrewrite", f"a pattern file begins with: fxrewrite {VERSION}")
    pos = cursor.peek().pos
    version = cursor.integer("the version of the pattern language")
    if version > VERSION:
        message = f"the file is of version {version} of the pattern language, this fxrewrite reads version {VERSION}"
        raise cursor.error(pos, message, "upgrade fxrewrite")
    if version < 1:
        raise cursor.error(pos, f"there is no version {version} of the pattern language", f"write fxrewrite {VERSION}")
    return version


def _chain(cursor: Cursor, scope: Scope, prelude: Mapping[str, Chain]) -> tuple[Chain, Measure]:
    cursor.expect("chain")
    name = cursor.name("the name of a chain", fresh=True)
    if name.text in OPERATORS:
        raise cursor.error(name.pos, f"{name} is an operator and cannot name a chain")
    if name.text in prelude:
        raise cursor.error(name.pos, f"chain {name} belongs to the prelude and cannot be defined again")
    if name.text in scope.chains:
        raise cursor.error(name.pos, f"chain {name} is defined twice", first=scope.chains[name.text].pos)
    cursor.expect("=")
    body, size = whole_body(cursor, scope)
    return Chain(name.text, body, name.pos), size


def _pattern(cursor: Cursor, scope: Scope) -> Pattern:
    cursor.expect("pattern")
    draft = _Draft(cursor.name("the name of a pattern", fresh=True))
    cursor.expect("{")
    while not cursor.accept("}"):
        _clause(cursor, scope, draft)
    missing = [word for word in ("doc", "match", "do") if word not in draft.seen]
    if missing or draft.match is None or draft.action is None:
        message = f"pattern {draft.name} has no '{missing[0]}'"
        raise cursor.error(draft.name.pos, message, "'doc', 'match' and 'do' are required")
    _agree(cursor, draft, draft.match, draft.action)
    pattern = Pattern(
        name=draft.name.text,
        doc=draft.doc,
        match=draft.match,
        action=draft.action,
        papers=tuple(draft.papers),
        priority=draft.priority,
        params=tuple(draft.params),
        where=tuple(draft.where),
        cost=draft.cost,
        tests=tuple(draft.tests),
        refuses=tuple(draft.refuses),
        pos=draft.name.pos,
    )
    names.check(pattern, scope.measures, cursor.source)
    return pattern


def _clause(cursor: Cursor, scope: Scope, draft: _Draft) -> None:
    word = cursor.peek()
    if word.text not in CLAUSES:
        hint = nearest(word.text, CLAUSES)
        if word.text in scope.words:
            hint = "the items of a path are joined by '->'"
        raise cursor.error(
            word.pos, f"expected a clause or '}}', found {word}", hint or f"there are {', '.join(CLAUSES)}"
        )
    cursor.next()
    if word.text in ("doc", "priority", "match", "cost", "do"):
        if word.text in draft.seen:
            raise cursor.error(word.pos, f"a pattern has one '{word.text}'", first=draft.seen[word.text])
        draft.seen[word.text] = word.pos
    match word.text:
        case "doc":
            draft.doc = cursor.string("a sentence in quotes")[0]
        case "paper":
            draft.papers.append(cursor.string("a reference in quotes")[0])
        case "priority":
            draft.priority = cursor.integer("a whole number")
        case "param":
            draft.params.append(param(cursor))
        case "match":
            draft.match = _match(cursor, scope, word)
        case "where":
            draft.seen.setdefault("where", word.pos)
            draft.where.append(expression(cursor))
        case "cost":
            draft.cost = expression(cursor)
        case "do":
            draft.action = _action(cursor, draft)
        case _:
            _test(cursor, draft, word)


def _agree(cursor: Cursor, draft: _Draft, match: BodyMatch | OutputsMatch, action: Action) -> None:
    """The match and the action speak of the same kind of thing."""
    if isinstance(match, OutputsMatch):
        if not isinstance(action, RemoveOutput):
            raise cursor.error(action.pos, "'match outputs' goes with 'do remove-output NAME' only")
        for clause in ("where", "cost"):
            if clause in draft.seen:
                raise cursor.error(draft.seen[clause], f"'{clause}' speaks of a path, not of outputs", "write a vote")
    elif isinstance(action, RemoveOutput):
        raise cursor.error(action.pos, "'remove-output' needs 'match outputs { … }'")
    elif isinstance(action, ReplaceWith):
        _check_replacement(cursor, match, action.net)


def _check_replacement(cursor: Cursor, match: BodyMatch, net_: Net) -> None:
    """A replacement is written over the entry, gives the exit and makes no weights up."""
    if net_.file is not None:
        raise cursor.error(net_.pos, "a replacement is written out, not read from a file")
    if not net_.statements or net_.statements[-1].name != match.exit:
        raise cursor.error(net_.pos, f"the last statement of a replacement has to define '{match.exit}'")
    used: set[str] = set()
    for chain in (statement.chain for statement in net_.statements):
        for op in net_ops(chain):
            used.add(op.name)
            signature = SIGNATURES.get(op.name)
            if signature is not None and signature.weights and all(a.name != "value" for a in op.arguments):
                hint = f"give it a value: {op.name}(value=…)" if signature.argument("value") else ""
                raise cursor.error(op.pos, f"{quote(op.name)} needs weights, which a replacement does not have", hint)
    for name in (match.entry, *(statement.name for statement in net_.statements[:-1])):
        if name not in used:
            raise cursor.error(net_.pos, f"value '{name}' of the replacement is read by nothing")


def _match(cursor: Cursor, scope: Scope, word: Token) -> BodyMatch | OutputsMatch:
    if cursor.at("outputs") and cursor.peek(1).text == "{":
        return outputs(cursor, word)
    exit_ = _end(cursor, scope, "the name of the result, such as y")
    cursor.expect("=", "match y = x -> …")
    entry = _end(cursor, scope, "the name of the input, such as x")
    if entry.text == exit_.text:
        raise cursor.error(entry.pos, f"{entry} names both ends of the match", first=exit_.pos)
    cursor.expect("->", "match y = x -> …")
    start = cursor.peek()
    body, size = whole_body(cursor, scope)
    if size.nullable:
        raise cursor.error(start.pos, "this can match nothing at all", "at least one item has to be there")
    return BodyMatch(exit_.text, entry.text, body, word.pos)


def _end(cursor: Cursor, scope: Scope, what: str) -> Token:
    """The name of one end of a match."""
    token = cursor.name(what, fresh=True)
    if token.text in scope.words:
        message = f"{token} is an operator or chain, expected {what}"
        raise cursor.error(token.pos, message, "match y = x -> … names both ends")
    return token


def _action(cursor: Cursor, draft: _Draft) -> Action:
    word = cursor.name("an action")
    match word.text:
        case "fold":
            cursor.expect("to")
            kinds = [fold_kind(cursor)]
            while cursor.accept("or"):
                kinds.append(fold_kind(cursor))
            return Fold(tuple(kinds), word.pos)
        case "bypass":
            return Bypass(word.pos)
        case "remove-output":
            role = cursor.name("a role")
            return RemoveOutput(role.text, role.pos)
        case "replace":
            cursor.expect("with")
            if not isinstance(draft.match, BodyMatch):
                raise cursor.error(word.pos, "'replace' stands after the 'match y = x -> …' that it replaces")
            return ReplaceWith(net(cursor, {draft.match.entry: draft.match.pos}), word.pos)
        case _:
            hint = nearest(word.text, ACTIONS) or f"there are {', '.join(ACTIONS)}"
            raise cursor.error(word.pos, f"unknown action {word}", hint)


def _test(cursor: Cursor, draft: _Draft, word: Token) -> None:
    title, pos = cursor.string(f"the name of the {word.text}")
    if title in draft.tests_seen:
        raise cursor.error(pos, f"two tests are named {quote(title)}", first=draft.tests_seen[title])
    draft.tests_seen[title] = pos
    cursor.expect("{")
    model = net(cursor)
    if word.text == "test":
        cursor.expect("gives", "operators of a net are joined by '->', statements by ';'")
        draft.tests.append(Test(title, model, histogram(cursor), word.pos))
    else:
        cursor.expect("because", "operators of a net are joined by '->', statements by ';'")
        draft.refuses.append(RefuseTest(title, model, reason(cursor), word.pos))
    cursor.expect("}")
