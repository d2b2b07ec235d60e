"""One dockerd of each generation, one after the other; after each test nothing may be left."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker.docker import IMAGE, Docker
from tests.docker.dockerd import SUITES, Dockerd
from tests.docker.leftovers import NAMESPACE, wait_nothing_left
from tests.e2e import managerlog
from tests.e2e.image import BUSYBOX, make_rootfs
from tests.e2e.leftovers import (
    cgroup_parents,
    fifos,
    kill_and_unmount,
    mounts,
    note_sockets,
    sockets,
)
from tests.e2e.managed import running
from tests.e2e.managers import oldest_and_newest
from tests.matrix import record_manager

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(scope="session", params=oldest_and_newest(SUITES))
def _session_docker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    with open_dockerd(tmp_path_factory.mktemp("image"), request.param) as daemon:
        yield Docker(daemon)


@contextmanager
def open_dockerd(scratch: Path, suite: str, make: type[Dockerd] = Dockerd) -> Iterator[Dockerd]:
    """Run the dockerd of ``suite``, with the image, for the block."""
    note_sockets()
    # Not pytest's own directory: socket paths are short.
    root = Path(tempfile.mkdtemp(prefix="dkr", dir="/run"))
    daemon = make(root, suite)
    missing = daemon.missing()
    if os.geteuid() != 0 or missing or not BUSYBOX.exists():
        root.rmdir()
        pytest.skip(f"needs root, busybox and docker of {suite}; missing: {missing}")
    (root / "cid").mkdir()

    def prepare() -> None:
        make_rootfs(scratch / "rootfs")
        _import_image(Docker(daemon), scratch / "rootfs")

    with running(
        daemon,
        prepare,
        lambda: _force_clean(Docker(daemon)),
        lambda: cgroup_parents(root.name),
        lambda: _unmount(root),
    ):
        yield daemon


def _import_image(docker: Docker, rootfs: Path) -> None:
    tar = subprocess.run(["tar", "-C", rootfs, "-c", "."], capture_output=True, check=True)
    result = docker("import", "-c", "ENV PATH=/bin", "-", IMAGE, stdin=tar.stdout)
    assert result.code == 0, result


def _unmount(root: Path) -> None:
    """Unmount the mounts that outlive a container on purpose."""
    for point in reversed(mounts(str(root))):
        subprocess.run(["umount", point], timeout=10, check=True)


@pytest.fixture
def docker(_session_docker: Docker, request: pytest.FixtureRequest) -> Iterator[Docker]:
    """Return the command; after the test delete its containers and search for remains."""
    docker = _session_docker
    daemon = docker.dockerd
    record_manager(request, f"dockerd {daemon.release}")
    managerlog.begin(request, daemon.log)
    yield docker
    if not daemon.running:
        daemon.start()
    docker.remove_all()
    if left := wait_nothing_left(docker):
        _force_clean(docker)  # the next test has done nothing wrong
        pytest.fail("left behind:\n" + "\n".join(left))
    docker.ids.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    docker = getattr(item, "funcargs", {}).get("docker")
    if isinstance(docker, Docker):
        daemon = docker.dockerd
        managerlog.add_to(report, item, f"dockerd {daemon.version}'s log", daemon.log)
    return report


def _force_clean(docker: Docker) -> None:
    """Kill and unmount the remains of a failed test, so that no other test fails."""
    daemon = docker.dockerd
    root = str(daemon.root)
    kill_and_unmount(root, daemon.cgroup_parent, daemon.pids, f"{root}/data")
    for path in [
        *fifos(daemon.root / "exec"),
        *sockets(str(daemon.containerd_address), NAMESPACE, docker.find_ids()),
    ]:
        path.unlink()
