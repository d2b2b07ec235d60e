"""Text from others, shown: a terminal must not obey it, and one line stays one line.

A container, an image and a peer choose names and messages.  ESC and U+009B begin
commands to a terminal; U+202E and its like change the order of what is shown.

Source: ECMA-48 for the commands; Unicode Standard Annex 9 for the order; Go's
strconv.Quote for the escapes, which readers of logfmt undo.
"""

from __future__ import annotations

_NAMED = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def printable(text: str) -> str:
    """Escape every character that is not printable; a surrogate stands for a byte."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # of a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _NAMED.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
