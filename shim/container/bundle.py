"""A bundle on disk: config.json, and the files that the shim adds.

Source: OCI runtime-spec bundle.md; the added files have the names that
containerd-shim-runc-v2 gives them, since managers and users read them.
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
    """Return ``text`` if it is a valid id; ``what`` names it in the error.

    :raises InvalidError: it is not valid; it could name a file outside the bundle.
    """
    if not names.is_id(text):
        raise InvalidError(
            f"{what} {text[:100]!r} is not valid: use at most {names.ID_MAX} letters, digits "
            "and single . _ - between them"
        )
    return text


@dataclass(frozen=True, slots=True)
class Config:
    """The fields of config.json that the shim uses."""

    terminal: bool
    root: str
    annotations: dict[str, str]
    own_pid_namespace: bool
    cgroups_path: str | None = None  # None without a ``linux`` section

    @classmethod
    def parse(cls, text: str | bytes) -> Config:
        """Decode config.json.

        :raises InvalidError: ``text`` is not an OCI runtime configuration.
        """
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
            # A pid namespace with a path has another init process: the exit of the
            # container's does not end the namespace.
            own_pid_namespace=any(
                isinstance(ns, dict) and ns.get("type") == "pid" and not ns.get("path")
                for ns in namespaces
            ),
            cgroups_path=cgroups_path,
        )

    @property
    def group(self) -> str:
        """The id of the pod that one daemon serves, or "" for a daemon per container."""
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

    The names of an exec's files are plain strings: pathlib interns each part of a Path,
    and CPython 3.12 before 3.12.7 leaks interned strings.

    ``in_memory`` is true if the file system is in memory, so that no write waits for a disk.
    """

    path: Path
    in_memory: bool = False

    @classmethod
    def open(cls, path: str) -> Bundle:
        """Return the bundle at ``path``.

        :raises InvalidError: ``path`` is empty.
        :raises NotFoundError: there is no such directory.
        """
        if not path:
            raise InvalidError("the request names no bundle")
        bundle = cls(Path(path), is_in_memory(path))
        if not bundle.path.is_dir():
            raise NotFoundError(f"bundle {path} is not a directory")
        return bundle

    @classmethod
    def known(cls, path: str) -> Bundle:
        """Return the bundle at ``path``, which may have been removed."""
        return cls(Path(path), is_in_memory(path))

    def config(self) -> Config:
        """Read config.json.

        :raises NotFoundError: the file is missing.
        :raises InvalidError: it is not an OCI runtime configuration.
        """
        try:
            return Config.parse((self.path / "config.json").read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"{self.path}/config.json does not exist") from None

    @property
    def journal(self) -> str:
        """The path of the events that the manager has not acknowledged yet."""
        return f"{self.path}/events.journal"

    @property
    def rootfs(self) -> Path:
        """The directory where the mounts of a Create request are made."""
        return self.path / "rootfs"

    @property
    def log(self) -> str:
        """The path of the runtime's log of the create: lines of JSON."""
        return f"{self.path}/log.json"

    @property
    def work(self) -> Path:
        """The directory of criu's log, unless the manager names another."""
        return self.path / "work"

    def pid_file(self, exec_id: str = "") -> str:
        return f"{self.path}/{exec_id or 'init'}.pid"

    def exec_log(self, exec_id: str) -> str:
        return f"{self.path}/{exec_id}.log.json"

    def exec_spec(self, exec_id: str) -> str:
        return f"{self.path}/{exec_id}.process.json"

    def write_shim_files(self, address: str, first: str) -> list[str]:
        """Write the missing files by which containerd finds the shim; return their paths.

        containerd 2.3 calls no ``start`` for the later containers of a pod, and keeps the
        address in another file.  After a downgrade, an older containerd reads ``address``
        and ``shim-binary-path``, and deletes a container without them.  ``first`` is the
        bundle of the pod's first container, where containerd wrote ``shim-binary-path``.

        :raises OSError: a file cannot be written.

        Source: containerd core/runtime/v2/shim_load.go, and 1.6's runtime/v2/shim_load.go.
        """
        written = []
        with suppress(FileNotFoundError):  # also if the first bundle was removed
            executable = read_whole(f"{first}/shim-binary-path", _PATH_LONGEST)
            if _write_missing(f"{self.path}/shim-binary-path", executable, 0o600):
                written.append(f"{self.path}/shim-binary-path")
        if address and _write_missing(f"{self.path}/address", os.fsencode(address), 0o644):
            written.append(f"{self.path}/address")
        return written

    def write_exec_spec(self, exec_id: str, spec: object) -> None:
        write_file(self.exec_spec(exec_id), jsontext.dumps(spec))

    def read_pid(self, exec_id: str = "") -> int:
        """Return the pid that the runtime wrote, or 0 if there is no valid pid file."""
        try:
            pid = int(read_whole(self.pid_file(exec_id), _PID_LONGEST))
        except (OSError, ValueError):
            return 0
        return pid if 0 < pid <= _PID_MAX else 0

    def remove_files(self, paths: Iterable[str]) -> None:
        """Remove the files of a failed create."""
        for path in paths:
            _remove(path)

    def remove_pid_files(self, exec_id: str = "") -> None:
        """Remove the pid file, and the temporary one that a killed runc leaves."""
        _remove(self.pid_file(exec_id))
        _remove(self.pid_file(f".{exec_id or 'init'}"))

    def remove_exit_files(self, exec_id: str = "") -> None:
        """Remove the pid files and the exit record of an earlier process with this id."""
        self.remove_pid_files(exec_id)
        remove_exit(str(self.path), exec_id)

    def remove_exec_files(self, exec_id: str) -> None:
        """Remove all files of an exec."""
        self.remove_exit_files(exec_id)
        _remove(self.exec_log(exec_id))
        _remove(self.exec_spec(exec_id))


def _write_missing(path: str, data: bytes, mode: int) -> bool:
    """Write the file unless it exists; return whether it was written."""
    if os.path.lexists(path):
        return False
    write_file(path, data, mode)
    return True


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - see Bundle
