"""A containerd of the tests' own: started, killed, restarted and stopped by its pid.

Everything it owns lies below one short private directory, except for the files that any shim
has under /run/containerd (sockets, runc's state).
It never meets the machine's containerd, and uses a separate namespace.

1.6, 1.7 and 2 read the same configuration.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpclib.exceptions import GRPCError, StreamTerminatedError

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon
from tests.e2e.managers import EXECUTABLE, Manager
from tests.e2e.modern import write_wrapper
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

# Not needed, and a source of noise on hosts without btrfs, zfs, aufs or CNI.
# A version ignores a name that it does not know.
UNUSED = [
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]
_CRI = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]


@dataclass
class Containerd(Daemon):
    namespace: str
    manager: Manager

    @property
    def disabled(self) -> list[str]:
        """The plugins that are switched off."""
        return _CRI + UNUSED

    @property
    def address(self) -> Path:
        return self.root / "c.sock"

    def tool(self, name: str) -> str:
        """Return the command that runs this containerd's ``name``."""
        return self.manager.tool(name)

    @property
    def executable(self) -> Path:
        """Return the shim's executable that this containerd finds on its PATH."""
        modern = self.root / "bin" / EXECUTABLE
        return modern if self.manager.modern else self.manager.launcher

    def bundle(self, container: str) -> Path:
        task = "io.containerd.runtime.v2.task"
        return self.root / "state" / task / self.namespace / container

    def start(self) -> None:
        config = self.root / "config.toml"
        config.write_text(self._config())
        # Our executable is found before all others; a criu that works comes from PATH.
        beside = [str(self.executable.parent), *self.manager.path]
        if self.manager.modern:
            self.executable.parent.mkdir(exist_ok=True)
            write_wrapper(str(self.executable), str(self.manager.launcher))
        path = ":".join([*beside, os.environ["PATH"]])
        self._spawn([self.tool("containerd"), "--config", config], {"PATH": path})
        wait_until("containerd answers", self._answers)

    def _answers(self) -> bool:
        self._check_running()
        # Other services answer before the tasks of an earlier run are loaded.
        try:
            Api(self.address, self.namespace).tasks()
        except (GRPCError, StreamTerminatedError, OSError):
            return False
        return True

    def _config(self) -> str:
        return f"""\
version = 2
root = "{self.root}/root"
state = "{self.root}/state"
oom_score = 0
disabled_plugins = [{", ".join(f'"{name}"' for name in self.disabled)}]
[grpc]
address = "{self.address}"
[ttrpc]
address = "{self.address}.ttrpc"
[debug]
level = "debug"
"""
