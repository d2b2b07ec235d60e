"""The paths of the managers' configuration files, and the place of a runtime in each.

Sources: containerd docs/cri/config.md; dockerd(8); crio.conf(5) and crio.conf.d(5);
k3s's documentation of its containerd template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTAINERD = "/etc/containerd/config.toml"
CONTAINERD_DROPINS = "/etc/containerd/conf.d"
CONTAINERD_DROPIN = f"{CONTAINERD_DROPINS}/trio-shim.toml"  # that `shimctl install` writes
DOCKER = "/etc/docker/daemon.json"
CRIO = "/etc/crio/crio.conf"
CRIO_DROPINS = "/etc/crio/crio.conf.d"
CRIO_DROPIN = f"{CRIO_DROPINS}/10-trio.conf"  # that `shimctl install` writes
K3S = "/var/lib/rancher/k3s/agent/etc/containerd"
# How the shim runs the OCI runtime; the configurations of several managers name it.
OPTIONS = "/etc/trio-shim-options.toml"

# The plugin of containerd that has the runtimes of pods, by the version of the file.
CRI_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}


def table(value: object, *keys: str) -> dict[str, Any]:
    """Return the table at ``keys`` in parsed TOML or JSON; empty if it does not exist."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def version_of(config: Mapping[str, Any]) -> int:
    """Return the version of a configuration of containerd; a file without one has version 1."""
    version = config.get("version", 1)
    return version if type(version) is int else 1


def cri_runtimes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runtimes of pods in a configuration of containerd."""
    plugin = CRI_PLUGINS.get(version_of(config), "cri")
    return table(config, "plugins", plugin, "containerd", "runtimes")
