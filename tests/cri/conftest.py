"""A node of each version of containerd, one after the other; nothing may be left after a test."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cri.leftovers import cgroups, remove_cgroups_of_pods, wait_nothing_left
from tests.cri.node import NAMESPACE, Node
from tests.cri.pods import Pod
from tests.e2e import managerlog
from tests.e2e.ctr import RUNTIME, Ctr
from tests.e2e.leftovers import (
    RUNC,
    kill_and_unmount,
    note_sockets,
    sockets,
)
from tests.e2e.managed import running
from tests.e2e.managers import MANAGERS, Manager, skip_without
from tests.matrix import record_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


@pytest.fixture(scope="session", params=MANAGERS, ids=lambda manager: f"cri-of-{manager}")
def _session_node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with open_node(tmp_path_factory.mktemp("image"), request.param) as node:
        yield node


@contextmanager
def open_node(scratch: Path, manager: Manager, make: type[Node] = Node) -> Iterator[Node]:
    """Run a node, with its images, for the block."""
    skip_without(manager)
    # Not pytest's own directory: socket paths are short.
    note_sockets()
    node = make(Path(tempfile.mkdtemp(prefix="cri", dir="/run")), NAMESPACE, manager)
    with running(
        node,
        lambda: node.import_images(scratch),
        lambda: _force_clean(node, []),
        lambda: cgroups(node.group),
    ):
        yield node


@pytest.fixture
def node(_session_node: Node, request: pytest.FixtureRequest) -> Node:
    record_manager(request, f"CRI of {_session_node.manager.name}")
    managerlog.begin(request, _session_node.log)
    return _session_node


@pytest.fixture
def make_pod(node: Node) -> Iterator[Callable[..., Pod]]:
    """Make pods; after the test they are removed, and nothing of them may be left."""
    pods: list[Pod] = []

    def make(
        handler: str = "", annotations: dict[str, str] | None = None, first_id: int = 0
    ) -> Pod:
        name = f"pod{len(pods)}"
        pod = Pod(node, name, annotations=annotations or {}, first_id=first_id)
        pods.append(pod)
        pod.run(handler)
        return pod

    yield make
    if not node.running:
        node.start()
    for sandbox in node.cri("ListPodSandbox").items:
        Pod(node, "", sandbox.id).end()
    left = wait_nothing_left(node, pods)
    if left:
        _force_clean(node, pods)  # the next test has done nothing wrong
    shutil.rmtree(node.root / "logs", ignore_errors=True)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left))


@pytest.fixture
def pod(make_pod: Callable[..., Pod]) -> Pod:
    return make_pod()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    node = getattr(item, "funcargs", {}).get("node")
    if isinstance(node, Node):
        # A line of a specification is longer than all others together.
        managerlog.add_to(report, item, "containerd's log", node.log, longest=1500)
    return report


def pytest_report_header() -> str:
    return f"runtime under test in pods: {RUNTIME}"


def _force_clean(node: Node, pods: list[Pod]) -> None:
    """Kill and unmount the remains of a failed test, so that no other test fails."""
    kill_and_unmount(str(node.root), node.group, {node.pid})
    Ctr(node).remove_all()
    ids = [id_ for pod in pods for id_ in (pod.id, *pod.containers)]
    for id_ in ids:
        for root in (RUNC / NAMESPACE, node.runc_root / NAMESPACE):
            runc = ["runc", "--root", str(root), "delete", "--force", id_]
            subprocess.run(runc, capture_output=True, timeout=20, check=False)
    for path in sockets(str(node.address), NAMESPACE, ids):
        path.unlink()
    remove_cgroups_of_pods(node.group)
