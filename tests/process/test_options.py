"""The runtime's options and the environment of a start: each has the effect it is named for.

Options with no effect inside the container are read from the runtime's arguments.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import process_pb2
from shim.api.introspection_pb2 import RuntimeInfo
from shim.api.options_pb2 import Options
from shim.api.runtimeoptions_pb2 import Options as GenericOptions
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResumeRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    WaitRequest,
)
from shim.cgroup.files import make_group
from shim.cgroup.find import cgroup_at, cgroup_of
from shim.cgroup.v1 import CgroupV1
from shim.container.cleanup_records import cgroup_names_of
from shim.linux.sockets import socket_path
from tests.process.recorder import record
from tests.process.rig import SHIM, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.process.survival import Start

pytestmark = pytest.mark.e2e
_PR_SCHED_CORE = 62


@pytest.mark.parametrize(
    ("option", "flag"), [("no_pivot_root", "--no-pivot"), ("no_new_keyring", "--no-new-keyring")]
)
async def test_an_option_of_create_reaches_the_runtime_and_only_when_it_is_set(
    rig: Rig, option: str, flag: str
) -> None:
    recorder = record(rig)
    for id_, wanted in (("c1", True), ("c2", False)):
        bundle = rig.bundle(id_, "sleep", "1000")
        task = await rig.start(bundle)
        options = rig.options(binary_name=recorder.binary, **{option: wanted})
        await rig.run(task, bundle, options=options)
        [argv] = [argv for argv in recorder.calls("create") if id_ in argv]
        assert (flag in argv[argv.index("create") :]) == wanted, argv


async def test_the_systemd_option_reaches_every_command_and_the_cgroup_is_found(rig: Rig) -> None:
    # Without a systemd runc's own cgroup manager stands in: the container is identified by the
    # cgroup of its init process, made by any program.
    drop = 'for a; do shift; [ "$a" = --systemd-cgroup ] || set -- "$@" "$a"; done; exec runc "$@"'
    recorder = record(rig, drop)
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=recorder.binary, systemd_cgroup=True)
    created = await rig.run(task, bundle, options=options)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=5)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    await task.Pause(PauseRequest(id="c1"), timeout=10)
    await task.Resume(ResumeRequest(id="c1"), timeout=10)
    assert (await task.Stats(StatsRequest(id="c1"), timeout=5)).stats.value
    assert cgroup_of(created.pid).pids()[0] == created.pid
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    for verb in ("create", "start", "exec", "pause", "resume", "delete"):
        argv = recorder.call(verb)
        assert "--systemd-cgroup" in argv[: argv.index(verb)], argv


def _own_users(config: dict[str, Any]) -> None:
    mapping = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}


async def test_the_streams_of_init_and_execs_belong_to_the_users_named(rig: Rig) -> None:
    rig.root.chmod(0o755)
    os.chown(rig.rootfs(), 100_000, 100_000)
    streams = {"stdin": "in", "stdout": "out", "stderr": "err"}
    for name in streams.values():
        os.mkfifo(rig.root / name)
    fields = {key: str(rig.root / name) for key, name in streams.items()}
    bundle = rig.bundle("c1", "sleep", "1000", change=_own_users)
    task = await rig.start(bundle)
    options = rig.options(io_uid=100_000, io_gid=100_007)
    created = await rig.run(task, bundle, options=options, **fields)
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000", **fields), timeout=5)
    started = await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=10)
    for pid in (created.pid, started.pid):
        for number in range(3):
            status = os.stat(f"/proc/{pid}/fd/{number}")  # noqa: PTH116 - Path.stat is no clearer
            assert (status.st_uid, status.st_gid) == (100_000, 100_007)


@pytest.fixture
def cgroup_name() -> Iterator[str]:
    """A name for a cgroup of the shim's, which is removed once the shim has left.

    It exists only if the test makes it.
    """
    name = f"/trio-shim-test-{uuid.uuid4().hex[:8]}"
    yield name
    for path in Path("/sys/fs/cgroup").glob(f"*{name}"):
        for below, _, _ in os.walk(path, topdown=False):
            with suppress(FileNotFoundError):
                Path(below).rmdir()


def _start_options(**fields: Any) -> bytes:
    value = Options(**fields).SerializeToString()
    return AnyMessage(type_url="containerd.runc.v1.Options", value=value).SerializeToString()


@pytest.mark.parametrize("below", ["", "/deeper/still"])
async def test_the_daemon_is_in_the_cgroup_it_is_told_and_its_containers_are_not(
    rig: Rig, cgroup_name: str, below: str
) -> None:
    path = cgroup_name + below
    make_cgroup(path)
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle, stdin=_start_options(shim_cgroup=path))
    assert cgroup_of(rig.daemons[0]) == cgroup_at(path)
    assert cgroup_of(rig.daemons[0]).pids() == rig.daemons
    created = await rig.run(task, bundle)
    assert created.pid not in cgroup_at(path).pids()
    assert (await task.Pids(PidsRequest(id="c1"), timeout=5)).processes[0].pid == created.pid
    await rig.end()  # before the cgroup is removed


def make_cgroup(path: str) -> None:
    for directory in cgroup_names_of(cgroup_at(path)):
        make_group(f"/{directory}")


async def test_of_a_cgroup_in_some_hierarchies_the_shim_is_in_those(
    rig: Rig, cgroup_name: str
) -> None:
    """Version 1 only: the shim must not create a group that the host's administrator did not."""
    cgroup = cgroup_at(cgroup_name)
    if not isinstance(cgroup, CgroupV1):
        pytest.skip("needs the hierarchies of version 1")
    Path(cgroup.directories["memory"]).mkdir()
    await rig.start(rig.bundle("c1", "true"), stdin=_start_options(shim_cgroup=cgroup_name))
    lines = Path(f"/proc/{rig.daemons[0]}/cgroup").read_text().splitlines()
    assert [line.split(":")[1] for line in lines if line.endswith(cgroup_name)] == ["memory"]
    await rig.end()  # before the cgroup is removed


async def test_a_cgroup_that_does_not_exist_is_named_and_not_made(
    rig: Rig, cgroup_name: str
) -> None:
    bundle = rig.bundle("c1", "true")
    done = rig.run_shim(
        bundle, "-id", "c1", "start", stdin=_start_options(shim_cgroup=cgroup_name)
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"{cgroup_name!r}: it does not exist; create it first" in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not cgroup_at(cgroup_name).exists()
    assert not os.path.exists(socket_path((bundle / "address").read_text()))  # noqa: PTH110


@pytest.mark.parametrize("path", ["/cgroup.procs/x", "/x" * 3000], ids=["a file", "too long"])
async def test_a_cgroup_that_cannot_be_is_an_error_and_leaves_nothing(rig: Rig, path: str) -> None:
    bundle = rig.bundle("c1", "true")
    done = rig.run_shim(
        bundle, "-id", "c1", "start", stdin=_start_options(shim_cgroup=path), timeout=30
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert path[:100] in done.stderr.decode()
    assert "the shim did not start" not in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not os.path.exists(socket_path((bundle / "address").read_text()))  # noqa: PTH110


@pytest.mark.parametrize("raised", [0, 7, 998, 999, 1000])
async def test_the_oom_score_is_one_more_than_the_managers_and_never_above_1000(
    rig: Rig, raised: int
) -> None:
    bundle = rig.bundle("c1", "true")
    # A manager of this score; it may be raised by anyone, and goes with the process.
    argv = ["sh", "-c", 'echo "$0" >/proc/self/oom_score_adj; "$@"; exit $?', str(raised)]
    source = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*argv, *SHIM, "-namespace", "n", "-address", str(rig.root), "-id", "c1", "start"],
        cwd=bundle,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=True,
        env={**os.environ, "TTRPC_ADDRESS": str(rig.root / "events"), "PYTHONPATH": source},
    )
    rig.address = rig.answer(done.stdout)
    await rig.connect()
    score = int(Path(f"/proc/{rig.daemons[0]}/oom_score_adj").read_text())
    assert score == min(raised + 1, 1000)


def _cookie(pid: int) -> int | None:
    """Return the core scheduling cookie of ``pid``, None if this kernel has none."""
    cookie = ctypes.c_ulong()
    libc = ctypes.CDLL(None, use_errno=True)
    get, one_thread = 0, 0
    failed = libc.prctl(_PR_SCHED_CORE, get, pid, one_thread, ctypes.byref(cookie))
    return None if failed else cookie.value


async def test_a_shim_asked_to_isolate_its_core_does_or_is_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager relies on it."""
    monkeypatch.setenv("SCHED_CORE", "1")
    bundle = rig.bundle("c1", "sleep", "1000")
    if _cookie(os.getpid()) is None:
        done = rig.run_shim(bundle, "-id", "c1", "start")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"SCHED_CORE is set and this machine has no core scheduling" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert not os.path.exists(socket_path((bundle / "address").read_text()))  # noqa: PTH110
    else:
        task = await rig.start(bundle)
        created = await rig.run(task, bundle)
        assert _cookie(rig.daemons[0]) not in (0, _cookie(os.getpid()))
        assert _cookie(created.pid) == _cookie(rig.daemons[0])
    # Without the setting, no start fails.
    monkeypatch.setenv("SCHED_CORE", "")
    other = rig.bundle("c2", "sleep", "1000")
    task = await rig.start(other)
    await rig.run(task, other)
    assert (await task.State(StateRequest(id="c2"), timeout=5)).status == process_pb2.RUNNING


@pytest.mark.cold  # the fork server is the test's own
@pytest.mark.skipif(_cookie(0) is None, reason="this machine has no core scheduling")
async def test_a_replacement_has_the_core_of_its_shim(
    rig: Rig, survivors: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHED_CORE", "1")
    shim = await survivors(bundle := rig.bundle("c1", "sleep", "1000"))
    pid = await shim.run(bundle)
    cookie = _cookie(pid)
    assert cookie
    assert _cookie(await shim.replace()) == cookie
    exec_pid = await shim.exec("c1", "e1", "sleep", "1000")
    assert _cookie(exec_pid) == cookie


def _info(stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*SHIM, "-info"], input=stdin, capture_output=True, check=False, timeout=30
    )


async def test_info_asks_the_runtime_of_the_options_and_repeats_them(rig: Rig) -> None:
    binary = rig.wrapper("other", 'echo "{\\"ociVersionMin\\": \\"$*\\"}"')
    options = _start_options(binary_name=binary, systemd_cgroup=True)
    done = _info(options)
    assert (done.returncode, done.stderr) == (0, b"")
    info = RuntimeInfo.FromString(done.stdout)
    assert json.loads(info.features.value)["ociVersionMin"].endswith("features")
    assert info.options.SerializeToString() == options
    # The mount types that the manager leaves to the shim: none.
    assert not info.annotations


async def test_info_of_a_runtime_that_knows_no_features_goes_without(rig: Rig) -> None:
    done = _info(_start_options(binary_name=rig.wrapper("old", "echo unknown >&2; exit 1")))
    info = RuntimeInfo.FromString(done.stdout)
    assert (done.returncode, info.name) == (0, "io.containerd.trio.v2")
    assert not info.HasField("features")


def test_info_of_a_runtime_that_is_not_there_is_an_error() -> None:
    done = _info(_start_options(binary_name="/no/such/runtime"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"/no/such/runtime" in done.stderr
    assert done.stderr.count(b"\n") == 1


async def test_info_of_options_in_toml_asks_their_runtime_too(rig: Rig) -> None:
    binary = rig.wrapper("other", 'echo "{}"')
    generic = GenericOptions(config_body=f'BinaryName = "{binary}"'.encode())
    message = AnyMessage(type_url="runtimeoptions.v1.Options", value=generic.SerializeToString())
    info = RuntimeInfo.FromString(_info(message.SerializeToString()).stdout)
    assert info.features.value.strip() == b"{}"
