"""The end of a container by one call, in any state: on every face, of every shim."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import shimctl
from shimctl import RemainsError, aio, blocking, ending, remains
from shimctl.remains import traces_of
from tests.e2e.leftovers import end_fork_servers
from tests.process.rig import alive
from tests.shimctl.place import RUNTIMES, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.shimctl.place import Place

pytestmark = pytest.mark.e2e

FACES: dict[str, Any] = {
    "trio": lambda *args, **more: trio.run(partial(shimctl.dispose, *args, **more)),
    "asyncio": lambda *args, **more: asyncio.run(aio.dispose(*args, **more)),
    "threads": blocking.dispose,
}


@pytest.fixture(params=["ours", "go"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        yield place


def begin(place: Place, *, start: bool = True) -> tuple[Path, shimctl.Launched, int]:
    """Create a container that sleeps; return its bundle, its shim and its pid."""
    bundle = place.bundle("sleep", "1000").rename(place.root / "c")
    runtime = RUNTIMES[place.kind]
    launched = blocking.launch(
        bundle, "c", namespace=place.namespace, runtime=runtime, events=place.state / "events.sock"
    )
    with blocking.connect(launched.address, namespace=place.namespace) as shim:
        pid = shim.create("c", bundle)
        if start:
            shim.task("c").start()
    return bundle, launched, pid


def end(face: str, place: Place, bundle: Path) -> shimctl.Exited | None:
    found: shimctl.Exited | None = FACES[face](
        bundle, "c", namespace=place.namespace, runtime=RUNTIMES[place.kind]
    )
    return found


@pytest.mark.parametrize("face", FACES)
def test_what_runs_is_killed_and_its_shim_leaves(face: str, place: Place) -> None:
    bundle, launched, pid = begin(place)
    assert shimctl.read_address(bundle) == launched.address
    exited = end(face, place, bundle)
    assert exited is not None
    assert (exited.exit_status, exited.pid) == (137, pid)
    eventually(lambda: not alive(pid) and not alive(launched.shim_pid))
    assert place.left() == []
    end(face, place, bundle)  # may be repeated
    assert bundle.is_dir()


def test_the_calls_of_a_disposal_do_not_keep_the_shim_running(place: Place) -> None:
    bundle, launched, _ = begin(place)
    # With ``alone=False`` the shim is not killed: it is gone because it shut down at once.
    blocking.dispose(
        bundle, "c", namespace=place.namespace, runtime=RUNTIMES[place.kind], alone=False
    )
    assert not alive(launched.shim_pid)


def test_what_was_only_created_goes_too(place: Place) -> None:
    bundle, launched, pid = begin(place, start=False)
    end("trio", place, bundle)
    eventually(lambda: not alive(pid) and not alive(launched.shim_pid))
    assert place.left() == []


@pytest.mark.parametrize("face", FACES)
def test_what_a_killed_shim_left_ends_with_its_socket(face: str, place: Place) -> None:
    bundle, launched, pid = begin(place)
    os.kill(launched.shim_pid, signal.SIGKILL)
    eventually(lambda: not alive(launched.shim_pid))
    exited = end(face, place, bundle)
    assert exited is not None
    assert exited.exit_status == 137
    eventually(lambda: not alive(pid))
    assert not os.path.exists(launched.address.removeprefix("unix://"))  # noqa: PTH110 - a name


@pytest.mark.parametrize("face", FACES)
def test_a_shim_that_does_not_answer_any_more_is_killed(
    face: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_ANSWER", 0.5)
    bundle, launched, pid = begin(place)
    os.kill(launched.shim_pid, signal.SIGSTOP)
    exited = end(face, place, bundle)
    assert exited is not None
    assert exited.exit_status == 137
    eventually(lambda: not alive(pid) and not alive(launched.shim_pid))
    assert place.left() == []


@pytest.mark.cold
def test_a_shim_that_would_be_replaced_ends_all_the_same(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_ANSWER", 0.5)
    (tmp_path / "host.toml").write_text("survive = true\n")
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(tmp_path / "host.toml"))
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "on")
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER_DIR", str(tmp_path / "f"))
    try:
        bundle, launched, pid = begin(place)
        os.kill(launched.shim_pid, signal.SIGSTOP)
        exited = end("trio", place, bundle)
        assert exited is not None
        assert (exited.exit_status, exited.pid) == (137, pid)
        eventually(lambda: not alive(pid) and not alive(launched.shim_pid))
        eventually(lambda: not os.path.exists(launched.address.removeprefix("unix://")))  # noqa: PTH110 - a name
        assert place.left() == []
    finally:
        end_fork_servers(str(tmp_path))


@pytest.mark.parametrize("face", FACES)
def test_what_remains_is_named_where_the_shims_delete_fails(
    face: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_GONE", 0.2)
    bundle, launched, pid = begin(place)
    os.kill(launched.shim_pid, signal.SIGKILL)
    eventually(lambda: not alive(launched.shim_pid))
    with pytest.raises(RemainsError, match=f"cannot delete c;.* processes {pid}") as caught:
        FACES[face](bundle, "c", namespace=place.namespace, runtime="/bin/false")
    assert caught.value.processes == (pid,)
    assert caught.value.cgroups
    assert all(Path(group).is_dir() for group in caught.value.cgroups)
    assert f"cgroups {caught.value.cgroups[0]}" in str(caught.value)
    end(face, place, bundle)  # and the remains can be ended later
    assert not alive(pid)
    assert not any(Path(group).exists() for group in caught.value.cgroups)


def test_what_remains_is_named_where_the_runtimes_delete_hangs(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our shim still kills the init process, and leaves the cgroup to the runtime."""
    monkeypatch.setattr(ending, "_GONE", 0.2)
    runc = tmp_path / "runc"
    runc.write_text(
        '#!/bin/sh\ncase " $* " in *" delete "*) exec sleep 1000;; esac\n'
        f'exec {shutil.which("runc")} "$@"\n'
    )
    runc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    bundle, launched, pid = begin(place)
    os.kill(launched.shim_pid, signal.SIGKILL)
    eventually(lambda: not alive(launched.shim_pid))
    with pytest.raises(RemainsError) as caught:
        end("threads", place, bundle)
    assert caught.value.cgroups
    assert caught.value.processes == (() if place.kind == "ours" else (pid,))
    runc.unlink()
    end("threads", place, bundle)
    assert not any(Path(group).exists() for group in caught.value.cgroups)


def test_a_pid_that_is_another_processs_by_now_is_no_remainder(tmp_path: Path) -> None:
    (tmp_path / "init.pid").write_text(str(os.getpid()))
    (tmp_path / "config.json").write_text('{"linux": {"cgroupsPath": "/nowhere/c"}}')
    traces = traces_of(tmp_path, "c")
    assert (traces.pidfd, traces.cgroups) == (-1, [])
    traces.check(mounts=True)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b", "/a/b"),
        ("", "c"),
        ("sys.slice:cri:c", "cri-c.scope"),
        ("sys.slice::c", "c.scope"),
        ("sys.slice::own.slice", "own.slice"),
        ("a/../b/", "/b"),
    ],
)
def test_a_group_is_known_by_its_name(tmp_path: Path, path: str, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": path}}))
    names = remains._names(tmp_path, "c")
    assert names[0] == name
    below = f"/x/{name.strip('/')}/init.scope"
    assert next(remains._own(below, names)) == f"/x/{name.strip('/')}"
    assert list(remains._own(f"/x/{name.strip('/')}d", names)) == []


def test_a_long_list_is_cut_in_the_message_and_whole_in_the_error() -> None:
    error = RemainsError("c", processes=tuple(range(1, 30)), mounts=("/m",))
    assert len(error.processes) == 29
    assert "processes 1, 2, 3, 4, 5, 6, 7, 8 and 21 more; mounts /m. End" in str(error)


@pytest.mark.parametrize("address", ["unix:///" + "x" * 200, "unix:///a\0b", "nonsense"])
def test_what_is_no_address_ends_nothing_and_is_no_error(address: str, tmp_path: Path) -> None:
    (tmp_path / "address").write_text(address)
    assert blocking.dispose(tmp_path, "c", runtime="/bin/false") is None


def test_a_bundle_that_says_nothing_has_no_address(tmp_path: Path) -> None:
    with pytest.raises(shimctl.NotFoundError, match="no shim was started"):
        shimctl.read_address(tmp_path)
    for text in ("{", "[]", "[" * 60_000):
        (tmp_path / "bootstrap.json").write_text(text)
        with pytest.raises(shimctl.InvalidError, match=r"cannot read .* from .*/bootstrap\.json"):
            shimctl.read_address(tmp_path)
    (tmp_path / "address").write_text("unix:///one\n")
    assert shimctl.read_address(tmp_path) == "unix:///one"
    (tmp_path / "bootstrap.json").write_text('{"address": "unix:///two"}')
    assert shimctl.read_address(tmp_path) == "unix:///two"
