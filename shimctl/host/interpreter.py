"""Makes programs that run this interpreter with -I -S and a fixed module path.

With ``-I -S`` Python ignores its environment variables, the working directory, the
user's packages and every .pth file.  So no other module can be imported by mistake
or by an attack, and the start takes less time.  The installation finds the
directories that the modules need, and writes them into the program.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from shim.errors import ShimError, TimedOutError
from shim.start import launcher

# Bytes of a #! line that every kernel reads.  Source: execve(2).
_FIRST_LINE = 127
_TIMEOUT = 60.0  # s; the first start may have to compile all modules

# The interpreter runs this program.  It prints the given directories that it imported
# modules from.
_PROBE = """
import json, os, sys
given = [entry for entry in sys.argv[1:] if entry not in sys.path]
sys.path += given
import shim.start.forkserver, shim.start.launcher, shim.version, shimctl.client
import click, psutil, yaml
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print(json.dumps({
    "path": [e for e in given if any(file.startswith(e + os.sep) for file in files)],
    "package": os.path.dirname(os.path.abspath(shim.start.launcher.__file__)),
    "version": shim.version.VERSION,
    "executable": sys.executable,
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python interpreter, and the directories to add to its ``sys.path``.

    ``package`` is the directory of the package ``shim`` and ``version`` its version.
    ``executable`` is the interpreter's ``sys.executable``, which is a part of the name
    of a fork server's socket.
    """

    executable: str
    path: tuple[str, ...]
    package: str
    version: str

    def code(self, module: str, *, named: bool, function: str = "main") -> str:
        """Return the Python that calls ``function`` of ``module``.

        If ``named`` is true, the first argument becomes ``sys.argv[0]``, since ``-c``
        has no program name.
        """
        lines = [
            *("import sys", *(["del sys.argv[0]"] if named else [])),
            # The code is ASCII for all names of directories.
            f"sys.path += [{', '.join(map(ascii, self.path))}]",
            *(f"from {module} import {function}", f"sys.exit({function}())"),
        ]
        return "\n".join(lines) + "\n"

    def script(self, module: str, comment: str) -> str:
        """Return a script that calls ``main`` of ``module``; ``comment`` is its second line."""
        first = f"#!{self.executable} -IS\n"
        if len(first.encode(errors="surrogateescape")) <= _FIRST_LINE and not any(
            character.isspace() for character in self.executable
        ):
            return f"{first}# {comment}\n{self.code(module, named=False)}"
        command = [self.executable, "-IS", "-c", self.code(module, named=True)]
        return f'#!/bin/sh\n# {comment}\nexec {shlex.join(command)} "$0" "$@"\n'


def search_path() -> list[str]:
    """Return the directories of this process's ``sys.path``, this project's first."""
    own = str(Path(launcher.__file__).absolute().parents[2])
    entries = [str(Path(entry).absolute()) for entry in sys.path]
    return [own, *(entry for entry in entries if entry != own and Path(entry).is_dir())]


async def find_interpreter() -> Interpreter:
    """Return this process's interpreter, after it has imported the shim with -I -S.

    :raises ShimError: the interpreter cannot import a module.
    :raises TimedOutError: the imports take more than 60 s.
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
        raise TimedOutError(f"{sys.executable} -IS did not import the shim within {_TIMEOUT:g} s")
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ShimError(
            f"{sys.executable} -IS cannot import the shim: {message}; "
            "install it and its requirements as plain packages of this interpreter"
        )
    answer = json.loads(done.stdout)
    path = tuple(answer["path"])
    return Interpreter(answer["executable"], path, answer["package"], answer["version"])
