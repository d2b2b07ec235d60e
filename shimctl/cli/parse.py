"""Parse arguments: sizes, numbers in a range, lists of cpus, durations, signals.

Each function converts a text, or raises ValueError with a message of one line.
"""

from __future__ import annotations

import re
from signal import Signals
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE | re.ASCII)
_SET = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LARGEST = (1 << 63) - 1  # the runtimes' integers have 64 bits

UNLIMITED = -1


def size(text: str) -> int:
    """Parse a number of bytes: ``1048576``, ``512MiB``, ``1.5G``; units are powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size; use 512MiB, 1.5G, or a number of bytes")
    power = " KMGT".index((found[2] or " ").upper())
    count = int(float(found[1]) * 1024**power) if "." in found[1] else int(found[1]) * 1024**power
    if count > _LARGEST:
        raise ValueError(f"{text!r} is too large; the limit is {_LARGEST} bytes")
    return count


def limit(text: str) -> int:
    """Parse a size in bytes; ``max`` or -1 is no limit."""
    return UNLIMITED if text in ("max", "-1") else size(text)


def count_limit(text: str) -> int:
    """Parse a number of at least 1; ``max`` or -1 is no limit."""
    return UNLIMITED if text in ("max", "-1") else integer(1, _LARGEST)(text)


def integer(least: int, most: int) -> Callable[[str], int]:
    """Return a parser for whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        if text.isascii() and text.isdecimal() and least <= int(text[:20]) <= most:
            return int(text[:20])
        upper = f" to {most}" if most < _LARGEST else " up"
        raise ValueError(f"{text!r} is not a whole number from {least}{upper}")

    return read


def cpus(text: str) -> float:
    """Parse an amount of cpu time, in cpus: ``0.5``, ``2``."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # The kernel's smallest share is a thousandth: 1 ms of its longest period, 1 s.
    if not 0.001 <= number <= 100_000:
        raise ValueError(f"{text!r} is not a number of cpus; use 0.5 or 2, for example")
    return number


def cpu_set(text: str) -> str:
    """Check a list of cpus, or of memory nodes: ``0-3,7``."""
    if not _SET.fullmatch(text):
        raise ValueError(f"{text!r} is not a list of numbers; use 0-3,7, for example")
    return text


def seconds(text: str) -> float:
    """Parse a duration in seconds: ``2``, ``0.5``, ``500ms``, ``1m``."""
    found = _DURATION.fullmatch(text)
    number = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    if not 0.1 <= number <= 86_400:
        raise ValueError(f"{text!r} is not a time from 100ms to 24h; use 2, 0.5s or 1m")
    return number


def grace(text: str) -> float:
    """Parse a duration as :func:`seconds` does; it may also be 0."""
    return 0.0 if text == "0" else seconds(text)


def signal_number(text: str) -> int:
    """Parse a signal's number or name: ``9``, ``KILL``, ``SIGKILL``, ``rtmin+3``."""
    name, plus, offset = text.upper().removeprefix("SIG").partition("+")
    try:
        if name.isascii() and name.isdecimal() and not plus:
            return int(Signals(int(name)))
        number = int(Signals[f"SIG{name}"])
        if plus:
            number = integer(0, int(Signals.SIGRTMAX) - number)(offset) + number
    except (KeyError, ValueError):
        raise ValueError(f"there is no signal {text!r}; `kill -l` lists them") from None
    return number
