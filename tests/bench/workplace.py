"""The place of a run: a directory, an event sink, bundles, and the end of everything made here.

Every process started here has the directory's name, which is unique, in its
command line or environment; so it can always be found and ended.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.empty_pb2 import Empty

from shim.api.events_pb2 import TaskExit
from shim.api.forward_grpc import EventsBase
from shim.linux import sockets
from shim.linux.mounts import unmount_all
from shim.ttrpc.server import handlers_of, serve, unary
from shimctl import directories
from tests.bench import procs
from tests.process.rig import default_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from shim.api.forward_pb2 import ForwardRequest

NAMESPACE = "trio-shim-bench"
CGROUPS = Path("/sys/fs/cgroup")
CLEANUP = 60.0  # seconds for the end of everything
WARM = 30.0  # seconds a fork server may take until it listens
INIT = ("sleep", "1000")  # ends by itself should all else fail


@dataclass(frozen=True, slots=True)
class Shim:
    """A shim to measure: a short name for the report and its executable.

    ``forks``: it is a build of ours, which makes a fork server.
    """

    name: str
    path: str
    forks: bool = False


class Sink(EventsBase):
    """The manager's end of the events: when each container's exit arrived."""

    def __init__(self) -> None:
        self._exits: dict[str, float] = {}
        self._more = trio.Event()

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:
        now = time.perf_counter()
        envelope = request.envelope
        if envelope.topic == "/tasks/exit":
            exit_ = TaskExit.FromString(envelope.event.value)
            if exit_.id == exit_.container_id:
                self._exits.setdefault(exit_.container_id, now)
                self._more.set()
                self._more = trio.Event()
        return Empty()

    async def wait_exit(self, id_: str) -> float:
        """Return the perf_counter() at which the exit of container ``id_`` arrived."""
        while id_ not in self._exits:
            await self._more.wait()
        return self._exits[id_]


@dataclass
class Workplace:
    """See :func:`open_workplace`."""

    root: Path
    sink: Sink
    config: dict[str, Any]
    environ: dict[str, str]
    _made: int = 0

    @property
    def runc_root(self) -> Path:
        return self.root / "runc"

    @property
    def bundles(self) -> Path:
        """The directory of the bundles, below ``root`` as below containerd's state directory."""
        return self.root / directories.BUNDLES / NAMESPACE

    @property
    def manager(self) -> str:
        """The address given as the manager's, on which no process listens."""
        return str(self.root / "manager")

    def new_bundle(self, *args: str, terminal: bool = False) -> Path:
        """Make a bundle with its container's id as the name and the init process ``args``."""
        self._made += 1
        # Of one length, so that no id is the beginning of another.
        path = self.bundles / f"b{self._made:05}"
        path.mkdir(parents=True)
        config = copy.deepcopy(self.config)
        config["process"]["args"] = list(args)
        config["process"]["terminal"] = terminal
        config["root"]["path"] = str(self.root / "busybox")
        config["linux"]["cgroupsPath"] = f"/{self.root.name}/{path.name}"
        (path / "config.json").write_text(json.dumps(config))
        return path

    def environ_of(self, extra: Mapping[str, str]) -> dict[str, str]:
        """Return the environment that a manager sets for ``start`` and ``delete``, and
        ``extra``.
        """
        return self.environ | {
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "NAMESPACE": NAMESPACE,
            "GRPC_ADDRESS": self.manager,
            "TTRPC_ADDRESS": str(self.root / "events"),
            **extra,
        }

    async def wait_warm(self, count: int = 1) -> None:
        """Wait until the fork servers of ``count`` builds listen.

        The first start of an older build leaves one behind, which it makes in the background.
        """
        directory = Path(self.environ["TRIO_SHIM_FORKSERVER_DIR"])
        with trio.move_on_after(WARM):
            while sum(path.is_socket() for path in directory.glob("*")) < count:
                await trio.sleep(0.02)

    @contextmanager
    def unprepared(self) -> Iterator[dict[str, str]]:
        """Yield variables with which a shim finds no fork server; end one that it makes."""
        self._made += 1
        directory = str(self.root / f"f{self._made:05}")
        try:
            yield {"TRIO_SHIM_FORKSERVER_DIR": directory}
        finally:
            end_processes(time.monotonic() + CLEANUP, directory, environ=True)
            shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def open_workplace(*, on_disk: bool = False) -> AsyncIterator[Workplace]:
    """Own a directory below /run, and every process, container and socket that comes of it.

    In memory, as managers have their bundles wherever systemd mounts /run, or on
    the disk that /run is on.
    """
    root = Path(tempfile.mkdtemp(prefix="tsb-", dir="/run"))
    sink = Sink()
    try:
        if not on_disk:
            mount = ["mount", "-t", "tmpfs", "-o", "mode=700", root.name, str(root)]
            subprocess.run(mount, check=True)
        _make_rootfs(root / "busybox")
        environ = dict(os.environ)
        # Without bytecode each start would compile everything again.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        # A fork server of our own: its memory is counted, and it is ended with us.
        environ["TRIO_SHIM_FORKSERVER_DIR"] = str(root / "fork")
        place = Workplace(root, sink, default_config(), environ)
        sock = trio.socket.from_stdlib_socket(sockets.listen(f"unix://{root}/events"))
        taking = partial(
            serve,
            trio.SocketListener(sock),
            handlers_of(sink),
            shutdown=trio.Event(),
            drain=1.0,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(taking)
            try:
                yield place
            finally:
                _end(place)
                nursery.cancel_scope.cancel()
    finally:
        unmount_all(str(root))
        shutil.rmtree(root, ignore_errors=True)


def _make_rootfs(path: Path) -> None:
    (path / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin")
    subprocess.run(["chroot", path, "/bin/busybox", "--install", "-s", "/bin"], check=True)


def _end(place: Workplace) -> None:
    """End all that is left.  Blocking: nothing may interrupt or overtake it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        deadline = time.monotonic() + CLEANUP
        # Launchers and runtime commands first: they would go on making things.
        end_processes(deadline, str(place.root), environ=True)
        for state in place.runc_root.glob("*/*"):
            delete_container(state, deadline)
        for cgroups in (CGROUPS, *CGROUPS.iterdir()):  # v2, and v1's hierarchies
            _remove_cgroups(cgroups / place.root.name)
    finally:
        signal.signal(signal.SIGINT, before)


def end_processes(deadline: float, *words: str, environ: bool = False) -> None:
    """Kill the processes that mention all ``words``; return once they are gone."""
    while pids := list(procs.mentioning(*words, environ=environ)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def delete_container(state: Path, deadline: float) -> None:
    """Remove the runtime's containers under ``state``: its root, and the container's name."""
    argv = ["runc", "--root", str(state.parent), "delete", "--force", state.name]
    with suppress(subprocess.TimeoutExpired):
        limit = max(1.0, deadline - time.monotonic())
        subprocess.run(argv, check=False, capture_output=True, timeout=limit)


def _remove_cgroups(parent: Path) -> None:
    # Not through rglob: a shim that ends removes some of them during the search.
    for top, _, _ in os.walk(parent, topdown=False):
        with suppress(OSError):
            Path(top).rmdir()
