"""examples/containerd: read by each containerd, and a pod run with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cri.conftest import open_node
from tests.cri.leftovers import wait_nothing_left
from tests.cri.node import PAUSE, Node
from tests.cri.pods import Pod
from tests.e2e.ctr import RUNTIME, STOCK, Ctr
from tests.e2e.image import NAME
from tests.e2e.managers import MANAGERS, Manager
from tests.e2e.test_output_policy import spools
from tests.examples.files import (
    EXECUTABLE,
    HANDLER,
    OPTIONS_FILE,
    RUNTIME_TYPE,
    text_of,
    toml_of,
    with_choices,
)
from tests.matrix import record_manager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["spools"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(RUNTIME == STOCK, reason="the examples are of this shim"),
]
SCENARIO = "Configuration to paste"

ANNOTATIONS = ["io.trio-shim.*"]
# Where a version of the configuration has the settings of pods, and of their images.
PLUGIN = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}


def own(manager: Manager) -> str:
    """Return the example for this containerd."""
    return "containerd/config-v3.toml" if manager.version >= (2,) else "containerd/config-v2.toml"


def readable(manager: Manager) -> list[str]:
    """Return every example this containerd can read: 2 converts the older form."""
    return sorted({"containerd/config-v2.toml", own(manager)})


EACH = pytest.mark.parametrize(
    "manager", [m for m in MANAGERS if not m.modern], ids=lambda m: str(m)
)


def dump(manager: Manager, file: Path) -> dict[str, Any]:
    """Return ``file`` as ``manager`` reads it, with all defaults."""
    done = subprocess.run(
        [manager.tool("containerd"), "--config", file, "config", "dump"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return tomllib.loads(done.stdout)


@EACH
def test_each_containerd_finds_our_handler_beside_its_own(
    manager: Manager, tmp_path: Path
) -> None:
    if not manager.there:
        pytest.skip(f"tests/managers/fetch.sh has not fetched {manager.directory}")
    for name in readable(manager):
        file = tmp_path / "config.toml"
        file.write_text(text_of(name))
        told = dump(manager, file)
        plugin = told["plugins"][PLUGIN[told["version"]]]["containerd"]
        assert plugin["runtimes"].keys() == {"runc", HANDLER}
        assert plugin["default_runtime_name"] == "runc"
        assert plugin["runtimes"]["runc"]["runtime_type"] == "io.containerd.runc.v2"
        ours = plugin["runtimes"][HANDLER]
        assert ours["runtime_type"] == RUNTIME_TYPE
        assert ours["pod_annotations"] == ours["container_annotations"] == ANNOTATIONS
        assert not ours.get("options")


@EACH
def test_each_setting_to_choose_is_understood(manager: Manager, tmp_path: Path) -> None:
    if not manager.there:
        pytest.skip(f"tests/managers/fetch.sh has not fetched {manager.directory}")
    for name in readable(manager):
        file = tmp_path / "config.toml"
        file.write_text(with_choices(name))
        told = dump(manager, file)
        plugin = told["plugins"][PLUGIN[told["version"]]]["containerd"]
        assert plugin["default_runtime_name"] == HANDLER
        assert plugin["runtimes"][HANDLER]["options"] == (
            {"SystemdCgroup": True, "BinaryName": "/usr/bin/crun", "Root": "/run/containerd/crun"}
            if name == "containerd/config-v3.toml"
            else {"ConfigPath": OPTIONS_FILE}
        )
        if name == "containerd/config-v3.toml":
            users = plugin["runtimes"]["trio-users"]
            assert (users["runtime_type"], users["runtime_path"]) == (STOCK, EXECUTABLE)


@pytest.mark.parametrize("name", ["containerd/config-v2.toml", "containerd/config-v3.toml"])
def test_what_may_be_chosen_is_said_nowhere_else(name: str) -> None:
    plugin = toml_of(name)["plugins"].popitem()[1]
    assert plugin["containerd"].keys() == {"runtimes"}
    assert "options" not in plugin["containerd"]["runtimes"][HANDLER]


class PastedNode(Node):
    """A node with the example as its configuration, and the additions that a test needs."""

    def _config(self) -> str:
        name = own(self.manager)
        version = toml_of(name)["version"]
        cri = f'plugins."{PLUGIN[version]}"'
        images = 'plugins."io.containerd.cri.v1.images".pinned_images'
        pause = "" if version == 3 else f'sandbox_image = "{PAUSE}"'
        pinned = f'[{images}]\nsandbox = "{PAUSE}"' if version == 3 else ""
        return f"""\
root = "{self.root}/root"
state = "{self.root}/state"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
{text_of(name)}
[grpc]
address = "{self.address}"
[ttrpc]
address = "{self.address}.ttrpc"
[{cri}]
{pause}
restrict_oom_score_adj = true
[{cri}.cni]
conf_dir = "{self.root}/cni"
{pinned}
"""


@pytest.fixture(scope="module", params=[m for m in MANAGERS if not m.modern], ids=str)
def _module_node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with open_node(tmp_path_factory.mktemp("image"), request.param, PastedNode) as node:
        yield node


@pytest.fixture
def node(_module_node: Node, request: pytest.FixtureRequest) -> Node:
    record_manager(request, f"CRI of {_module_node.manager.name}")
    return _module_node


@pytest.fixture
def pod(node: Node, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """Run the pod of examples/kubernetes, as far as a CRI gets its fields."""
    described = yaml.safe_load(text_of("kubernetes/pod.yaml"))
    annotations = described["metadata"]["annotations"] | {"somebody.else/annotation": "yes"}
    pod = Pod(node, "hello", annotations=annotations)
    try:
        pod.run(HANDLER)
        yield pod
    finally:
        if pod.id:
            pod.end()
        left = wait_nothing_left(node, [pod])
        with suppress(OSError):
            shutil.rmtree(node.root / "logs")
        assert not left


def spec_of(node: Node, container: str) -> Any:
    return json.loads((node.bundle(container) / "config.json").read_text())


def test_the_pod_of_the_examples_runs_under_our_handler(node: Node, pod: Pod) -> None:
    described = yaml.safe_load(text_of("kubernetes/pod.yaml"))
    (asked,) = described["spec"]["containers"]
    assert asked["image"] == NAME, "the image that the node has"
    container = pod.start(*asked["command"], memory=64 << 20)
    assert pod.wait_exit(container) == (0, "Completed")
    pod.wait_lines("c0", 4)
    assert list(pod.said("c0")) == [
        ("stdout", line) for line in ("hello", "line 1", "line 2", "line 3")
    ]
    assert json.loads(Ctr(node).ok("c", "info", pod.id))["Runtime"]["Name"] == RUNTIME_TYPE


def test_the_shim_sees_its_annotations_and_no_others(node: Node, pod: Pod) -> None:
    container = pod.start("sh", "-c", "exit 7")
    told = [spec_of(node, name)["annotations"] for name in (pod.id, container)]
    ours = {"io.trio-shim.output": "spool", "io.trio-shim.output-limit": "16MiB"}
    for one in told:
        assert ours.items() <= one.items()
        assert "somebody.else/annotation" not in one
    assert pod.wait_exit(container) == (7, "Error")
