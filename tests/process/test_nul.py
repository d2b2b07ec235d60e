"""A NUL byte in a name is refused wherever it comes from; nothing means another file for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import task_pb2
from shim.api.bootstrap_pb2 import BootstrapParams
from shim.api.mount_pb2 import Mount
from shim.api.options_pb2 import CheckpointOptions, Options
from shim.api.runtimeoptions_pb2 import Options as GenericOptions
from shim.api.task_pb2 import CheckpointTaskRequest, StartRequest, StateRequest
from tests.process.rig import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from tests.process.rig import Rig

_METHODS = task_pb2.DESCRIPTOR.services_by_name["Task"].methods


def strings_of(message: Message) -> Iterator[str]:
    """Yield the names of the fields that are one text."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING and not field.is_repeated:
            yield field.name


def holding(message: Message, name: str, text: str) -> Any:
    """Set the field ``name`` of ``message``; return it."""
    setattr(message, name, text)
    return message


def wrapped(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


async def check_refused(call: Any) -> None:
    with trio.fail_after(20), pytest.raises(GRPCError) as caught:
        await call
    assert caught.value.status is Status.INVALID_ARGUMENT, caught.value
    assert caught.value.message
    assert not set("\n\0") & set(caught.value.message)


async def test_no_request_may_hold_one_in_any_of_its_strings(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    checked = []
    for method in _METHODS:
        request = getattr(task_pb2, method.input_type.name)
        for name in strings_of(request()):
            await check_refused(
                getattr(task, method.name)(holding(request(), name, "c1\0x"), timeout=5)
            )
            checked.append(f"{method.name}.{name}")
    assert {"State.id", "Create.bundle", "Create.stdin", "Exec.exec_id"} <= set(checked)
    assert (await task.State(StateRequest(id="c1"), timeout=5)).id == "c1"


@pytest.mark.parametrize("field", ["type", "source", "target", "options"])
async def test_no_mount_of_a_rootfs_may(rig: Rig, field: str) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    (rig.root / "a").mkdir()
    text = f"{rig.root}/a\0b"
    mount = Mount(type="bind", source=str(rig.root / "a"), options=["rbind"])
    if field == "options":
        mount.options.append(text)
    else:
        setattr(mount, field, text)
    await check_refused(task.Create(rig.create_request(bundle, rootfs=[mount]), timeout=20))


async def test_no_option_may(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    wanted = [wrapped(holding(Options(), name, "runc\0x")) for name in strings_of(Options())]
    assert len(wanted) > 5
    wanted.append(wrapped(GenericOptions(config_body=b'BinaryName = "runc\\u0000x"')))
    wanted.append(wrapped(GenericOptions(config_path="/etc/passwd\0x")))
    for options in wanted:
        request = rig.create_request(bundle, options=options)
        await check_refused(task.Create(request, timeout=20))


async def test_no_option_of_a_checkpoint_may(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    for name in strings_of(CheckpointOptions()):
        options = wrapped(holding(CheckpointOptions(), name, f"{rig.root}/a\0b"))
        request = CheckpointTaskRequest(id="c1", path=str(rig.root / "image"), options=options)
        await check_refused(task.Checkpoint(request, timeout=20))
    assert not (rig.root / "a").exists()


@pytest.mark.parametrize("query", ["file://{}%00b", "binary:///bin/true?a=b%00c"])
async def test_no_address_of_output_may(rig: Rig, query: str) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    stdout = query.format(rig.root / "log")
    await check_refused(task.Create(rig.create_request(bundle, stdout=stdout), timeout=20))
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "true", stdout=stdout), timeout=5)
    await check_refused(task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20))
    assert not (rig.root / "log").exists()


@pytest.mark.parametrize(
    "field", ["socket_dir", "containerd_grpc_address", "containerd_ttrpc_address"]
)
async def test_nothing_that_start_reads_may(rig: Rig, field: str) -> None:
    bundle = rig.bundle("c1", "true")
    params = holding(
        BootstrapParams(instance_id="c1", namespace=NAMESPACE), field, f"{rig.root}/s\0x"
    )
    done = rig.run_shim(bundle, "-id", "c1", "start", stdin=params.SerializeToString())
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"\0" not in done.stderr
    assert b"NUL" in done.stderr
    assert not (rig.root / "s").exists()
