"""``shimctl start`` of exited containers, and ``shimctl restart``, with real containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.images.layouts import Layout, busybox
from tests.shimctl.place import PATIENCE, RUNTIMES, Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

# Counts its runs in a file, and exits with their number after USR1 or once /tmp/go exists.
COUNTER = (
    "n=$(($(cat /tmp/runs 2>&- || echo 0) + 1)); echo $n > /tmp/runs; "
    "trap 'echo told $n; exit $n' USR1; echo run $n; echo problem $n >&2; "
    "while ! [ -e /tmp/go ]; do sleep 0.05; done; exit $n"
)


@pytest.fixture(params=["ours", "go"], scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        yield place


def counter(place: Place, id_: str, *options: str | Path) -> Path:
    """Run the counter in a container; return its /tmp, as the host sees it."""
    bundle = place.bundle("sh", "-c", COUNTER)
    place.made("run", id_, *options, bundle)
    return bundle / "rootfs/tmp"


def wait_logged(place: Place, id_: str, text: str) -> None:
    eventually(lambda: text in place.done_with_errors("logs", id_))


def states(place: Place) -> dict[str, str]:
    """Return the words of ``ps -a`` for the containers of the place."""
    found = json.loads(place.done("ps", "-a", "-n", place.namespace, "-o", "json"))
    return {one["id"]: one["state"] for one in found}


def test_an_exited_container_is_started_again_and_all_commands_show_the_new_run(
    place: Place,
) -> None:
    shared = counter(place, "again")
    wait_logged(place, "again", "run 1\n")
    first = place.json("inspect", "again")
    (shared / "go").touch()
    assert place.shimctl("wait", "again").returncode == 1
    (shared / "go").unlink()
    started = place.json("start", "again")
    assert (started["id"], started["namespace"]) == ("again", place.namespace)
    second = place.json("inspect", "again")
    assert second["state"]["status"] == "running"
    assert second["state"]["pid"] == started["pid"] != first["state"]["pid"]
    assert second["shim"]["pid"] != first["shim"]["pid"]
    assert second["exited"] is None
    assert second["bundle"] == first["bundle"]
    assert states(place)["again"] == "running"
    wait_logged(place, "again", "run 2\n")
    (shared / "go").touch()
    assert place.shimctl("wait", "again").returncode == 2
    assert place.json("state", "again")["exit_status"] == 2
    done = place.shimctl("logs", "again")
    assert (done.stdout, done.stderr) == ("run 1\nrun 2\n", "problem 1\nproblem 2\n")
    assert place.json("delete", "again")["exit_status"] == 2


def test_restart_stops_with_the_signal_and_runs_the_container_again(place: Place) -> None:
    counter(place, "web")
    wait_logged(place, "web", "run 1\n")
    old = place.json("state", "web")["pid"]
    restarted = place.json("restart", "-s", "USR1", "-t", "30", "web")
    assert (restarted["signal"], restarted["killed"]) == (signal.SIGUSR1, False)
    assert restarted["pid"] == place.json("state", "web")["pid"] != old
    wait_logged(place, "web", "run 2\n")
    assert place.done_with_errors("logs", "web").split("\n")[:3] == ["run 1", "told 1", "run 2"]
    # One that has exited is only started.
    place.done("stop", "-s", "USR1", "web")
    again = place.json("restart", "web")
    assert (again["signal"], again["killed"]) == (None, False)
    wait_logged(place, "web", "run 3\n")
    place.done("kill", "-s", "USR1", "web")
    assert place.shimctl("wait", "web").returncode == 3
    assert place.done("rm", "web") == "web\n"


def test_restart_of_several_takes_the_grace_of_one(place: Place) -> None:
    ids = ["deaf1", "deaf2", "deaf3"]
    for id_ in ids:
        place.made("run", id_, place.bundle("sh", "-c", "trap '' TERM; echo up; exec sleep 1000"))
        wait_logged(place, id_, "up\n")
    start = time.monotonic()
    done = place.shimctl("restart", "-t", "6", *ids[:2], "nobody", ids[2])
    assert (done.returncode, done.stdout.split()) == (125, ids)
    assert done.stderr == "shimctl: no container 'nobody'; see `shimctl ps`\n"
    assert 6 <= time.monotonic() - start < 18
    assert [states(place)[id_] for id_ in ids] == ["running"] * 3
    place.done("rm", "-f", *ids)


def test_a_created_container_is_started_by_restart(place: Place) -> None:
    place.made("create", "made", place.bundle("sh", "-c", "exit 5"))
    assert place.done("restart", "made") == "made\n"
    assert place.shimctl("wait", "made").returncode == 5
    place.done("rm", "made")


def test_a_log_file_of_its_own_is_continued(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "raw.log"
    shared = counter(place, "raw", "--log", log)
    (shared / "go").touch()
    for number in (1, 2, 3):
        assert place.shimctl("wait", "raw").returncode == number
        place.done("start", "raw")
    assert place.shimctl("wait", "raw").returncode == 4
    if place.kind == "go":  # which reports an exit before it has copied the output
        eventually(lambda: log.read_text().count("\n") == 8, log.read_text)
    lines = log.read_text().split("\n")
    assert sorted(lines) == sorted(
        ["", *(f"{w} {n}" for w in ("run", "problem") for n in range(1, 5))]
    )
    place.done("rm", "raw")


def test_the_output_policy_stays(place: Place) -> None:
    """Nobody reads: under ``drop`` a process that writes much ends all the same."""
    script = "seq 1 100000; exit 6"
    place.made("run", "dropped", "--output-policy", "drop", place.bundle("sh", "-c", script))
    if place.kind == "ours":
        assert place.shimctl("wait", "dropped").returncode == 6
    else:
        place.done("kill", "-9", "dropped")  # the stock shim has no policies
    first = place.json("inspect", "dropped")
    place.done("start", "dropped")
    if place.kind == "ours":
        assert place.shimctl("wait", "dropped").returncode == 6
    second = place.json("inspect", "dropped")
    assert second["output"] == first["output"]
    assert second["state"]["stdio"] == first["state"]["stdio"]
    place.done("rm", "-f", "dropped")


def test_stdin_of_a_detached_container_reaches_the_new_run(place: Place) -> None:
    place.made("run", "cat", "-i", place.bundle("sh", "-c", "read line; echo got $line; exit 8"))
    for word in ("one", "two"):
        done = place.shimctl("attach", "cat", stdin=f"{word}\n")
        assert (done.returncode, done.stdout) == (8, f"got {word}\n")
        eventually(lambda: states(place)["cat"] == "exited")
        place.done("start", "cat")
    place.done("rm", "-f", "cat")


def test_a_container_of_an_image_keeps_the_files_that_it_wrote(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIMCTL_IMAGES", str(tmp_path / "images"))
    layout = Layout(tmp_path / "layout")
    script = "cat /data/kept; echo more >> /data/kept; exit 7"
    layer = busybox()
    layer.file("data/kept", "image\n")
    reference = layout.add("a", layer, Cmd=["sh", "-c", script], Env=["PATH=/bin"])
    place.made("run", "imaged", reference)
    assert place.shimctl("wait", "imaged").returncode == 7
    place.done("start", "imaged")
    assert place.shimctl("wait", "imaged").returncode == 7
    assert place.done("logs", "imaged") == "image\nimage\nmore\n"
    place.done("rm", "imaged")
    assert not list((tmp_path / "images/containers").iterdir())


def test_a_start_that_fails_leaves_the_exited_container_as_it_was(place: Place) -> None:
    shared = counter(place, "fails")
    (shared / "go").touch()
    assert place.shimctl("wait", "fails").returncode == 1
    root = shared.parent
    root.rename(root.with_name("away"))
    done = place.shimctl("start", "fails")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done
    assert states(place)["fails"] == "exited"
    assert place.shimctl("wait", "fails").returncode == 1
    root.with_name("away").rename(root)
    place.done("start", "fails")
    assert place.shimctl("wait", "fails").returncode == 2
    place.done("rm", "fails")


def test_a_container_whose_shim_is_dead_is_restarted(place: Place) -> None:
    counter(place, "orphan")
    wait_logged(place, "orphan", "run 1\n")
    seen = place.json("inspect", "orphan")
    os.kill(seen["shim"]["pid"], signal.SIGKILL)
    eventually(lambda: states(place)["orphan"] == "dead")
    refused = place.shimctl("start", "orphan")
    assert refused.returncode == 125
    assert "its init process still runs" in refused.stderr
    assert Path(f"/proc/{seen['state']['pid']}").exists()
    restarted = place.json("restart", "orphan")
    assert (restarted["signal"], restarted["killed"]) == (None, True)
    assert not Path(f"/proc/{seen['state']['pid']}/exe").exists()
    wait_logged(place, "orphan", "run 2\n")
    place.done("rm", "-f", "orphan")


def test_of_many_starts_at_once_one_runs_the_container(place: Place) -> None:
    shared = counter(place, "crowd")
    place.done("stop", "-s", "USR1", "crowd")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    starts = [place.begun("start", "crowd", **quiet) for _ in range(6)]
    ends = [(one.communicate(timeout=PATIENCE)[1], one.returncode) for one in starts]
    assert [code for _, code in ends].count(0) == 1, ends
    assert all(error.count("\n") == 1 for error, code in ends if code)
    eventually(lambda: (shared / "runs").read_text() == "2\n", (shared / "runs").read_text)
    assert place.json("state", "crowd")["status"] == "running"
    place.done("rm", "-f", "crowd")


def test_a_container_in_the_foreground_is_not_restarted(place: Place) -> None:
    options = ("-n", place.namespace, "--runtime", RUNTIMES[place.kind], "--name", "front")
    bundle = place.bundle("sh", "-c", "echo up; exec sleep 1000")
    with place.begun("run", *options, bundle, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        refused = place.shimctl("restart", "-t", "0", "front")
        assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
        assert "runs in the foreground" in refused.stderr
        assert place.json("state", "front")["status"] == "running"
        client.kill()
        client.communicate()
    # Without its client it is a detached one.
    place.done("restart", "-t", "0", "front")
    wait_logged(place, "front", "up\n")
    place.done("rm", "-f", "front")


def test_a_container_without_settings_is_refused_with_what_to_do(place: Place) -> None:
    place.made("run", "old", place.bundle("true"))
    place.done_with_errors("wait", "old")
    work = place.state / place.namespace / "old"
    kept = (work / "run.json").read_text()
    for text, message in (
        (None, "kept no settings; `shimctl rm old` deletes it"),
        ("{}", "is damaged; delete the container"),
        (json.dumps(json.loads(kept) | {"version": 99}), "has version 99"),
        (json.dumps(json.loads(kept) | {"colour": "red"}), "is damaged"),
        (json.dumps(json.loads(kept) | {"terminal": "yes"}), "is damaged"),
    ):
        (work / "run.json").unlink(missing_ok=True)
        if text is not None:
            (work / "run.json").write_text(text)
        refused = place.shimctl("start", "old")
        assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
        assert message in refused.stderr
    (work / "run.json").write_text(kept)
    place.done("start", "old")
    place.shimctl("wait", "old")
    place.done("rm", "old")


def test_the_containers_of_one_shim_are_restarted_one_by_one(place: Place) -> None:
    annotations = {"io.kubernetes.cri.sandbox-id": "pod"}
    for id_ in ("pod", "member"):
        script = "trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done"
        place.made("run", id_, place.bundle("sh", "-c", script, annotations=annotations))
        wait_logged(place, id_, "up\n")
    before = {id_: place.json("inspect", id_) for id_ in ("pod", "member")}
    work = Path(before["pod"]["bundle"])
    known = {str(path.relative_to(work)) for path in work.rglob("*")}
    for id_, other in (("pod", "member"), ("member", "pod")):
        left = place.json("state", other)["pid"]
        place.done("restart", "-s", "USR1", id_)
        after = place.json("inspect", id_)
        assert after["shim"]["pid"] == before[id_]["shim"]["pid"]
        assert after["state"]["pid"] != before[id_]["state"]["pid"]
        assert place.json("state", other)["pid"] == left
        wait_logged(place, id_, "up\nup\n")
        # With these files the shim's `delete` ends the other container, too.
        assert known <= {str(path.relative_to(work)) for path in work.rglob("*")}
    # The death of the shim leaves nothing that `rm` does not find.
    os.kill(before["pod"]["shim"]["pid"], signal.SIGKILL)
    assert place.done("rm", "-f", "pod", "member") == "pod\nmember\n"
    eventually(lambda: place.left() == [], place.left)
