"""List the containers of this host from their directories, without asking a shim.

Neither trio nor psutil is imported here, because a shell waits for this list when it
completes an id.  :mod:`shimctl.discover` finds out which shims are alive, but takes longer.

Source: containerd core/runtime/v2/bundle.go; CRI-O's storage.
"""

from __future__ import annotations

import os
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shim import records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OURS = "/run/trio-shim"
STATES = ("/run/containerd", "/run/docker/containerd/daemon", "/run/k3s/containerd")
BUNDLES = "io.containerd.runtime.v2.task"
CRIO = "/run/containers/storage/overlay-containers"  # /<id>/userdata/address


def state_directory() -> Path:
    """Return the directory of shimctl's own containers: SHIMCTL_STATE, or /run/trio-shim."""
    return Path(os.environ.get("SHIMCTL_STATE") or OURS)


def events_socket() -> Path:
    """Return the socket that shims launched by shimctl send their events to."""
    return state_directory() / "events.sock"


def roots(states: Sequence[str | Path] = ()) -> list[str]:
    """Return the state directories of containerd to search; CONTAINERD_STATE adds one.

    A directory with several names, such as /run/containerd and /var/run/containerd/, is
    listed once.
    """
    extra = os.environ.get("CONTAINERD_STATE")
    named = map(str, (*STATES, *states, *([extra] if extra else [])))
    found: dict[str, str] = {}
    for name in named:
        found.setdefault(os.path.realpath(name), name)
    return list(found.values())


class Entry(NamedTuple):
    """A container that has a directory, its bundle."""

    namespace: str
    id: str
    bundle: Path

    def state(self) -> str:
        """Return a word for its state, from its files: ``running``, ``exited 7``, ``stopped``.

        The text is ``created`` if the runtime wrote no pid.
        """
        if (record := records.read_exit(str(self.bundle), "")) is not None:
            return "exited" if record.reason else f"exited {record.exit_status}"
        try:
            pid = int((self.bundle / "init.pid").read_bytes()[:20])
        except (OSError, ValueError):
            return "created"
        return "running" if Path(f"/proc/{pid}").exists() else "stopped"


def own_bundles() -> list[Path]:
    """Return the directories of shimctl's own containers."""
    return [path.parent for path in listed(state_directory(), "*/*/config.json")]


def containers(states: Sequence[str | Path] = ()) -> Iterator[Entry]:
    """Yield every container that has a directory."""
    for bundle in own_bundles():
        yield Entry(bundle.parent.name, bundle.name, bundle)
    for root in roots(states):
        for path in listed(Path(root), f"{BUNDLES}/*/*"):
            yield Entry(path.parent.name, path.name, path)
    for path in listed(Path(CRIO), "*/userdata/address"):
        yield Entry("default", path.parent.parent.name, path.parent)


def listed(root: Path, pattern: str) -> list[Path]:
    """Return the matches of ``pattern`` below ``root``, sorted.

    A directory that cannot be read, or that another command removes meanwhile, has none.  With
    ``Path.glob`` of Python 3.11 and 3.12 the removal of one directory raises an error.
    """
    names = glob(pattern, root_dir=root, include_hidden=True)  # noqa: PTH207 - as said
    return sorted(root / name for name in names)
