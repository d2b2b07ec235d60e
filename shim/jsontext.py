"""Read and write the JSON of managers and images without loss.

The OCI runtimes accept JSON that Python's module rejects or cannot represent: invalid
UTF-8, numbers of any length, values of any depth.  Here an invalid byte becomes a
surrogate, as in :func:`os.fsdecode`, and such a number or value becomes a
:class:`Verbatim`.  :func:`dumps` writes the same bytes back.

Source: RFC 8259; Go's encoding/json for the input of runc, which reads an invalid byte
and half a surrogate pair as U+FFFD each.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Digits of a number that becomes an int; CPython's own limit can be set to 640.
_DIGITS = 400
# Characters of a number that a float always represents without loss.
_PRECISE = 15
_INFINITE = (float("inf"), float("-inf"))
# Levels of arrays and objects that are parsed if Python's module cannot parse all of them.
_LEVELS = 64

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Surrogates that do not represent a byte.
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A number, or a deeply nested value, as the text from which it was read."""

    text: str

    def __str__(self) -> str:
        return self.text


def loads(data: bytes | str, *, nulls: bool = True) -> Any:
    """Parse one JSON value; without ``nulls``, leave out object members that are null.

    :raises ValueError: it is malformed.  The text of a :class:`Verbatim` is not checked.
    """
    text = data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data
    hook = None if nulls else _without_nulls
    try:
        return _decoder(_float, hook).decode(text)
    except RecursionError:
        return _decode_deep(text, hook)


def dumps(value: object) -> bytes:
    """Return ``value`` as JSON; its types are those that :func:`loads` returns.

    :raises TypeError: ``value`` contains another type.
    """
    try:
        text = _ENCODER.encode(value)
    except (_VerbatimError, RecursionError):
        text = "".join(_written(value))
    text = _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    return text.encode("utf-8", "surrogateescape")


def as_runc_reads(text: str) -> str:
    """Return a string of :func:`loads` as Go's encoding/json reads it."""
    return _SURROGATE.sub("\ufffd", text)


def _int(text: str) -> int | Verbatim:
    return int(text) if len(text) <= _DIGITS else Verbatim(text)


def _float(text: str) -> float | Verbatim:
    number = float(text)
    short = len(text) <= _PRECISE and number not in _INFINITE
    return number if short or repr(number) == text else Verbatim(text)


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


class _VerbatimError(Exception):
    """The value contains a :class:`Verbatim`, which Python's encoder cannot write."""


def _default(value: object) -> NoReturn:
    if isinstance(value, Verbatim):
        raise _VerbatimError
    raise TypeError(f"a {type(value).__name__} is not JSON")


_Pairs: TypeAlias = "list[tuple[str, object]]"
_Hook: TypeAlias = "Callable[[_Pairs], dict[str, object]] | None"


def _without_nulls(members: _Pairs) -> dict[str, object]:
    return {name: value for name, value in members if value is not None}


def _decoder(parse_float: Callable[[str], object], hook: _Hook) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_int=_int, parse_float=parse_float, parse_constant=_constant, object_pairs_hook=hook
    )


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_default)


def _decode_deep(text: str, hook: _Hook) -> Any:
    """Parse ``text``, with each value below ``_LEVELS`` others replaced by an unused number."""
    salt = 10**9
    while f"e{salt}" in text:
        salt += 1
    kept: dict[str, Verbatim] = {}
    pieces: list[str] = []
    depth, start, end = 0, 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth == _LEVELS + 1:
                pieces.append(text[end : (start := token.start())])
        elif token[0] in ("]", "}"):
            if depth == _LEVELS + 1:
                end = token.end()
                name = f"{len(kept)}e{salt}"
                kept[name] = Verbatim(text[start:end])
                pieces.append(name)
            depth -= 1
    if depth > _LEVELS:
        raise ValueError("the JSON text ends inside a value")
    pieces.append(text[end:])
    return _decoder(partial(_kept, kept), hook).decode("".join(pieces))


def _kept(kept: dict[str, Verbatim], text: str) -> float | Verbatim:
    return kept.get(text) or _float(text)


def _written(value: object) -> Iterable[str]:
    """Encode a value that Python's encoder cannot encode, without recursion."""
    waiting: list[object] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Verbatim):
            yield one.text
        elif isinstance(one, dict):
            parts: list[object] = [Verbatim("{")]
            for key, below in one.items():
                parts += [Verbatim(f"{_ENCODER.encode(str(key))}: "), below, Verbatim(", ")]
            waiting += reversed([*parts[: -1 if one else None], Verbatim("}")])
        elif isinstance(one, (list, tuple)):
            parts = [Verbatim("[")]
            for below in one:
                parts += [below, Verbatim(", ")]
            waiting += reversed([*parts[: -1 if one else None], Verbatim("]")])
        else:
            yield _ENCODER.encode(one)
