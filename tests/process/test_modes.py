"""The modes of the files that a shim makes in its bundle and beside it, under a manager's
umask.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from shim.api.bootstrap_pb2 import BootstrapParams
from shim.api.mount_pb2 import Mount
from shim.api.task_pb2 import DeleteRequest, KillRequest, ShutdownRequest, WaitRequest
from tests.process.rig import NAMESPACE, Rig

# What runc writes: its umask is its own business.
RUNTIMES = {"init.pid", "e.pid", "log.json", "init.log.json", "e.log.json", "config.json"}


def modes_below(*roots: Path) -> dict[str, int]:
    found = {}
    for root in roots:
        for path in (root, *root.rglob("*")):
            if "/rootfs/" not in f"{path}/":
                found[path.name] = stat.S_IMODE(path.lstat().st_mode)
    return found


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
async def test_what_a_shim_makes_has_the_same_modes_whatever_the_umask(
    rig: Rig, umask: int
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    other = rig.bundle("c2", "sleep", "1000")
    logs = rig.root / "logs/deep"
    params = BootstrapParams(
        instance_id="c1", namespace=NAMESPACE, socket_dir=str(rig.root / "run/s")
    )
    before = os.umask(umask)
    try:
        task = await rig.start(bundle, params.SerializeToString())
    finally:
        os.umask(before)
    rootfs = Mount(type="bind", source=str(rig.rootfs()), options=["rbind"])
    stdout = f"file://{logs}/out"
    await rig.run(task, bundle, rootfs=[rootfs], stdout=stdout)
    await rig.run(task, other)
    await task.Exec(rig.exec_request("c1", "e", "true"))
    modes = modes_below(bundle, rig.root / "run")
    for name in ("c1", "c2"):
        await task.Kill(KillRequest(id=name, signal=9, all=True))
        with trio.fail_after(20):
            await task.Wait(WaitRequest(id=name))
    modes |= modes_below(bundle, logs.parent)
    for name in ("c1", "c2"):
        await task.Delete(DeleteRequest(id=name))
    modes["rootfs"] = stat.S_IMODE((bundle / "rootfs").stat().st_mode)
    await task.Shutdown(ShutdownRequest(id="c1"))
    del modes["c1"]  # the manager's own directory
    socket = Path(rig.address.removeprefix("unix://")).name
    assert {name: oct(mode) for name, mode in modes.items() if name not in RUNTIMES} == {
        "run": "0o711",
        "s": "0o700",
        socket: "0o600",
        "address": "0o644",
        "options.json": "0o600",
        "runtime": "0o600",
        "rootfs": "0o711",
        "events.journal": "0o600",
        "e.process.json": "0o600",
        "init.exit": "0o600",
        "members": "0o711",
        "c2": "0o600",
        "logs": "0o755",
        "deep": "0o755",
        # As under the stock shim the umask takes rights from a log, and adds none.
        "out": oct(0o644 & ~umask),
    }


async def test_a_start_in_a_directory_that_others_may_write_to_is_refused(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    open_to_all = rig.root / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    params = BootstrapParams(
        instance_id="c1", namespace=NAMESPACE, socket_dir=str(open_to_all / "s")
    )
    done = await trio.to_thread.run_sync(
        lambda: rig.run_shim(bundle, "-id", "c1", "start", stdin=params.SerializeToString())
    )
    assert done.returncode == 1
    assert f"other users may write to {open_to_all} (mode 0777)" in done.stderr.decode()
    assert not (open_to_all / "s").exists()
    assert not (bundle / "address").exists()
