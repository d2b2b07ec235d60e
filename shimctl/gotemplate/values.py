"""The values in a template: those of JSON, looked up by docker's or our own names.

Source: Go's text/template ("Arguments", "truth"), and fmt for how ``%v`` shows a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shim.text import printable
from shimctl.gotemplate.errors import DEPTH, OUTPUT, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SHOWN = 12  # names of fields in a message


class Safe(str):
    """Text of the template's author, or text whose control characters are escaped already.

    Any other ``str`` comes from a container, a bundle or a peer, and is escaped when it is
    printed: it must not control the reader's terminal.
    """

    __slots__ = ()


class Document(dict[str, Any]):
    """An object that has further fields, which are not part of its JSON.

    They are the names that docker has for a value; see :func:`field`.
    """

    def __init__(self, values: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.others = others


def field(value: object, name: str) -> Any:
    """Return the field ``name`` of ``value``.

    Go programs name a field ``ExitCode``; our JSON names it ``exit_code``: capitals and
    underscores do not count if no field has exactly this name.

    :raises TemplateError: there is no such field; the message lists those there are.
    """
    if value is None:
        return None  # an absent part: Go prints <no value>
    if not isinstance(value, dict):
        raise TemplateError(
            f"{kind(value)} has no field .{printable(name)}", f"remove .{printable(name)}"
        )
    if name in value:
        return value[name]
    others = value.others if isinstance(value, Document) else {}
    if name in others:
        return others[name]
    folded = _folded(name)
    for fields in (value, others):
        for key, found in fields.items():
            if _folded(key) == folded:
                return found
    names = sorted({str(key) for key in (*value, *others)}, key=str.lower)
    shown = ", ".join(f".{printable(key)}" for key in names[:_SHOWN])
    more = ", ..." if len(names) > _SHOWN else ""
    raise TemplateError(
        f"there is no field .{printable(name)}",
        f"use one of {shown}{more}" if names else "the object is empty",
    )


def _folded(name: str) -> str:
    return name.replace("_", "").lower()


def kind(value: object) -> str:
    """Return the kind of a value for a message."""
    match value:
        case None:
            return "an absent value"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case dict():
            return "an object"
        case list() | tuple():
            return "a list"
    return "this value"


def show(value: object, depth: int = 0) -> str:
    """Return ``value`` as Go's ``%v`` shows it, without characters that control a terminal."""
    if depth > DEPTH:
        raise TemplateError("a value has too many levels", "use {{json .}}")
    match value:
        case None:
            return "<no value>" if depth == 0 else "<nil>"
        case bool():
            return "true" if value else "false"
        case Safe():
            return str(value)
        case str():
            return printable(value)
        case float():
            return repr(value).removesuffix(".0")
        case dict():
            pairs = sorted(value.items(), key=lambda pair: str(pair[0]))
            return f"map[{_joined(f'{printable(str(k))}:{show(v, depth + 1)}' for k, v in pairs)}]"
        case list() | tuple():
            return f"[{_joined(show(one, depth + 1) for one in value)}]"
    if callable(value):
        raise TemplateError("a function of an object lacks its argument", 'use .Label "NAME"')
    return printable(str(value))


def _joined(texts: Iterable[str]) -> str:
    shown: list[str] = []
    length = 0
    for text in texts:
        length += len(text) + 1
        if length > OUTPUT:
            raise TemplateError("a value is too large to print")
        shown.append(text)
    return " ".join(shown)
