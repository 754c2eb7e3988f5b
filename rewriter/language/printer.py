"""Syntax trees back to text, in the one canonical layout.

Invariant: parsing what is printed gives an equal tree. Comments are not part of the tree and are lost.
"""

from __future__ import annotations

from rewriter.language.expressions import COMPARISON, NOT, PRECEDENCE
from rewriter.language.syntax import (
    Action,
    Apply,
    Argument,
    Atom,
    Attribute,
    Binary,
    Body,
    BodyMatch,
    Branch,
    Bypass,
    Call,
    Expr,
    Fold,
    Group,
    Item,
    Junction,
    LinearRegion,
    Literal,
    Name,
    Net,
    NetChain,
    NetOp,
    NetSum,
    Not,
    Number,
    OpAtom,
    OutputsMatch,
    Param,
    Pass,
    Pattern,
    PatternFile,
    Predicate,
    RefuseTest,
    RemoveOutput,
    ReplaceWith,
    Role,
    Seq,
    Test,
    Vote,
)

WIDTH = 120


def to_text(file: PatternFile) -> str:
    """A whole file in canonical layout."""
    head = [f"fxrewrite {file.version}"]
    chains = [f"chain {chain.name} = {body_text(chain.body)}" for chain in file.chains]
    blocks = [head, *([chains] if chains else []), *(_pattern(pattern) for pattern in file.patterns)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def pattern_text(pattern: Pattern) -> str:
    """One pattern in canonical layout."""
    return "\n".join(_pattern(pattern)) + "\n"


def string_text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _pattern(pattern: Pattern) -> list[str]:
    lines = [f"doc {string_text(pattern.doc)}"]
    lines += [f"paper {string_text(paper)}" for paper in pattern.papers]
    if pattern.priority:
        lines.append(f"priority {pattern.priority}")
    lines += ["", *map(_param, pattern.params)] if pattern.params else []
    lines += ["", *_match(pattern.match)]
    lines += [f"where {expression_text(expr)}" for expr in pattern.where]
    if pattern.cost is not None:
        lines.append(f"cost {expression_text(pattern.cost)}")
    lines.append(f"do {_action(pattern.action)}")
    for group in (pattern.tests, pattern.refuses):
        lines += ["", *(line for test in group for line in _test(test))] if group else []
    return [f"pattern {pattern.name} {{", *(f"  {line}" if line else "" for line in lines), "}"]


def _param(param: Param) -> str:
    value = param.value
    shown = (
        f"[{', '.join(string_text(str(v)) for v in value)}]"
        if isinstance(value, tuple)
        else _literal(value, param.type)
    )
    return f"param {param.name}: {param.type} = {shown}"


def _literal(value: Literal, kind: str) -> str:
    if kind == "bool":
        return "true" if value else "false"
    return string_text(str(value)) if kind == "string" else _number(value)


def _number(value: Literal) -> str:
    return repr(value) if isinstance(value, float) else str(value)


# --- matches -------------------------------------------------------------------------------------------------------


def _match(match: BodyMatch | OutputsMatch) -> list[str]:
    if isinstance(match, OutputsMatch):
        inner = [*map(_role, match.roles), *map(_vote, match.votes)]
        return ["match outputs {", *(f"  {line}" for line in inner), "}"]
    head = f"match {match.exit} = {match.entry} -> "
    line = head + body_text(match.body)
    if len(line) + 2 <= WIDTH and "{" not in line:
        return [line]
    return (head + body_text(match.body, broken=True)).split("\n")


def _role(role: Role) -> str:
    argument = {"named": f" {role.argument}", "twin": f" of {role.argument}", "index": f"({role.argument})"}
    return f"{role.name}: {role.kind}{argument.get(role.kind, '')}"


def _vote(vote: Vote) -> str:
    return f"{'report-only ' if vote.report_only else ''}vote {vote.name} = {expression_text(vote.expr)}"


def _action(action: Action) -> str:
    match action:
        case Fold(kinds=kinds):
            return f"fold to {' or '.join(kinds)}"
        case Bypass():
            return "bypass"
        case RemoveOutput(role=role):
            return f"remove-output {role}"
        case ReplaceWith(net=net):
            return f"replace with {net_text(net)}"


def body_text(body: Body, *, broken: bool = False) -> str:
    """A body; `broken` writes the branches of the outermost sum or concat on lines of their own."""
    return " | ".join(_sequence(seq, broken) for seq in body.alternatives)


def _sequence(seq: Seq, broken: bool) -> str:
    return " -> ".join(_item(item, broken) for item in seq.items)


def _item(item: Item, broken: bool) -> str:
    return f"{_atom(item.atom, broken)}{item.repeat.value}"


def _atom(atom: Atom, broken: bool) -> str:
    match atom:
        case OpAtom(op=op, predicates=predicates, label=label):
            asked = f"[{', '.join(map(_predicate, predicates))}]" if predicates else ""
            return f"{op}{asked}{_label(label)}"
        case Call(chain=chain, label=label):
            return f"{chain}{_label(label)}"
        case Pass():
            return "pass"
        case LinearRegion():
            return "linear-region"
        case Group(body=body):
            return f"({body_text(body)})"
        case Junction(kind=kind, branches=branches):
            if broken:
                return f"{kind} {{\n" + "".join(f"  {_branch(branch)}\n" for branch in branches) + "}"
            return f"{kind} {{ {'; '.join(map(_branch, branches))} }}"


def _label(label: str | None) -> str:
    return "" if label is None else f" as {label}"


def _predicate(predicate: Predicate) -> str:
    if predicate.op is None or predicate.value is None:
        return predicate.name
    return f"{predicate.name}{predicate.op}{_number(predicate.value)}"


def _branch(branch: Branch) -> str:
    sign = f"{branch.sign} " if branch.sign else ""
    most = "" if branch.most is None else str(branch.most)
    count = f"{{{branch.least}}}" if branch.least == branch.most else f"{{{branch.least}..{most}}}"
    count = "" if (branch.least, branch.most) == (1, 1) else count
    return f"{sign}{branch.name}{count}: {body_text(branch.body)}"


# --- expressions ---------------------------------------------------------------------------------------------------


def expression_text(expr: Expr) -> str:
    """An expression with the fewest parentheses."""
    return _expression(expr, 1)


def _expression(expr: Expr, least: int) -> str:
    match expr:
        case Number(value=value):
            return _number(value)
        case Name(name=name):
            return name
        case Attribute(owner=owner, name=name):
            return f"{owner}.{name}"
        case Apply(function=function, argument=argument):
            return f"{function}({argument})"
        case Not(operand=operand):
            text, binding = f"not {_expression(operand, NOT)}", NOT
        case Binary(op=op, left=left, right=right):
            binding = PRECEDENCE[op]
            left_least = binding + 1 if binding == COMPARISON else binding  # comparisons do not chain
            text = f"{_expression(left, left_least)} {op} {_expression(right, binding + 1)}"
    return f"({text})" if binding < least else text


# --- nets ----------------------------------------------------------------------------------------------------------


def _test(test: Test | RefuseTest) -> list[str]:
    if isinstance(test, Test):
        word, end = "test", "gives " + ", ".join(f"{op}={count}" for op, count in test.gives)
    else:
        word, end = "refuse", f"because {test.because.value}"
    return [f"{word} {string_text(test.name)} {{", *_net_lines(test.net), f"  {end}", "}"]


def _net_lines(net: Net) -> list[str]:
    text = net_text(net)
    if len(text) + 4 <= WIDTH or net.file is not None:
        return [f"  {text}"]
    statements = net_text(net, separator=";\n").split("\n")
    return [f"  {statements[0]}", *(f"      {statement}" for statement in statements[1:])]


def net_text(net: Net, *, separator: str = "; ") -> str:
    """A net on one line, or with another separator of statements."""
    if net.file is not None:
        return f"net file({string_text(net.file)})"
    return "net " + separator.join(f"{s.name} = {_net_chain(s.chain)}" for s in net.statements)


def _net_chain(chain: NetChain) -> str:
    return " -> ".join(_net_item(item) for item in chain.items)


def _net_item(item: NetOp | NetSum) -> str:
    if isinstance(item, NetSum):
        operands = "; ".join(f"{sign} {_net_chain(chain)}".lstrip() for sign, chain in item.operands)
        return f"{item.kind} {{ {operands} }}"
    if item.shape is not None:
        return f"{item.name}[{','.join(map(str, item.shape))}]"
    return f"{item.name}({','.join(map(_argument, item.arguments))})" if item.arguments else item.name


def _argument(argument: Argument) -> str:
    value = argument.value
    shown = f"[{','.join(map(_number, value))}]" if isinstance(value, tuple) else _number(value)
    return shown if argument.name is None else f"{argument.name}={shown}"
