"""A dockerd of the tests' own, with the containerd it starts: run, killed, restarted, stopped.

tests/managers/fetch.sh gets three generations.  From 23 on dockerd takes the name of a
shim as a runtime; 20.10 knows only its own, so there our executable is found first on
PATH under that one's file name.

Everything lies below one short private directory, except for the files that any shim has under
/run/containerd.  dockerd keeps containers through its own death
(live-restore), has no network and makes its cgroups below a parent of the tests' own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from tests import nativelauncher
from tests.docker.api import Api, ApiError
from tests.e2e.ctr import RUNTIME, STOCK
from tests.e2e.daemon import Daemon
from tests.e2e.test_lifecycle import alive
from tests.e2e.waiting import wait_until

FETCHED = Path(__file__).parent.parent.parent / ".cache/managers"
EXECUTABLE = Path(sys.executable).parent / "containerd-shim-trio-v2"
GO_NAME = "containerd-shim-runc-v2"
SUITES = ["bookworm", "trixie", "sid"]  # from old to new: 20.10, 26, 28


@dataclass
class Dockerd(Daemon):
    suite: str  # the Debian release it is from
    version: str = field(default="", init=False)

    @property
    def bin(self) -> Path:
        return FETCHED / self.suite / "usr/bin"

    @property
    def old(self) -> bool:
        """Return whether it can run a shim only under the stock one's file name."""
        return self.suite == "bookworm"

    @property
    def release(self) -> str:
        """Return its version without what Debian adds."""
        return self.version.split("+")[0]

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def runtimes(self) -> list[str]:
        """Return every way this version has to choose our shim; the first is the usual one."""
        if self.old:
            return ["runc"]
        return [RUNTIME] if RUNTIME == STOCK else [RUNTIME, "named", "path"]

    @property
    def address(self) -> Path:
        return self.root / "docker.sock"

    @property
    def containerd_address(self) -> Path:
        return self.root / "exec/containerd/containerd.sock"

    @property
    def cgroup_parent(self) -> str:
        return self.root.name

    @property
    def stand_in(self) -> Path:
        return self.root / "bin" / GO_NAME

    @property
    def executable(self) -> Path:
        """Return the shim's executable: pip's script in the oldest version, or the native one."""
        return EXECUTABLE if self.old else nativelauncher.directory() / EXECUTABLE.name

    @property
    def runc(self) -> Path:
        """Return an OCI runtime that notes how it is called: the runtime "noted" uses it."""
        return self.root / "bin/noted-runc"

    @property
    def runc_log(self) -> Path:
        return self.root / "runc.log"

    @property
    def pids(self) -> set[int]:
        """Return dockerd's pid and its containerd's."""
        return {self.pid, self.containerd_pid}

    @property
    def containerd_pid(self) -> int:
        return int(self._pid_file.read_text())

    @property
    def _pid_file(self) -> Path:
        return self.root / "exec/containerd/containerd.pid"

    def missing(self) -> list[str]:
        """Return the tools that this machine lacks for it."""
        path = self._environ["PATH"]
        tools = ("dockerd", "docker", "containerd", "runc", "iptables")
        return [tool for tool in tools if shutil.which(tool, path=path) is None]

    @property
    def _environ(self) -> dict[str, str]:
        own = [self.root / "bin", self.bin, self.bin.with_name("sbin")]
        path = [*map(str, own), str(self.executable.parent), os.environ["PATH"]]
        return {"PATH": ":".join(path)}

    def start(self) -> None:
        self._write_config()
        self._spawn(["dockerd", "--config-file", self.root / "daemon.json"], self._environ)
        self.version = wait_until("dockerd answers", self._answer, 60)

    def kill(self) -> None:
        """End it and its containerd the way a crash of both does."""
        containerd = self.containerd_pid
        super().kill()
        with suppress(ProcessLookupError):  # it dies with its parent in some versions
            os.kill(containerd, signal.SIGKILL)
        wait_until("containerd is gone", lambda: not alive(containerd))
        # Each would take a process that has its old number for itself.
        for file in (self._pid_file, self.root / "docker.pid"):
            file.unlink(missing_ok=True)

    def _answer(self) -> str:
        self._check_running()
        try:
            return Api(self.address).version()
        except (ApiError, OSError, HTTPException):
            return ""

    def _write_config(self) -> None:
        config = {
            "data-root": str(self.root / "data"),
            "exec-root": str(self.root / "exec"),
            "pidfile": str(self.root / "docker.pid"),
            "hosts": [f"unix://{self.address}"],
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "userland-proxy": False,
            "storage-driver": "overlay2",
            "live-restore": True,
            "cgroup-parent": f"/{self.cgroup_parent}",
            "init-path": str(FETCHED / "bookworm/usr/bin/tini-static"),
            "debug": True,
        }
        self.stand_in.parent.mkdir(exist_ok=True)
        self.runc.write_text(f"""#!/bin/sh\necho "$*" >>{self.runc_log}\nexec runc "$@"\n""")
        self.runc.chmod(0o755)
        if not self.old:
            # Options of a shim that is not the stock one are in a file that docker only names.
            file = self.root / "options.toml"
            file.write_text(f'BinaryName = "{self.runc}"\nRoot = "{self.root}/state"\n')
            config["runtimes"] = {
                "named": {"runtimeType": RUNTIME},
                "path": {"runtimeType": str(self.executable)},
                "noted": {"runtimeType": RUNTIME, "options": {"ConfigPath": str(file)}},
            }
        else:
            config["runtimes"] = {"noted": {"path": str(self.runc)}}
            if RUNTIME != STOCK and not self.stand_in.exists():
                self.stand_in.symlink_to(EXECUTABLE)
        (self.root / "daemon.json").write_text(json.dumps(config))
