"""Argument lists of runc-like runtimes, and the parser of their error messages.

This module runs no command.

Source: runc(8) and its man pages.  The flags are those of containerd's go-runc, so that
crun, runsc and wrappers made for the stock shim accept them too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim import jsontext
from shim.jsontext import as_runc_reads

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime of one container, and its global options.

    ``root`` is the directory of the runtime's state.
    """

    binary: str = "runc"
    root: str = ""
    systemd_cgroup: bool = False

    def argv(self, verb: str, *args: str, log: str = "") -> list[str]:
        """Return the whole command line; without ``log`` the runtime logs to its stderr."""
        command = [self.binary]
        if self.root:
            command += ["--root", self.root]
        if log:
            command += ["--log", log]
        command += ["--log-format", "json"]
        if self.systemd_cgroup:
            command.append("--systemd-cgroup")
        return [*command, verb, *args]


def is_about(words: list[bytes], root: bytes, id_: bytes) -> bool:
    """Return whether a command line is about container ``id_`` of the state directory ``root``.

    The id is the last argument, and the last but one of ``kill`` with a signal.  A wrapper of
    the runtime may have words before those of :meth:`Runtime.argv`.
    """
    if root and (b"--root", root) not in itertools.pairwise(words):
        return False
    has_signal = words[-3:-2] == [b"kill"] or words[-4:-2] == [b"kill", b"--all"]
    return [id_] == (words[-2:-1] if has_signal else words[-1:])


@dataclass(frozen=True, slots=True)
class Creation:
    """The options that ``create``, ``restore`` and ``exec`` have in common."""

    pid_file: str
    console_socket: str | None = None

    def args(self) -> list[str]:
        socket = ["--console-socket", self.console_socket] if self.console_socket else []
        return ["--pid-file", self.pid_file, *socket]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The options of ``checkpoint`` and ``restore``.  An empty path is the runtime's default."""

    image_path: str
    work_path: str = ""
    parent_path: str = ""
    exit: bool = False
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
    empty_namespaces: Sequence[str] = ()
    cgroups_mode: str = ""

    def args(self) -> list[str]:
        args = ["--image-path", self.image_path]
        if self.work_path:
            args += ["--work-path", self.work_path]
        if self.parent_path:
            args += ["--parent-path", self.parent_path]
        flags = {
            "--tcp-established": self.open_tcp,
            "--ext-unix-sk": self.external_unix_sockets,
            "--shell-job": self.terminal,
            "--file-locks": self.file_locks,
        }
        args += [flag for flag, wanted in flags.items() if wanted]
        for namespace in self.empty_namespaces:
            args += ["--empty-ns", namespace]
        if self.cgroups_mode:
            args += ["--manage-cgroups-mode", self.cgroups_mode]
        return args


def create_args(
    id_: str, bundle: str, creation: Creation, *, no_pivot: bool, no_new_keyring: bool
) -> list[str]:
    flags = ["--no-pivot"] if no_pivot else []
    flags += ["--no-new-keyring"] if no_new_keyring else []
    return ["--bundle", bundle, *creation.args(), *flags, id_]


def restore_args(
    id_: str, bundle: str, creation: Creation, image: Checkpoint, *, no_pivot: bool
) -> list[str]:
    flags = ["--no-pivot"] if no_pivot else []
    stay = ["--detach", "--no-subreaper"]
    return [*stay, "--bundle", bundle, *creation.args(), *image.args(), *flags, id_]


def exec_args(id_: str, process: str, creation: Creation) -> list[str]:
    return ["--process", process, "--detach", *creation.args(), id_]


def checkpoint_args(id_: str, checkpoint: Checkpoint) -> list[str]:
    stay = [] if checkpoint.exit else ["--leave-running"]
    return [*checkpoint.args(), *stay, id_]


def reason_of(text: str) -> str:
    """Return the error message in a runtime's log or stderr, "" if there is none.

    ``text`` has JSON records and other lines: a killed runtime leaves half a line, and
    hooks write any text.  The message is the first line of a panic, else the message of
    the last error record, else the last line that is neither empty nor JSON.
    """
    # Not splitlines(), which also splits at characters that JSON strings may contain.
    lines = _joined(text.split("\n"))
    return _panic(lines) or _last_error(lines) or _last_line(lines)


def _joined(lines: list[str]) -> list[str]:
    """Return ``lines``, with each record that crun 1.28 splits over several lines joined."""
    joined: list[str] = []
    record: list[str] = []
    for line in lines:
        if line == "{":
            joined += record
            record = [line]
        elif not record:
            joined.append(line)
        elif line == "}":
            joined.append(" ".join([*record, line]))
            record = []
        else:
            record.append(line)
    return joined + record


# How Go and Rust begin the report of a panic.
_PANICS = ("panic: ", "fatal error: ", "thread '")


def _panic(lines: list[str]) -> str:
    for number, line in enumerate(lines):
        if not line.startswith(_PANICS):
            continue
        if not line.startswith("thread '"):
            return line.strip()
        if " panicked at " in line:  # the message is on the next line, or between quotes
            return " ".join(part.strip() for part in lines[number : number + 2])
    return ""


def _last_error(lines: list[str]) -> str:
    for line in reversed(lines):
        if not line.startswith("{"):
            continue
        try:
            entry = jsontext.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            message = as_runc_reads(str(entry.get("msg", ""))).strip()
            if message:
                return message
    return ""


def _last_line(lines: list[str]) -> str:
    plain = (line.strip() for line in reversed(lines) if not line.lstrip().startswith("{"))
    return next((line for line in plain if line), "")
