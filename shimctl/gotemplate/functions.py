"""The functions of templates: Go's, and those that docker adds.

Source: text/template ("Functions"); docker's templates package (json, split, join, title,
lower, upper, pad, truncate).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from shimctl.gotemplate.errors import OUTPUT, TemplateError
from shimctl.gotemplate.printf import printf
from shimctl.gotemplate.values import Safe, kind, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_UNBOUNDED = 1000  # more arguments than any template has


class Functions:
    """The functions, for one execution; ``as_json`` formats a value as JSON."""

    def __init__(self, as_json: Callable[[object], str]) -> None:
        self._as_json = as_json

    def call(self, name: str, given: Iterable[object], last: tuple[Any, ...]) -> object:
        """Call function ``name``; ``last`` is the value of the pipeline before it, if any.

        :raises TemplateError: the function does not accept the arguments.
        """
        if name in ("and", "or"):
            return _decide(name, given, last)
        arguments = [*given, *last]
        if name == "json":
            return self._json(arguments)
        function, least, most = _TABLE[name]
        if not least <= len(arguments) <= most:
            needs = f"{least}" if least == most else f"at least {least}"
            raise TemplateError(f"{name} has {len(arguments)} arguments", f"it needs {needs}")
        result = function(*arguments)
        if isinstance(result, str) and len(result) > OUTPUT:
            raise TemplateError(f"the result of {name} is too long")
        return result

    def _json(self, arguments: list[object]) -> Safe:
        if len(arguments) != 1:
            raise TemplateError(f"json has {len(arguments)} arguments", "it needs 1")
        if callable(arguments[0]):
            raise TemplateError("json has a function as its argument", "use {{json .}}")
        return Safe(self._as_json(arguments[0]))


def _decide(name: str, given: Iterable[object], last: tuple[Any, ...]) -> object:
    value: object = None
    count = 0
    for values in (given, last):
        for value in values:
            count += 1
            if bool(value) is (name == "or"):
                return value
    if not count:
        raise TemplateError(f"{name} has no arguments", "it needs 1")
    return value


def _text(value: object, function: str) -> str:
    if isinstance(value, str):
        return value
    raise TemplateError(f"{function} cannot use {kind(value)}", "give it a text")


def _whole(value: object, function: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TemplateError(f"{function} cannot use {kind(value)}", "give it a whole number")


def _like(source: str, text: str) -> str:
    """Return ``text``, which is safe if its ``source`` is."""
    return Safe(text) if isinstance(source, Safe) else text


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            return None
        if isinstance(value, dict):
            value = value.get(_text(key, "index"))
            continue
        if not isinstance(value, (list, tuple, str)):
            raise TemplateError(f"index cannot use {kind(value)}", "give it a list or an object")
        at = _whole(key, "index")
        if not 0 <= at < len(value):
            raise TemplateError(f"index {at} is out of range", f"there are {len(value)} elements")
        value = ord(value[at]) if isinstance(value, str) else value[at]
    return value


def _slice(value: Any, *limits: Any) -> Any:
    if not isinstance(value, (list, tuple, str)):
        raise TemplateError(f"slice cannot use {kind(value)}", "give it a text or a list")
    start = _whole(limits[0], "slice") if limits else 0
    end = _whole(limits[1], "slice") if len(limits) > 1 else len(value)
    if not 0 <= start <= end <= len(value):
        raise TemplateError(
            f"slice {start} {end} is out of range", f"there are {len(value)} elements"
        )
    return _like(value, value[start:end]) if isinstance(value, str) else value[start:end]


def _len(value: Any) -> int:
    if isinstance(value, (str, list, tuple, dict)):
        return len(value)
    raise TemplateError(f"len cannot use {kind(value)}", "give it a text, a list or an object")


def _print(*values: object) -> Safe:
    """Join the values; a space goes between two that are no texts, as with Go's Sprint."""
    parts: list[str] = []
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            parts.append(" ")
        parts.append(show(value))
    return Safe("".join(parts))


def _println(*values: object) -> Safe:
    return Safe(" ".join(map(show, values)) + "\n")


def _equal(first: object, *others: object) -> bool:
    if not others:
        raise TemplateError("eq has 1 argument", "it needs at least 2")
    return any(_same(first, other) for other in others)


def _same(first: object, other: object) -> bool:
    numbers = (int, float)
    if isinstance(first, bool) or isinstance(other, bool):
        return first is other
    if isinstance(first, numbers) and isinstance(other, numbers):
        return first == other
    if isinstance(first, str) and isinstance(other, str):
        return str(first) == str(other)
    if first is None or other is None:
        return first is other
    raise TemplateError(f"cannot compare {kind(first)} with {kind(other)}", "convert with print")


def _order(name: str, first: Any, other: Any) -> bool:
    numbers = (int, float)
    texts = isinstance(first, str) and isinstance(other, str)
    if not texts and not (isinstance(first, numbers) and isinstance(other, numbers)):
        raise TemplateError(f"{name} cannot compare {kind(first)} with {kind(other)}")
    match name:
        case "lt":
            return bool(first < other)
        case "le":
            return bool(first <= other)
        case "gt":
            return bool(first > other)
    return bool(first >= other)


def _split(value: Any, separator: Any) -> list[str]:
    text, between = _text(value, "split"), _text(separator, "split")
    parts = text.split(between) if between else list(text)
    return [_like(text, part) for part in parts]


def _join(values: Any, separator: Any) -> Safe:
    if not isinstance(values, (list, tuple)):
        raise TemplateError(f"join cannot use {kind(values)}", "give it a list of texts")
    between = show(_text(separator, "join"))
    length = sum(len(one) + len(between) for one in values if isinstance(one, str))
    if length > OUTPUT:
        raise TemplateError("the result of join is too long")
    return Safe(between.join(show(_text(one, "join")) for one in values))


def _pad(value: Any, before: Any, after: Any) -> str:
    text = _text(value, "pad")
    if not text:
        return text
    spaces = [min(max(_whole(one, "pad"), 0), OUTPUT) for one in (before, after)]
    return _like(text, f"{' ' * spaces[0]}{text}{' ' * spaces[1]}")


def _truncate(value: Any, length: Any) -> str:
    text = _text(value, "truncate")
    return _like(text, text[: max(_whole(length, "truncate"), 0)])


def _changed(name: str, change: Callable[[str], str], value: Any) -> str:
    text = _text(value, name)
    return _like(text, change(text))


def _printf(pattern: Any, *values: object) -> Safe:
    return Safe(printf(show(_text(pattern, "printf")), values))


# Function, and the smallest and the largest number of arguments.
_TABLE: dict[str, tuple[Callable[..., object], int, int]] = {
    "not": (lambda value: not value, 1, 1),
    "eq": (_equal, 1, _UNBOUNDED),
    "ne": (lambda first, other: not _same(first, other), 2, 2),
    **{name: (partial(_order, name), 2, 2) for name in ("lt", "le", "gt", "ge")},
    "index": (_index, 1, _UNBOUNDED),
    "slice": (_slice, 1, 3),
    "len": (_len, 1, 1),
    "print": (_print, 0, _UNBOUNDED),
    "println": (_println, 0, _UNBOUNDED),
    "printf": (_printf, 1, _UNBOUNDED),
    "split": (_split, 2, 2),
    "join": (_join, 2, 2),
    "lower": (partial(_changed, "lower", str.lower), 1, 1),
    "upper": (partial(_changed, "upper", str.upper), 1, 1),
    "title": (partial(_changed, "title", str.title), 1, 1),
    "pad": (_pad, 3, 3),
    "truncate": (_truncate, 2, 2),
}
FUNCTIONS = frozenset((*_TABLE, "and", "or", "json"))
