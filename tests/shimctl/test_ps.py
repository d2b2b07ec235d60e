"""ps, inspect and stats on real containers: filters, templates, the width of a terminal."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.shimctl.place import Place, eventually, open_place
from tests.shimctl.tmux import Tmux, open_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

LABELS = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.container-name": "web",
    "io.kubernetes.cri.sandbox-name": "shop",
    "io.kubernetes.cri.sandbox-namespace": "prod",
    "io.kubernetes.cri.image-name": "docker.io/library/nginx:1.27",
}


@pytest.fixture(scope="module", params=["ours", "go"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place with a pod's container that runs, and with one that has exited."""
    with open_place(request.param) as place:
        bundle = place.bundle("sh", "-c", "exec sleep 1000", "x" * 30, annotations=LABELS)
        place.made("run", "c1", bundle)
        place.made("run", "ended", place.bundle("sh", "-c", "exit 7"))
        assert place.shimctl("wait", "-n", place.namespace, "ended").returncode == 7
        yield place


@pytest.fixture(scope="module")
def tmux() -> Iterator[Tmux]:
    with open_tmux() as tmux:
        yield tmux


def listed(place: Place, *argv: str) -> list[str]:
    return place.done("ps", "-n", place.namespace, *argv).splitlines()


def test_ps_hides_exited_containers_without_all(place: Place) -> None:
    header, *rows = listed(place)
    assert header.split()[:4] == ["NAMESPACE", "ID", "NAME", "IMAGE"]
    assert [row.split()[1] for row in rows] == ["c1"]
    _, *rows = listed(place, "-a")
    assert [row.split()[1] for row in rows] == ["c1", "ended"]
    assert re.search(r" prod/shop/web|shop/web ", rows[0])
    assert " docker.io/library/nginx:1.27 " in rows[0]
    assert re.search(r" Up (Less than a|\d+) second", rows[0])
    assert re.search(r" Exited \(7\) (Less than a|\d+) seconds? ago", rows[1])


def test_quiet_prints_ids_and_filters_select_them(place: Place) -> None:
    assert listed(place, "-q") == ["c1"]
    assert listed(place, "-aq") == ["c1", "ended"]
    for wanted, ids in {
        "status=exited": ["ended"],
        "exited=7": ["ended"],
        "exited=8": [],
        "name=web": ["c1"],
        "pod=shop": ["c1"],
        "ancestor=nginx:1.27": ["c1"],
        "label=io.kubernetes.cri.sandbox-name=shop": ["c1"],
        "id=c": ["c1"],
    }.items():
        assert listed(place, "-q", "--filter", wanted) == ids, wanted
    assert listed(place, "-aq", "--filter", "status=exited", "--filter", "name=web") == []
    done = place.shimctl("ps", "--filter", "colour=red")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert "use KEY=VALUE with one of the keys ancestor, annotation," in done.stderr


def test_templates_of_docker_are_rendered(place: Place) -> None:
    assert listed(place, "--format", "{{.ID}} {{.State}} {{.Image}}") == [
        "c1 running docker.io/library/nginx:1.27"
    ]
    shown = listed(place, "-a", "--format", "table {{.ID}}\t{{.Names}}")
    assert [line.split()[0] for line in shown] == ["CONTAINER", "c1", "ended"]
    [line] = listed(place, "--format", "json")
    assert json.loads(line)["ID"] == "c1"
    done = place.shimctl("ps", "--format", "{{.ID | nonsense}}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert "nonsense" in done.stderr
    pid = place.json("state", "-n", place.namespace, "c1")["pid"]
    inspect = ("inspect", "-n", place.namespace, "--format", "{{.State.Pid}} {{.State.Status}}")
    assert place.done(*inspect, "c1", "ended").splitlines()[0] == f"{pid} running"
    assert place.done(*inspect, "c1", "ended").splitlines()[1].endswith(" exited")
    both = place.json("inspect", "-n", place.namespace, "c1", "ended")
    assert [one["id"] for one in both] == ["c1", "ended"]


def test_a_table_fits_into_the_terminal_and_ids_are_whole(place: Place, tmux: Tmux) -> None:
    terminal = tmux.open()
    # The namespace has 14 characters: the columns that are not cut take about 80.
    terminal.resize(110, 30)
    command = shlex.join(place.command("ps", "-a", "-n", place.namespace))
    assert terminal.command(f"clear; {command}") == 0
    rows = [line for line in terminal.screen().splitlines() if place.namespace in line]
    rows = [row for row in rows if "shimctl" not in row]
    assert [row.split()[1] for row in rows] == ["c1", "ended"]
    assert max(map(len, rows)) <= 110
    assert "…" in rows[0]


def test_stats_are_repeated_until_interrupted(place: Place, tmux: Tmux) -> None:
    once = place.done("stats", "--no-stream", "-n", place.namespace).splitlines()
    assert [line.split()[1] for line in once] == ["ID", "c1"]
    template = "{{.Name}}: {{.MemUsage}} {{.PIDs}}"
    [line] = place.done("stats", "--no-stream", "--format", template, "c1").splitlines()
    assert re.fullmatch(r"\S*web: \S+ / \S+ 1", line)
    terminal = tmux.open()
    command = shlex.join(place.command("stats", "c1"))
    result = terminal.begin(command)
    terminal.expect("MEM USAGE / LIMIT")
    terminal.expect("by id")
    terminal.type("\x03")
    assert terminal.code(result) == 130


def test_stats_have_a_row_for_a_container_without_a_cgroup(place: Place) -> None:
    place.sleeper("lost")
    inside = ("-n", place.namespace)
    seen = place.json("inspect", *inside, "lost")
    pid = seen["state"]["pid"]
    # Move the process out of the container's groups, and remove them.  The root of version 2
    # refuses a process while it gives controllers to the groups below it: a new group does not.
    elsewhere = Path("/sys/fs/cgroup/unified/elsewhere")
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in (names.removeprefix("name="), ",".join(reversed(names.split(",")))):
            group = Path(f"/sys/fs/cgroup/{name or 'unified'}")
            if path != "/" and (group / path[1:]).is_dir():
                target = group if names else elsewhere
                target.mkdir(exist_ok=True)
                (target / "cgroup.procs").write_text(str(pid))
                with suppress(OSError):
                    (group / path[1:]).rmdir()
    rows = {row["id"]: row for row in place.json("stats", "--no-stream", *inside)}
    assert rows["c1"]["usage"]["memory"] > 0
    assert set(rows) == {"c1", "lost"}
    shown = place.done("stats", "--no-stream", *inside)
    [row] = [line for line in shown.splitlines() if " lost " in line]
    if rows["lost"]["stats"] is None:
        assert rows["lost"]["usage"]["problem"]
        assert " - " in row
    place.shimctl("kill", *inside, "-s", signal.Signals.SIGKILL.name, "lost")
    eventually(lambda: place.shimctl("delete", "-f", *inside, "lost").returncode == 0)
    if elsewhere.exists():
        elsewhere.rmdir()


def test_ps_loads_neither_trio_nor_asyncio(place: Place) -> None:
    code = "import sys; from shimctl.cli import main; main(['ps']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "c1" in done.stdout
    assert not {"trio", "asyncio"} & set(done.stdout.split())
