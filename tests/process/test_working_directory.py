"""Where runtimes, hooks and loggers run: in the bundle of their container, as under Go's shim.

Wrappers of runtimes read config.json there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    ResumeRequest,
    StartRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from tests.process.rig import RESOURCES_URL, Rig
from tests.process.steps import kill_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from shim.api.task_grpc import TaskStub

POD = "io.kubernetes.cri.sandbox-id"


def noting(rig: Rig) -> str:
    """Return a runtime that notes its verb and its directory, then does as runc."""
    script = f"""
for word; do
  case $word in create|start|exec|kill|delete|pause|resume|update) verb=$word; break;; esac
done
echo "$verb $(readlink /proc/self/cwd)" >> {rig.root}/noted
exec runc "$@"
"""
    return rig.wrapper("noting", script)


def noted(rig: Rig) -> list[str]:
    path = rig.root / "noted"
    lines = path.read_text().split("\n")[:-1]
    path.unlink()
    return lines


async def exec_once(rig: Rig, task: TaskStub, id_: str) -> None:
    await task.Exec(rig.exec_request(id_, "e1", "true"), timeout=10)
    await task.Start(StartRequest(id=id_, exec_id="e1"), timeout=20)
    await task.Wait(WaitRequest(id=id_, exec_id="e1"), timeout=20)
    await task.Delete(DeleteRequest(id=id_, exec_id="e1"), timeout=15)


async def test_every_command_of_the_runtime_runs_in_its_containers_bundle(rig: Rig) -> None:
    def pod(config: dict[str, Any]) -> None:
        config["annotations"] = {POD: "pod1"}
        config["linux"]["namespaces"] = [
            one for one in config["linux"]["namespaces"] if one["type"] != "pid"
        ]

    options = rig.options(binary_name=noting(rig))
    bundles = [rig.bundle(id_, "sleep", "1000", change=pod) for id_ in ("c1", "c2")]
    task = await rig.start(bundles[0])
    for bundle in bundles:
        id_ = bundle.name
        await rig.run(task, bundle, options=options)
        await exec_once(rig, task, id_)
        update = UpdateTaskRequest(id=id_)
        update.resources.type_url, update.resources.value = RESOURCES_URL, b"{}"
        await task.Update(update, timeout=10)
        await task.Pause(PauseRequest(id=id_), timeout=10)
        # Only the runtime can kill a frozen process.
        await task.Kill(KillRequest(id=id_, signal=9, all=True), timeout=10)
        await task.Wait(WaitRequest(id=id_), timeout=10)
        await task.Delete(DeleteRequest(id=id_), timeout=10)
        verbs = ["create", "start", "exec", "update", "pause", "kill", "delete"]
        lines = noted(rig)
        assert set(lines) == {f"{verb} {bundle}" for verb in verbs}
    assert os.readlink(f"/proc/{rig.daemons[0]}/cwd") == "/"  # noqa: PTH115


async def test_resume_runs_in_the_bundle_too(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=noting(rig)))
    await task.Pause(PauseRequest(id="c1"), timeout=10)
    await task.Resume(ResumeRequest(id="c1"), timeout=10)
    assert f"resume {bundle}" in noted(rig)


async def test_hooks_run_in_the_bundle(rig: Rig) -> None:
    out = rig.root / "hooks"

    def hook(name: str) -> list[dict[str, Any]]:
        script = f"echo {name} $(readlink /proc/self/cwd) >> {out}"
        return [{"path": "/bin/sh", "args": ["sh", "-c", script]}]

    names = ("prestart", "createRuntime", "poststart", "poststop")
    bundle = rig.bundle(
        "c1", "true", change=lambda config: config.update(hooks={one: hook(one) for one in names})
    )
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert set(out.read_text().split("\n")[:-1]) == {f"{name} {bundle}" for name in names}


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_logger_runs_in_the_bundle(rig: Rig, terminal: bool) -> None:
    script = f"readlink /proc/self/cwd > {rig.root}/where; exec 5>&-; cat <&3 >/dev/null"
    logger = rig.wrapper("logger", script)

    def change(config: dict[str, Any]) -> None:
        config["process"]["terminal"] = terminal

    bundle = rig.bundle("c1", "true", change=change)
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=f"binary://{logger}", terminal=terminal)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert (rig.root / "where").read_text().strip() == str(bundle)


async def test_delete_runs_the_runtime_in_the_bundle(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=noting(rig)))
    await kill_daemon(rig)
    noted(rig)
    done = await rig.call_shim(rig.root, "-id", "c1", "-bundle", str(bundle), "delete")
    assert done.returncode == 0, done.stderr
    assert noted(rig) == [f"delete {bundle}"]


async def test_a_container_whose_bundle_is_gone_can_be_deleted(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    hidden: Path = bundle.with_name("hidden")
    bundle.rename(hidden)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert not list(rig.runc_root.glob("*/*"))
