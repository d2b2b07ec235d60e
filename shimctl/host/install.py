"""Installs the shim's executable and shimctl in a directory of containerd's PATH.

The caller has the other files, those below ``share``: man pages and completions.

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
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from shim import names
from shim.errors import ExistsError, InvalidError, NotFoundError, ShimError, TimedOutError
from shim.linux.modes import make_directories
from shim.start import identity
from shimctl.host.interpreter import find_interpreter
from shimctl.replacing import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shimctl.host.interpreter import Interpreter

PREFIX = "/usr/local"
SOURCE = Path(__file__).with_name("native") / "launcher.c"

# In every file that this module writes, and in none that pip writes.  uninstall removes
# only a file with this mark.
_INSTALL_MARK = "installed by shimctl install"
# In every executable of this project, whether pip or this module wrote it.  install
# replaces only a file with one of these marks; earlier versions wrote the first.
_PROJECT_MARKS = (b"shim.launcher", b"shim.start.launcher", b"shimctl.cli")
_COMMENTS = {".1": '.\\"'}  # how a comment begins, by a file's suffix; others have "#"
_COMPILER_TIMEOUT = 60.0  # s for the compiler
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True, slots=True)
class Installed:
    """The files that were installed or removed.

    ``files`` are the executables, ``shared`` the files below ``share``.  ``remark`` names
    the steps that failed or were left out, and why.
    """

    files: tuple[str, ...]
    native: bool = False
    remark: str = ""
    shared: tuple[str, ...] = ()


async def install(
    prefix: str | Path = PREFIX,
    *,
    name: str = names.EXECUTABLE,
    native: bool | None = None,
    shared: Mapping[str, str] = MappingProxyType({}),
) -> Installed:
    """Write ``name`` and shimctl into ``prefix``/bin; replace the files of an earlier call.

    ``native`` is true to build the native launcher, false not to, and None to build it
    if possible.  ``shared`` has the texts of further files by their paths below
    ``prefix``/share.  Such a file of another installer, as pip or a package, is not replaced.

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
    remarks = []
    if native is not False:
        try:
            program = await build(interpreter)
        except ShimError as exc:
            if native:
                raise
            remarks.append(f"cannot build the native launcher: {exc}")
    is_native = native is not False and not remarks
    make_directories(directory, 0o755, parents=0o755)
    replace_file(targets[0], program, 0o755)
    script = interpreter.script("shimctl.cli", _INSTALL_MARK)
    replace_file(targets[1], script.encode(errors="surrogateescape"), 0o755)
    share = directory.parent / "share"
    written, foreign = _write_shared(share, shared)
    if foreign:
        count = "1 file" if len(foreign) == 1 else f"{len(foreign)} files"
        remarks.append(
            f"{count} below {share} of another installer not replaced, such as {foreign[0]}; "
            "use that installer to update them"
        )
    return Installed(tuple(map(str, targets)), is_native, "; ".join(remarks), written)


def uninstall(
    prefix: str | Path = PREFIX, *, name: str = names.EXECUTABLE, shared: Iterable[str] = ()
) -> Installed:
    """Remove the file that :func:`install` wrote, and shimctl after the last shim.

    With shimctl go the files that :func:`install` wrote into the directories of ``shared``,
    which are paths below ``prefix``/share.  Missing files are no error.

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
    ours = [] if others else _marked(directory.parent / "share", shared)
    for path in ours:
        path.unlink()
    return Installed(tuple(removed), shared=tuple(map(str, ours)))


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


def _write_shared(
    share: Path, files: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write ``files``, and remove those of an earlier version.

    Returns the names of the written files, and of those that another installer wrote with
    another text, which stay.
    """
    written, foreign = [], []
    for name, text in files.items():
        path = share / name
        present = _content(path)
        if present and not _is_of(path, [_INSTALL_MARK.encode()]):
            if present != text.encode():
                foreign.append(str(path))
            continue
        make_directories(path.parent, 0o755, parents=0o755)
        # At the end: the first line of a zsh function has a meaning.
        comment = f"{_COMMENTS.get(path.suffix, '#')} {_INSTALL_MARK}\n"
        replace_file(path, f"{text}{comment}".encode(), 0o644)
        written.append(str(path))
    for path in _marked(share, files):
        if str(path) not in written:
            path.unlink()
    return tuple(written), tuple(foreign)


def _marked(share: Path, files: Iterable[str]) -> list[Path]:
    """Return the files that :func:`install` wrote into the directories of ``files``."""
    directories = sorted({(share / name).parent for name in files})
    found = [
        path
        for directory in directories
        for pattern in ("*shimctl*", f"{names.EXECUTABLE}.*")
        for path in sorted(directory.glob(pattern))
    ]
    return [path for path in found if _is_of(path, [_INSTALL_MARK.encode()])]


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
