"""Make the rows of a list: read the bundle of each container, and its start time."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from shim import jsontext
from shim.linux.files import read_whole
from shimctl.host.executable import executable_of
from shimctl.listing.origin import command_of, docker_file, origin_of
from shimctl.listing.row import Row
from shimctl.values import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shimctl.discover import Found

_CONFIG = 64 << 20  # the most bytes of a config that are read
_PREFIX = "containerd-shim-"


def rows_of(shims: Iterable[Found]) -> list[Row]:
    """Return a row for each of ``shims``; a value that cannot be read is absent."""
    return [row_of(found) for found in shims]


def row_of(found: Found) -> Row:
    """Return the row of one container; a value that cannot be read is absent."""
    row = Row(found, runtime=runtime_name(executable_of(found.bundle, found.shim_pid)))
    if found.pid and found.status in (Status.RUNNING, Status.PAUSED, Status.PAUSING):
        row = replace(row, started_at=_started_at(found.pid))
    if not found.bundle:
        return row
    path = Path(found.bundle, "config.json")
    config = _read_object(str(path))
    docker = docker_file(config)
    return replace(
        row,
        origin=origin_of(config, _read_object(docker) if docker else {}),
        command=command_of(config),
        created_at=_written_at(path),
    )


def runtime_name(executable: str) -> str:
    """Return containerd's name of the runtime with this executable.

    ``/usr/bin/containerd-shim-runc-v2`` is ``io.containerd.runc.v2``.  An executable with
    another name is returned unchanged; an empty text is unknown.  Source: containerd
    pkg/shim/util.go, ``BinaryName``.
    """
    name = executable.rpartition("/")[2]
    kind, _, version = name.removeprefix(_PREFIX).rpartition("-")
    known = name.startswith(_PREFIX) and kind and version
    return f"io.containerd.{kind}.{version}" if known else executable


def _read_object(path: str) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = jsontext.loads(read_whole(path, _CONFIG))
        if isinstance(found, dict):
            return found
    return {}


def _written_at(path: Path) -> datetime | None:
    with suppress(OSError, ValueError, OverflowError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return None


def _started_at(pid: int) -> datetime | None:
    with suppress(psutil.Error, OSError, ValueError, OverflowError):
        # The boot time in /proc/stat is in whole seconds, so this may be in the future.
        return datetime.fromtimestamp(min(psutil.Process(pid).create_time(), time.time()), UTC)
    return None
