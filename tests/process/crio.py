"""CRI-O's side of a shim, for one container: ``runtime_type = "vm"``.

One object is what CRI-O keeps for one container: it starts that container's
shim, opens the fifos, and makes the calls in CRI-O's order.  Nothing of it
survives :meth:`CrioContainer.restart` but what CRI-O finds on disk.

Source: cri-o internal/oci/runtime_vm.go; containerd 1.7 pkg/shim/util.go
Command for the arguments and the environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.exceptions import GRPCError

from shim.api.runtimeoptions_pb2 import Options
from shim.api.task_pb2 import (
    CloseIORequest,
    CreateTaskRequest,
    DeleteRequest,
    ExecProcessRequest,
    KillRequest,
    ShutdownRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.ttrpc.client import UnaryUnaryMethod
from tests.process.rig import PROCESS_URL

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.api.task_grpc import TaskStub
    from shim.api.task_pb2 import StateResponse
    from tests.process.rig import Rig

# The installed file: CRI-O wants a name like this one.
SHIM = Path(sys.executable).parent / "containerd-shim-trio-v2"
NAME = re.compile(r"containerd-shim-[a-zA-Z0-9\-+]+")
SANDBOX = "io.kubernetes.cri-o.SandboxID"
NAMESPACE = "default"
# The text of the kubelet's error for an exec that took too long.
TIMED_OUT = -1


@dataclass(frozen=True)
class ExecResult:
    """``code`` is ``TIMED_OUT`` when CRI-O ended it."""

    code: int
    stdout: bytes


class CrioContainer:
    """A container and the shim CRI-O started for it.  ``id`` is the bundle's name."""

    def __init__(self, rig: Rig, bundle: Path, *, runtime_config: bool = True) -> None:
        self.rig = rig
        self.bundle = bundle
        self.id = bundle.name
        self.address = ""
        self.oom_killed = False
        # Everything the shim wrote to CRI-O's log.
        self.log = bytearray()
        self.stdout = bytearray()
        self._fifos = rig.root / "crio-fifo" / self.id
        self._runtime_config = runtime_config
        self._task: TaskStub | None = None
        self._reading: list[trio.CancelScope] = []
        self._execs = 0

    @property
    def task(self) -> TaskStub:
        assert self._task is not None, "CRI-O has no connection"
        return self._task

    async def start_daemon(self) -> str:
        """Run ``SHIM start`` and connect to the address in its answer; return the answer."""
        self._read(open_fifo(self.bundle / "log"), self.log)
        done = await trio.to_thread.run_sync(self._run_start)
        assert done.returncode == 0, done.stderr
        answer = done.stdout.decode()
        self.address = parse_address(answer)
        await self.connect()
        return answer

    def _run_start(self) -> subprocess.CompletedProcess[bytes]:
        flags = ["-namespace", NAMESPACE, "-address", "", "-publish-binary", "/usr/bin/crio"]
        environ = {
            **os.environ,
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "TTRPC_ADDRESS": "",
            "GRPC_ADDRESS": "",
            "NAMESPACE": NAMESPACE,
        }
        return subprocess.run(
            [SHIM, *flags, "-id", self.id, "-debug", "start"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self.bundle,
            env=environ,
            timeout=20,
            check=False,
        )

    async def connect(self) -> None:
        self.rig.address = self.address
        self._task = version_2(await self.rig.connect())

    async def create(self, *, stdin: bool = False) -> int:
        """Open the fifos and create the container; return the pid of its init."""
        self._fifos.mkdir(parents=True)
        self._attach()
        config = json.loads((self.bundle / "config.json").read_text())
        request = CreateTaskRequest(
            id=self.id,
            bundle=str(self.bundle),
            stdout=str(self._fifos / "stdout"),
            terminal=config["process"]["terminal"],
        )
        if stdin:
            os.mkfifo(self._fifos / "stdin")
            request.stdin = str(self._fifos / "stdin")
        if self._runtime_config:
            path = self.rig.root / "runtime.toml"
            path.write_text(f'Root = "{self.rig.runc_root}"\n')
            options = Options(config_path=str(path)).SerializeToString()
            request.options.CopyFrom(
                AnyMessage(type_url="runtimeoptions.v1.Options", value=options)
            )
        return (await self.task.Create(request, timeout=30)).pid

    def _attach(self) -> None:
        self._read(open_fifo(self._fifos / "stdout"), self.stdout)

    def _read(self, fd: int, into: bytearray) -> None:
        self._reading.append(trio.CancelScope())
        self.rig.nursery.start_soon(read_all, fd, into, self._reading[-1])

    async def start(self) -> None:
        await self.task.Start(StartRequest(id=self.id), timeout=30)

    async def exit_code(self) -> int:
        """Wait, and ask State for the code, as CRI-O does: Wait's own is not used."""
        await self.task.Wait(WaitRequest(id=self.id), timeout=30)
        return (await self.update_status()).exit_status

    async def update_status(self) -> StateResponse:
        """Return the state; after a restart of CRI-O its shim is found on disk."""
        if self._task is None:
            self.address = (self.bundle / "address").read_text().strip()
            await self.connect()
            self._attach()
        state = await self.task.State(StateRequest(id=self.id), timeout=5)
        self.oom_killed = state.exit_status != 0 and (self.bundle / "oom").exists()
        return state

    async def is_alive(self) -> bool:
        try:
            await self.task.Kill(KillRequest(id=self.id, signal=0), timeout=5)
        except GRPCError:
            return False
        return True

    async def exec_sync(
        self,
        *args: str,
        timeout: float = 0,
        stdin: bytes | None = None,
        terminal: bool = False,
    ) -> ExecResult:
        """Run ``args`` in the container; one that takes longer than ``timeout`` s is killed."""
        self._execs += 1
        exec_id = f"exec{self._execs}"
        directory = self._fifos / exec_id
        directory.mkdir()
        # The container's own process with other arguments; the request states the terminal.
        config = json.loads((self.bundle / "config.json").read_text())
        process = config["process"] | {"args": list(args)}
        request = ExecProcessRequest(
            id=self.id,
            exec_id=exec_id,
            terminal=terminal,
            stdout=str(directory / "stdout"),
            spec=AnyMessage(type_url=PROCESS_URL, value=json.dumps(process).encode()),
        )
        if stdin is not None:
            os.mkfifo(directory / "stdin")
            request.stdin = str(directory / "stdin")
        output = bytearray()
        fd = open_fifo(directory / "stdout")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all, fd, output)
            await self.task.Exec(request, timeout=10)
            await self.task.Start(StartRequest(id=self.id, exec_id=exec_id), timeout=30)
            if stdin is not None:
                await self._feed(directory / "stdin", stdin, exec_id)
            code = await self._wait_exec(exec_id, timeout)
            if code == TIMED_OUT:
                # CRI-O deletes no exec that took too long, and reads no further.
                nursery.cancel_scope.cancel()
            else:
                remove = DeleteRequest(id=self.id, exec_id=exec_id)
                await self.task.Delete(remove, timeout=15)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        return ExecResult(code, bytes(output))

    async def _wait_exec(self, exec_id: str, timeout: float) -> int:
        with trio.move_on_after(timeout or 30):
            reply = await self.task.Wait(WaitRequest(id=self.id, exec_id=exec_id))
            return reply.exit_status
        kill = KillRequest(id=self.id, exec_id=exec_id, signal=9)
        await self.task.Kill(kill, timeout=5)
        await self.task.Wait(WaitRequest(id=self.id, exec_id=exec_id), timeout=10)
        return TIMED_OUT

    async def _feed(self, path: Path, data: bytes, exec_id: str) -> None:
        with path.open("wb", buffering=0) as fifo:
            fifo.write(data)
        await self.task.CloseIO(CloseIORequest(id=self.id, exec_id=exec_id, stdin=True), timeout=5)

    async def stop(self, *, signal: int = 15, timeout: float = 10) -> None:
        """Ask the container to end, and insist after ``timeout`` seconds."""
        for number, patience in ((signal, timeout), (9, 20.0)):
            # An error of this one ends the stop, and the pod cannot be removed.
            await self.task.Kill(KillRequest(id=self.id, signal=number), timeout=5)
            with trio.move_on_after(patience):
                await self.task.Wait(WaitRequest(id=self.id))
                return
        raise AssertionError(f"{self.id} survives a SIGKILL")

    async def remove(self) -> None:
        """Remove the fifos, then the container, then shut its shim down."""
        for path in self._fifos.glob("std*"):
            path.unlink()
        await self.task.Delete(DeleteRequest(id=self.id), timeout=30)
        await self.shut_down()

    async def shut_down(self) -> None:
        await self.task.Shutdown(ShutdownRequest(id=self.id), timeout=5)

    def restart(self) -> None:
        """Forget everything a process keeps in memory, as if CRI-O had been restarted."""
        self._task = None
        while self._reading:
            self._reading.pop().cancel()


def version_2(task: TaskStub) -> TaskStub:
    """Let ``task`` call containerd.task.v2.Task, the only one CRI-O knows."""
    for name, method in vars(task).items():
        path = method.name.replace("containerd.task.v3.", "containerd.task.v2.")
        assert path != method.name
        again = UnaryUnaryMethod(method.channel, path, method.request_type, method.reply_type)
        setattr(task, name, again)
    return task


def parse_address(answer: str) -> str:
    """Read an answer as CRI-O does: JSON of version 2, or else the address itself."""
    try:
        params = json.loads(answer)
    except ValueError:
        return answer.strip()
    if not isinstance(params, dict) or params.get("version", 0) < 2:
        return answer.strip()
    assert params["version"] == 2, "CRI-O: unsupported shim version"
    return str(params["address"])


def crio_bundle(
    rig: Rig,
    name: str,
    *args: str,
    sandbox: str = "",
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Make a bundle; its id is as unique as CRI-O's, since nothing else is in the address."""

    def annotate(config: dict[str, Any]) -> None:
        if sandbox:
            config["annotations"] = {SANDBOX: unique(rig, sandbox)}
        if change is not None:
            change(config)

    return rig.bundle(unique(rig, name), *args, change=annotate)


def unique(rig: Rig, name: str) -> str:
    return f"{rig.root.name.replace('_', 'x')}-{name}"


def open_fifo(path: Path) -> int:
    """Make and open a fifo to read from, whether or not there is a writer."""
    if not path.exists():
        os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


async def read_all(fd: int, into: bytearray, scope: trio.CancelScope | None = None) -> None:
    """Own ``fd``; read to its end, or until ``scope`` is cancelled."""
    try:
        with scope or trio.CancelScope():
            while True:
                await trio.lowlevel.wait_readable(fd)
                try:
                    chunk = os.read(fd, 65536)
                except BlockingIOError:
                    continue
                if not chunk:
                    return
                into += chunk
    finally:
        os.close(fd)
