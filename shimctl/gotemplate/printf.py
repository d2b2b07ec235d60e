"""Go's ``printf`` for the values of a template.

Source: Go's fmt ("Printing").
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from shim.text import printable
from shimctl.gotemplate.errors import OUTPUT, TemplateError
from shimctl.gotemplate.values import Safe, kind, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_VERB = re.compile(r"%([-+# 0]*)(\d{0,4})(?:\.(\d{0,4}))?([^\d.])", re.DOTALL)
_NUMBERS = "dxXobeEfFgG"
_WIDEST = 1000


def printf(pattern: str, values: Sequence[object]) -> str:
    """Format ``values`` by ``pattern``.

    :raises TemplateError: a verb is unknown or does not fit its value, or the number of
        values is another one than that of the verbs.
    """
    return "".join(_parts(pattern, values))


def _parts(pattern: str, values: Sequence[object]) -> Iterator[str]:
    at, used, length = 0, 0, 0
    while (start := pattern.find("%", at)) >= 0:
        yield pattern[at:start]
        match = _VERB.match(pattern, start)
        if match is None:
            raise TemplateError("printf has a % without a verb", "use %% for a percent sign")
        at = match.end()
        if match[4] == "%":
            yield "%"
            continue
        if used == len(values):
            raise TemplateError("printf has more verbs than values", "add a value for each verb")
        text = _formatted(match, values[used])
        length += len(text)
        if length > OUTPUT:
            raise TemplateError("the result of printf is too long")
        yield text
        used += 1
    if used < len(values):
        raise TemplateError("printf has more values than verbs", "add a %s or %v for each value")
    yield pattern[at:]


def _formatted(match: re.Match[str], value: object) -> str:
    flags, width, precision, verb = match[1], int(match[2] or 0), match[3], match[4]
    if width > _WIDEST or int(precision or 0) > _WIDEST:
        raise TemplateError(f"printf has a width beyond {_WIDEST}", "use a smaller one")
    text = _converted(verb, flags, precision, value)
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and isinstance(value, (int, float)):
        return text.zfill(width)
    return text.rjust(width)


def _converted(verb: str, flags: str, precision: str | None, value: object) -> str:
    if verb == "v":
        return show(value)
    if verb == "t" and isinstance(value, bool):
        return show(value)
    if verb in "sq" and isinstance(value, str):
        text = value[: int(precision or 0)] if precision is not None else value
        if verb == "q":
            return show(json.dumps(str(text), ensure_ascii=False))
        return show(Safe(text) if isinstance(value, Safe) else text)
    if verb == "s" and isinstance(value, (list, tuple)):
        return show(value)
    if verb in "xX" and isinstance(value, str):
        digits = value.encode("utf-8", "surrogateescape").hex()
        return digits.upper() if verb == "X" else digits
    if verb == "c" and isinstance(value, int) and not isinstance(value, bool):
        return show(chr(value) if 0 <= value < 0x110000 else "\ufffd")
    if verb in _NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(verb, flags, precision, value)
    raise TemplateError(
        f"printf cannot format {kind(value)} with %{printable(verb)}", "use %v instead"
    )


def _number(verb: str, flags: str, precision: str | None, value: float) -> str:
    whole = verb in "dxXob"
    if whole is not isinstance(value, int):
        shown = "a whole number" if isinstance(value, int) else "a number with a fraction"
        raise TemplateError(f"printf cannot format {shown} with %{verb}", "use %v instead")
    sign = "+" if "+" in flags else " " if " " in flags else ""
    if whole:
        return format(value, f"{sign}{verb}")
    return format(value, f"{sign}.{precision or (0 if precision == '' else 6)}{verb}")
