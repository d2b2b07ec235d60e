"""A minid that died: between any two steps, for a while, together with a shim."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
import trio
from minid import bundle
from minid.config import load
from minid.ledger import End, Ledger, write_json
from minid.policy import Record

import shimctl
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.minid.manager import Manager

pytestmark = pytest.mark.e2e

STEPS = [
    "intent",
    "half a directory",
    "directory",
    "launched",
    "answered",
    "created",
    "started",
    "ended",
    "recorded",
    "deleted",
    "shut down",
    "half removed",
    "removed",
]


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"command": ["sh", "-c", script], "grace": 0.1} | more


UNTIL_GO = "until [ -e /data/go ]; do usleep 20000; done"


def shell_with_data(manager: Manager, script: str, **more: Any) -> dict[str, Any]:
    """Return a container with the directory /data, in which :func:`go_on` makes a file."""
    data = manager.root / "data"
    data.mkdir(exist_ok=True)
    mounts = [{"source": str(data), "target": "/data"}]
    return shell(script, mounts=mounts, **more)


def go_on(manager: Manager) -> None:
    (manager.root / "data" / "go").touch()


async def go(manager: Manager, last: str) -> None:
    """Take the steps of minid for its one container up to ``last``, and no further."""
    settings = load(manager.file)
    (spec,) = settings.containers
    home = manager.state / "containers" / spec.name
    home.mkdir(parents=True, mode=0o700)
    written = {"written": spec.written, "base": str(settings.base), "name": spec.name}
    write_json(home / "spec.json", written)
    write_json(home / "record.json", asdict(Record().begin(0)))
    if last == "intent":
        return
    if last == "half a directory":
        (home / "1").mkdir()
        (home / "1" / "config.json").write_text("{")
        return
    path = home / "1"
    await bundle.make(path, spec, f"/{manager.namespace}/web.1")
    if last == "directory":
        return
    launched = await shimctl.launch(
        path, "web.1", namespace=manager.namespace, events=manager.state / "events.sock"
    )
    if last == "launched":
        (path / "bootstrap.json").unlink()
        return
    if last == "answered":
        return
    async with shimctl.connect(launched.address) as shim:
        await live(manager, shim, path, last)


async def live(manager: Manager, shim: shimctl.Shim, path: Path, last: str) -> None:
    out, err = str(path / "stdout"), str(path / "stderr")
    await shim.create("web.1", str(path), stdio=shimctl.Stdio(stdout=out, stderr=err))
    if last == "created":
        return
    task = shim.task("web.1")
    await task.start()
    if last == "started":
        return
    end = await task.wait()
    if last == "ended":
        return
    assert end.exited_at is not None
    with Ledger(manager.state / "exits.jsonl") as ledger:
        ledger.record(End("web", 1, end.exit_status, end.exited_at.timestamp()))
    if last == "recorded":
        return
    # Before this its output would have been read.
    logs = manager.state / "logs"
    logs.mkdir()
    (logs / "web.log").write_text("hello\n")
    (path / "stdout").unlink()
    await task.delete()
    if last == "deleted":
        return
    await shim.shutdown()
    if last == "half removed":
        (path / "config.json").unlink()
        (path / "bootstrap.json").unlink()
    elif last == "removed":
        bundle.remove(path)


@pytest.mark.parametrize("last", STEPS)
def test_whoever_comes_next_goes_on_from_any_step(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    for name, value in manager.environ.items():
        monkeypatch.setenv(name, value)
    manager.write(web=shell("echo hello; exit 7", restart="on-failure:1", backoff={"start": 0}))
    trio.run(go, manager, last)
    manager.start()
    manager.wait_for("it is over", lambda ps: ps["web"]["status"] == "exited")
    assert [(one["generation"], one["code"]) for one in manager.exits()] == [(1, 7), (2, 7)]
    assert manager.output("web") == "hello\nhello\n"
    manager.wait_nothing_left()


def test_exits_and_output_of_the_meantime_are_known_and_policies_act_on_them(
    manager: Manager,
) -> None:
    manager.write(
        back=shell_with_data(
            manager, f"echo hi; {UNTIL_GO}; seq 1 50000; exit 3", restart="on-failure:1"
        ),
        gone=shell_with_data(manager, f"{UNTIL_GO}; echo over; exit 5"),
    )
    manager.start()
    manager.wait_status("gone", "running")
    manager.wait_status("back", "running")
    pids = [one["pid"] for one in manager.ask("ps").values()]
    manager.end(signal.SIGKILL)
    go_on(manager)
    wait_until("they ended", lambda: not any(map(alive, pids)))
    manager.start()
    manager.wait_status("gone", "exited")
    manager.wait_status("back", "exited")
    assert manager.codes("gone") == [5]
    assert manager.codes("back") == [3, 3]
    assert manager.output("gone") == "over\n"
    once = "hi\n" + "".join(f"{n}\n" for n in range(1, 50_001))
    assert manager.output("back") == once + once


def test_no_container_waits_for_a_manager_that_is_away(manager: Manager) -> None:
    script = f"{UNTIL_GO}; seq 1 1000000; touch /data/done; exec sleep 1000"
    manager.write(web=shell_with_data(manager, script, log={"size": "1GiB"}))
    manager.start()
    before = manager.wait_status("web", "running")
    manager.end(signal.SIGKILL)
    go_on(manager)
    wait_until("it wrote 6.9 MB to nobody", (manager.root / "data/done").exists, 60)
    manager.start()
    expected = "".join(f"{n}\n" for n in range(1, 1_000_001))
    wait_until("all is there", lambda: len(manager.output("web")) >= len(expected), 60)
    assert manager.output("web") == expected
    assert manager.wait_status("web", "running") == before


@pytest.mark.parametrize("away", [False, True], ids=["beside it", "while it is away"])
def test_a_shim_that_is_killed_costs_its_container_and_is_followed_by_another(
    manager: Manager, away: bool
) -> None:
    manager.write(web=shell("sleep 1000", restart="always", backoff={"start": 0}))
    manager.start()
    first = manager.wait_status("web", "running")
    if away:
        manager.end(signal.SIGKILL)
    kill_shim(manager.state / "containers/web/1")
    if away:
        manager.start()
    manager.wait_for(
        "another runs",
        lambda ps: (ps["web"]["generation"], ps["web"]["status"]) == (2, "running"),
    )
    assert manager.codes("web") == [137]
    wait_until("the first one's container is gone", lambda: not alive(first["pid"]))


def test_the_code_of_a_container_whose_shim_died_after_it_is_its_own(manager: Manager) -> None:
    manager.write(web=shell_with_data(manager, f"{UNTIL_GO}; exit 42"))
    manager.start()
    manager.wait_status("web", "running")
    home = manager.state / "containers/web/1"
    manager.end(signal.SIGKILL)
    go_on(manager)
    wait_until("the exit is recorded", (home / "init.exit").exists)
    kill_shim(home)
    manager.start()
    manager.wait_status("web", "exited")
    assert manager.codes("web") == [42]
    manager.wait_nothing_left()


def test_what_is_no_longer_in_the_file_ends_when_minid_comes_back(manager: Manager) -> None:
    forever = shell("echo hi; sleep 1000", restart="always")
    manager.write(web=forever, kept=forever, changed=forever)
    manager.start()
    for name in ("web", "kept", "changed"):
        manager.wait_status(name, "running")
    kept = manager.ask("ps")["kept"]
    manager.end(signal.SIGKILL)
    manager.write(kept=forever, changed=forever | {"environment": {"A": "b"}})
    manager.start()
    manager.wait_for(
        "it is applied",
        lambda ps: "web" not in ps and ps["changed"]["generation"] == 2,
    )
    assert manager.ask("ps")["kept"] == kept
    assert manager.codes("web") == manager.codes("changed") == [137]
    assert manager.output("web") == "hi\n"


def test_a_name_that_comes_back_is_numbered_on(manager: Manager) -> None:
    manager.write(web=shell("exit 4"), other=shell("sleep 1000"))
    manager.start()
    manager.wait_status("web", "exited")
    manager.write(other=shell("sleep 1000"))
    manager.ask("up")
    manager.wait_for("it is gone", lambda ps: list(ps) == ["other"])
    manager.write(web=shell("exit 5"), other=shell("sleep 1000"))
    assert manager.ask("up")["web"]["generation"] == 2
    manager.wait_status("web", "exited")
    assert [(one["generation"], one["code"]) for one in manager.exits("web")] == [(1, 4), (2, 5)]


def test_a_record_that_was_lost_costs_no_container(manager: Manager) -> None:
    manager.write(runs=shell("sleep 1000"), ended=shell("exit 3"))
    manager.start()
    manager.wait_status("ended", "exited")
    before = manager.wait_status("runs", "running")
    manager.end(signal.SIGKILL)
    for name in ("runs", "ended"):
        (manager.state / "containers" / name / "record.json").write_text("{")
    manager.start()
    assert manager.wait_status("runs", "running") == before
    manager.wait_for("it is begun again", lambda ps: ps["ended"]["generation"] == 2)


def test_a_shim_that_left_before_it_had_a_container_is_followed_by_another(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in manager.environ.items():
        monkeypatch.setenv(name, value)
    manager.write(web=shell("echo hello; exit 7"))
    trio.run(go, manager, "answered")
    kill_shim(manager.state / "containers/web/1")
    manager.start()
    manager.wait_status("web", "exited")
    assert [(one["generation"], one["code"]) for one in manager.exits()] == [(1, 7)]
    assert manager.output("web") == "hello\n"
    manager.wait_nothing_left()


def test_who_was_stopped_stays_so_unless_it_is_always_to_run(manager: Manager) -> None:
    forever = shell("sleep 1000")
    manager.write(
        a=forever | {"restart": "always"}, u=forever | {"restart": "unless-stopped"}, n=forever
    )
    manager.start()
    for name in "aun":
        manager.wait_status(name, "running")
    manager.ask("down")
    manager.end(signal.SIGKILL)
    manager.start()
    found = manager.wait_for("it is back", lambda ps: ps["a"]["status"] == "running")
    assert (found["u"]["status"], found["n"]["status"]) == ("stopped", "stopped")


def kill_shim(home: Path) -> None:
    """Kill the shim of a generation, and wait until it is gone."""

    async def pid() -> int:
        address = json.loads((home / "bootstrap.json").read_text())["address"]
        async with shimctl.connect(address) as shim:
            return (await shim.connect()).shim_pid

    shim = trio.run(pid)
    os.kill(shim, signal.SIGKILL)
    wait_until("the shim is gone", lambda: not alive(shim))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
