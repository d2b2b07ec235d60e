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


class doing:  # noqa: N801 - a context manager, which costs the launcher no contextlib
    """Name the action and its object in an OSError that is raised in the block.

    The innermost block counts; :func:`explain` shows it.
    """

    def __init__(self, action: str, target: object) -> None:
        self._what = f"{action} {target}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, OSError):
            exc.add_note(self._what)


def explain(exc: BaseException) -> str:
    """Return what went wrong in one line.

    An OSError reads as in Go: ``open /run/x: no space left on device``, with the
    action where :class:`doing` named it, and with the path where there is one.
    """
    if not isinstance(exc, OSError) or not exc.strerror:
        return str(exc) or type(exc).__name__
    reason = exc.strerror[:1].lower() + exc.strerror[1:]
    if notes := getattr(exc, "__notes__", ()):
        return f"{notes[0]}: {reason}"
    names = [
        name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)
        for name in (exc.filename, exc.filename2)
        if isinstance(name, (str, bytes))
    ]
    return f"{' -> '.join(names)}: {reason}" if names else reason
