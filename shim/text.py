"""Show text of other programs safely on one line of a terminal or a log.

Containers, images and peers choose names and messages.  ESC and U+009B begin
commands to a terminal; U+202E and similar characters change the order of the shown text.

Source: ECMA-48 for the commands; Unicode Standard Annex 9 for the order; Go's
strconv.Quote for the escapes, which logfmt parsers decode.
"""

from __future__ import annotations

_NAMED = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def printable(text: str) -> str:
    """Escape every character that is not printable; a surrogate is shown as its byte."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not valid UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _NAMED.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class doing:  # noqa: N801 - a context manager, which costs the launcher no contextlib
    """Add the action and its object to an OSError that is raised in the block.

    :func:`explain` shows those of the innermost block.
    """

    def __init__(self, action: str, target: object) -> None:
        self._what = f"{action} {target}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, OSError):
            exc.add_note(self._what)


def explain(exc: BaseException) -> str:
    """Return the text of ``exc`` in one line.

    The text of an OSError is as in Go: ``open /run/x: no space left on device``, with the
    action if :class:`doing` added one, and with the path if there is one.
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
