"""Changes of configuration files: shows each as a difference, and makes it.

A file is replaced in one step and keeps its mode and owner.  The block that is added to a TOML
file lies between two marks, so its removal changes no other byte.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import WrongStateError
from shim.linux.files import read_whole
from shim.linux.modes import make_directories
from shimctl.replacing import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST = 4 << 20  # bytes of a configuration file
_BEGIN = "# BEGIN trio-shim, written by `shimctl install`; its --undo removes this block"
_END = "# END trio-shim"
_BLOCK = re.compile(rf"\n?{re.escape(_BEGIN)}\n.*?^{_END}\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Change:
    """The content of a file before and after; None is no file."""

    path: str
    before: str | None
    after: str | None

    @property
    def difference(self) -> str:
        """The change as a unified diff; empty if there is none."""
        if self.before == self.after:
            return ""
        lines = difflib.unified_diff(
            _lines(self.before),
            _lines(self.after),
            "/dev/null" if self.before is None else self.path,
            "/dev/null" if self.after is None else self.path,
        )
        return "".join(lines)


def _lines(text: str | None) -> list[str]:
    lines = [f"{line}\n" for line in (text or "").split("\n")]
    last = lines.pop()
    return lines if last == "\n" else [*lines, f"{last}\\ No newline at end of file\n"]


def add_block(text: str | None, body: str) -> str:
    """Return ``text`` with our block at its end, or with the present block replaced."""
    block = f"{_BEGIN}\n{body.strip()}\n{_END}\n"
    if text is None:
        return block
    if match := _BLOCK.search(text):
        start = "\n" if match[0].startswith("\n") else ""
        return f"{text[: match.start()]}{start}{block}{text[match.end() :]}"
    # The line break belongs to the block, so that its removal restores every byte.
    return f"{text}\n{block}"


def remove_block(text: str) -> str | None:
    """Return ``text`` without our block; None if the file was made for the block."""
    match = _BLOCK.search(text)
    if not match:
        return text
    rest = text[: match.start()] + text[match.end() :]
    return None if not rest and not match[0].startswith("\n") else rest


def has_block(text: str | None) -> bool:
    """Return whether our block is in ``text``."""
    return bool(text and _BLOCK.search(text))


def read(root: str, path: str) -> str | None:
    """Return the text of a file below ``root``, None if it does not exist.

    :raises WrongStateError: it is no UTF-8 text.
    :raises OSError: it cannot be read, or is no regular file.
    """
    try:
        return read_whole(_below(root, path), _MOST).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise WrongStateError(f"cannot change {path}: it is not UTF-8; correct it") from None


def execute(changes: Iterable[Change], root: str = "/") -> None:
    """Make the changes below ``root``.

    :raises WrongStateError: a file has changed since it was read.
    :raises OSError: a file cannot be written; the changes before it were made.
    """
    for change in changes:
        if change.before == change.after:
            continue
        if read(root, change.path) != change.before:
            raise WrongStateError(f"cannot change {change.path}: it has changed; try again")
        target = Path(_below(root, change.path))
        if change.after is None:
            target.unlink()
        else:
            _write(target, change.after.encode())


def _below(root: str, path: str) -> str:
    return f"{root.rstrip('/')}{path}"


def _write(path: Path, data: bytes) -> None:
    target = path.resolve()  # a link stays one
    make_directories(target.parent, 0o755, parents=0o755)
    mode, owner = 0o644, None
    with suppress(FileNotFoundError):
        found = target.stat()
        mode, owner = found.st_mode & 0o7777, (found.st_uid, found.st_gid)
    replace_file(target, data, mode, owner)
