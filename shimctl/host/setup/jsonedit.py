"""Adds a member to an object in JSON text, and leaves every other byte as it is.

Source: RFC 8259.  Text that :mod:`json` accepts is valid.
"""

from __future__ import annotations

import json

_BLANK = " \t\n\r"
_decoder = json.JSONDecoder()


def add_member(text: str, outer: str, key: str, value: object) -> str:
    """Return ``text`` with the member ``key`` first in the member ``outer`` of its object.

    If there is no member ``outer``, it is added.  ``text`` must be a valid JSON object.

    :raises ValueError: ``outer`` is no object.
    """
    start = _object(text, 0)
    members = dict(_members(text, start))
    if outer not in members:
        return _inserted(text, start, _piece({outer: {key: value}}, 1))
    return _inserted(text, _object(text, members[outer]), _piece({key: value}, 2))


def remove_member(text: str, outer: str, key: str, value: object) -> str | None:
    """Undo :func:`add_member` exactly; None if ``text`` is not the result of one."""
    for piece in (_piece({outer: {key: value}}, 1), _piece({key: value}, 2)):
        for end in (",", ""):
            before, found, after = text.partition(piece + end)
            if found and _adds(before + after, outer, key, value) == text:
                return before + after
    return None


def _adds(text: str, outer: str, key: str, value: object) -> str | None:
    try:
        json.loads(text)
        return add_member(text, outer, key, value)
    except ValueError:
        return None


def _object(text: str, at: int) -> int:
    """Return the position after the ``{`` at or after ``at``."""
    at = _skip(text, at)
    if text[at : at + 1] != "{":
        raise ValueError("not a JSON object")
    return at + 1


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _members(text: str, at: int) -> list[tuple[str, int]]:
    """Return the name of each member, and the position of its value."""
    found = []
    at = _skip(text, at)
    while text[at] != "}":
        name, at = _decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # after the colon
        found.append((name, at))
        _, at = _decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _inserted(text: str, start: int, piece: str) -> str:
    end = "" if text[_skip(text, start)] == "}" else ","
    return f"{text[:start]}{piece}{end}{text[start:]}"


def _piece(members: dict[str, object], depth: int) -> str:
    """Return members without the braces around them, indented for an object at ``depth``."""
    body = json.dumps(members, indent=2)[2:-2]
    return "".join("\n" + "  " * (depth - 1) + line for line in body.split("\n"))
