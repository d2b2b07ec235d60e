"""The detach keys: finds them in the input, also if two reads split the sequence.

Keys that turn out to be no detach sequence are passed on with the next key.
Bytes in, bytes out; nothing here reads a terminal.

Source: docker's ``--detach-keys`` and moby/term ascii.go for how keys are named.
"""

from __future__ import annotations

from shim.errors import InvalidError

# The control characters that have a name of one character: ctrl-@ is 0.
_CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"


def parse_keys(text: str) -> bytes:
    """Parse keys in docker's notation, ``ctrl-p,ctrl-q`` or ``ctrl-],x``; empty for none.

    :raises InvalidError: one of them is neither a character nor ``ctrl-`` and one.
    """
    return bytes(_key(name) for name in text.split(",")) if text else b""


def _key(name: str) -> int:
    if len(name) == 1 and name.isascii() and name.isprintable():
        return ord(name)
    prefix, _, character = name.lower().partition("-")
    if prefix == "ctrl" and len(character) == 1 and character in _CONTROL:
        return _CONTROL.index(character)
    raise InvalidError(
        f"{name!r} is not a key; use a character, or ctrl- and one of a-z @ [ \\ ] ^ _, "
        "with commas in between"
    )


class KeyFilter:
    """Passes input on until the sequence ``keys`` arrives; an empty one never does."""

    def __init__(self, keys: bytes) -> None:
        self.found = False
        self._keys = keys
        self._held = b""  # a possible beginning of the sequence

    def feed(self, data: bytes) -> bytes:
        """Take input and return the bytes to pass on; none once :attr:`found` is set."""
        if self.found or not self._keys:
            return b"" if self.found else data
        data = self._held + data
        before, keys, _ = data.partition(self._keys)
        if keys:
            self.found, self._held = True, b""
            return before
        longest = min(len(data), len(self._keys) - 1)
        held = next((n for n in range(longest, 0, -1) if data.endswith(self._keys[:n])), 0)
        split = len(data) - held
        self._held = data[split:]
        return data[:split]
