"""doctor, metrics and install --for, as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.shimctl.place import PATIENCE, Place, eventually, open_place
from tests.shimctl.tmux import open_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with open_place("ours") as place:
        place.sleeper("c1")
        yield place


# -- doctor ------------------------------------------------------------------------


def test_doctor_names_a_stopped_shim_and_exits_with_2(place: Place) -> None:
    pid = place.json("inspect", "-n", place.namespace, "c1")["shim"]["pid"]
    before = place.shimctl("doctor", "-o", "json")
    found = json.loads(before.stdout)
    subject = f"{place.namespace}/c1"
    assert subject not in [one["subject"] for one in found["findings"]]
    assert before.returncode == {"ok": 0, "note": 0, "advice": 1, "broken": 2}[found["level"]]
    os.kill(pid, signal.SIGSTOP)
    try:
        done = place.shimctl("doctor")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (done.returncode, done.stderr) == (2, "")
    assert f"  broken  {subject}: " in done.stdout
    assert "  ok      kernel: " in done.stdout
    assert "MARK=yes" not in done.stdout


# -- metrics -----------------------------------------------------------------------


def samples(text: str, name: str) -> list[float]:
    return [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def test_metrics_are_printed_and_written_readable_for_all(place: Place) -> None:
    inside = ("-n", place.namespace)
    assert samples(place.done("metrics", *inside), "container_memory_usage_bytes")[0] > 0
    file = place.root / "shims.prom"
    assert place.done("metrics", *inside, "--output", file) == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert samples(file.read_text(), "shim_up") == [1.0]


def test_metrics_are_served_until_interrupted(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = place.command("metrics", "-n", place.namespace, "--listen", str(port))
    with subprocess.Popen(
        command, env=place.environ, stderr=subprocess.PIPE, text=True
    ) as serving:
        try:
            assert serving.stderr
            assert f":{port}/metrics" in serving.stderr.readline()
            for _ in range(2):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as got:
                    assert samples(got.read().decode(), "shim_up") == [1.0]
        finally:
            serving.send_signal(signal.SIGINT)
        assert serving.wait(PATIENCE) == 130


# -- install --for -----------------------------------------------------------------

CONFIG = b'# the comment of a user\nversion = 2\n\n[plugins."io.containerd.grpc.v1.cri"]\n'


def in_own_etc(tmp_path: Path, script: str, **files: bytes) -> subprocess.CompletedProcess[str]:
    """Run a shell script that sees a copy of /etc in the place of /etc."""
    etc = tmp_path / "etc"
    if not etc.exists():
        shutil.copytree("/etc", etc, symlinks=True)
        for directory in ("containerd", "docker"):
            shutil.rmtree(etc / directory, ignore_errors=True)
            (etc / directory).mkdir()
        for name, data in files.items():
            (etc / name.replace("__", "/").replace("_", ".")).write_bytes(data)
    mounted = f'mount --bind {etc} /etc && shimctl() {{ {sys.executable} -m shimctl "$@"; }}\n'
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", mounted + script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_install_for_containerd_shows_writes_and_undoes_its_change(tmp_path: Path) -> None:
    path = tmp_path / "etc/containerd/config.toml"
    files = {"containerd__config_toml": CONFIG}
    shown = in_own_etc(tmp_path, "shimctl install --for containerd --dry-run", **files)
    assert shown.returncode == 0
    assert '+runtime_type = "io.containerd.trio.v2"\n' in shown.stdout
    assert path.read_bytes() == CONFIG
    done = in_own_etc(tmp_path, "shimctl install --for containerd")
    assert (done.returncode, path.read_bytes()) == (125, CONFIG)
    assert "cannot ask without a terminal, so nothing was changed; add --yes" in done.stderr
    done = in_own_etc(
        tmp_path,
        "shimctl install --for containerd -y && "
        "containerd -c /etc/containerd/config.toml config dump",
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(CONFIG)
    assert 'runtime_type = "io.containerd.trio.v2"' in done.stdout.partition("END trio-shim")[2]
    again = in_own_etc(tmp_path, "shimctl install --for containerd -y")
    assert (again.returncode, "has this shim already" in again.stdout) == (0, True)
    done = in_own_etc(tmp_path, "shimctl install --for containerd --undo -y")
    assert (done.returncode, path.read_bytes()) == (0, CONFIG)


def test_install_for_refuses_a_configuration_that_is_invalid(tmp_path: Path) -> None:
    broken = b"[plugins\n"
    done = in_own_etc(
        tmp_path, "shimctl install --for containerd -y", containerd__config_toml=broken
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert "cannot change /etc/containerd/config.toml" in done.stderr
    assert (tmp_path / "etc/containerd/config.toml").read_bytes() == broken


def test_install_for_docker_asks_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "etc/docker/daemon.json"
    data = b'{\n    "debug": true\n}\n'
    in_own_etc(tmp_path, "true", docker__daemon_json=data)
    command = (
        f"unshare -m --propagation private sh -c 'mount --bind {tmp_path}/etc /etc && "
        f"{sys.executable} -m shimctl install --for docker'"
    )
    with open_tmux() as tmux:
        terminal = tmux.open()
        result = terminal.begin(command)
        terminal.expect("Write this? [y/N]:")
        terminal.type("n\n")
        assert (terminal.code(result), path.read_bytes()) == (1, data)
        terminal = tmux.open()  # the first one still shows the question
        result = terminal.begin(command)
        terminal.expect("Write this? [y/N]:")
        terminal.type("y\n")
        assert terminal.code(result) == 0
    eventually(lambda: json.loads(path.read_bytes())["runtimes"]["trio"])
    assert json.loads(path.read_bytes())["debug"] is True
