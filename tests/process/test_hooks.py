"""Hooks that hang: the runtime that waits for one is given up, and nothing of it is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.commandlines import command_lines
from tests.e2e.waiting import PATIENCE
from tests.process.driven import Driven, verdict
from tests.process.rig import alive
from tests.process.test_lost_callers import nothing_is_left
from tests.process.test_stuck import assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.rig import Rig

pytestmark = pytest.mark.e2e


def hanging(rig: Rig, kind: str) -> Callable[[dict[str, Any]], None]:
    """Give the container a hook that waits for its child without end."""
    begun = rig.root / "hook.begun"
    script = f"echo hook >>{begun}; tail -f {begun} & echo child >>{begun}; wait"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {kind: [hook]}

    return change


def has_begun(rig: Rig) -> bool:
    return (rig.root / "hook.begun").read_text().split() == ["hook", "child"]


def hook_processes(rig: Rig) -> list[int]:
    """Find the hook and its child by their arguments; their own pids are of another namespace."""
    begun = bytes(rig.root / "hook.begun")
    found = [pid for pid, words in command_lines() if any(begun in word for word in words)]
    return [pid for pid in found if alive(pid)]


def stray(rig: Rig) -> set[Path]:
    """Find every cgroup directory that names the rig, in whichever hierarchy."""
    return {
        Path(top) / name
        for top, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if rig.root.name in name
    }


@pytest.mark.parametrize("named", [True, False], ids=["a path", "no path"])
@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
async def test_a_hook_that_hangs_in_create_is_ended_with_its_cgroups(
    rig: Rig, kind: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime has made cgroups by then, and knows of no container yet."""
    monkeypatch.setenv("TRIO_SHIM_RUNTIME_TIMEOUT", "1")
    id_ = f"c-{rig.root.name}"  # without a path the cgroup has the id's name

    def change(config: dict[str, Any]) -> None:
        hanging(rig, kind)(config)
        if not named:
            del config["linux"]["cgroupsPath"]

    bundle = rig.bundle(id_, "sleep", "1000", change=change)
    driven = Driven(rig, await rig.start(bundle))
    with pytest.raises(GRPCError) as caught:
        await driven.create(bundle)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    assert has_begun(rig)
    assert hook_processes(rig) == []
    assert stray(rig) == set()
    await nothing_is_left(rig, id_)
    assert_nothing_left(rig)
    assert rig.sink.names() == []


async def test_a_runtime_that_is_killed_in_create_leaves_neither_init_nor_cgroups(
    rig: Rig,
) -> None:
    def change(config: dict[str, Any]) -> None:
        hook = {"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"]}
        config["hooks"] = {"createRuntime": [hook]}

    id_ = f"c-{rig.root.name}"
    bundle = rig.bundle(id_, "sleep", "1000", change=change)
    driven = Driven(rig, await rig.start(bundle))
    with pytest.raises(GRPCError, match="exit status 137"):
        await driven.create(bundle)
    assert stray(rig) == set()
    await nothing_is_left(rig, id_)
    assert_nothing_left(rig)


async def test_a_hook_that_hangs_after_the_end_is_ended_and_the_delete_can_be_repeated(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_SHIM_RUNTIME_TIMEOUT", "1")
    bundle = rig.bundle("c1", "sleep", "1000", change=hanging(rig, "poststop"))
    driven = Driven(rig, await rig.start(bundle))
    await driven.run(bundle)
    await driven.kill("c1")
    await driven.wait("c1")
    with trio.fail_after(20 * PATIENCE):
        while True:
            try:
                await driven.delete("c1")
            except GRPCError as exc:
                assert exc.status is Status.DEADLINE_EXCEEDED  # noqa: PT017 - it may succeed
                continue
            break
    assert has_begun(rig)
    assert hook_processes(rig) == []
    await verdict(rig, driven.oracle, "c1")
    assert_nothing_left(rig)
