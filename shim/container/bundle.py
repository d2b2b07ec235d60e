"""A bundle on disk: what the manager put there, and the files the shim adds.

Source: OCI runtime-spec bundle.md; the names of the added files are those of
containerd-shim-runc-v2, which managers and people look for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim import jsontext, names
from shim.errors import InvalidError, NotFoundError
from shim.jsontext import as_runc_reads
from shim.linux.files import read_whole
from shim.linux.libc import is_in_memory
from shim.linux.modes import write_file
from shim.records import remove_exit

if TYPE_CHECKING:
    from collections.abc import Iterable


def checked_id(text: str, what: str = "container id") -> str:
    """Return ``text`` if it can name a container or an exec.

    :raises InvalidError: it cannot; it would also be a dangerous file name.
    """
    if not names.is_id(text):
        raise InvalidError(
            f"{what} {text[:100]!r} is not valid: use at most {names.ID_MAX} letters, digits "
            "and single . _ - between them"
        )
    return text


@dataclass(frozen=True, slots=True)
class Config:
    """The part of config.json a shim decides by."""

    terminal: bool
    root: str
    annotations: dict[str, str]
    own_pid_namespace: bool
    cgroups_path: str | None = None  # None without a ``linux`` section

    @classmethod
    def parse(cls, text: str | bytes) -> Config:
        """:raises InvalidError: this is not an OCI runtime configuration."""
        try:
            spec = jsontext.loads(text)
        except ValueError as exc:
            raise InvalidError(f"config.json is not JSON: {exc}") from None
        process = _value(spec, "process", dict)
        linux = _value(spec, "linux", dict)
        namespaces = _value(linux, "namespaces", list)
        cgroups_path = None
        if spec.get("linux") is not None:
            cgroups_path = as_runc_reads(str(linux.get("cgroupsPath") or ""))
        annotations = _value(spec, "annotations", dict)
        return cls(
            terminal=bool(process.get("terminal")),
            root=as_runc_reads(str(_value(spec, "root", dict).get("path", "rootfs"))),
            annotations={
                as_runc_reads(key): as_runc_reads(str(value)) for key, value in annotations.items()
            },
            # A pid namespace with a path is somebody else's: killing its init
            # is not what ends it.
            own_pid_namespace=any(
                isinstance(ns, dict) and ns.get("type") == "pid" and not ns.get("path")
                for ns in namespaces
            ),
            cgroups_path=cgroups_path,
        )

    @property
    def group(self) -> str:
        """The group this container's shim serves, or "" for one of its own."""
        return next((self.annotations[a] for a in names.GROUPS if a in self.annotations), "")


def _value(parent: Any, name: str, kind: type) -> Any:
    if not isinstance(parent, dict):
        raise InvalidError("config.json is not an OCI runtime configuration: no object")
    value = parent.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidError(f"config.json: {name} is a {type(value).__name__}")
    return value


# Source: include/linux/threads.h PID_MAX_LIMIT.
_PID_MAX = 1 << 22
_PID_LONGEST = 32  # bytes of a pid file
_PATH_LONGEST = 4096  # bytes of a path; linux/limits.h PATH_MAX


@dataclass(frozen=True, slots=True)
class Bundle:
    """A directory with a config.json.

    The names of an exec's files are plain strings: a Path keeps each of its parts
    in the table of interned strings, and CPython 3.12 lost them there until 3.12.7.

    ``in_memory`` is true if no write in it can wait for a disk.
    """

    path: Path
    in_memory: bool = False

    @classmethod
    def open(cls, path: str) -> Bundle:
        """:raises NotFoundError: there is no such directory."""
        if not path:
            raise InvalidError("the request names no bundle")
        bundle = cls(Path(path), is_in_memory(path))
        if not bundle.path.is_dir():
            raise NotFoundError(f"bundle {path} is not a directory")
        return bundle

    def config(self) -> Config:
        """:raises NotFoundError, InvalidError: config.json is missing, or broken."""
        try:
            return Config.parse((self.path / "config.json").read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"{self.path}/config.json does not exist") from None

    @property
    def journal(self) -> str:
        """The events that the manager has not acknowledged yet, of all of the shim's."""
        return f"{self.path}/events.journal"

    @property
    def rootfs(self) -> Path:
        """Where the manager's mounts go."""
        return self.path / "rootfs"

    @property
    def log(self) -> str:
        """What the runtime said when it created the container: lines of JSON."""
        return f"{self.path}/log.json"

    @property
    def work(self) -> Path:
        """Where criu keeps its own log, unless the manager names another place."""
        return self.path / "work"

    def pid_file(self, exec_id: str = "") -> str:
        return f"{self.path}/{exec_id or 'init'}.pid"

    def exec_log(self, exec_id: str) -> str:
        return f"{self.path}/{exec_id}.log.json"

    def exec_spec(self, exec_id: str) -> str:
        return f"{self.path}/{exec_id}.process.json"

    def write_shim_files(self, address: str, first: str) -> list[str]:
        """Write where the container's shim is, where it is missing; return the new files.

        containerd 2.3 calls no ``start`` for a pod's further containers, and keeps the
        address in a file of its own.  After a downgrade an older one looks for these,
        and deletes a container without them.  ``first`` is the bundle of the container
        that the shim was started for, in which the manager has left the executable's path.

        Source: containerd core/runtime/v2/shim_load.go, and 1.6's runtime/v2/shim_load.go.
        """
        written = []
        with suppress(FileNotFoundError):  # of the first bundle, too
            executable = read_whole(f"{first}/shim-binary-path", _PATH_LONGEST)
            if _write_missing(f"{self.path}/shim-binary-path", executable, 0o600):
                written.append(f"{self.path}/shim-binary-path")
        if address and _write_missing(f"{self.path}/address", os.fsencode(address), 0o644):
            written.append(f"{self.path}/address")
        return written

    def write_exec_spec(self, exec_id: str, spec: object) -> None:
        write_file(self.exec_spec(exec_id), jsontext.dumps(spec))

    def read_pid(self, exec_id: str = "") -> int:
        """Return the pid the runtime wrote, or 0 if there is none to be read."""
        try:
            pid = int(read_whole(self.pid_file(exec_id), _PID_LONGEST))
        except (OSError, ValueError):
            return 0
        return pid if 0 < pid <= _PID_MAX else 0

    def remove_files(self, paths: Iterable[str]) -> None:
        """Remove files of a creation that failed."""
        for path in paths:
            _remove(path)

    def remove_pid_files(self, exec_id: str = "") -> None:
        """Remove the pid file, and the one runc writes first and leaves when it is killed."""
        _remove(self.pid_file(exec_id))
        _remove(self.pid_file(f".{exec_id or 'init'}"))

    def remove_exit_files(self, exec_id: str = "") -> None:
        """Remove what an earlier process of this name left: there is another, or none."""
        self.remove_pid_files(exec_id)
        remove_exit(str(self.path), exec_id)

    def remove_exec_files(self, exec_id: str) -> None:
        """Remove what an exec left behind."""
        self.remove_exit_files(exec_id)
        _remove(self.exec_log(exec_id))
        _remove(self.exec_spec(exec_id))


def _write_missing(path: str, data: bytes, mode: int) -> bool:
    """Write the file unless it is there; return whether it was not."""
    if os.path.lexists(path):
        return False
    write_file(path, data, mode)
    return True


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - see Bundle
