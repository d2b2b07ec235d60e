"""A containerd of the tests' own: started, killed, restarted and stopped by its pid.

Everything it owns lies below one short private directory, except for what a
shim puts under /run/containerd whoever its manager is (sockets, runc's state).
It never meets the machine's own containerd, and uses one namespace of its own.

1.6, 1.7 and 2 read the same configuration.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.managers import EXECUTABLE, Manager
from tests.e2e.modern import write_wrapper
from tests.e2e.waiting import PATIENCE, wait_until

# Not needed, and a source of noise on hosts without btrfs, zfs, aufs or CNI.
# A name that one version does not know is nothing to it.
_DISABLED = [
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]


@dataclass
class Containerd:
    root: Path
    namespace: str
    manager: Manager
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> Path:
        return self.root / "c.sock"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "containerd is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None

    def tool(self, name: str) -> str:
        """Return the command that runs this containerd's ``name``."""
        return self.manager.tool(name)

    def bundle(self, container: str) -> Path:
        task = "io.containerd.runtime.v2.task"
        return self.root / "state" / task / self.namespace / container

    def start(self) -> None:
        config = self.root / "config.toml"
        config.write_text(self._config())
        # Our executable is found beside the interpreter; a criu that works comes from PATH.
        beside = [str(Path(sys.executable).parent), *self.manager.path]
        if self.manager.modern:
            (self.root / "bin").mkdir(exist_ok=True)
            write_wrapper(self.root / "bin", EXECUTABLE)
            beside.insert(0, str(self.root / "bin"))
        path = ":".join([*beside, os.environ["PATH"]])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.tool("containerd"), "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ
                | {
                    "PATH": path,
                    "TRIO_SHIM_FORKSERVER": "on",
                    "TRIO_SHIM_FORKSERVER_DIR": str(self.root / "f"),
                },
                start_new_session=True,
            )
        wait_until("containerd answers", self._answers)

    def kill(self) -> None:
        """End it the way a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.kill()
        self.start()

    def _end(self, sig: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(sig)
        self._process.wait(30 * PATIENCE)
        self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        # `version` answers before the tasks of an earlier run are loaded; `task ls` does not.
        tasks = [self.tool("ctr"), "-a", str(self.address), "task", "ls"]
        done = subprocess.run(tasks, capture_output=True, timeout=20 * PATIENCE, check=False)
        return done.returncode == 0

    def _config(self) -> str:
        return f"""\
version = 2
root = "{self.root}/root"
state = "{self.root}/state"
oom_score = 0
disabled_plugins = [{", ".join(f'"{name}"' for name in _DISABLED)}]
[grpc]
address = "{self.address}"
[ttrpc]
address = "{self.address}.ttrpc"
[debug]
level = "debug"
"""
