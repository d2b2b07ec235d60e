"""Finds the manager of a container, and the manager's command for a task that is not shimctl's.

Source: containerd internal/cri/annotations and cri-o internal/annotations; nerdctl
pkg/labels; moby daemon/internal/libcontainerd for the namespace ``moby``; the references
of the commands.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_CRI = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_OF_NERDCTL = "nerdctl/"


class Manager(StrEnum):
    """A kind of manager, by the command that controls its containers."""

    DOCKER = "docker"
    NERDCTL = "nerdctl"
    KUBERNETES = "crictl"
    CONTAINERD = "ctr"  # a client of containerd that leaves no mark


def manager_of(namespace: str, annotations: Mapping[str, str]) -> Manager:
    """Return the manager of a container in ``namespace`` with these annotations."""
    if any(key in annotations for key in _OF_CRI):
        return Manager.KUBERNETES
    if any(key.startswith(_OF_NERDCTL) for key in annotations):
        return Manager.NERDCTL
    return Manager.DOCKER if namespace == "moby" else Manager.CONTAINERD


def show_log(manager: Manager, namespace: str, container: str) -> str:
    """Return the command that shows the log of a container; ctr has none."""
    return f"{_program(manager, namespace)} logs {container}"


def run_again(manager: Manager, namespace: str, container: str, verb: str) -> str:
    """Return how the manager does ``verb``, which is start or restart; commands are in `...`."""
    program = _program(manager, namespace)
    match manager:
        case Manager.KUBERNETES:
            return f"after `{program} stop {container}` the kubelet runs a new one"
        case Manager.CONTAINERD:
            steps = [f"task delete {container}", f"task start -d {container}"]
            if verb == "restart":
                steps.insert(0, f"task kill {container}")
            return "use " + ", ".join(f"`{program} {step}`" for step in steps)
    return f"use `{program} {verb} {container}`"


def _program(manager: Manager, namespace: str) -> str:
    if manager in (Manager.NERDCTL, Manager.CONTAINERD):
        return f"{manager.value} -n {namespace}"
    return manager.value
