"""How a container of ``shimctl run`` or ``create`` is run: kept so that it can be run again.

The value is the file ``run.json`` in its working directory, beside config.json, which has
everything that the OCI runtime reads.  A file of a newer version is refused, because a run
without a setting that this version does not know would not be the same.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from shim.api.mount_pb2 import Mount
from shim.errors import InvalidError, NotFoundError, ShimError, UnsupportedError
from shim.linux.files import read_whole
from shimctl.replacing import replace_file
from shimctl.standalone import logger

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FILE = "run.json"
VERSION = 1
_LONGEST = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class RootfsMount:
    """A mount that the shim makes for the rootfs; see containerd's Mount."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]

    def message(self) -> Mount:
        """Return the message for a Create request."""
        return Mount(type=self.type, source=self.source, target=self.target, options=self.options)


@dataclass(frozen=True, slots=True)
class Settings:
    """``run.json``, without its version.

    ``runtime`` is the path of the shim's executable.  ``log`` is the absolute path of a
    separate log file, ``log_limit`` is in bytes.  ``remove`` is that of ``run --rm``.
    ``runs`` is the number of the run, from 1 on.
    """

    runtime: str
    binary: str = ""  # the OCI runtime; empty for the shim's default
    interactive: bool = False
    terminal: bool = False
    log: str = ""
    log_limit: int = logger.LIMIT
    policy: str = ""
    debug: bool = False
    remove: bool = False
    runs: int = 1
    rootfs: tuple[RootfsMount, ...] = ()

    def next(self) -> Settings:
        """Return the settings of the next run."""
        return replace(self, runs=self.runs + 1)

    def write(self, work: Path) -> None:
        """Replace the file in ``work``.

        :raises ShimError: it cannot be written.
        """
        path = work / FILE
        value = json.dumps({"version": VERSION, **asdict(self)})
        try:
            replace_file(path, value.encode(), 0o600)
        except OSError as exc:
            raise ShimError(f"cannot write {path}: {exc.strerror}") from None


def mounts_of(messages: Iterable[Mount]) -> tuple[RootfsMount, ...]:
    """Return the mounts of a Create request as settings."""
    return tuple(
        RootfsMount(one.type, one.source, one.target, tuple(one.options)) for one in messages
    )


def read_settings(work: Path) -> Settings:
    """Read the file in ``work``.

    :raises NotFoundError: there is none, or no such directory.
    :raises UnsupportedError: a newer version of shimctl wrote it.
    :raises InvalidError: it cannot be read.
    """
    path = work / FILE
    try:
        value = json.loads(read_whole(str(path), _LONGEST))
        version = value.pop("version")
        if type(version) is int and version > VERSION:
            raise UnsupportedError(
                f"{path} has version {version}; this shimctl reads version {VERSION}"
            )
        rootfs = tuple(
            RootfsMount(**mount | {"options": tuple(mount["options"])})
            for mount in value.pop("rootfs")
        )
        return _checked(value, rootfs)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no {path}") from None
    except OSError as exc:
        raise InvalidError(f"cannot read {path}: {exc.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InvalidError(f"{path} is damaged; delete the container and run it again") from None


def _checked(value: dict[str, Any], rootfs: tuple[RootfsMount, ...]) -> Settings:
    """Return the settings in ``value``.

    :raises TypeError: a field is missing, unknown, or of another type.
    """
    known = Settings(**value, rootfs=rootfs)
    for field in fields(Settings):
        given = getattr(known, field.name)
        if field.name != "runtime" and type(given) is not type(field.default):
            raise TypeError(field.name)
    if type(known.runtime) is not str or not os.path.isabs(known.runtime):  # noqa: PTH117 - a text
        raise TypeError("runtime")
    return known
