"""``shimctl stop``, ``rm`` and ``run --rm --name``, with real containers."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.shimctl.place import RUNTIMES, Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

# Records each signal that it gets, and ends on USR1 only.
LISTENER = (
    "trap 'echo TERM > /tmp/got' TERM; trap 'echo USR1 > /tmp/got; exit 3' USR1; "
    "echo > /tmp/ready; while :; do sleep 0.1; done"
)


@pytest.fixture(params=["ours", "go"], scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        yield place


def listener(place: Place, id_: str, **changes: Any) -> Path:
    """Run a container that records its signals; return its root."""
    bundle = place.bundle("sh", "-c", LISTENER, **changes)
    place.made("run", id_, bundle)
    eventually((bundle / "rootfs/tmp/ready").exists)
    return bundle / "rootfs"


def got(root: Path) -> str:
    return (root / "tmp/got").read_text()


def test_stop_sends_term_and_kills_what_still_runs(place: Place) -> None:
    root = listener(place, "deaf")
    start = time.monotonic()
    stopped = place.json("stop", "-t", "1", "deaf")
    assert time.monotonic() - start >= 1
    assert stopped["signal"] == signal.SIGTERM
    assert stopped["killed"]
    assert got(root) == "TERM\n"
    state = place.json("state", "deaf")
    assert (state["status"], state["exit_status"]) == ("stopped", 128 + 9)
    # It has exited: that is a success, too, and leaves it as it is.
    assert place.done("stop", "deaf") == "deaf\n"
    assert place.json("state", "deaf")["exited_at"] == state["exited_at"]
    place.done("rm", "deaf")


def test_stop_takes_the_signal_of_the_option_or_of_the_image(place: Place) -> None:
    annotations = {"org.opencontainers.image.stopSignal": "SIGUSR1"}
    root = listener(place, "image", annotations=annotations)
    stopped = place.json("stop", "image")
    assert (stopped["signal"], stopped["killed"]) == (signal.SIGUSR1, False)
    assert got(root) == "USR1\n"
    root = listener(place, "option")
    stopped = place.json("stop", "-s", "usr1", "option")
    assert (stopped["signal"], stopped["killed"]) == (signal.SIGUSR1, False)
    assert place.json("state", "option")["exit_status"] == 3
    place.done("rm", "image", "option")


def test_stop_without_a_grace_kills_at_once(place: Place) -> None:
    listener(place, "hasty")
    assert place.done("stop", "-t", "0", "hasty") == "hasty\n"
    assert place.json("state", "hasty")["exit_status"] == 128 + 9
    place.done("rm", "hasty")


def test_stop_resumes_a_paused_container(place: Place) -> None:
    root = listener(place, "frozen")
    place.done("pause", "frozen")
    stopped = place.json("stop", "-s", "USR1", "frozen")
    assert not stopped["killed"]
    assert got(root) == "USR1\n"
    place.done("rm", "frozen")


def test_stop_of_several_goes_on_after_a_failure(place: Place) -> None:
    for id_ in ("first", "last"):
        listener(place, id_)
    done = place.shimctl("stop", "-s", "USR1", "first", "nobody", "last")
    assert (done.returncode, done.stdout) == (125, "first\nlast\n")
    assert done.stderr.count("\n") == 1
    assert "no container 'nobody'" in done.stderr
    for id_ in ("first", "last"):
        assert place.json("state", id_)["status"] == "stopped"
    place.done("rm", "first", "last")


def test_stop_of_several_takes_the_grace_of_one(place: Place) -> None:
    ids = [f"deaf{number}" for number in range(4)]
    for id_ in ids:
        listener(place, id_)
    start = time.monotonic()
    done = place.shimctl("stop", "-t", "8", *ids[:3], "nobody", ids[3], ids[0])
    took = time.monotonic() - start
    assert (done.returncode, done.stdout.split()) == (125, ids)
    assert done.stderr == "shimctl: no container 'nobody'; see `shimctl ps`\n"
    assert 8 <= took < 24  # in turn it would be 32
    ended = [place.json("state", id_) for id_ in ids]
    assert {state["exit_status"] for state in ended} == {128 + 9}
    assert place.done("rm", *ids).split() == ids


def test_several_containers_of_one_dead_shim_are_removed_at_once(place: Place) -> None:
    annotations = {"io.kubernetes.cri.sandbox-id": "pod"}
    for id_ in ("pod", "member"):
        place.made("run", id_, place.bundle("sleep", "1000", annotations=annotations))
    seen = [place.json("inspect", id_)["shim"] for id_ in ("pod", "member")]
    assert seen[0] == seen[1]
    os.kill(seen[0]["pid"], signal.SIGKILL)
    socket = Path(seen[0]["address"].removeprefix("unix://"))
    assert place.done("rm", "-f", "pod", "member").split() == ["pod", "member"]
    assert not socket.exists()


@pytest.mark.parametrize("place", ["ours"], indirect=True)  # the stock shim writes no exit record
def test_stop_of_an_exited_container_needs_no_shim(place: Place) -> None:
    listener(place, "record")
    place.done("stop", "-s", "USR1", "record")
    os.kill(place.json("inspect", "record")["shim"]["pid"], signal.SIGKILL)
    eventually(lambda: place.json("ps", "-a", "-n", place.namespace)[0]["health"] == "dead")
    assert place.done("stop", "record") == "record\n"
    place.done("rm", "-f", "record")


def test_rm_of_a_container_that_runs_without_its_shim_needs_f(place: Place) -> None:
    listener(place, "orphan")
    init = place.json("state", "orphan")["pid"]
    os.kill(place.json("inspect", "orphan")["shim"]["pid"], signal.SIGKILL)
    eventually(lambda: place.json("ps", "-a", "-n", place.namespace)[0]["health"] == "dead")
    refused = place.shimctl("rm", "orphan")
    assert (refused.returncode, refused.stdout) == (125, "")
    assert "orphan runs without its shim; use --force" in refused.stderr
    os.kill(init, 0)
    assert place.done("rm", "-f", "orphan") == "orphan\n"
    eventually(lambda: not Path(f"/proc/{init}").exists())


def test_rm_of_a_container_whose_shim_does_not_answer_needs_f(place: Place) -> None:
    listener(place, "stopped")
    init = place.json("state", "stopped")["pid"]
    shim = place.json("inspect", "stopped")["shim"]["pid"]
    os.kill(shim, signal.SIGSTOP)
    refused = place.shimctl("rm", "stopped")
    os.kill(shim, signal.SIGCONT)
    assert (refused.returncode, refused.stdout) == (125, "")
    assert "so the container may run; use --force" in refused.stderr
    os.kill(init, 0)
    assert place.done("rm", "-f", "stopped") == "stopped\n"


def test_rm_deletes_several_and_running_ones_only_with_f(place: Place) -> None:
    for id_ in ("one", "two"):
        listener(place, id_)
    refused = place.shimctl("rm", "one")
    assert refused.returncode == 125
    assert "use --force" in refused.stderr
    assert place.done("rm", "-f", "one", "two") == "one\ntwo\n"
    assert place.done("ps", "-aq", "-n", place.namespace) == ""


def test_run_with_rm_and_name_leaves_nothing(place: Place) -> None:
    options = ("-n", place.namespace, "--runtime", RUNTIMES[place.kind], "--name", "short")
    bundle = place.bundle("echo", "hello")
    assert place.done("run", "--rm", *options, bundle) == "hello\n"
    assert json.loads(place.done("ps", "-a", "-n", place.namespace, "-o", "json")) == []
    place.done("run", "-d", *options, bundle)
    place.done("wait", "short")
    place.done("rm", "short")


def test_the_failure_of_one_of_several_names_its_container(place: Place) -> None:
    for id_ in ("over", "done"):
        place.made("run", id_, place.bundle("true"))
        place.done("wait", id_)
    failed = place.shimctl("kill", "over", "done")
    assert (failed.returncode, failed.stdout) == (125, "")
    assert [line.split(": ")[:2] for line in failed.stderr.splitlines()] == [
        ["shimctl", "over"],
        ["shimctl", "done"],
    ]
    assert "over" not in place.shimctl("kill", "over").stderr
    place.done("rm", "over", "done")
