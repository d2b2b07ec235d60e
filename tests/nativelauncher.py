"""The shim's native launcher, for tests that do not test a launcher.

Each container costs two calls of the shim's executable.  pip's script takes 20 ms of processor
time a call, and the native launcher 1 ms.  ``tests/shimctl/test_install.py`` and one release of
each manager call pip's script.

The compiler takes 0.4 s, so the program stays in ``.cache`` until its sources change.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

import trio

from shim.names import EXECUTABLE
from shim.version import VERSION
from shimctl.host import install, interpreter
from shimctl.replacing import replace_file

_CACHE = Path(__file__).parents[1] / ".cache/launcher"
_SOURCES = (install.SOURCE, Path(install.__file__), Path(interpreter.__file__))


@functools.cache
def directory() -> Path:
    """Return the directory of the launcher; without a compiler, that of pip's script."""
    compiler = install.find_compiler()
    if compiler is None:
        return Path(sys.executable).parent
    parts = [compiler, VERSION, sys.executable, sys.version, *interpreter.search_path()]
    digest = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape"))
    for source in _SOURCES:
        digest.update(source.read_bytes())
    found = _CACHE / digest.hexdigest()[:16]
    if not (found / EXECUTABLE).exists():
        found.mkdir(parents=True, exist_ok=True)
        replace_file(found / EXECUTABLE, trio.run(_build), 0o755)
    return found


async def _build() -> bytes:
    return await install.build(await interpreter.find_interpreter())
