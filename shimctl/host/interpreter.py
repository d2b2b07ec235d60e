"""Programs that run one exact interpreter, with exactly the modules they need and no site.

``-I -S`` leaves out the environment, the working directory, the user's packages
and every .pth file: nobody can slip a module in, and none of it costs a start.
What these flags take away, the list of directories, is found once, by the
installation, and written into the program.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from shim import launcher
from shim.errors import ShimError, TimedOutError

# Bytes of a first line that every kernel reads.  Source: execve(2).
_FIRST_LINE = 127
_TIMEOUT = 60.0  # s for an interpreter that may have no bytecode yet

# Run by the interpreter itself: which of the given directories its modules come from.
_PROBE = """
import json, os, sys
given = [entry for entry in sys.argv[1:] if entry not in sys.path]
sys.path += given
import shim.forkserver, shim.launcher, shim.version, shimctl.client, psutil, yaml
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print(json.dumps({
    "path": [e for e in given if any(file.startswith(e + os.sep) for file in files)],
    "package": os.path.dirname(os.path.abspath(shim.launcher.__file__)),
    "version": shim.version.VERSION,
    "executable": sys.executable,
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter that finds ``shim`` in ``package`` with ``path`` added to its own.

    ``executable`` is what it says it is itself: it is part of a fork server's name.
    """

    executable: str
    path: tuple[str, ...]
    package: str
    version: str

    def code(self, module: str, *, named: bool, function: str = "main") -> str:
        """Return the Python that calls ``function`` of ``module``.

        ``named`` says that the first argument is the name to go by, as ``-c`` has none.
        """
        lines = [
            *("import sys", *(["del sys.argv[0]"] if named else [])),
            # ASCII, whatever the directories are called.
            f"sys.path += [{', '.join(map(ascii, self.path))}]",
            *(f"from {module} import {function}", f"sys.exit({function}())"),
        ]
        return "\n".join(lines) + "\n"

    def script(self, module: str, comment: str) -> str:
        """Return an executable text that does the same; ``comment`` is its second line."""
        first = f"#!{self.executable} -IS\n"
        if len(first.encode(errors="surrogateescape")) <= _FIRST_LINE and not any(
            character.isspace() for character in self.executable
        ):
            return f"{first}# {comment}\n{self.code(module, named=False)}"
        command = [self.executable, "-IS", "-c", self.code(module, named=True)]
        return f'#!/bin/sh\n# {comment}\nexec {shlex.join(command)} "$0" "$@"\n'


def search_path() -> list[str]:
    """Return where this process finds modules, our own package's directory first."""
    own = str(Path(launcher.__file__).absolute().parents[1])
    entries = [str(Path(entry).absolute()) for entry in sys.path]
    return [own, *(entry for entry in entries if entry != own and Path(entry).is_dir())]


async def find_interpreter() -> Interpreter:
    """Examine the interpreter that runs us.

    :raises ShimError: without site it does not find what it needs.
    :raises TimedOutError: it does not come to an end.
    """
    command = [sys.executable, "-IS", "-c", _PROBE, *search_path()]
    with trio.move_on_after(_TIMEOUT) as scope:
        done = await trio.run_process(
            command,
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd="/",
        )
    if scope.cancelled_caught:
        raise TimedOutError(f"{sys.executable} did not import the shim in {_TIMEOUT:g} s")
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ShimError(
            f"{sys.executable} -IS cannot import the shim: {message}; "
            "install it and what it needs as plain packages of this interpreter"
        )
    answer = json.loads(done.stdout)
    path = tuple(answer["path"])
    return Interpreter(answer["executable"], path, answer["package"], answer["version"])
