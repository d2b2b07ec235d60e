"""The shim accepts all input that the runtime accepts: any bytes, numbers and depths."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.task_pb2 import (
    DeleteRequest,
    ExecProcessRequest,
    KillRequest,
    ShutdownRequest,
    StartRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from tests.process.rig import PROCESS_URL, RESOURCES_URL

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from tests.process.rig import Rig

GROUP = "io.containerd.runc.v2.group"
# runc, like all of Go, reads 10,000 levels.
NEST = b"[" * 9000 + b'"]"' + b"]" * 9000
SHOW = ("sh", "-c", 'printf "%s" "$ODD"')


def odd(value: dict[str, Any]) -> bytes:
    """Write ``value`` with bytes that are no UTF-8, a long number and a deep value."""
    text = json.dumps(value).replace("VALUE", "caf\udce9")
    text = f'{{"x-long": [-{"9" * 5000}, 1e999], "x-deep": NEST, {text[1:]}'
    return text.encode(errors="surrogateescape").replace(b"NEST", NEST)


async def ran(rig: Rig, task: TaskStub, id_: str, exec_id: str = "") -> str:
    """Wait for the end of a process that was started; return its output."""
    reply = await task.Wait(WaitRequest(id=id_, exec_id=exec_id), timeout=20)
    await task.Delete(DeleteRequest(id=id_, exec_id=exec_id), timeout=20)
    assert reply.exit_status == 0
    return (rig.root / "out").read_bytes().decode()


async def test_a_config_that_the_runtime_takes_is_taken(rig: Rig) -> None:
    bundle = rig.bundle("c1", *SHOW)
    path = bundle / "config.json"
    config = json.loads(path.read_bytes())
    config["process"]["env"].append("ODD=VALUE")
    config["annotations"] = {GROUP: "VALUE", "VALUE": "VALUE", "io.trio-shim.output": "block"}
    path.write_bytes(odd(config))
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=f"file://{rig.root}/out")
    assert await ran(rig, task, "c1") == "caf\ufffd"


async def test_a_process_that_the_runtime_takes_is_taken(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    process = json.loads(rig.exec_request("c1", "e1", *SHOW).spec.value)
    process["env"].append("ODD=VALUE")
    data = odd(process)
    spec = AnyMessage(type_url=PROCESS_URL, value=data)
    request = ExecProcessRequest(id="c1", exec_id="e1", spec=spec, stdout=f"file://{rig.root}/out")
    await task.Exec(request, timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    assert await ran(rig, task, "c1", "e1") == "caf\ufffd"


async def test_resources_that_the_runtime_takes_are_taken(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    data = odd({"pids": {"limit": 77}, "x": {"VALUE": "VALUE"}})
    resources = AnyMessage(type_url=RESOURCES_URL, value=data)
    await task.Update(UpdateTaskRequest(id="c1", resources=resources), timeout=20)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=20)


async def test_a_manager_may_listen_under_any_name(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    for verb in ("start", "delete"):
        address = os.fsdecode(os.fsencode(rig.root) + b"/caf\xe9.sock")
        done = rig.run_shim(bundle, "-id", "c1", "-address", address, verb)
        assert (done.returncode, done.stderr) == (0, b"")
        if verb == "start":
            rig.address = rig.answer(done.stdout)
            await (await rig.connect()).Shutdown(ShutdownRequest(id="c1", now=True), timeout=5)


async def test_a_namespace_that_is_no_utf_8_is_an_error_of_one_line(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    done = rig.run_shim(bundle, "-id", "c1", "-namespace", "caf\udce9\n\x1b[2J", "start")
    if done.returncode == 0:
        rig.address = rig.answer(done.stdout)
        await (await rig.connect()).Shutdown(ShutdownRequest(id="c1", now=True), timeout=5)
    assert done.stderr.count(b"\n") == (done.returncode != 0)
    assert b"\x1b" not in done.stderr
