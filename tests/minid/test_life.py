"""A container's settings, its start and end, and the commands of users."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import socket
import stat
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from shimctl.images.tools import TOOLS
from tests.e2e.waiting import wait_until
from tests.images.layouts import Layout, busybox

if TYPE_CHECKING:
    from tests.minid.manager import Manager

pytestmark = pytest.mark.e2e

FOREVER = {"command": ["sleep", "1000"], "grace": 0.1}


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"command": ["sh", "-c", script], "grace": 0.1} | more


def test_a_container_gets_what_the_file_gives_it(manager: Manager) -> None:
    data = manager.root / "data"
    data.mkdir()
    (data / "file").write_text("from outside\n")
    (manager.root / "input").write_text("typed\n")
    script = (
        "echo $A-$B; cat /data/file /dev/stdin; echo no >&2;"
        " touch /data/x 2>/dev/null || echo readonly; test -t 1 || echo no terminal"
    )
    manager.write(
        web=shell(
            script,
            environment={"A": 1, "B": "two"},
            mounts=[{"source": "data", "target": "/data", "readonly": True}],
            stdin="input",
        )
    )
    manager.start_new()
    manager.wait_status("web", "exited")
    assert manager.codes("web") == [0]
    lines = sorted(manager.output("web").splitlines())
    assert lines == ["1-two", "from outside", "no", "no terminal", "readonly", "typed"]


def test_a_container_with_a_terminal_has_one(manager: Manager) -> None:
    manager.write(web=shell("test -t 0 && test -t 1 && echo yes; exit 4", tty=True))
    manager.start()
    manager.wait_status("web", "exited")
    assert manager.output("web") == "yes\r\n"
    assert manager.codes("web") == [4]


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {' and '.join(TOOLS)}"
)
def test_containers_of_an_image_share_its_layers_and_leave_nothing_above_them(
    manager: Manager,
) -> None:
    layout = Layout(manager.root / "layout")
    layout.tag("v1", layout.image(busybox(), Env=["A=image", "B=image"], Entrypoint=["sh", "-c"]))
    script = "echo $A $B $(cat /file 2>/dev/null); echo mine > /file; exit 6"
    image = {"image": "oci:layout:v1", "command": [script], "environment": {"A": "file"}}
    manager.write(a=image | {"restart": "on-failure:1", "backoff": {"start": 0}}, b=image)
    manager.start()
    manager.wait_status("a", "exited")
    manager.wait_status("b", "exited")
    assert (manager.codes("a"), manager.codes("b")) == ([6, 6], [6])
    assert manager.output("a") == "file image\n" * 2, "each generation begins with the image"
    manager.wait_nothing_left()
    assert list((manager.root / "images/containers").iterdir()) == []
    assert len(list((manager.root / "images/rootfs").iterdir())) == 1


def test_limits_are_those_of_the_container(manager: Manager) -> None:
    limits = {"memory": "64MiB", "cpus": 0.5, "pids": 33}
    manager.write(web=FOREVER | {"limits": limits})
    manager.start()
    manager.wait_status("web", "running")
    config = json.loads((manager.state / "containers/web/1/config.json").read_text())
    resources = config["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000}
    paths = {"/sys/fs/cgroup/pids", "/sys/fs/cgroup"}
    files = [Path(path, manager.namespace, "web.1", "pids.max") for path in paths]
    assert [file.read_text() for file in files if file.exists()] == ["33\n"]


def test_what_cannot_start_says_why_and_disturbs_nobody(manager: Manager) -> None:
    broken = manager.root / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    manager.write(
        nothing={"bundle": "nothing"},
        broken={"bundle": "broken"},
        program={"command": ["nonesuch"]},
        stdin=FOREVER | {"stdin": "/nonexistent/file"},
        good=FOREVER,
    )
    manager.start()
    manager.wait_status("good", "running")
    for name in ("nothing", "broken", "program", "stdin"):
        manager.wait_status(name, "failed")
        assert manager.said.count(f"minid: {name}.1: cannot start: ") == 1
    reasons = {one["container"]: one["reason"] for one in manager.exits()}
    assert {one["code"] for one in manager.exits()} == {None}
    assert "No such file" in reasons["nothing"]
    assert "is not an OCI configuration" in reasons["broken"]
    assert "executable file not found" in reasons["program"]
    assert "/nonexistent/file" in reasons["stdin"]
    shown = manager.run("ps")
    assert shown.returncode == 0
    assert "executable file not found" in shown.stdout
    repeated = manager.run("up", "program")
    assert repeated.returncode == 1
    assert "minid: program: cannot start: " in repeated.stderr
    assert "executable file not found" in repeated.stderr
    assert manager.run("up", "good").returncode == 0


def test_ps_shows_a_problem_until_it_ends(manager: Manager) -> None:
    blocked = manager.root / "logs"
    blocked.write_text("no directory")
    manager.write(web=shell("echo hello; sleep 1000", log={"file": "logs/web.log"}))
    manager.start()
    found = manager.wait_for("there is a problem", lambda ps: ps.get("web", {}).get("problem"))
    assert "cannot write" in found["web"]["problem"]
    shown = manager.run("ps").stdout
    assert "PROBLEM" in shown
    assert "cannot write" in shown
    blocked.unlink()
    manager.wait_for("the problem is over", lambda ps: ps["web"]["problem"] == "")
    assert (blocked / "web.log").read_text() == "hello\n"
    assert "PROBLEM" not in manager.run("ps").stdout
    assert manager.said.count("cannot write") == 1


def test_on_failure_comes_back_with_longer_and_longer_pauses_and_then_no_more(
    manager: Manager,
) -> None:
    manager.write(
        bad=shell("exit 3", restart="on-failure:3", backoff={"start": 0.4, "cap": 0.8}),
        good=shell("exit 0", restart="on-failure"),
        once=shell("exit 5", restart="no"),
    )
    manager.start()
    manager.wait_for(
        "they are done", lambda ps: ps and {one["status"] for one in ps.values()} == {"exited"}
    )
    assert manager.codes("bad") == [3, 3, 3, 3]
    assert manager.codes("good") == [0]
    assert manager.codes("once") == [5]
    times = [datetime.fromisoformat(one["at"]).timestamp() for one in manager.exits("bad")]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert all(pause > least for pause, least in zip(pauses, (0.4, 0.8, 0.8), strict=True))


def test_down_up_and_restart_do_that_and_no_more(manager: Manager) -> None:
    manager.write(a=FOREVER | {"restart": "always"}, b=FOREVER)
    manager.start()
    manager.wait_status("a", "running")
    b = manager.wait_status("b", "running")

    assert manager.ask("down", "a")["a"]["status"] == "stopped"
    assert manager.codes("a") == [137]
    assert manager.ask("up", "a")["a"]["status"] == "running"
    again = manager.ask("restart", "a")["a"]
    assert (again["status"], again["generation"]) == ("running", 3)
    assert manager.ask("up")["a"] == again, "what runs is left alone"
    assert manager.ask("ps")["b"] == b
    found = manager.ask("down")
    assert {one["status"] for one in found.values()} == {"stopped"}
    manager.wait_nothing_left()
    assert manager.ask("restart", "b")["b"]["status"] == "running"


def test_sigterm_reaches_the_container_first_and_its_grace_is_kept(manager: Manager) -> None:
    polite = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    manager.write(polite=shell(polite, grace=30))
    manager.start()
    wait_until("it is ready", lambda: "ready" in manager.output("polite"))
    manager.ask("down")
    assert manager.codes("polite") == [9]
    assert manager.output("polite") == "ready\nbye\n"


def test_the_command_line_says_what_there_is(manager: Manager) -> None:
    manager.write(web=FOREVER)
    manager.start()
    pid = manager.wait_status("web", "running")["pid"]
    shown = manager.run("ps")
    assert shown.stdout.split("\n")[1].split() == ["web", "running", "1", str(pid), "0", "-"]
    unknown = manager.run("restart", "wob")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "minid: there is no container wob; use one of: web\n"
    assert manager.run("down", "web").returncode == 0
    manager.end()
    assert manager.run("ps").stderr.startswith("minid: no minid answers at ")


def test_a_file_read_again_changes_what_changed_in_it(manager: Manager) -> None:
    manager.write(kept=FOREVER, changed=FOREVER, removed=FOREVER, later=FOREVER)
    manager.start()
    for name in ("kept", "changed", "removed", "later"):
        manager.wait_status(name, "running")
    before = manager.ask("ps")
    manager.write(
        kept=FOREVER,
        changed=FOREVER | {"environment": {"A": "b"}},
        later=FOREVER | {"restart": "always", "grace": 0.2},
        added=FOREVER,
    )
    assert manager.process is not None
    manager.process.send_signal(signal.SIGHUP)
    manager.wait_status("added", "running")
    after = manager.wait_for(
        "it is applied",
        lambda ps: (
            "removed" not in ps
            and (ps["changed"]["generation"], ps["changed"]["status"]) == (2, "running")
        ),
    )
    assert after["kept"] == before["kept"]
    assert after["later"] == before["later"]
    assert manager.codes("removed") == [137]
    assert not (manager.state / "containers/removed").exists()


def test_a_file_with_a_mistake_changes_nothing(manager: Manager) -> None:
    manager.write(web=FOREVER)
    manager.start()
    before = manager.wait_status("web", "running")
    good = manager.file.read_text()
    manager.file.write_text(good.replace("grace", "grase"))
    refused = manager.run("up")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"minid: {manager.file}: containers.web.grase: is unknown; did you mean grace?\n"
    )
    assert manager.run("ps").returncode == 0, "who only asks need not have a good file"
    manager.file.write_text(good.replace(manager.namespace, "another"))
    with pytest.raises(AssertionError, match="namespace: cannot be changed while minid runs"):
        manager.ask("up")
    manager.file.write_text(good)
    assert manager.ask("up")["web"] == before


def test_a_file_that_is_wrong_from_the_beginning_is_one_line_and_status_1(
    manager: Manager,
) -> None:
    manager.file.write_text("containers: [a]")
    done = manager.run()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "containers: must be a table" in done.stderr


def test_logs_are_kept_to_their_size_and_number(manager: Manager) -> None:
    manager.write(web=shell("seq 1 20000", log={"file": "l/web", "size": "8KiB", "count": 3}))
    manager.start()
    manager.wait_status("web", "exited")
    logs = [manager.root / "l" / name for name in ("web.2", "web.1", "web")]
    assert set(logs) == set((manager.root / "l").iterdir())
    assert all(8192 <= log.stat().st_size < 8192 + 2 * 4096 for log in logs[:2])
    text = "".join(log.read_text() for log in logs)
    assert "".join(f"{n}\n" for n in range(1, 20001)).endswith(text)
    assert text.endswith("20000\n")


RUBBISH = [
    b"\n",
    b"{\n",
    b"[]\n",
    b"{}\n",
    b'{"do": "rm"}\n',
    b'{"do": ["ps"]}\n',
    b'{"do": "ps", "name": 5}\n',
    b"\xff\xfe\n",
    b"[" * 4000 + b"\n",
    b"x" * 100_000,
]


def test_rubbish_on_the_socket_is_refused_and_costs_nobody_else_anything(
    manager: Manager,
) -> None:
    manager.write(web=FOREVER)
    manager.start()
    before = manager.wait_status("web", "running")
    silent = [socket.socket(socket.AF_UNIX) for _ in range(30)]
    for sock in silent:
        sock.connect(str(manager.state / "control.sock"))
    silent[0].sendall(b'{"do"')
    for data in RUBBISH:
        try:
            assert "error" in json.loads(manager.send(data))
        except (BrokenPipeError, ConnectionResetError):
            assert len(data) > 4096  # it got the signal before it had written all lines
    assert manager.ask("ps")["web"] == before
    for sock in silent:
        sock.close()
    assert manager.ask("ps")["web"] == before


def test_its_sockets_are_for_its_own_user_only(manager: Manager) -> None:
    manager.write()
    manager.start()
    wait_until("it listens", (manager.state / "control.sock").exists)
    for name in ("control.sock", "events.sock"):
        assert stat.S_IMODE((manager.state / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(manager.state.stat().st_mode) == 0o700


def test_a_second_one_on_the_same_state_is_refused(manager: Manager) -> None:
    manager.write(web=FOREVER)
    manager.start()
    before = manager.wait_status("web", "running")
    second = manager.run()
    assert second.returncode == 1
    assert second.stderr == f"minid: another minid uses {manager.state}; stop it first\n"
    assert manager.ask("ps")["web"] == before


def test_sigterm_ends_it_and_no_container(manager: Manager) -> None:
    manager.write(web=FOREVER)
    manager.start()
    before = manager.wait_status("web", "running")
    assert manager.end(signal.SIGTERM) == 0
    assert Path(f"/proc/{before['pid']}").exists()
    manager.start()
    assert manager.wait_status("web", "running") == before
    assert Path(f"/proc/{before['pid']}/exe").readlink().name == "busybox"


def test_the_example_in_the_readme_is_a_file_that_can_be_read() -> None:
    from minid.config import parse

    from tests.minid.manager import MINID

    text = (MINID / "README.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    settings = parse(example.encode(), "README.md", Path("/etc"))
    assert set(yaml.safe_load(example)["containers"]) == {one.name for one in settings.containers}
