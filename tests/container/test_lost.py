"""The containers that a replacement does not go on with: one with an invalid state, for example.

No other container of the daemon is lost.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim.api.task_pb2 import CreateTaskRequest, KillRequest
from shim.child import Child
from shim.container import continued
from shim.container.bundle import Bundle, Config
from shim.container.container import Container
from shim.container.containers import Containers
from shim.container.continued import Continued
from shim.container.host import Host
from shim.container.lifecycle import Op, State
from shim.container.options import Options
from shim.errors import UnavailableError
from shim.events.source import NullPublisher
from shim.reaper import open_reaper
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import Inherited
from shim.ttrpc.services import Stream
from tests.recovery.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_siblings")

CONFIG = json.dumps({"linux": {"namespaces": [{"type": "pid"}]}})


def is_alive(pidfd: int) -> bool:
    return not select.select([pidfd], [], [], 0)[0]


class Daemon:
    """A daemon with a keeper; :meth:`restored` returns the containers of its replacement."""

    def __init__(self, path: Path, host: Host, keeper: Keeper) -> None:
        self.path = path
        self.host = host
        self.keeper = keeper
        self.pidfds: list[int] = []

    def create(self, id_: str) -> Container:
        """Add the container ``id_``, which no runtime has created yet."""
        bundle = self.path / id_
        bundle.mkdir()
        (bundle / "config.json").write_text(CONFIG)
        request = CreateTaskRequest(id=id_, bundle=str(bundle))
        container = Container(
            request, Bundle.open(str(bundle)), Config.parse(CONFIG), Options(), self.host
        )
        container.saved.save()
        return container

    async def run(self, id_: str) -> tuple[Container, int]:
        """Add the running container ``id_``."""
        container = self.create(id_)
        pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
        pidfd = os.pidfd_open(pid)
        self.pidfds.append(pidfd)
        child = Child(pid, os.dup(pidfd))
        (self.path / id_ / "init.pid").write_text(str(pid))
        container.init.set_child(child)
        container.saved.adopt(container.init)
        container.init.life.apply(Op.START)
        container.saved.save()
        return container, pidfd

    async def restored(self) -> Containers:
        """Return the containers of the daemon's replacement."""
        self.keeper.take()
        fds = {name: os.dup(fd) for name, fd in self.keeper.fds.items()}
        containers = Containers(self.host, trio.Event())
        inherited = Inherited(fds)
        await Continued(self.host, containers).restore(inherited)
        inherited.close()
        return containers


@pytest.fixture
def daemon(tmp_path: Path) -> Any:
    @asynccontextmanager
    async def open_daemon() -> AsyncIterator[Daemon]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper, deposit = Keeper(theirs), Deposit(ours)
        async with open_reaper() as reaper, trio.open_nursery() as nursery:
            host = Host("ns", reaper, NullPublisher(), nursery, 5.0, bundle=str(tmp_path / "c1"))
            object.__setattr__(host, "deposit", deposit)
            daemon = Daemon(tmp_path, host, keeper)
            yield daemon
            for pidfd in daemon.pidfds:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
            nursery.cancel_scope.cancel()
        deposit.close()
        keeper.close()

    return open_daemon


def without_a_field(value: dict[str, Any]) -> None:
    del value["constants"]["config"]["root"]


def with_a_bad_request(value: dict[str, Any]) -> None:
    value["constants"]["request"] = base64.b64encode(b"\xff\xff").decode()


def with_bad_streams(value: dict[str, Any]) -> None:
    value["init"]["stdio"] = {"overflow": 1}


def with_bad_counts(value: dict[str, Any]) -> None:
    value["oom"] = [{"": "x"}, 1, 2]


@pytest.mark.parametrize(
    "damage", [without_a_field, with_a_bad_request, with_bad_streams, with_bad_counts]
)
async def test_a_bad_state_ends_its_container_with_an_unknown_exit_and_no_other(
    daemon: Any, damage: Callable[[dict[str, Any]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    async with daemon() as killed:
        (lost, pidfd), (_, other) = [await killed.run(id_) for id_ in ("c1", "c2")]
        slot = lost.saved._slot
        assert slot is not None
        value = json.loads(slot.read())
        damage(value)
        slot.write(json.dumps(value).encode())
        containers = await killed.restored()
        with trio.fail_after(10):
            exit_ = await containers.get("c1").init.wait()
            await trio.lowlevel.wait_readable(pidfd)  # it has ended
        assert (exit_.pid, exit_.exit_status) == (lost.init.pid, 255)
        assert exit_.reason
        assert containers.get("c1").bundle.path == lost.bundle.path
        assert containers.get("c2").init.state is State.RUNNING
        assert is_alive(other)
    assert "it is lost" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, 0, signal.SIGUSR1])
async def test_a_signal_that_may_have_been_sent_is_refused_unless_it_ends_the_container(
    daemon: Any, number: int
) -> None:
    """In a state of the first version of calls, each may have been sent."""
    async with daemon() as killed:
        container, pidfd = await killed.run("c1")
        request = KillRequest(id="c1", signal=number)
        call: Stream[Any, Any] = Stream(request, {}, replayed=True)
        call.begun = True
        if number == signal.SIGUSR1:
            with pytest.raises(UnavailableError, match="may have been sent"):
                await container.kill(request, call)
        else:
            await container.kill(request, call)
        if number in (signal.SIGTERM, signal.SIGKILL):
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(pidfd)
        else:
            assert is_alive(pidfd)


async def test_a_manager_that_does_not_repeat_its_create_finds_no_container(
    daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Connect fails then, as after a cancelled Create, and it removes the container."""
    monkeypatch.setattr(continued, "REPLAYED", 0.0)
    async with daemon() as killed:
        with killed.create("c1").saved.operation("Create"):
            containers = await killed.restored()
        with trio.fail_after(10):
            await containers.shutdown.wait()  # it has no container
        assert containers.creations.was_cancelled("c1")
