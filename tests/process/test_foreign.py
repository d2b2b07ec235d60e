"""A container of the same id that another manager made with the same runtime is left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import DeleteRequest, KillRequest, StateRequest, WaitRequest
from tests.process.rig import NAMESPACE, Rig, alive
from tests.process.steps import kill_daemon
from tests.process.test_delete import delete

if TYPE_CHECKING:
    from tests.process.runtimes import Engine

pytestmark = pytest.mark.e2e


class Other:
    """Another manager: it has a container c1 of another bundle, in the same directory."""

    def __init__(self, rig: Rig) -> None:
        self.bundle = rig.root / "elsewhere" / "c1"
        self.bundle.parent.mkdir()
        shutil.move(rig.bundle("c1", "sleep", "1000"), self.bundle)
        self.pid_file = self.bundle / "pid"
        root = f"--root {rig.runc_root}/{NAMESPACE}"
        self.command = (
            f"runc {root} run -d --bundle {self.bundle} --pid-file {self.pid_file} c1 "
            "</dev/null >/dev/null 2>&1"
        )

    def run(self) -> int:
        subprocess.run(["sh", "-c", self.command], check=True)
        return self.pid

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())


@pytest.fixture
def other(rig: Rig) -> Other:
    return Other(rig)


async def test_a_create_that_is_refused_and_its_delete_end_no_other_container(
    rig: Rig, other: Other
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    pid = other.run()
    task = await rig.start(bundle)
    with pytest.raises(GRPCError) as caught:
        await task.Create(rig.create_request(bundle), timeout=20)
    assert caught.value.status is Status.ALREADY_EXISTS
    assert (await delete(rig, bundle)).pid == 0
    await kill_daemon(rig)
    await delete(rig, bundle)
    assert alive(pid)


async def test_a_create_that_loses_a_race_ends_no_other_container(rig: Rig, other: Other) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    wrapper = rig.wrapper(
        "late", f'case " $* " in *" create "*) {other.command};; esac\nexec runc "$@"'
    )
    options = rig.options(binary_name=wrapper)
    with pytest.raises(GRPCError, match="exist"):
        await task.Create(rig.create_request(bundle, options=options), timeout=20)
    assert alive(other.pid)


async def test_a_container_in_the_place_of_ours_is_neither_killed_nor_deleted(
    rig: Rig, other: Other
) -> None:
    # Ours was deleted by hand, and another manager took its id.
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    root = rig.runc_root / NAMESPACE
    await trio.run_process(["runc", "--root", str(root), "delete", "--force", "c1"])
    pid = other.run()
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    for everybody in (False, True):
        with pytest.raises(GRPCError) as caught:
            await task.Kill(KillRequest(id="c1", signal=9, all=everybody), timeout=10)
        assert caught.value.status is Status.NOT_FOUND
    assert (await task.State(StateRequest(id="c1"), timeout=5)).exit_status == 137
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert alive(pid)


async def test_a_bundle_by_another_of_its_names_is_the_same(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    pid = (await rig.run(task, bundle)).pid
    await kill_daemon(rig)
    (rig.root / "link").symlink_to(bundle)
    done = await rig.call_shim(rig.root, "-id", "c1", "-bundle", str(rig.root / "link"), "delete")
    assert done.returncode == 0, done.stderr
    assert not alive(pid)
    assert not list(rig.runc_root.glob("*/*"))


async def test_other_runtimes_say_too_whose_a_container_is(rig: Rig, engine: Engine) -> None:
    bundle = engine.bundle("c1", "sleep", "1000")
    _, pid = await engine.run(bundle)
    ours = rig.root / "elsewhere" / "c1"
    ours.mkdir(parents=True)
    for name in ("config.json", "options.json"):
        shutil.copy(bundle / name, ours)
    assert json.loads((ours / "options.json").read_text())["binary_name"] == engine.binary
    done = await engine.call_shim(ours, "-bundle", str(ours), "delete")
    assert done.returncode == 0, done.stderr
    assert b"left alone" in done.stderr
    assert alive(pid)
    done = await engine.call_shim(bundle, "-bundle", str(bundle), "delete")
    assert b"left alone" not in done.stderr
