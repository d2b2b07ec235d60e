"""Installs the shim's executable and shimctl in a directory of containerd's PATH.

Each is one file that works under any name, as a copy or a link.  If there is a C
compiler, the shim's executable is a small native program.  It sends the call to a
running fork server.  In every other case it runs the Python code that is compiled
into it.
"""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import names
from shim.errors import ExistsError, InvalidError, NotFoundError, ShimError, TimedOutError
from shim.linux.modes import make_directories
from shim.start import identity
from shimctl.host.interpreter import find_interpreter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shimctl.host.interpreter import Interpreter

PREFIX = "/usr/local"
SOURCE = Path(__file__).with_name("native") / "launcher.c"

# In every file that this module writes, and in none that pip writes.  uninstall removes
# only a file with this mark.
_INSTALL_MARK = "installed by shimctl install"
# In every executable of this project, whether pip or this module wrote it.  install
# replaces only a file with one of these marks; earlier versions wrote the first.
_PROJECT_MARKS = (b"shim.launcher", b"shim.start.launcher", b"shimctl.cli")
_COMPILER_TIMEOUT = 60.0  # s for the compiler
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True, slots=True)
class Installed:
    """The files that were installed or removed.  ``remark`` names a step that failed, and why."""

    files: tuple[str, ...]
    native: bool = False
    remark: str = ""


async def install(
    prefix: str | Path = PREFIX, *, name: str = names.EXECUTABLE, native: bool | None = None
) -> Installed:
    """Write ``name`` and shimctl into ``prefix``/bin; replace the files of an earlier call.

    ``native`` is true to build the native launcher, false not to, and None to build it
    if possible.

    :raises ExistsError: another program has that name.
    :raises InvalidError: ``name`` cannot be the name of a shim.
    :raises NotFoundError: ``native`` is true and there is no C compiler.
    :raises ShimError: the interpreter or the compiler failed.
    """
    directory = _directory(prefix, name)
    targets = (directory / name, directory / "shimctl")
    for target in targets:
        if _content(target) and not _is_of(target, _PROJECT_MARKS):
            raise ExistsError(
                f"cannot replace {target}: it is another program; remove it, or use another --name"
            )
    interpreter = await find_interpreter()
    program = interpreter.script("shim.start.launcher", _INSTALL_MARK).encode(
        errors="surrogateescape"
    )
    remark = ""
    if native is not False:
        try:
            program = await build(interpreter)
        except ShimError as exc:
            if native:
                raise
            remark = f"cannot build the native launcher: {exc}"
    make_directories(directory, 0o755, parents=0o755)
    _replace(targets[0], program)
    script = interpreter.script("shimctl.cli", _INSTALL_MARK)
    _replace(targets[1], script.encode(errors="surrogateescape"))
    is_native = native is not False and not remark
    return Installed(tuple(map(str, targets)), is_native, remark)


def uninstall(prefix: str | Path = PREFIX, *, name: str = names.EXECUTABLE) -> Installed:
    """Remove the file that :func:`install` wrote, and shimctl after the last shim.

    Missing files are no error.

    :raises ExistsError: another program has that name, or pip wrote it.
    """
    directory = _directory(prefix, name)
    target, shimctl = directory / name, directory / "shimctl"
    removed = []
    if _content(target):
        if not _is_of(target, [_INSTALL_MARK.encode()]):
            raise ExistsError(
                f"cannot remove {target}: it was not {_INSTALL_MARK}; "
                "use the tool that installed it"
            )
        target.unlink()
        removed.append(str(target))
    others = any(
        _is_of(other, [_INSTALL_MARK.encode()]) for other in directory.glob("containerd-shim-*")
    )
    if not others and _is_of(shimctl, [_INSTALL_MARK.encode()]):
        shimctl.unlink()
        removed.append(str(shimctl))
    return Installed(tuple(removed))


async def build(interpreter: Interpreter, *extra: str) -> bytes:
    """Compile the native launcher of ``interpreter``; return the program.

    ``extra`` are further arguments for the compiler.

    :raises NotFoundError: there is no C compiler.
    :raises TimedOutError: the compiler took more than 60 s.
    :raises ShimError: the compiler failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise NotFoundError("there is no C compiler; install gcc or use --no-native")
    constants = {
        "VERSION": interpreter.version,
        "PACKAGE": interpreter.package,
        "PYTHON": interpreter.executable,
        "DIRECTORY": identity.DIRECTORY,
        "CODE": f"# {_INSTALL_MARK}\n" + interpreter.code("shim.start.launcher", named=True),
        "ALONE": interpreter.code("shim.start.launcher", function="main_alone", named=True),
    }
    defines = [f"-D{name}={_literal(value)}" for name, value in constants.items()]
    with tempfile.TemporaryDirectory(prefix="shimctl-") as scratch:
        output = Path(scratch) / "launcher"
        command = [compiler, *_FLAGS, *defines, *extra, "-o", str(output), str(SOURCE)]
        # A static program starts in a third less time.  Some machines have no static libc.
        done = await _compile([*command, "-static"])
        if done.returncode:
            done = await _compile(command)
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise ShimError(f"cannot compile {SOURCE.name} with {compiler}: {message}")
        return output.read_bytes()


async def _compile(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    with trio.move_on_after(_COMPILER_TIMEOUT):
        return await trio.run_process(
            command,
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    raise TimedOutError(
        f"cannot compile {SOURCE.name}: {command[0]} took more than {_COMPILER_TIMEOUT:g} s"
    )


def find_compiler() -> str | None:
    """Return the path of $CC, cc, gcc or clang, the first that is installed, or None."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _literal(text: str) -> str:
    """Return a C string literal.  An octal escape has three digits at most, unlike a hex one."""
    plain = (string.ascii_letters + string.digits + " ./_-").encode()
    quoted = (chr(b) if b in plain else f"\\{b:03o}" for b in os.fsencode(text))
    return f'"{"".join(quoted)}"'


def _directory(prefix: str | Path, name: str) -> Path:
    if "/" in name or name in ("", ".", "..", "shimctl"):
        raise InvalidError(f"{name!r} cannot be the name of a shim; use containerd-shim-NAME-vN")
    return Path(prefix).absolute() / "bin"


def _content(path: Path) -> bytes:
    """Return the content of a file, empty if it does not exist or is a broken link."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _is_of(path: Path, marks: Iterable[bytes]) -> bool:
    content = _content(path)
    return any(mark in content for mark in marks)


def _replace(target: Path, content: bytes) -> None:
    """Replace an executable in one step: a program that runs it gets the old or the new file."""
    fd, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o755)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(scratch).unlink()
        raise
