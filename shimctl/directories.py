"""List the containers of this host from their directories, without asking a shim.

Only the standard library is imported here, because a shell waits for this list when it
completes an id.  :mod:`shimctl.discover` finds out which shims are alive, but takes longer.

Source: containerd core/runtime/v2/bundle.go; CRI-O's storage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Return the state directories of containerd to search; CONTAINERD_STATE adds one."""
    extra = os.environ.get("CONTAINERD_STATE")
    return list(dict.fromkeys(map(str, (*STATES, *states, *([extra] if extra else [])))))


def containers(states: Sequence[str | Path] = ()) -> Iterator[tuple[str, str]]:
    """Yield the namespace and id of every container that has a directory."""
    for path in listed(state_directory(), "*/*/config.json"):
        yield path.parent.parent.name, path.parent.name
    for root in roots(states):
        for path in listed(Path(root), f"{BUNDLES}/*/*"):
            yield path.parent.name, path.name
    for path in listed(Path(CRIO), "*/userdata/address"):
        yield "default", path.parent.parent.name


def listed(root: Path, pattern: str) -> list[Path]:
    """Return the matches of ``pattern`` below ``root``, sorted; none if it cannot be read."""
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []  # no permission, or removed meanwhile
