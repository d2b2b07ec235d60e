"""The attributes that a container inherits from its manager, compared with the stock shim's.

A manager with an attribute starts a container under the stock shim and under ours,
through a fork server that another manager without it left behind, and the other way
round.  The table of all attributes is docs/inheritance.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import shimctl
from shimctl.host.install import find_compiler
from tests import warm
from tests.e2e.waiting import PATIENCE
from tests.process.attributes import (
    FILTER,
    GROUPS,
    IDENTITY,
    RESET,
    TAKEN,
    UNSUPPORTED,
    prefix,
)
from tests.process.rig import NAMESPACE, wait_gone
from tests.process.servers import LAUNCH, ROOT, Server, parent_of

if TYPE_CHECKING:
    from collections.abc import Sequence

STOCK = "/usr/bin/containerd-shim-runc-v2"
SOURCE = Path(__file__).with_name("probe.c")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("probe") / "probe"
    subprocess.run([compiler, "-static", "-Wall", "-o", str(path), str(SOURCE)], check=True)
    return path


# Signals 32 and 33 are glibc's own: its posix_spawn, which subprocess uses since Python 3.13,
# leaves them ignored in the child of a process with threads.
INTERNAL = 3 << 31


class Managers:
    """Managers that differ in one attribute, with shims of two makes."""

    def __init__(self, server: Server, probe: Path) -> None:
        self.server = server
        self.probe = probe
        self.daemon = self.parent = 0
        self.status = ""
        self._count = 0

    async def inherited(
        self, command: Sequence[str], attribute: str = "", *, keyring: bool = False
    ) -> dict[str, str]:
        """Return the attributes of a container's init process."""
        self._count += 1
        rig, id_ = self.server.rig, f"c{self._count}"
        bundle = rig.bundle(id_, "/probe", f"/out-{id_}", change=_as_inherited)
        shutil.copy(self.probe, rig.rootfs() / "probe")
        # The manager is the parent of the process that starts a shim.
        manager = [*prefix(attribute), "sh", "-c", '"$@"; exit $?', "sh"]
        os.mkfifo(bundle / "log")
        log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        try:
            found = await self._run(bundle, [*manager, *command])
        finally:
            os.close(log)
        if not keyring:
            del found["session keyring"]
        return found

    async def make_server(self, attribute: str = "") -> None:
        """Have a fork server without the imports of one that a launcher makes.

        The launcher of a manager with the same attribute finds it, or makes one of its own.
        """
        call = partial(warm.run, "tests.process.managed", [attribute], package="shim", cwd=ROOT)
        done = await trio.to_thread.run_sync(partial(call, timeout=60 * PATIENCE))
        assert done.returncode in (0, UNSUPPORTED), done.stderr

    async def inherited_from_server(self, attribute: str = "") -> dict[str, str]:
        """Return the attributes of a container whose daemon a fork server started.

        On a busy machine a launcher gives the server up after a second and starts the
        daemon itself, so this is tried again.
        """
        for _ in range(5):
            found = await self.inherited(LAUNCH, attribute)
            if self.parent in await self.server.wait_servers(1):
                return found
        pytest.fail("no fork server started the daemon")

    async def _run(self, bundle: Path, command: Sequence[str]) -> dict[str, str]:
        rig, id_ = self.server.rig, bundle.name
        events = str(rig.root / "events")
        started = self.server.launch(bundle, "start", command=command, TTRPC_ADDRESS=events)
        if started.returncode == UNSUPPORTED:
            reason = started.stderr.decode().strip()
            pytest.skip(f"this machine cannot give a process this attribute: {reason}")
        assert started.returncode == 0, started.stderr
        address = started.stdout.decode()
        async with shimctl.connect(address, namespace=NAMESPACE) as shim:
            self.daemon = (await shim.connect()).shim_pid
            # A runtime makes a session keyring by default.
            options = rig.options(no_new_keyring=True)
            await shim.create(id_, str(bundle), options=options)
            task = shim.task(id_)
            await task.start()
            await task.wait(timeout=20)
            await task.delete()
            self.parent = parent_of(self.daemon)
            self.status = Path(f"/proc/{self.daemon}/status").read_text()
            await shim.shutdown()
        await wait_gone([self.daemon])
        text = (rig.rootfs() / f"out-{id_}").read_text()
        found = dict(line.split(":", 1) for line in text.splitlines())
        ignored = int(found["SigIgn"], 16) & ~INTERNAL
        return found | {"SigIgn": f"\t{ignored:016x}"}


def _as_inherited(config: dict[str, Any]) -> None:
    config["process"]["noNewPrivileges"] = False
    config["process"].pop("oomScoreAdj", None)


@pytest.fixture
def managers(server: Server, probe: Path) -> Managers:
    return Managers(server, probe)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*IDENTITY, *TAKEN])
async def test_a_container_has_what_its_own_manager_has(managers: Managers, name: str) -> None:
    attribute = IDENTITY.get(name) or TAKEN[name]
    plain = await managers.inherited([STOCK])
    special = await managers.inherited([STOCK], attribute)
    assert special != plain
    differs = {key for key in plain if special[key] != plain[key]}
    for code in ("", attribute):
        await managers.make_server(code)
    await managers.inherited(LAUNCH)
    await managers.server.wait_servers(1)
    assert pick(await managers.inherited(LAUNCH, attribute), differs) == pick(special, differs)
    await managers.server.wait_servers(2 if name in IDENTITY else 1)
    for wanted, code in ((plain, ""), (special, attribute)):
        # Each login has another session, and so another fork server.
        if (name, code) == ("login", attribute):
            assert await managers.inherited(LAUNCH, code) == wanted
        else:
            assert await managers.inherited_from_server(code) == wanted


def pick(found: dict[str, str], keys: set[str]) -> dict[str, str]:
    return {key: found[key] for key in keys}


async def test_groups_of_a_manager_reach_the_runtime(managers: Managers) -> None:
    """The runtime sets those of its container itself."""
    for _ in range(2):  # the first round makes the servers
        for servers, code, groups in ((1, "", ""), (2, GROUPS, "7 8")):
            await managers.inherited_from_server(code)
            assert f"\nGroups:\t{groups} \n" in managers.status
            await managers.server.wait_servers(servers)


async def test_under_a_system_call_filter_no_fork_server_is_used_or_left(
    managers: Managers,
) -> None:
    """The kernel does not report whether two processes have the same filter."""
    await managers.inherited(LAUNCH)
    servers = await managers.server.wait_servers(1)
    found = await managers.inherited(LAUNCH, FILTER)
    assert found == await managers.inherited([STOCK], FILTER)
    assert found["Seccomp"].strip() == "2"
    assert managers.parent not in servers
    assert await managers.server.wait_servers(1) == servers


@pytest.mark.parametrize("name", ["hang-up", "mask"])
async def test_signals_of_a_container_are_at_their_defaults(managers: Managers, name: str) -> None:
    plain = await managers.inherited([STOCK])
    for code in (RESET[name], RESET[name], ""):
        assert await managers.inherited(LAUNCH, code) == plain
        await managers.server.wait_servers(1)


async def test_no_container_has_the_session_keyring_of_a_manager_or_of_another_container(
    managers: Managers,
) -> None:
    found = [await managers.inherited([STOCK], keyring=True)]
    for code in ("", "", RESET["keyring"], RESET["keyring"]):
        found.append(await managers.inherited(LAUNCH, code, keyring=True))
        await managers.server.wait_servers(1)
    keyrings = {attributes["session keyring"] for attributes in found}
    assert len(keyrings) == len(found)
