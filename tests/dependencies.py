"""Imports what the program imports, but nothing of itself.

A fork of a process with these modules runs any build of the program (tests/warm.py): the
interpreter takes two thirds of its start for them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("shim", "shimctl")
_IMPORT = re.compile(r"^\s*(?:from|import) ([a-z][\w.]*)", re.MULTILINE)


def _names() -> set[str]:
    files = (path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py"))
    found = {name for path in files for name in _IMPORT.findall(path.read_text())}
    return {name for name in found if name.partition(".")[0] not in (*_PACKAGES, "tests")}


for _name in sorted(_names()):
    with suppress(ImportError):  # a word of a docstring, or a module of another Python
        import_module(_name)
