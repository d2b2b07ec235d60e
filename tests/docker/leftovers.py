"""The remains of deleted docker containers, found on the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.leftovers import (
    RUNC,
    cgroup_parents,
    fifos,
    is_shim,
    mounts,
    processes,
    sockets,
    subdirectories,
    wait_none,
)

if TYPE_CHECKING:
    from tests.docker.docker import Docker

NAMESPACE = "moby"
TASKS = "containerd/daemon/io.containerd.runtime.v2.task/" + NAMESPACE


def leftovers(docker: Docker) -> list[str]:
    """Describe everything of the tests' containers that is still there, one a line."""
    daemon, ids = docker.dockerd, docker.find_ids()
    root, parent = str(daemon.root), daemon.cgroup_parent
    found = [f"process {pid}: {line}" for pid, line in processes(root, parent, daemon.pids)]
    # dockerd makes its data directory a mount.
    found += [f"mount {point}" for point in mounts(root) if point != f"{root}/data"]
    found += [f"fifo {path}" for path in fifos(daemon.root / "exec")]
    found += [f"socket {path}" for path in sockets(str(daemon.containerd_address), NAMESPACE, ids)]
    states = [RUNC / NAMESPACE / name for name in ids]
    found += [f"directory {path}" for path in states if path.exists()]
    for directory in (
        daemon.root / "exec" / TASKS,
        daemon.root / "data" / TASKS,
        daemon.root / "exec/runtime-runc" / NAMESPACE,
        *cgroup_parents(parent),
    ):
        found += [f"directory {path}" for path in subdirectories(directory)]
    return found


def wait_nothing_left(docker: Docker, timeout: float = 15) -> list[str]:
    """Return the remains after ``timeout`` s, or an empty list once there are no remains."""
    return wait_none(lambda: leftovers(docker), timeout)


def shims(docker: Docker, container: str) -> list[int]:
    """Find the shims of ``container``, by their command lines."""
    ident = docker.inspect(container)["Id"]
    daemon = docker.dockerd
    found = processes(str(daemon.root), daemon.cgroup_parent, daemon.pids)
    return [pid for pid, line in found if f"-id {ident}" in line and is_shim(line)]
