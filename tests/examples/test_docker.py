"""examples/docker: dockerd's check of its file, and containers run with it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.docker.conftest import open_dockerd
from tests.docker.docker import Docker
from tests.docker.dockerd import EXECUTABLE, GO_NAME, SUITES, Dockerd
from tests.docker.leftovers import wait_nothing_left
from tests.e2e.ctr import RUNTIME, STOCK
from tests.e2e.managers import oldest_and_newest
from tests.examples.files import EXAMPLES, HANDLER, OPTIONS_FILE, RUNTIME_TYPE, text_of
from tests.matrix import record_manager, record_not_applicable

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(RUNTIME == STOCK, reason="the examples are of this shim"),
]
SCENARIO = "Configuration to paste"

PROGRAMS = "/usr/local/lib/trio-shim"  # the directory with the link
LINK = f"{PROGRAMS}/{GO_NAME}"
WITH_VALIDATE = ["trixie", "sid"]  # 20.10 can neither check a file nor be configured with a shim


class PastedDockerd(Dockerd):
    """A dockerd with the runtimes of the example, or under 20.10 with its PATH."""

    @property
    def runtimes(self) -> list[str]:
        return ["runc"] if self.old else [HANDLER]

    @property
    def options(self) -> Path:
        return self.root / "trio-shim-options.toml"

    @property
    def linked(self) -> Path:
        return self.root / "linked"

    @property
    def _environ(self) -> dict[str, str]:
        environ = super()._environ
        if self.old:
            (told,) = re.findall(
                r"^Environment=PATH=(.*)$", text_of("docker/docker-20.10.conf"), re.MULTILINE
            )
            path = told.replace(PROGRAMS, str(self.linked))
            assert path != told
            ours = f"{self.bin}:{self.bin.with_name('sbin')}"
            # The first, as the example has it; then what these machines have elsewhere.
            first, rest = path.split(":", 1)
            environ["PATH"] = f"{first}:{ours}:{rest}"
        return environ

    def _write_config(self) -> None:
        super()._write_config()
        self.stand_in.unlink(missing_ok=True)
        self.options.write_text(text_of("options.toml") + f'BinaryName = "{self.runc}"\n')
        if self.old:
            self.linked.mkdir(exist_ok=True)
            if not (self.linked / GO_NAME).is_symlink():
                (self.linked / GO_NAME).symlink_to(EXECUTABLE)
            return
        file = self.root / "daemon.json"
        pasted = text_of("docker/daemon.json").replace(OPTIONS_FILE, str(self.options))
        file.write_text(json.dumps(json.loads(file.read_text()) | json.loads(pasted)))


@pytest.fixture(scope="module", params=oldest_and_newest(SUITES))
def _module_docker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    with open_dockerd(tmp_path_factory.mktemp("image"), request.param, PastedDockerd) as daemon:
        yield Docker(daemon)


@pytest.fixture
def docker(_module_docker: Docker, request: pytest.FixtureRequest) -> Iterator[Docker]:
    docker = _module_docker
    record_manager(request, f"dockerd {docker.dockerd.release}")
    yield docker
    docker.remove_all()
    assert not wait_nothing_left(docker)
    docker.ids.clear()


@pytest.mark.parametrize("suite", WITH_VALIDATE)
def test_dockerd_itself_finds_the_file_in_order(suite: str, tmp_path: Path) -> None:
    def validate(text: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "daemon.json"
        file.write_text(text)
        # docker-proxy is not fetched.
        flags = ["--validate", "--userland-proxy=false", "--config-file", str(file)]
        dockerd = Dockerd(tmp_path, suite).bin.with_name("sbin") / "dockerd"
        if not dockerd.exists():
            pytest.skip(f"tests/managers/fetch.sh has not fetched {dockerd}")
        return subprocess.run(
            [dockerd, *flags], capture_output=True, text=True, timeout=60, check=False
        )

    good = text_of("docker/daemon.json")
    assert validate(good).returncode == 0, validate(good).stderr
    assert validate(good.replace("live-restore", "life-restore")).returncode != 0


def test_the_file_names_the_shim_and_the_options() -> None:
    told = json.loads(text_of("docker/daemon.json"))
    assert told == {
        "live-restore": True,
        "runtimes": {
            HANDLER: {"runtimeType": RUNTIME_TYPE},
            "trio-options": {
                "runtimeType": RUNTIME_TYPE,
                "options": {"ConfigPath": OPTIONS_FILE},
            },
        },
    }


def test_a_container_runs_by_what_was_pasted(docker: Docker) -> None:
    name = docker.start("sh", "-c", "echo hello; exit 7")
    assert docker.wait_exit(name) == 7
    assert docker.logs(name) == "hello"
    assert docker.inspect(name)["HostConfig"]["Runtime"] == docker.dockerd.runtimes[0]


def test_the_process_above_it_is_ours(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    parent = psutil.Process(docker.pid(name)).ppid()
    # Go's shim is another file, under any name.
    assert Path(f"/proc/{parent}/exe").readlink().name.startswith("python")
    docker.ok("rm", "-f", name)


def test_the_options_reach_the_oci_runtime(docker: Docker, request: pytest.FixtureRequest) -> None:
    daemon = docker.dockerd
    if daemon.old:
        record_not_applicable(request, "Docker 20.10 has no options for a shim")
        return
    # This machine may have no systemd, and then runc reports that.
    docker.run("--rm", "--runtime", "trio-options", "--", "true")
    called = daemon.runc_log.read_text().splitlines()
    assert any("--systemd-cgroup" in line and "create" in line for line in called), called


def test_a_live_container_outlives_the_restart_of_dockerd(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    pid = docker.pid(name)
    docker.dockerd.restart()
    assert docker.pid(name) == pid
    docker.ok("rm", "-f", name)


def test_the_commands_in_the_files_head_make_the_link(tmp_path: Path) -> None:
    """They are run with another root; systemctl is the machine's own affair."""
    head = text_of("docker/docker-20.10.conf").split("\n\n")[0]
    commands = re.findall(r"^#   (.*)$", text_of("docker/docker-20.10.conf"), re.MULTILINE)
    assert head.startswith("#")
    assert commands.pop().startswith("systemctl ")
    for command in commands:
        words = [
            f"{tmp_path}{word}" if word.startswith(("/usr/local/lib", "/etc")) else word
            for word in command.split()
        ]
        subprocess.run(words, check=True, timeout=20, cwd=EXAMPLES / "docker")
    link = tmp_path / LINK.removeprefix("/")
    assert str(link.readlink()) == "/usr/local/bin/containerd-shim-trio-v2"
    dropin = tmp_path / "etc/systemd/system/containerd.service.d/trio-shim.conf"
    assert dropin.read_text() == text_of("docker/docker-20.10.conf")
    assert f"Environment=PATH={PROGRAMS}:" in dropin.read_text()
