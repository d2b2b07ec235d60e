"""Environment variables from ``-e`` and from files, in docker's notation.

Source: docker's ``--env`` and ``--env-file``; docker/cli opts/file.go.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def variables(
    entries: Iterable[str], files: Iterable[str | Path], environ: Mapping[str, str]
) -> list[str]:
    """Return the variables of ``files``, then ``entries``, all as ``NAME=value``.

    A name without ``=`` takes its value from ``environ``, and is left out if it is not there.
    Later variables replace earlier ones of the same name.

    :raises InvalidError: an entry has no name, or a line of a file is malformed.
    :raises NotFoundError: a file cannot be read.
    """
    found: dict[str, str] = {}
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as exc:
            raise NotFoundError(f"cannot read {file}: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise InvalidError(f"{file} is not UTF-8 text") from None
        _add(found, parse_file(text, str(file)), environ)
    _add(found, entries, environ)
    return [f"{name}={value}" for name, value in found.items()]


def parse_file(text: str, name: str = "the file") -> list[str]:
    """Return the variables in ``text``: one a line; lines that begin with # are comments.

    :raises InvalidError: a line has no name, or a space in its name.
    """
    entries = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        entry = line.removesuffix("\r").lstrip(" \t")
        if not entry or entry.startswith("#"):
            continue
        variable = entry.partition("=")[0]
        if not variable or any(char.isspace() for char in variable):
            raise InvalidError(f"{name}, line {number}: {line!r} is not NAME=VALUE")
        entries.append(entry)
    return entries


def _add(found: dict[str, str], entries: Iterable[str], environ: Mapping[str, str]) -> None:
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name:
            raise InvalidError(f"{entry!r} is not a variable; use NAME=VALUE or NAME")
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
