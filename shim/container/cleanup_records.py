"""The other containers of a pod, noted where a clean-up after its shim finds them.

A manager that took an answer of version 3 knows one shim for a pod: when that
dies, it calls ``delete`` for the container the shim was started for, and for no
other.  So for each other one a file ``members/ID`` lies in the bundle of that
first container, from before it is made until it is deleted, with what ends it:
its own bundle may be gone by then.

Not here: the ending, which is ``shim.container.orphaned`` and ``shim.delete``.

Source: containerd core/runtime/v2/shim_manager.go, Start and cleanupShim.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shim import log
from shim.cgroup.v1 import CgroupV1
from shim.container.bundle import checked_id
from shim.errors import InvalidError
from shim.linux.files import read_whole
from shim.linux.modes import make_directory, write_file
from shim.runc.command import Runtime

if TYPE_CHECKING:
    from shim.cgroup.find import Cgroup

_DIRECTORY = "members"
_LONGEST = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class CleanupRecord:
    """What a container is known and ended by, without its shim and its bundle.

    ``pid`` is 0 while there is no init.  ``cgroups`` are what its cgroup may be
    called, from the end of the path.
    """

    id: str
    bundle: str
    runtime: Runtime
    pid: int = 0
    cgroups: tuple[str, ...] = ()
    own_pid_namespace: bool = False

    @classmethod
    def parse(cls, text: str | bytes) -> CleanupRecord:
        """:raises InvalidError: this is no record's note."""
        match _json(text):
            case {
                "id": str(id_),
                "bundle": str(bundle),
                "runtime": {
                    "binary": str(binary),
                    "root": str(root),
                    "systemd_cgroup": bool(flag),
                },
                "pid": int(pid),
                "cgroups": [*cgroups],
                "own_pid_namespace": bool(own),
            } if all(isinstance(name, str) for name in cgroups):
                checked_id(id_)
                if "\0" in bundle + root + binary or not bundle.startswith("/") or not binary:
                    raise InvalidError("the note's paths are none")
                runtime = Runtime(binary, root, flag)
                return cls(id_, bundle, runtime, pid, tuple(cgroups), own)
            case _:
                raise InvalidError("the note is not a record's")


def _json(text: str | bytes) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def cgroup_names_of(cgroup: Cgroup | None) -> tuple[str, ...]:
    """Return the directories of ``cgroup`` as names of a :class:`CleanupRecord`'s."""
    if cgroup is None:
        return ()
    found = cgroup.directories.values() if isinstance(cgroup, CgroupV1) else [cgroup.directory]
    return tuple(dict.fromkeys(directory.strip("/") for directory in found))


@dataclass(frozen=True, slots=True)
class CleanupRecords:
    """The notes in ``bundle``, the first container's.  Without a bundle there are none."""

    bundle: str = ""

    def write(self, record: CleanupRecord) -> None:
        """Write down what is known of ``record``, over what was known before.

        Nothing for the first container itself, which has its bundle.  A note
        that cannot be written is no reason to be without the container.
        """
        if not self.bundle or os.path.realpath(record.bundle) == self.bundle:
            return
        # Torn by our own death it would be worse than the one it replaces.  No
        # container's name begins with a dot.
        draft = self._path(f".{record.id}")
        try:
            # Not its parents: whose bundle is gone, is gone with its pod's clean-up.
            make_directory(draft.parent, 0o711, exist_ok=True)
            write_file(draft, json.dumps(asdict(record)))
            draft.replace(self._path(record.id))
        except FileNotFoundError as exc:
            log.debug("the bundle of the first container is gone", id=record.id, error=exc)
        except OSError as exc:
            log.warning("if the shim dies, a container may stay", id=record.id, error=exc)

    def remove(self, id_: str) -> None:
        """Remove the note of ``id_``, if there is one."""
        if self.bundle:
            with suppress(OSError):
                self._path(id_).unlink()

    def read(self) -> list[CleanupRecord]:
        """Return what is noted; what makes no sense is left out."""
        records = []
        for name in self.ids():
            path = self._path(name)
            try:
                record = CleanupRecord.parse(read_whole(str(path), _LONGEST))
            except (OSError, InvalidError) as exc:
                log.warning("a note of the pod's shim is unreadable", path=path, error=exc)
                continue
            if record.id == name:
                records.append(record)
        return records

    def ids(self) -> list[str]:
        """Return the ids that something is noted of, whether it makes sense or not."""
        if not self.bundle:
            return []
        try:
            found = os.listdir(f"{self.bundle}/{_DIRECTORY}")  # noqa: PTH208 - names are wanted
        except OSError:
            return []
        return sorted(name for name in found if not name.startswith("."))

    def _path(self, name: str) -> Path:
        return Path(self.bundle) / _DIRECTORY / name
