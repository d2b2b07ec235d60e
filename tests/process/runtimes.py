"""OCI runtimes besides runc, and the shims of containers that run under them.

crun takes no hybrid cgroup hierarchy, so its shims live in a mount namespace of
their own, where /sys/fs/cgroup is version 2.  gVisor cannot use these cgroups; a wrapper passes
the option for that, as its users do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.runtimeoptions_pb2 import Options
from tests.e2e.waiting import PATIENCE
from tests.process.rig import NAMESPACE, SHIM, Rig

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub

FETCHED = Path(__file__).parents[2] / ".cache/managers/bookworm/usr/bin"
# Its own view of the machine, which ends with the shim and its containers.
V2 = (
    "mount --make-rprivate / && umount -R /sys/fs/cgroup && "
    'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
)
GVISOR = 'exec {runsc} --ignore-cgroups --network=none --platform=ptrace "$@"'


def find(name: str) -> str:
    """Return the path of a runtime, or skip the test."""
    fetched = FETCHED / name
    path = str(fetched) if fetched.exists() else shutil.which(name)
    if path is None:
        pytest.skip(f"tests/managers/fetch.sh has not fetched {name}")
    return path


@dataclass
class Engine:
    """One runtime in one rig.  ``binary`` is the option binary_name."""

    rig: Rig
    name: str
    binary: str

    @classmethod
    def open(cls, rig: Rig, name: str) -> Engine:
        path = find(name)
        if name == "runsc":
            path = rig.wrapper("runsc-wrapper", GVISOR.format(runsc=path))
        return cls(rig, name, path)

    @property
    def state(self) -> Path:
        """The runtime's own state of all containers of the rig."""
        return self.rig.runc_root / NAMESPACE

    def bundle(self, id_: str, *args: str, **kinds: Any) -> Path:
        return self.rig.bundle(id_, *args, change=kinds.get("change") or light)

    def run_shim(
        self, bundle: Path, *args: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        around = ["unshare", "-m", "sh", "-c", V2, "sh"] if self.name == "crun" else []
        flags = ["-namespace", NAMESPACE, "-address", str(self.rig.root / "manager")]
        return subprocess.run(
            [*around, *SHIM, *flags, "-id", bundle.name, *args],
            input=stdin,
            capture_output=True,
            cwd=bundle,
            env={
                **os.environ,
                "TTRPC_ADDRESS": str(self.rig.root / "events"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            timeout=20 * PATIENCE,
            check=False,
        )

    async def call_shim(self, bundle: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
        """Do the same in a thread, so that the rig takes the events that it delivers."""
        return await trio.to_thread.run_sync(lambda: self.run_shim(bundle, *args))

    async def start(self, bundle: Path) -> TaskStub:
        done = await self.call_shim(bundle, "-debug", "start")
        assert done.returncode == 0, done.stderr
        self.rig.address = done.stdout.decode()
        return await self.rig.connect()

    async def run(self, bundle: Path, **fields: Any) -> tuple[TaskStub, int]:
        """Start a shim, and create and start the container; return its init's pid."""
        task = await self.start(bundle)
        fields.setdefault("options", self.rig.options(binary_name=self.binary))
        return task, (await self.rig.run(task, bundle, **fields)).pid

    def toml(self) -> AnyMessage:
        """Return the options as the CRI plugin has them for a runtime type it does not know."""
        text = f'BinaryName = "{self.binary}"\nRoot = "{self.rig.runc_root}"\n'
        options = Options(config_body=text.encode())
        return AnyMessage(type_url="runtimeoptions.v1.Options", value=options.SerializeToString())

    def end(self) -> None:
        """Delete every container the runtime still knows, in the runtime's own way."""
        ids = {path.name.partition("_")[0] for path in self.state.glob("*")}
        for id_ in ids:
            subprocess.run(
                [self.binary, "--root", str(self.state), "delete", "--force", id_],
                capture_output=True,
                check=False,
                timeout=20 * PATIENCE,
            )
        # runc cannot read the state of another runtime, so it must not stay.
        shutil.rmtree(self.state, ignore_errors=True)


def light(config: dict[str, Any]) -> None:
    """Drop the settings for which this machine lacks the rights: crun raises a limit to allow
    devices.
    """
    config["linux"].pop("resources", None)
