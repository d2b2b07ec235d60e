"""What pods that are gone may have left behind, found by looking at the machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cri.node import NAMESPACE
from tests.e2e.leftovers import (
    RUNC,
    cgroup_parents,
    fifos,
    mounts,
    processes,
    sockets,
    subdirectories,
    wait_none,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.cri.node import Node
    from tests.cri.pods import Pod


def leftovers(node: Node, pods: Iterable[Pod]) -> list[str]:
    """Describe everything of ``pods``, and of the node's tasks, that is still there."""
    root = str(node.root)
    # A pod that was refused has none.
    ids = [id_ for pod in pods for id_ in (pod.id, *pod.containers) if id_]
    found = [f"process {pid}: {line}" for pid, line in processes(root, node.group, {node.pid})]
    found += [f"mount {point}" for point in mounts(root)]
    found += [f"socket {path}" for path in sockets(str(node.address), NAMESPACE, ids)]
    found += [f"fifo {path}" for path in fifos(node.root / "state")]
    remove_cgroups_of_pods(node.group)
    found += [f"cgroup {path}" for path in cgroups(node.group) if path.name != node.group]
    for directory in (
        node.bundle("x").parent,
        node.root / "root" / node.bundle("x").parent.relative_to(node.root / "state"),
        node.runc_root / NAMESPACE,
    ):
        found += [f"directory {path}" for path in subdirectories(directory)]
    # Shared with other users of that namespace on this machine.
    found += [f"directory {path}" for id_ in ids if (path := RUNC / NAMESPACE / id_).exists()]
    return found


def wait_nothing_left(node: Node, pods: Iterable[Pod], timeout: float = 15) -> list[str]:
    """Return the remains after ``timeout`` s, or an empty list once there are no remains."""
    return wait_none(lambda: leftovers(node, pods), timeout)


def remove_cgroups_of_pods(group: str) -> None:
    """Remove the groups that a kubelet makes and removes: the group of each pod, when it is
    empty.
    """
    for parent in cgroup_parents(group):
        for path in subdirectories(parent):
            with suppress(OSError):  # not empty
                path.rmdir()


def cgroups(group: str) -> list[Path]:
    """Find the cgroups of pods, deepest first."""
    # Not through rglob: a cgroup may be removed during the search.
    found = (Path(top) for parent in cgroup_parents(group) for top, _, _ in os.walk(parent))
    return sorted(found, key=lambda path: -len(path.parts))
