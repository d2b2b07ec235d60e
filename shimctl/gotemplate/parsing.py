"""Make the tree of a template from its tokens.

Source: text/template/parse/parse.go for the grammar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from shim.text import printable
from shimctl.gotemplate.errors import DEPTH, VARIABLES, TemplateError
from shimctl.gotemplate.lexing import Kind, Token, tokens
from shimctl.gotemplate.values import Safe

if TYPE_CHECKING:
    from collections.abc import Container

_BLOCKS = ("if", "with", "range")
_UNSUPPORTED = ("define", "template", "block")
_KEYWORDS = (*_BLOCKS, *_UNSUPPORTED, "else", "end", "break", "continue")
_CONSTANTS: dict[str, object] = {"true": True, "false": False, "nil": None}
_INTEGER_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal."""

    value: object


@dataclass(frozen=True, slots=True)
class Dot:
    """The current object."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable; the name ``$`` is the whole object."""

    name: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of a value: ``.A.B``, ``$x.A``, ``(index .A 0).B``."""

    base: Operand
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each with its operands; the result may be assigned to ``variables``."""

    commands: tuple[tuple[Operand, ...], ...]
    variables: tuple[str, ...] = ()
    declares: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Text outside of actions."""

    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """``if``, ``with`` or ``range``."""

    keyword: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Jump:
    """``break`` or ``continue``."""

    keyword: str


Operand: TypeAlias = Constant | Dot | Variable | Function | Chain | Pipeline
Node: TypeAlias = Text | Pipeline | Block | Jump


def parse(template: str, functions: Container[str]) -> tuple[Node, ...]:
    """Parse ``template``, which may call ``functions``.

    :raises TemplateError: it is malformed, or uses an unsupported part of the language.
    """
    return _Parser(tokens(template), functions).whole()


class _Parser:
    def __init__(self, found: list[Token], functions: Container[str]) -> None:
        self._tokens = found
        self._at = 0
        self._depth = 0
        self._loops = 0
        self._functions = functions
        self._variables: list[str] = ["$"]

    def whole(self) -> tuple[Node, ...]:
        nodes, ended = self._nodes()
        if ended:
            raise TemplateError(f"{{{{{ended}}}}} without a block", f"remove {{{{{ended}}}}}")
        return nodes

    def _nodes(self) -> tuple[tuple[Node, ...], str]:
        """Parse until the end, or until ``else`` or ``end``; return that word, too."""
        nodes: list[Node] = []
        while self._at < len(self._tokens):
            token = self._take()
            if token.kind is Kind.TEXT:
                nodes.append(Text(token.text))
                continue
            word = self._peek()
            keyword = word.text if word.kind is Kind.NAME else ""
            if keyword in ("else", "end"):
                self._take()
                return tuple(nodes), keyword
            nodes.append(self._action(keyword))
        return tuple(nodes), ""

    def _action(self, keyword: str) -> Node:
        if keyword in _UNSUPPORTED:
            raise TemplateError(f"{{{{{keyword}}}}} is not supported", "write the text in place")
        if keyword in _BLOCKS:
            self._take()
            return self._block(keyword)
        if keyword in ("break", "continue"):
            self._take()
            self._close(keyword)
            if not self._loops:
                raise TemplateError(f"{{{{{keyword}}}}} outside of {{{{range}}}}", "remove it")
            return Jump(keyword)
        return self._pipeline(Kind.CLOSE)

    def _block(self, keyword: str) -> Block:
        self._deeper()
        known = len(self._variables)
        pipeline = self._pipeline(Kind.CLOSE, ranging=keyword == "range")
        self._loops += keyword == "range"
        body, ended = self._nodes()
        self._loops -= keyword == "range"
        otherwise: tuple[Node, ...] = ()
        if ended == "else":
            following = self._peek()
            if following.kind is Kind.NAME and following.text in ("if", "with"):
                if following.text != keyword:
                    raise TemplateError(
                        f"{{{{else {following.text}}}}} after {{{{{keyword}}}}}",
                        f"use {{{{else}}}}{{{{{following.text} ...}}}}",
                    )
                self._take()
                otherwise = (self._block(keyword),)
                del self._variables[known:]
                self._depth -= 1
                return Block(keyword, pipeline, body, otherwise)
            self._close("else")
            otherwise, ended = self._nodes()
        if ended != "end":
            raise TemplateError(f"{{{{{keyword}}}}} has no end", "add {{end}}")
        self._close("end")
        del self._variables[known:]
        self._depth -= 1
        return Block(keyword, pipeline, body, otherwise)

    def _pipeline(self, end: Kind, *, ranging: bool = False) -> Pipeline:
        variables, declares = self._assignment(ranging=ranging)
        commands = [self._command(end)]
        while self._peek().kind is Kind.PIPE:
            self._take()
            commands.append(self._command(end))
            if not isinstance(commands[-1][0], (Function, Chain)):
                raise TemplateError("a value follows |", "write a function there")
        token = self._take()
        if token.kind is not end:
            raise TemplateError(
                f"unexpected {printable(token.text)!r} in an action", f"write {end} before it"
            )
        if declares:
            self._variables += variables
            if len(self._variables) > VARIABLES:
                raise TemplateError(f"more than {VARIABLES} variables", "use fewer")
        return Pipeline(tuple(commands), variables, declares)

    def _assignment(self, *, ranging: bool) -> tuple[tuple[str, ...], bool]:
        start = self._at
        names: list[str] = []
        while self._peek().kind is Kind.VARIABLE:
            names.append(self._take().text)
            sign = self._peek()
            if sign.kind in (Kind.DECLARE, Kind.ASSIGN):
                self._take()
                declares = sign.kind is Kind.DECLARE
                if "$" in names or (len(names) > 1 and not ranging):
                    raise TemplateError(
                        f"cannot assign to {printable(', '.join(names))}", "use one $name"
                    )
                for name in names:
                    if not declares:
                        self._known(name)
                return tuple(names), declares
            if sign.kind is not Kind.COMMA or len(names) > 1:
                break
            self._take()
        self._at = start
        return (), False

    def _command(self, end: Kind) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while self._peek().kind not in (end, Kind.PIPE):
            operand = self._operand()
            fields = []
            while self._peek().kind is Kind.FIELD and not self._peek().spaced:
                fields.append(self._take().text[1:])
            if isinstance(operand, Chain):
                operand = Chain(operand.base, (*operand.fields, *fields))
            elif fields:
                operand = Chain(operand, tuple(fields))
            operands.append(operand)
        if not operands:
            raise TemplateError("an action or a pipeline has an empty part", "name a field there")
        if len(operands) > 1 and not isinstance(operands[0], (Function, Chain)):
            raise TemplateError(
                "a value that is no function has arguments", "write each value in its own {{ }}"
            )
        return tuple(operands)

    def _operand(self) -> Operand:
        token = self._take()
        match token.kind:
            case Kind.FIELD:
                return Chain(Dot(), (token.text[1:],))
            case Kind.DOT:
                return Dot()
            case Kind.VARIABLE:
                return self._known(token.text)
            case Kind.STRING:
                return Constant(Safe(token.text))
            case Kind.NUMBER:
                return Constant(_number(token.text))
            case Kind.PAREN_OPEN:
                self._deeper()
                inner = self._pipeline(Kind.PAREN_CLOSE)
                self._depth -= 1
                return inner
            case Kind.NAME if token.text in _CONSTANTS:
                return Constant(_CONSTANTS[token.text])
            case Kind.NAME if token.text in self._functions:
                return Function(token.text)
            case Kind.NAME if token.text not in _KEYWORDS:
                name = printable(token.text)
                raise TemplateError(f"there is no function {name}", f"a field is .{name}")
        raise TemplateError(f"unexpected {printable(token.text)!r} in an action")

    def _known(self, name: str) -> Variable:
        if name not in self._variables:
            shown = printable(name)
            raise TemplateError(f"there is no variable {shown}", f"write {shown} := first")
        return Variable(name)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEPTH:
            raise TemplateError(f"more than {DEPTH} levels of blocks or parentheses")

    def _peek(self) -> Token:
        if self._at < len(self._tokens):
            return self._tokens[self._at]
        raise TemplateError("a block or an action has no end", "add {{end}}")

    def _take(self) -> Token:
        token = self._peek()
        self._at += 1
        return token

    def _close(self, word: str) -> None:
        if self._take().kind is not Kind.CLOSE:
            raise TemplateError(f"{{{{{word}}}}} has arguments", "remove them")


def _number(text: str) -> int | float:
    digits = text.lstrip("+-")
    if len(digits) > _INTEGER_DIGITS:
        raise TemplateError(f"the number {printable(text[:40])} is too long", "shorten it")
    if digits[:2].lower() == "0x":
        return int(text, 16)
    if digits.isdecimal():
        return int(text)
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise TemplateError(f"the number {printable(text)} is too large", "use a smaller one")
    return number
