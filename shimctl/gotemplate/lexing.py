"""Split a template into texts and the tokens of its actions.

Source: text/template/parse/lex.go for the forms of tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from shim.text import printable
from shimctl.gotemplate.errors import TEXT, TemplateError


class Kind(StrEnum):
    """The kind of a token."""

    TEXT = "text"
    OPEN = "{{"
    CLOSE = "}}"
    FIELD = "field"  # .Name
    DOT = "."
    VARIABLE = "variable"  # $ or $name
    NAME = "name"  # a keyword or a function
    STRING = "string"
    NUMBER = "number"
    PAREN_OPEN = "("
    PAREN_CLOSE = ")"
    PIPE = "|"
    ASSIGN = "="
    DECLARE = ":="
    COMMA = ","


@dataclass(frozen=True, slots=True)
class Token:
    """One token; ``text`` is as written, that of a STRING is its contents.

    ``spaced`` is whether white space precedes the token.
    """

    kind: Kind
    text: str
    spaced: bool = False


_OPEN = re.compile(r"\{\{(?:-(?=\s))?")
_COMMENT = re.compile(r"\s*/\*(.*?)\*/\s*?(?:(?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`|'(?:[^'\\\n]|\\.)*')
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?))
    | (?P<field>\.[^\W\d]\w*)
    | (?P<variable>\$\w*)
    | (?P<name>[^\W\d]\w*)
    | (?P<declare>:=)
    | (?P<sign>[.()|=,])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    "'": "'",
    '"': '"',
}


def tokens(template: str) -> list[Token]:
    """Split ``template``; a ``\\t`` or ``\\n`` outside of actions is a tab or a newline.

    :raises TemplateError: an action has no end, or a part that is no token.
    """
    if len(template) > TEXT:
        raise TemplateError(f"the template is longer than {TEXT} characters", "shorten it")
    found: list[Token] = []
    at, trim = 0, False
    while at <= len(template):
        opened = _OPEN.search(template, at)
        end = opened.start() if opened else len(template)
        text = template[at:end]
        text = text.lstrip() if trim else text
        if opened and opened[0].endswith("-"):
            text = text.rstrip()
        if text:
            # docker replaces both, because a shell's quotes leave them as they are.
            text = text.replace(r"\t", "\t").replace(r"\n", "\n")
            found.append(Token(Kind.TEXT, text))
        if opened is None:
            break
        if comment := _COMMENT.match(template, opened.end()):
            at, trim = comment.end(), comment[0].endswith("-}}")
            continue
        found.append(Token(Kind.OPEN, opened[0]))
        at, trim = _action(template, opened.end(), found)
    return found


def _action(template: str, at: int, found: list[Token]) -> tuple[int, bool]:
    """Append the tokens of one action; return where it ends, and whether it trims."""
    spaced = False
    while at < len(template):
        if spaced and template.startswith("-}}", at):
            found.append(Token(Kind.CLOSE, "-}}", spaced))
            return at + 3, True
        if template.startswith("}}", at):
            found.append(Token(Kind.CLOSE, "}}", spaced))
            return at + 2, False
        match = _TOKEN.match(template, at)
        if match is None:
            rest = template[at : at + 10].partition("}}")[0]
            raise TemplateError(
                f"cannot read {printable(rest)!r} in an action",
                'write a field as .Name, a text as "text"',
            )
        at = match.end()
        group, text = str(match.lastgroup), match[0]
        if group != "space":
            found.append(_token(group, text, spaced))
        spaced = group == "space"
    raise TemplateError("an action has no end", "add }}")


def _token(group: str, text: str, spaced: bool) -> Token:
    match group:
        case "string":
            return _string(text, spaced)
        case "sign":
            return Token(Kind(text), text, spaced)
    return Token(Kind[group.upper()], text, spaced)


def _string(text: str, spaced: bool) -> Token:
    if text[0] == "`":
        return Token(Kind.STRING, text[1:-1], spaced)
    plain = _ESCAPE.sub(_unescape, text[1:-1])
    if text[0] == '"':
        return Token(Kind.STRING, plain, spaced)
    if len(plain) != 1:
        raise TemplateError(f"{printable(text)} is not one character", 'quote texts with "')
    return Token(Kind.NUMBER, str(ord(plain)), spaced)


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code in _ESCAPES:
        return _ESCAPES[code]
    digits, base = (code, 8) if code[0] in "01234567" else (code[1:], 16)
    number = int(digits, base) if len(code) > 1 else -1
    if not 0 <= number < 0x110000 or 0xD800 <= number < 0xE000:
        raise TemplateError(f"\\{printable(code)} is not an escape", 'use \\t, \\n, \\\\ or \\"')
    return chr(number)
