"""Errors of the system reach a manager with action and path, not as Python shows them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import StartRequest

if TYPE_CHECKING:
    from tests.process.rig import Rig

pytestmark = pytest.mark.e2e


async def test_a_full_disk_is_named_with_the_file_that_did_not_fit(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    config = (bundle / "config.json").read_bytes()
    shutil.rmtree(bundle)
    bundle.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "x", bundle], check=True)
    (bundle / "config.json").write_bytes(config)
    task = await rig.start(bundle)
    with (bundle / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(GRPCError) as caught:
        await task.Create(rig.create_request(bundle), timeout=20)
    path = bundle / "options.json"
    assert caught.value.message == f"write {path}: no space left on device"
    assert caught.value.status is Status.RESOURCE_EXHAUSTED


async def test_a_file_of_the_bundle_that_cannot_be_made_is_named(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    (bundle / "options.json").mkdir()
    task = await rig.start(bundle)
    with pytest.raises(GRPCError) as caught:
        await task.Create(rig.create_request(bundle), timeout=20)
    assert caught.value.message == f"open {bundle}/options.json: is a directory"


async def test_a_daemon_without_fds_says_what_it_could_not_do(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    os.mkfifo(rig.root / "out")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    daemon = rig.daemons[0]
    before = resource.prlimit(daemon, resource.RLIMIT_NOFILE)
    held = len(os.listdir(f"/proc/{daemon}/fd"))
    said = set()
    try:
        for number in range(12):
            resource.prlimit(daemon, resource.RLIMIT_NOFILE, (held + number, before[1]))
            name = f"e{number}"
            request = rig.exec_request("c1", name, "true", stdout=str(rig.root / "out"))
            try:
                await task.Exec(request, timeout=10)
                await task.Start(StartRequest(id="c1", exec_id=name), timeout=10)
            except GRPCError as exc:
                said.add(exc.message or "")
            else:
                break
    finally:
        resource.prlimit(daemon, resource.RLIMIT_NOFILE, before)
    assert said
    for message in said:
        assert "too many open files" in message
        assert "Errno" not in message
        assert message != "too many open files", "what could not be done is missing"
    await task.Exec(rig.exec_request("c1", "last", "true"), timeout=10)
    await task.Start(StartRequest(id="c1", exec_id="last"), timeout=10)


async def test_start_in_a_directory_that_cannot_be_written_names_the_file(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    (bundle / "address").mkdir()
    done = rig.run_shim(bundle, "-id", "c1", "start")
    assert done.returncode == 1
    assert b"Errno" not in done.stderr
    assert b"address: is a directory" in done.stderr
