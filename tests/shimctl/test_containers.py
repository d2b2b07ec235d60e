"""Each command on containers that run: under our shim, under containerd's, and in gVisor."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from tests.shimctl.place import PATIENCE, Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["ours", "go"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place where ``still`` runs from the first test to the last."""
    with open_place(request.param) as place:
        place.sleeper("still")
        yield place


@pytest.fixture
def namespace(place: Place) -> tuple[str, str]:
    return ("-n", place.namespace)


# -- create, start, delete, shutdown --------------------------------------------------


def test_a_created_container_runs_once_it_is_started(
    place: Place, namespace: tuple[str, str]
) -> None:
    assert place.made("create", "made", place.bundle("sh", "-c", "exit 5")) == "made\n"
    assert place.json("state", *namespace, "made")["status"] == "created"
    assert place.json("start", *namespace, "made")["pid"] > 0
    assert place.shimctl("wait", *namespace, "made").returncode == 5
    assert place.json("delete", *namespace, "made")["exit_status"] == 5


def test_several_ids_are_changed_in_turn_and_each_is_told(
    place: Place, namespace: tuple[str, str]
) -> None:
    for name in ("one", "two"):
        place.sleeper(name)
    for command in (["pause"], ["resume"], ["kill", "-9"], ["delete"]):
        done = place.shimctl(*command, *namespace, "one", "nobody", "two")
        assert (done.returncode, done.stdout) == (125, "one\ntwo\n")
        assert done.stderr == (
            f"shimctl: no container 'nobody' in namespace {place.namespace}; see `shimctl ps`\n"
        )
        if command[0] == "kill":
            for name in ("one", "two"):
                assert place.shimctl("wait", *namespace, name).returncode == 137


@pytest.mark.parametrize(
    "argv",
    [
        *(["-s", "USR1", "told"], ["-sUSR1", "told"], ["--signal=SIGUSR1", "told"]),
        *(["-10", "told"], ["-USR1", "told"], ["told", "usr1"], ["told", "10"]),
    ],
    ids=" ".join,
)
def test_a_signal_has_a_name_or_a_number(
    place: Place, namespace: tuple[str, str], argv: list[str]
) -> None:
    script = "trap 'exit 7' USR1; while true; do sleep 0.1; done"
    place.made("run", "told", place.bundle("sh", "-c", script))
    assert place.json("kill", *namespace, *argv) == {
        "namespace": place.namespace,
        "id": "told",
        "signal": 10,
    }
    # The shell may not have got as far as its trap: then the signal itself ends it.
    assert place.shimctl("wait", *namespace, "told").returncode in (7, 138)
    assert place.done("delete", *namespace, "told") == "told\n"


def test_create_tells_programs_what_it_made(place: Place, namespace: tuple[str, str]) -> None:
    made = json.loads(place.made("create", "told", place.bundle("true"), "--json"))
    assert (made["namespace"], made["id"]) == (place.namespace, "told")
    state = place.json("state", *namespace, "told")
    assert (state["status"], state["pid"]) == ("created", made["pid"])
    place.done("delete", *namespace, "told")


def test_an_id_that_is_taken_is_refused_with_what_to_do(place: Place) -> None:
    done = place.shimctl(*("create", "-n", place.namespace, "--id", "still"), place.bundle("true"))
    assert (done.returncode, done.stdout) == (125, "")
    assert "already in namespace" in done.stderr
    assert "`shimctl delete" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_shim_with_a_container_stays_and_says_so(
    place: Place, namespace: tuple[str, str]
) -> None:
    for flags in ((), ("--now",)):
        done = place.shimctl("shutdown", *namespace, "still", *flags)
        assert (done.returncode, done.stdout) == (125, "")
        assert "does not exit because it has containers" in done.stderr
    assert place.json("state", *namespace, "still")["status"] == "running"


def test_a_shim_whose_container_is_deleted_leaves_when_asked(
    place: Place, namespace: tuple[str, str]
) -> None:
    place.sleeper("over")
    pid = place.json("inspect", *namespace, "over")["shim"]["pid"]
    script = (
        "import sys, trio, shimctl\n"
        "async def main(address):\n"
        "    async with shimctl.connect(address) as shim:\n"
        "        task = shim.task('over')\n"
        "        await task.kill(9)\n"
        "        await task.wait()\n"
        "        await task.delete()\n"
        "trio.run(main, sys.argv[1])"
    )
    address = place.json("inspect", *namespace, "over")["shim"]["address"]
    command = [place.command()[0], "-c", script, address]
    subprocess.run(command, check=True, timeout=PATIENCE, env=place.environ)
    shut_down = {"namespace": place.namespace, "id": "over", "shim_pid": pid}
    assert place.json("shutdown", *namespace, "over") == shut_down
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
    gone = place.shimctl("shutdown", *namespace, "over")
    assert (gone.returncode, gone.stderr.count("\n")) == (125, 1)
    place.done("delete", "-f", *namespace, "over")


# -- output -------------------------------------------------------------------


def test_inspect_tells_of_the_shim_the_container_and_its_config(
    place: Place, namespace: tuple[str, str]
) -> None:
    seen = place.json("inspect", *namespace, "still")
    assert (seen["id"], seen["namespace"], seen["managed"]) == ("still", place.namespace, True)
    assert psutil.pid_exists(seen["shim"]["pid"])
    assert seen["shim"]["executable"].endswith(
        "containerd-shim-runc-v2" if place.kind == "go" else "containerd-shim-trio-v2"
    )
    assert seen["shim"]["api_version"] in (2, 3)
    assert (seen["state"]["status"], seen["exited"], seen["problem"]) == ("running", None, "")
    assert seen["config"]["args"] == ["sleep", "1000"]
    assert "MARK=yes" in seen["config"]["env"]
    assert seen["state"]["pid"] in [one["pid"] for one in seen["pids"]]
    assert (seen["output"] is None) == (place.kind == "go")
    assert seen["cgroups"]
    text = place.done("inspect", *namespace, "still")
    assert "sleep 1000" in text
    assert "MARK=yes" not in text
    assert "MARK=yes" in place.done("inspect", "-o", "wide", *namespace, "still")


def test_inspect_lists_the_execs_that_run(place: Place, namespace: tuple[str, str]) -> None:
    with place.begun("exec", *namespace, "still", "sleep", "1000") as process:
        try:

            def execs() -> Any:
                seen = place.json("inspect", *namespace, "still")["execs"]
                return [one for one in seen if one["status"] == "running"]

            eventually(execs)
            [one] = execs()
            assert psutil.pid_exists(one["pid"])
            text = place.done("inspect", *namespace, "still")
            assert f"{one['exec_id']}, running, pid {one['pid']}" in text
        finally:
            process.send_signal(signal.SIGTERM)
    eventually(lambda: not execs())


def test_the_version_of_a_shim_is_its_own_word(place: Place, namespace: tuple[str, str]) -> None:
    version = place.json("version", *namespace, "still")
    said = version["executable_says"]
    assert said.split(":")[0].rpartition("/")[2] == version["executable"].rpartition("/")[2]
    assert "Version:" in said
    if place.kind != "go":  # that of containerd answers with nothing
        assert version["version"] in said
    assert "Version:" in place.done("version", *namespace, "still")


SHOWN = ("ps", "state", "pids", "inspect", "version")


@pytest.mark.parametrize("command", SHOWN)
def test_yaml_and_json_have_the_same_fields_and_wide_more_columns(
    place: Place, namespace: tuple[str, str], command: str
) -> None:
    argv = [command, *namespace, *([] if command == "ps" else ["still"])]
    as_json = json.loads(place.done(*argv, "--json"))
    assert as_json == json.loads(place.done(*argv, "-o", "json"))
    assert as_json == yaml.safe_load(place.done(*argv, "-o", "yaml"))
    table, wide = place.done(*argv), place.done(*argv, "-o", "wide")
    assert len(wide) >= len(table) > 0
    assert "\x1b" not in table + wide


# -- limits --------------------------------------------------------------------------


def test_an_update_changes_what_the_container_may_use(
    place: Place, namespace: tuple[str, str]
) -> None:
    limits = ("--memory", "64MiB", "--memory-swap", "64MiB", "--pids-limit", "123")
    done = place.shimctl("update", *namespace, "still", *limits)
    if place.kind == "gvisor":
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        return  # no cgroup, no figures
    assert (done.returncode, done.stderr) == (0, "")
    [row] = place.json("stats", "--no-stream", *namespace, "still")
    assert (row["stats"]["memory_limit"], row["stats"]["pids_limit"]) == (64 << 20, 123)
    text = json.dumps({"pids": {"limit": 77}})
    place.done("update", *namespace, "still", "--resources", "-", stdin=text)
    [row] = place.json("stats", "--no-stream", *namespace, "still")
    assert (row["stats"]["memory_limit"], row["stats"]["pids_limit"]) == (64 << 20, 77)


def test_a_limit_the_runtime_refuses_is_one_line(place: Place, namespace: tuple[str, str]) -> None:
    done = place.shimctl("update", *namespace, "still", "--cpuset-cpus", "100000")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


# -- top -----------------------------------------------------------------------------


def test_top_prints_once_an_iteration_where_there_is_no_terminal(
    place: Place, namespace: tuple[str, str]
) -> None:
    shown = place.done("top", *namespace, "-i", "2", "-d", "0.2")
    assert shown.count("NAMESPACE") == 2
    assert shown.count("still") == 2
    assert "\x1b" not in shown
    lines = place.done("top", *namespace, "-i", "2", "-d", "0.2", "-o", "json").splitlines()
    assert len(lines) == 2
    for line in lines:
        [usage] = json.loads(line)
        assert (usage["id"], usage["status"]) == ("still", "running")
        assert usage["memory"] > 0
        assert usage["cpu_percent"] is not None


def test_top_sees_who_works(place: Place, namespace: tuple[str, str]) -> None:
    place.made("run", "busy", place.bundle("sh", "-c", "while :; do :; done"))
    try:
        rows = json.loads(place.done("top", *namespace, "-i", "1", "-d", "1", "-o", "json"))
        assert [row["id"] for row in rows] == ["busy", "still"]
        # On a busy machine even a loop gets a small share.
        assert rows[0]["cpu_percent"] > 2 > rows[1]["cpu_percent"]
        rows = json.loads(
            place.done("top", *namespace, "-i", "1", "-d", "1", "-o", "json", "busy")
        )
        [row] = [row for row in rows if "while" in row["command"]]
        assert row["cpu_percent"] > 2
        assert row["state"] in ("running", "sleeping")
    finally:
        place.done("delete", "-f", *namespace, "busy")


def test_top_of_nothing_that_runs_is_a_table_of_nothing(place: Place) -> None:
    shown = place.done("top", "-n", "no-such-namespace", "-i", "1", "-d", "100ms")
    assert shown.startswith("NAMESPACE")
    assert shown.count("\n") == 1
    done = place.shimctl("top", "-n", place.namespace, "nobody", "-i", "1")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)


def test_top_of_an_exited_container_says_so(place: Place, namespace: tuple[str, str]) -> None:
    place.made("run", "over", place.bundle("true"))
    place.done("wait", *namespace, "over")
    done = place.shimctl("top", *namespace, "-i", "1", "over")
    assert (done.returncode, done.stdout) == (125, "")
    assert "cannot show the processes of over: it has exited" in done.stderr
    place.done("delete", *namespace, "over")


def test_top_ends_with_its_reader(place: Place) -> None:
    pipe = subprocess.PIPE
    with place.begun("top", "-n", place.namespace, "-d", "100ms", stdout=pipe, stderr=pipe) as top:
        assert top.stdout
        assert top.stderr
        assert top.stdout.readline().startswith(b"NAMESPACE")
        top.stdout.close()
        deadline = time.monotonic() + PATIENCE
        assert top.wait(deadline - time.monotonic()) == 141
        assert top.stderr.read() == b""


# -- gVisor --------------------------------------------------------------------------


def test_an_attached_client_ends_with_its_reader_and_the_container_goes_on(
    place: Place, namespace: tuple[str, str]
) -> None:
    place.made("run", "talker", place.bundle("sh", "-c", "while echo line; do sleep 0.1; done"))
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    with place.begun(
        "attach", *namespace, "talker", stdin=quiet, stdout=pipe, stderr=pipe
    ) as client:
        assert client.stdout is not None
        assert client.stderr is not None
        assert client.stdout.readline() == b"line\n"
        client.stdout.close()
        assert (client.wait(PATIENCE), client.stderr.read()) == (141, b"")
    assert place.json("state", *namespace, "talker")["status"] == "running"
    place.done("delete", "-f", *namespace, "talker")


def test_in_gvisor_what_has_figures_works_and_the_rest_says_why_not() -> None:
    with open_place("gvisor") as place:
        inside = ("-n", place.namespace)
        place.made("create", "boxed", place.bundle("sleep", "1000"))
        place.done("start", *inside, "boxed")
        seen = place.json("inspect", *inside, "boxed")
        assert (seen["state"]["status"], seen["problem"]) == ("running", "")
        [process] = json.loads(
            place.done("top", *inside, "-i", "1", "-d", "100ms", "--json", "boxed")
        )
        assert process["command"].startswith("runsc-sandbox")
        [usage] = json.loads(place.done("top", *inside, "-i", "1", "-d", "100ms", "--json"))
        assert (usage["memory"], "no cgroup" in usage["problem"]) == (None, True)
        [row] = place.json("stats", "--no-stream", *inside, "boxed")
        assert (row["stats"], "no cgroup" in row["usage"]["problem"]) == (None, True)
        done = place.shimctl("update", "--pids-limit", "9", *inside, "boxed")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        place.done("kill", *inside, "boxed", "KILL")
        assert place.shimctl("wait", *inside, "boxed").returncode == 137
        place.done("delete", *inside, "boxed")
