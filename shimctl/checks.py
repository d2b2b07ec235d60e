"""Check and convert a caller's values before a command is run or a call is made.

Source: containerd pkg/identifiers for the ids; kill(1) for the names of signals.
"""

from __future__ import annotations

from signal import Signals

from shim import names
from shim.errors import InvalidError


def check_id(text: str, what: str = "id") -> str:
    """Return ``text`` if containerd accepts it as an id or a namespace.

    :raises InvalidError: containerd does not accept it.
    """
    if names.is_id(text):
        return text
    raise InvalidError(
        f"{text!r} is not a valid {what}; use up to {names.ID_MAX} letters and digits, "
        "with single '.', '_' or '-' between them"
    )


def signal_number(signal: int | str) -> int:
    """Return the number of ``15``, ``"15"``, ``"TERM"``, ``"sigterm"`` or ``"RTMIN+3"``.

    A number is not checked: a shim's runtime knows its valid signals, 0 among them.

    :raises InvalidError: no signal has this name.
    """
    if isinstance(signal, int):
        return int(signal)
    name, plus, offset = signal.strip().upper().removeprefix("SIG").partition("+")
    if name.isdecimal() and not plus:
        return int(name)
    try:
        number = Signals[f"SIG{name}"] + (int(offset) if plus else 0)
    except (KeyError, ValueError):
        number = 0
    if not number or (plus and not (name == "RTMIN" and number <= Signals.SIGRTMAX)):
        raise InvalidError(f"{signal!r} is not a signal; use a name such as TERM, or a number")
    return number
