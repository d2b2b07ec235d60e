"""A shim started as a manager does, with real runc containers, and the clean-up after it.

The executable runs as a process; requests go over its real socket; its events
come to a real ttrpc server.  Only the manager is the test.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim.api import events_pb2, task_pb2
from shim.api.bootstrap_pb2 import BootstrapResult
from shim.api.forward_grpc import EventsBase
from shim.api.options_pb2 import Options
from shim.api.task_grpc import TaskStub
from shim.linux import sockets
from shim.linux.mounts import unmount_all
from shim.ttrpc.client import Channel, open_channel
from shim.ttrpc.server import handlers_of, serve, unary
from tests import warm
from tests.e2e.leftovers import fork_servers, processes
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from google.protobuf.message import Message

    from shim.api.envelope_pb2 import Envelope
    from shim.api.forward_pb2 import ForwardRequest

SHIM = [sys.executable, "-m", "shim"]
NAMESPACE = "trio-shim-test"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

EVENTS: dict[str, type[Message]] = {
    cls.DESCRIPTOR.full_name: cls
    for cls in (
        events_pb2.TaskCreate,
        events_pb2.TaskStart,
        events_pb2.TaskOOM,
        events_pb2.TaskExit,
        events_pb2.TaskDelete,
        events_pb2.TaskExecAdded,
        events_pb2.TaskExecStarted,
        events_pb2.TaskPaused,
        events_pb2.TaskResumed,
        events_pb2.TaskCheckpointed,
    )
}


class Sink(EventsBase):
    """The receiving end of a manager."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self._more = trio.Event()

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:
        self.envelopes.append(request.envelope)
        more, self._more = self._more, trio.Event()
        more.set()
        return Empty()

    @property
    def events(self) -> list[Any]:
        return [EVENTS[e.event.type_url].FromString(e.event.value) for e in self.envelopes]

    def names(self, container_id: str = "") -> list[str]:
        """The topics so far, without ``/tasks/``; exits as ``exit ID``."""
        names = []
        for envelope, event in zip(self.envelopes, self.events, strict=True):
            if container_id and event.container_id != container_id:
                continue
            name = envelope.topic.removeprefix("/tasks/")
            names.append(f"exit {event.id}" if name == "exit" else name)
        return names

    async def wait_for(self, name: str, container_id: str = "", *, seconds: float = 20) -> None:
        """Wait until an event of this name has come."""
        with trio.fail_after(seconds * PATIENCE):
            while name not in self.names(container_id):
                await self._more.wait()


@functools.cache
def _spec() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["runc", "spec", "--bundle", scratch], check=True)
        return (Path(scratch) / "config.json").read_text()


def default_config() -> dict[str, Any]:
    """Return the config of ``runc spec`` without limits that this user may not raise."""
    config: dict[str, Any] = json.loads(_spec())
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    config["root"]["readonly"] = False
    config["process"]["env"] = ["PATH=/bin", "TERM=xterm"]
    return config


class Patient(Channel):
    """A connection whose timeouts are multiplied by ``PATIENCE``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def request(self, *args: Any, timeout: float | None = None, **kinds: Any) -> Any:
        seconds = None if timeout is None else timeout * PATIENCE
        return self._channel.request(*args, timeout=seconds, **kinds)


class Rig:
    """Bundles and one shim in a new directory.  See :func:`open_rig`."""

    def __init__(self, root: Path, sink: Sink, nursery: trio.Nursery) -> None:
        self.root = root
        self.nursery = nursery
        self.sink = sink
        self.socket_dir = Path(sockets.SOCKET_DIR)
        self.runc_root = root / "runc"
        self.address = ""
        self.daemons: list[int] = []
        # A test may change the list above; the rig ends these.
        self._started: set[int] = set()
        self._addresses: set[str] = set()

    def bundle(
        self,
        id_: str,
        *args: str,
        change: Callable[[dict[str, Any]], object] | None = None,
    ) -> Path:
        """Make a bundle with the init process ``args``."""
        path = self.root / id_
        path.mkdir()
        config = default_config()
        config["process"]["args"] = list(args)
        config["root"]["path"] = str(self.rootfs())
        config["linux"]["cgroupsPath"] = f"/trio-shim-test/{self.root.name}-{id_}"
        if change is not None:
            change(config)
        (path / "config.json").write_text(json.dumps(config))
        return path

    def rootfs(self) -> Path:
        rootfs = self.root / "busybox"
        if not rootfs.exists():
            (rootfs / "bin").mkdir(parents=True)
            shutil.copy("/bin/busybox", rootfs / "bin")
            subprocess.run(
                ["chroot", str(rootfs), "/bin/busybox", "--install", "-s", "/bin"], check=True
            )
        return rootfs

    def run_shim(
        self,
        bundle: Path,
        *args: str,
        stdin: bytes = b"",
        timeout: float = 20,
        wrap: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the executable in ``bundle`` as a manager would, and wait for it.

        ``wrap`` are a program and arguments that execute it; without them it has been imported
        already (tests/warm.py).  The rig takes no event in the meantime: ``delete`` gives up an
        event after a second.
        """
        source = str(Path(__file__).parents[2])
        environ = {**os.environ, "TTRPC_ADDRESS": str(self.root / "events"), "PYTHONPATH": source}
        argv = ["-namespace", NAMESPACE, "-address", str(self.root / "manager"), *args]
        limit = timeout * PATIENCE
        if not wrap:
            return warm.run_bytes(
                "shim", argv, stdin=stdin, cwd=bundle, env=environ, timeout=limit
            )
        return subprocess.run(
            [*wrap, *SHIM, *argv],
            input=stdin,
            capture_output=True,
            cwd=bundle,
            env=environ,
            timeout=limit,
            check=False,
        )

    async def call_shim(
        self, bundle: Path, *args: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Do the same in a thread, so that the rig takes the events that it delivers."""
        return await trio.to_thread.run_sync(lambda: self.run_shim(bundle, *args, stdin=stdin))

    async def start(self, bundle: Path, stdin: bytes = b"") -> TaskStub:
        """Start the shim of ``bundle`` and return a client of it."""
        done = await self.call_shim(bundle, "-id", bundle.name, "-debug", "start", stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        self.address = self.answer(done.stdout)
        return await self.connect()

    @staticmethod
    def answer(stdout: bytes) -> str:
        """Return the address in an answer, plain or a BootstrapResult."""
        if stdout.startswith(b"unix://"):
            return stdout.decode()
        return BootstrapResult.FromString(stdout).address

    async def connect(self) -> TaskStub:
        """Open one more connection to the shim, which lasts as long as the rig."""
        stream = await sockets.connect(self.address)
        channel = await self.nursery.start(self._hold, stream)
        task = TaskStub(Patient(channel))
        pid = (await task.Connect(task_pb2.ConnectRequest(id="any"), timeout=5)).shim_pid
        self._started.add(pid)
        self._addresses.add(self.address)
        if pid not in self.daemons:
            self.daemons.append(pid)
        return task

    def track(self, pid: int) -> None:
        """End the daemon ``pid``, a replacement, with this rig."""
        self._started.add(pid)

    def create_request(self, bundle: Path, **fields: Any) -> task_pb2.CreateTaskRequest:
        request = task_pb2.CreateTaskRequest(
            id=fields.pop("id", bundle.name), bundle=str(bundle), **fields
        )
        if not request.HasField("options"):
            request.options.CopyFrom(self.options())
        return request

    def options(self, **fields: Any) -> AnyMessage:
        options = Options(root=str(self.runc_root), **fields)
        return AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString())

    async def run(
        self, task: TaskStub, bundle: Path, **fields: Any
    ) -> task_pb2.CreateTaskResponse:
        """Create and start."""
        reply = await task.Create(self.create_request(bundle, **fields), timeout=30)
        await task.Start(task_pb2.StartRequest(id=bundle.name), timeout=30)
        return reply

    def exec_request(
        self, id_: str, exec_id: str, *args: str, **fields: Any
    ) -> task_pb2.ExecProcessRequest:
        process = default_config()["process"] | {"args": list(args)}
        process["terminal"] = bool(fields.get("terminal"))
        spec = AnyMessage(type_url=PROCESS_URL, value=json.dumps(process).encode())
        return task_pb2.ExecProcessRequest(id=id_, exec_id=exec_id, spec=spec, **fields)

    async def end(self) -> None:
        """End every container, daemon and socket of this rig."""
        # The bound leaves time to end the daemons, too.
        with trio.move_on_after(20 * PATIENCE):
            for state in self.runc_root.glob("*/*"):
                await trio.run_process(
                    ["runc", "--root", str(state.parent), "delete", "--force", state.name],
                    check=False,
                    capture_stderr=True,
                )
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(alive, self._started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with trio.move_on_after(10 * PATIENCE):
                while any(map(alive, self._started)):
                    await trio.sleep(0.01)
        # A fork server that was on its way when the test ended, and the like.
        with trio.move_on_after(10 * PATIENCE):
            while left := self._left():
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await trio.sleep(0.02)
        for address in self._addresses:
            if not sockets.can_connect(address):
                Path(sockets.socket_path(address)).unlink(missing_ok=True)

    def _left(self) -> list[int]:
        root = str(self.root)
        return [pid for pid, _ in processes(root, self.root.name)] + fork_servers(root)

    @staticmethod
    async def _hold(
        stream: trio.SocketStream,
        task_status: trio.TaskStatus[Channel] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        # In a separate task: fixtures and tests call this from different ones.
        async with open_channel(stream) as channel:
            task_status.started(channel)
            await trio.sleep_forever()

    def wrapper(self, name: str, script: str) -> str:
        """Make an executable that stands in for runc; ``exec runc "$@"`` goes on to it."""
        path = self.root / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """Own a directory, an event sink, and every shim and container made in it."""
    root = Path("/run", f"tst{secrets.token_hex(4)}")  # may be part of an id
    root.mkdir(0o700)
    sink = Sink()
    stop = trio.Event()
    sock = trio.socket.from_stdlib_socket(sockets.listen(f"unix://{root}/events"))
    taking = partial(serve, trio.SocketListener(sock), handlers_of(sink), shutdown=stop, drain=1.0)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(taking)
            rig = Rig(root, sink, nursery)
            try:
                yield rig
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 60 * PATIENCE):
                    await rig.end()
                nursery.cancel_scope.cancel()
    finally:
        unmount_all(str(root))
        shutil.rmtree(root, ignore_errors=True)


def alive(pid: int) -> bool:
    """Return whether ``pid`` runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def wait_gone(pids: Sequence[int], seconds: float = 10) -> None:
    """Wait until none of ``pids`` runs."""
    with trio.fail_after(seconds * PATIENCE):
        while any(alive(pid) for pid in pids):
            await trio.sleep(0.01)
