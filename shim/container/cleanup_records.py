"""The records by which ``delete`` ends the other containers of a pod.

A manager that accepts the bootstrap reply of version 3 knows one daemon for a pod.  When
that daemon dies, the manager calls ``delete`` for the first container only.  So the
daemon writes a file ``members/ID`` for each other container into the bundle of the first
one.  The file exists from before the container's create until its delete.  It has all the
data for ending the container, because the container's own bundle may be removed first.

``shim.container.orphaned`` and ``shim.delete`` end the containers.

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
    """The data for ending a container without its daemon and its bundle.

    ``pid`` is that of the init process, 0 before it exists.  ``cgroups`` are the possible
    names of the container's cgroup: each is one or more last components of its path.
    """

    id: str
    bundle: str
    runtime: Runtime
    pid: int = 0
    cgroups: tuple[str, ...] = ()
    own_pid_namespace: bool = False

    @classmethod
    def parse(cls, text: str | bytes) -> CleanupRecord:
        """Decode the JSON of a record.

        :raises InvalidError: ``text`` is not a valid record.
        """
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
                    raise InvalidError("invalid cleanup record: a path is not valid")
                runtime = Runtime(binary, root, flag)
                return cls(id_, bundle, runtime, pid, tuple(cgroups), own)
            case _:
                raise InvalidError("invalid cleanup record: a field is missing or of a wrong type")


def _json(text: str | bytes) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def cgroup_names_of(cgroup: Cgroup | None) -> tuple[str, ...]:
    """Return the directories of ``cgroup`` as names for :attr:`CleanupRecord.cgroups`."""
    if cgroup is None:
        return ()
    found = cgroup.directories.values() if isinstance(cgroup, CgroupV1) else [cgroup.directory]
    return tuple(dict.fromkeys(directory.strip("/") for directory in found))


@dataclass(frozen=True, slots=True)
class CleanupRecords:
    """The records in ``bundle``, that of the pod's first container.

    Without a bundle no record is written.
    """

    bundle: str = ""

    def write(self, record: CleanupRecord) -> None:
        """Write ``record``, in the place of an earlier one.

        The first container needs none: its bundle has the same facts.  If the record
        cannot be written, a warning is logged, and the container is still created.
        """
        if not self.bundle or os.path.realpath(record.bundle) == self.bundle:
            return
        # Written beside its place and renamed: if the daemon dies during the write, the
        # earlier record stays whole.  No container id begins with a dot.
        draft = self._path(f".{record.id}")
        try:
            # Without its parents: a removed bundle must not be made again.
            make_directory(draft.parent, 0o711, exist_ok=True)
            write_file(draft, json.dumps(asdict(record)))
            draft.replace(self._path(record.id))
        except FileNotFoundError as exc:
            log.debug("cannot write the cleanup record: no bundle", id=record.id, error=exc)
        except OSError as exc:
            log.warning(
                "cannot write the cleanup record: a dead shim may leave this container",
                id=record.id,
                error=exc,
            )

    def remove(self, id_: str) -> None:
        """Remove the record of ``id_``, if there is one."""
        if self.bundle:
            with suppress(OSError):
                self._path(id_).unlink()

    def read(self) -> list[CleanupRecord]:
        """Return the records; an invalid one is logged and left out."""
        records = []
        for name in self.ids():
            path = self._path(name)
            try:
                record = CleanupRecord.parse(read_whole(str(path), _LONGEST))
            except (OSError, InvalidError) as exc:
                log.warning("cannot read a cleanup record", path=path, error=exc)
                continue
            if record.id == name:
                records.append(record)
        return records

    def ids(self) -> list[str]:
        """Return the container ids that have a record, valid or not."""
        if not self.bundle:
            return []
        try:
            found = os.listdir(f"{self.bundle}/{_DIRECTORY}")  # noqa: PTH208 - names are wanted
        except OSError:
            return []
        return sorted(name for name in found if not name.startswith("."))

    def _path(self, name: str) -> Path:
        return Path(self.bundle) / _DIRECTORY / name
