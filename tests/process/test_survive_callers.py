"""A daemon is killed before the caller of ``start`` has confirmed the address."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shim.linux import sockets
from tests.e2e.waiting import PATIENCE
from tests.process.replaced import connect, replaced, wait_for
from tests.process.rig import NAMESPACE, wait_gone
from tests.process.servers import ROOT, Server, state_of

# A launcher that waits for a byte before it prints the answer and confirms it.
HELD = """
import os, sys
from shim.start import launcher
ours, theirs = (int(word) for word in os.environ["HELD"].split())
print_answer = launcher.print_answer
def held(sock, answer):
    os.write(theirs, answer[5:])
    if not os.read(ours, 1):
        os._exit(1)
    return print_answer(sock, answer)
launcher.print_answer = held
sys.exit(launcher.main())
"""


class Starter:
    """A caller of ``start`` that has received the address and has not confirmed that."""

    def __init__(self, server: Server, bundle: Path) -> None:
        theirs, self._ours = os.pipe()
        answer, ours = os.pipe()
        flags = ["-namespace", NAMESPACE, "-address", str(server.rig.root / "manager")]
        environ = {"PYTHONPATH": str(ROOT), "TTRPC_ADDRESS": "", "HELD": f"{theirs} {ours}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HELD, *flags, "-id", bundle.name, "start"],
            cwd=bundle,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs, ours],
        )
        os.close(theirs)
        os.close(ours)
        self.address = os.read(answer, 4096).decode()
        os.close(answer)

    def confirm(self) -> None:
        os.write(self._ours, b"1")
        assert self.process.wait(10 * PATIENCE) == 0

    def close(self) -> None:
        """Give up the ``start``, unless it is confirmed."""
        os.close(self._ours)
        self.process.wait(10 * PATIENCE)


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_daemon_killed_before_its_caller_confirms_the_address_is_replaced(
    surviving: Server, confirmed: bool
) -> None:
    """If the caller gives up, the replacement ends as the daemon would have."""
    await surviving.start(surviving.rig.bundle("c1", "true"))
    starter = Starter(surviving, surviving.rig.bundle("c2", "true"))
    try:
        surviving.rig.address = starter.address
        daemon = await connect(surviving)
        replacement = await replaced(surviving, daemon)
        if confirmed:
            starter.confirm()
    finally:
        starter.close()
    if confirmed:
        await replaced(surviving, replacement)
    else:
        await wait_gone([replacement])
        assert not Path(sockets.socket_path(starter.address)).exists()


async def test_a_confirmation_that_a_killed_daemon_has_not_read_reaches_its_replacement(
    surviving: Server,
) -> None:
    await surviving.start(surviving.rig.bundle("c1", "true"))
    bundle = surviving.rig.bundle("c2", "true")
    starter = Starter(surviving, bundle)
    try:
        surviving.rig.address = starter.address
        daemon = await connect(surviving)
        os.kill(daemon, signal.SIGSTOP)
        await wait_for(lambda: state_of(daemon) == "T")
        starter.confirm()
    finally:
        starter.close()
    await replaced(surviving, daemon)
    # It would shut down if it took the caller for lost.
    task = await surviving.rig.connect()
    await surviving.rig.run(task, bundle)
