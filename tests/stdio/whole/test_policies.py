"""A container's output that no client reads: by annotation, by the host's file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import StartRequest, WaitRequest
from tests.e2e.waiting import PATIENCE
from tests.process.test_streams import switches
from tests.stdio.conftest import read_all, read_some
from tests.stdio.whole.client import (
    MIB,
    WAIT_FOR_GO,
    Digest,
    Streams,
    digest_to_end,
    ended,
    put_data,
    wait_asleep,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process.rig import Rig

OUTPUT = "io.trio-shim.output"
LIMIT = "io.trio-shim.output-limit"
MARKER = re.compile(rb"\n\[trio-shim: (\d+) bytes of output dropped\]\n")


def annotated(**annotations: str) -> Callable[[dict[str, Any]], object]:
    """Return a change of a configuration: ``output`` and ``output_limit``."""
    names = {f"io.trio-shim.{key.replace('_', '-')}": value for key, value in annotations.items()}
    return lambda config: config.setdefault("annotations", {}).update(names)


@pytest.fixture
def host_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write the host's file, with the spools in a directory of the test's."""

    def write(text: str) -> Path:
        path = tmp_path / "trio-shim.toml"
        path.write_text(f'{text}\ndirectory = "{tmp_path}/spool"\n')
        monkeypatch.setenv("TRIO_SHIM_CONFIG", str(path))
        return tmp_path / "spool"

    return write


async def test_a_container_under_spool_runs_to_its_end_and_its_output_waits(
    rig: Rig, host_file: Callable[[str], Path]
) -> None:
    spool = host_file("[output]")
    data, errors = put_data(rig, "data", 50), put_data(rig, "errors", 5)
    streams = Streams(rig, "c1")
    bundle = rig.bundle(
        "c1", "sh", "-c", "cat /errors >&2; cat /data; exit 3", change=annotated(output="spool")
    )
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams.fields("stdout", "stderr"))
    with trio.fail_after(30 * PATIENCE):  # no client has read a byte, and no reader is waited for
        reply = await task.Wait(WaitRequest(id="c1"))
    assert reply.exit_status == 3
    assert spool.is_dir()
    assert not list(spool.iterdir())
    assert await digest_to_end(streams.reader("stderr")) == errors
    assert await digest_to_end(streams.reader("stdout")) == data
    assert await ended(task, "c1") == 3


@pytest.mark.parametrize("forkserver", ["on", "off"])
async def test_the_hosts_file_decides_for_who_does_not_say(
    rig: Rig,
    host_file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    forkserver: str,
) -> None:
    """Through the fork server too, which was started with another environment."""
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER", forkserver)
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER_DIR", str(rig.root / "f"))
    first = rig.bundle("c0", "true")
    task = await rig.start(first)  # leaves a fork server, where there is to be one
    await rig.run(task, first)
    assert await ended(task, "c0") == 0
    if forkserver == "on":
        await wait_until((rig.root / "f").exists)
    host_file('[output]\npolicy = "drop"')
    (rig.rootfs() / "data").write_bytes(bytes(20 * MIB))
    streams, other = Streams(rig, "c1"), Streams(rig, "c2")
    bundle = rig.bundle("c1", "cat", "/data")
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams.fields("stdout"))
    with trio.fail_after(30 * PATIENCE):
        await task.Wait(WaitRequest(id="c1"))
    received = await read_all(streams.reader())
    found = MARKER.search(received)
    assert found is not None
    assert len(received) - len(found[0]) + int(found[1]) == 20 * MIB
    # The annotation of another container has the last word.
    bundle = rig.bundle("c2", "cat", "/data", change=annotated(output="block"))
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, **other.fields("stdout"))
    await wait_asleep(created.pid)
    assert await digest_to_end(other.reader()) == Digest.of(bytes(20 * MIB))
    assert await ended(task, "c2") == 0


async def test_an_exec_is_under_its_containers_policy(
    rig: Rig, host_file: Callable[[str], Path]
) -> None:
    host_file("[output]")
    data = put_data(rig, "data", 10)
    change = annotated(output="spool", output_limit="10MiB")
    bundle = rig.bundle("c1", "sleep", "1000", change=change)
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    for terminal in (False, True):
        streams = Streams(rig, f"e-{terminal}")
        fields = streams.fields("stdout") | {"terminal": terminal}
        raw = "stty raw -echo; " if terminal else ""
        name = f"e{terminal}"
        request = rig.exec_request("c1", name, "sh", "-c", f"{raw}cat /data", **fields)
        await task.Exec(request, timeout=10)
        await task.Start(StartRequest(id="c1", exec_id=name), timeout=20)
        with trio.fail_after(30 * PATIENCE):
            await task.Wait(WaitRequest(id="c1", exec_id=name))
        assert await digest_to_end(streams.reader()) == data
        assert await ended(task, "c1", name) == 0


async def test_beyond_its_limit_a_spool_drops_and_says_how_much(
    rig: Rig, host_file: Callable[[str], Path]
) -> None:
    host_file("[output]\nlimit = 65536")
    (rig.rootfs() / "data").write_bytes(bytes(10 * MIB))
    streams = Streams(rig, "c1")
    script = f"cat /data; touch /written; {WAIT_FOR_GO}; echo again"
    bundle = rig.bundle("c1", "sh", "-c", script, change=annotated(output="spool"))
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams.fields("stdout"))
    # Not before: a daemon that waits for a reader to count as absent sleeps too.
    await wait_until((rig.rootfs() / "written").exists)
    await wait_asleep(rig.daemons[0])
    out = streams.reader()
    received = b""
    with trio.fail_after(20 * PATIENCE):
        while (found := MARKER.search(received)) is None:
            received += await read_some(out, MIB)
        kept = found.start()
        assert MIB <= kept <= 2 * MIB
        assert kept + int(found[1]) == 10 * MIB
        (rig.rootfs() / "go").touch()
        assert await read_all(out) == b"again\n"
    assert await ended(task, "c1") == 0


def read_comm(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def test_a_reader_that_is_away_costs_no_wake_up(
    rig: Rig, host_file: Callable[[str], Path]
) -> None:
    host_file("[output]")
    put_data(rig, "data", 10)
    bundle = rig.bundle("c1", "sleep", "1000", change=annotated(output="spool"))
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    for terminal in (False, True):
        streams = Streams(rig, f"e-{terminal}")
        fields = streams.fields("stdout") | {"terminal": terminal}
        script = "stty raw; " * terminal + "cat /data; exec sleep 1000"
        request = rig.exec_request("c1", f"e{terminal}", "sh", "-c", script, **fields)
        await task.Exec(request, timeout=10)
        reply = await task.Start(StartRequest(id="c1", exec_id=f"e{terminal}"), timeout=20)
        await wait_until(lambda pid=reply.pid: b"sleep" in read_comm(str(pid)))  # type: ignore[misc] # a default is how a loop is bound
    (daemon,) = rig.daemons
    await wait_asleep(daemon)
    before = switches(daemon)
    await trio.sleep(1)  # this is the measurement
    assert switches(daemon) == before


@pytest.mark.parametrize(
    ("annotations", "name"),
    [({"output": "none"}, OUTPUT), ({"output_limit": "much"}, LIMIT)],
)
async def test_a_bad_annotation_fails_the_creation_by_its_name(
    rig: Rig, annotations: dict[str, str], name: str
) -> None:
    bundle = rig.bundle("c1", "true", change=annotated(**annotations))
    task = await rig.start(bundle)
    with pytest.raises(GRPCError, match=f"annotation {name} must be") as caught:
        await task.Create(rig.create_request(bundle), timeout=20)
    assert caught.value.status is Status.INVALID_ARGUMENT
    (bundle / "config.json").unlink()
    again = rig.bundle("c2", "true")
    await rig.run(task, again)  # nothing is left of it
    assert await ended(task, "c2") == 0


async def test_a_broken_file_of_the_host_fails_the_creation_until_it_is_mended(
    rig: Rig, host_file: Callable[[str], Path]
) -> None:
    host_file('[output]\npolicy = "spol"')
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    said = r"/trio-shim\.toml: output\.policy must be block, spool or drop, not 'spol'"
    with pytest.raises(GRPCError, match=said) as caught:
        await task.Create(rig.create_request(bundle), timeout=20)
    assert caught.value.status is Status.INVALID_ARGUMENT
    host_file('[output]\npolicy = "spool"')
    await rig.run(task, bundle)
    assert await ended(task, "c1") == 0


async def test_without_its_directory_a_spool_is_in_the_bundle_and_the_container_goes_on(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trio-shim.toml"
    path.write_text(f'[output]\npolicy = "spool"\ndirectory = "{path}/none"\n')
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(path))
    data = put_data(rig, "data", 10)
    streams = Streams(rig, "c1")
    bundle = rig.bundle("c1", "cat", "/data")
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams.fields("stdout"))
    with trio.fail_after(30 * PATIENCE):
        await task.Wait(WaitRequest(id="c1"))
    assert await digest_to_end(streams.reader()) == data
    assert await ended(task, "c1") == 0
