"""Changes of a bundle's config.json, and the mount of its rootfs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shim.api.mount_pb2 import Mount

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process.rig import Rig


def host_pids(config: dict[str, Any]) -> None:
    """Run the container in the pid namespace of the host."""
    spaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]


def pids_of(pid: int) -> Callable[[dict[str, Any]], None]:
    """Return a change that runs the container in the pid namespace of process ``pid``."""

    def change(config: dict[str, Any]) -> None:
        for space in config["linux"]["namespaces"]:
            if space["type"] == "pid":
                space["path"] = f"/proc/{pid}/ns/pid"

    return change


def own_rootfs(config: dict[str, dict[str, str]]) -> None:
    """Use the bundle's directory ``rootfs``, where the mounts of a Create are made."""
    config["root"]["path"] = "rootfs"


def overlay(rig: Rig, directory: Path | None = None) -> Mount:
    """Return an overlay of busybox that keeps its changes below ``directory``, or the rig's."""
    directory = directory or rig.root
    for name in ("upper", "work"):
        (directory / name).mkdir()
    options = [
        f"lowerdir={rig.rootfs()}",
        f"upperdir={directory}/upper",
        f"workdir={directory}/work",
    ]
    return Mount(type="overlay", source="overlay", options=options)
