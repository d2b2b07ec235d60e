"""The behaviour that clients of managers rely on: which setting has priority, and error
texts.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import (
    CheckpointTaskRequest,
    DeleteRequest,
    ExecProcessRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.container.task_events import ZERO_TIME
from tests.process.crio import open_fifo, read_all
from tests.process.recorder import record
from tests.process.rig import PROCESS_URL, Rig, default_config
from tests.process.steps import waiting_for_exec

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub


def with_terminal(config: dict[str, Any], *, wanted: bool = True) -> None:
    config["process"]["terminal"] = wanted


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("spec", [{"terminal": True}, {"terminal": False}, {}, {"Terminal": True}])
async def test_an_exec_has_a_terminal_if_its_request_says_so(
    rig: Rig, spec: dict[str, bool], asked: bool
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000", change=partial(with_terminal, wanted=not asked))
    task = await rig.start(bundle)
    await rig.run(task, bundle, terminal=not asked)
    fd = open_fifo(rig.root / "out")
    output = bytearray()
    process = default_config()["process"]
    del process["terminal"]
    process |= {"args": ["sh", "-c", "test -t 1 && echo tty || echo pipe"], **spec}
    value = json.dumps(process).encode()
    request = ExecProcessRequest(
        id="c1",
        exec_id="e1",
        stdout=str(rig.root / "out"),
        terminal=asked,
        spec=AnyMessage(type_url=PROCESS_URL, value=value),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, fd, output)
        await task.Exec(request, timeout=10)
        assert (await task.State(StateRequest(id="c1", exec_id="e1"))).terminal is asked
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
        await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
        await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=20)
    assert bytes(output).strip() == (b"tty" if asked else b"pipe")


@pytest.mark.parametrize("asked", [True, False])
async def test_the_terminal_of_init_must_be_that_of_its_config(rig: Rig, asked: bool) -> None:
    bundle = rig.bundle("c1", "true", change=partial(with_terminal, wanted=not asked))
    task = await rig.start(bundle)
    with pytest.raises(GRPCError) as caught:
        await task.Create(rig.create_request(bundle, terminal=asked), timeout=20)
    assert "OCI runtime create failed: runc create failed: cannot " in (caught.value.message or "")
    await rig.run(task, bundle, terminal=not asked)


async def test_null_in_the_spec_of_an_exec_is_left_out(rig: Rig) -> None:
    script = 'case " $* " in *" exec "*) cp "$root"/c1/e1.process.json "$calls";; esac'
    recorder = record(rig, f'root={rig.root}\n{script}\nexec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=recorder.binary))
    process = default_config()["process"] | {
        "args": ["true"],
        "rlimits": None,
        "capabilities": {**default_config()["process"]["capabilities"], "ambient": None},
        "oomScoreAdj": None,
        "apparmorProfile": None,
    }
    request = rig.exec_request("c1", "e1", "true")
    request.spec.value = json.dumps(process).encode()
    await task.Exec(request, timeout=10)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    assert (await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)).exit_status == 0
    passed = json.loads((rig.root / "calls/e1.process.json").read_text())
    assert passed["capabilities"].keys() == process["capabilities"].keys() - {"ambient"}
    assert not passed.keys() & {"rlimits", "oomScoreAdj", "apparmorProfile"}


async def test_an_exec_that_was_never_started_is_deleted_with_status_0(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=10)
    async with waiting_for_exec(task, "e1") as waited:
        deleted = await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=15)
    assert (deleted.pid, deleted.exit_status) == (0, 0)
    assert deleted.exited_at.seconds == waited[0].exited_at.seconds == ZERO_TIME
    assert waited[0].exit_status == 0


async def test_an_init_that_was_never_started_is_killed_and_told_so(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    pid = (await task.Create(rig.create_request(bundle), timeout=20)).pid
    deleted = await task.Delete(DeleteRequest(id="c1"), timeout=15)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == ["create", "exit c1", "delete"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-runc", 'exec: "no-runc": executable file not found in $PATH; install it'),
        ("/no/runc", "fork/exec /no/runc: no such file or directory; install it"),
    ],
)
async def test_a_missing_runtime_is_reported_in_the_words_of_gos_shim(
    rig: Rig, name: str, words: str
) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    options = rig.options(binary_name=name)
    with pytest.raises(GRPCError) as caught:
        await task.Create(rig.create_request(bundle, options=options), timeout=20)
    assert (caught.value.message or "").startswith(f"OCI runtime create failed: {words}")
    assert caught.value.status is Status.FAILED_PRECONDITION


async def test_a_runtime_that_went_away_is_named_by_every_command(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    binary = rig.wrapper("passing", 'exec runc "$@"')
    await task.Create(
        rig.create_request(bundle, options=rig.options(binary_name=binary)), timeout=20
    )
    os.rename(binary, f"{binary}.away")  # noqa: PTH104
    for call in (start(task), delete(task)):
        with pytest.raises(GRPCError) as caught:
            await call
        assert f"failed: fork/exec {binary}: no such file" in (caught.value.message or "")
    os.rename(f"{binary}.away", binary)  # noqa: PTH104
    await delete(task)


async def start(task: TaskStub) -> None:
    await task.Start(StartRequest(id="c1"), timeout=10)


async def delete(task: TaskStub) -> None:
    await task.Delete(DeleteRequest(id="c1"), timeout=15)


async def test_no_exec_is_added_to_a_container_that_waits_to_be_restored(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await task.Create(rig.create_request(bundle, checkpoint=str(rig.root)), timeout=20)
    with pytest.raises(GRPCError) as caught:
        await task.Exec(rig.exec_request("c1", "e1", "true"), timeout=10)
    assert caught.value.status is Status.FAILED_PRECONDITION
    deleted = await task.Delete(DeleteRequest(id="c1"), timeout=15)
    assert (deleted.pid, deleted.exit_status) == (0, 0)
    assert "exec-added" not in rig.sink.names()


async def test_an_exec_whose_start_failed_is_waited_for_until_its_delete(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "/no/such/program"), timeout=10)
    async with waiting_for_exec(task, "e1") as waited:
        with pytest.raises(GRPCError):
            await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
        assert not waited
        deleted = await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=15)
    assert (deleted.pid, deleted.exit_status, waited[0].exit_status) == (0, 0, 0)


async def test_a_runtime_command_has_the_managers_environment_and_the_daemons_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMAXPROCS", "2")
    noted = rig.root / "noted"
    script = f"""
case " $* " in *" start "*)
  echo "$GOMAXPROCS $(readlink /proc/$$/fd/0) $(cut -d' ' -f5,6 /proc/$$/stat)" > {noted};;
esac
exec runc "$@"
"""
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=rig.wrapper("noting", script)))
    daemon = rig.daemons[0]
    assert noted.read_text().split() == ["2", "/dev/null", str(daemon), str(daemon)]


async def test_a_failed_checkpoint_names_the_log_of_criu(rig: Rig) -> None:
    script = 'case " $* " in *" checkpoint "*) echo "criu failed: type NOTIFY" >&2; exit 1;; esac'
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    binary = rig.wrapper("failing", f'{script}\nexec runc "$@"')
    await rig.run(task, bundle, options=rig.options(binary_name=binary))
    (bundle / "work/criu-work").mkdir(parents=True)
    (bundle / "work/criu-work/dump.log").write_text("Error: it is so")
    request = CheckpointTaskRequest(id="c1", path=str(rig.root / "image"))
    with pytest.raises(GRPCError, match="criu failed: type NOTIFY; see ") as caught:
        await task.Checkpoint(request, timeout=20)
    assert str(bundle / "criu-dump.log") in (caught.value.message or "")
    assert (bundle / "criu-dump.log").read_text() == "Error: it is so"
