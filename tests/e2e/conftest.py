"""One containerd of each version, one after the other; after each test nothing may be left.

A test that takes ``ctr`` runs once under each.  pytest sorts the tests of a session by
the parameter, so that each containerd is started once.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e import managerlog
from tests.e2e.containerd import Containerd
from tests.e2e.ctr import RUNTIME, Ctr
from tests.e2e.image import write_image
from tests.e2e.leftovers import (
    RUNC,
    cgroup_parents,
    fifos,
    kill_and_unmount,
    note_sockets,
    sockets,
    subdirectories,
    wait_nothing_left,
)
from tests.e2e.managed import running
from tests.e2e.managers import MANAGERS, Manager, skip_without
from tests.matrix import record_manager

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(scope="session", params=MANAGERS, ids=str)
def containerd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    with open_containerd(tmp_path_factory.mktemp("image"), request.param) as daemon:
        yield daemon


@contextmanager
def open_containerd(
    scratch: Path, manager: Manager, make: type[Containerd] = Containerd
) -> Iterator[Containerd]:
    """Run a containerd, with the image, for the block."""
    skip_without(manager)
    note_sockets()
    # Not pytest's own directory: socket paths are short.
    root = Path(tempfile.mkdtemp(prefix="e2e", dir="/run"))
    daemon = make(root, f"e2e{secrets.token_hex(4)}", manager)

    def prepare() -> None:
        write_image(scratch / "busybox.tar", scratch)
        Ctr(daemon).ok("images", "import", scratch / "busybox.tar")

    def groups() -> list[Path]:
        return [RUNC / daemon.namespace, *cgroup_parents(daemon.namespace)]

    with running(daemon, prepare, lambda: _force_clean(Ctr(daemon)), groups):
        yield daemon


@pytest.fixture(scope="session")
def _session_ctr(containerd: Containerd) -> Ctr:
    return Ctr(containerd)


@pytest.fixture
def ctr(_session_ctr: Ctr, request: pytest.FixtureRequest) -> Iterator[Ctr]:
    record_manager(request, _session_ctr.containerd.manager.name)
    with leaving_nothing(_session_ctr, request):
        yield _session_ctr


@contextmanager
def leaving_nothing(ctr: Ctr, request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test in the block, delete its containers, then search for remains."""
    daemon = ctr.containerd
    managerlog.begin(request, daemon.log)
    yield
    if not daemon.running:
        daemon.start()
    ctr.remove_all()
    if left := wait_nothing_left(ctr):
        _force_clean(ctr)  # the next test has done nothing wrong
        pytest.fail("left behind:\n" + "\n".join(left))


@pytest.fixture
def working_criu() -> None:
    """Skip where criu cannot work; Debian 12's own cannot on newer kernels."""
    criu = shutil.which("criu")
    if criu is None:
        pytest.skip("criu is not installed; tests/run.sh fetches one that works")
    if shutil.which("iptables-restore") is None:  # what `criu check` does not look for
        pytest.skip("criu locks a container's network with iptables, which is not installed")
    check = subprocess.run([criu, "check"], capture_output=True, timeout=60, check=False)
    if check.returncode != 0:
        pytest.skip(f"criu check: {check.stderr.decode().strip().splitlines()[-1:]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    ctr = getattr(item, "funcargs", {}).get("ctr")
    if isinstance(ctr, Ctr):
        managerlog.add_to(report, item, "containerd's log", ctr.containerd.log)
    return report


def pytest_report_header() -> str:
    return f"runtime under test: {RUNTIME}"


def _force_clean(ctr: Ctr) -> None:
    """Kill and unmount the remains of a failed test, so that no other test fails."""
    daemon = ctr.containerd
    kill_and_unmount(str(daemon.root), daemon.namespace, {daemon.pid})
    for path in [
        *fifos(daemon.root / "fifo"),
        *sockets(str(daemon.address), daemon.namespace, ctr.ids),
    ]:
        path.unlink()
    for bundle in subdirectories(daemon.bundle("x").parent):
        shutil.rmtree(bundle, ignore_errors=True)
