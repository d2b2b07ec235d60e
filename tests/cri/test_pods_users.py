"""Pods in a user namespace, ``hostUsers: false``: the runtime has to map the owners of files.

It takes containerd 2 and runc 1.2, so the runtime here is that of tests/managers/fetch.sh.
Such a pod cannot have the host's network; a script stands in for the CNI plugins.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cri.conftest import open_node
from tests.cri.node import Node
from tests.cri.pods import IDS, SLEEP
from tests.e2e.ctr import RUNTIME, STOCK
from tests.e2e.managers import FETCHED, MANAGERS
from tests.e2e.waiting import wait_until
from tests.kernel import maps_owners
from tests.matrix import record_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cri.pods import Pod

pytestmark = [pytest.mark.e2e, maps_owners]
SCENARIO = "User namespaces"

OCI = FETCHED / "sid/usr/oci"
# crun reports its features, and runs no container on a host with both versions of cgroups.
HANDLERS = {"users-runc": OCI / "runc", "users-crun": OCI / "crun"}
FIRST = 1_000_000

# What containerd wants to hear of a network: an address on eth0.
_PLUGIN = """#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}' ;;
ADD) echo '{"cniVersion": "0.4.0",
  "interfaces": [{"name": "'$CNI_IFNAME'", "sandbox": "'$CNI_NETNS'"}],
  "ips": [{"version": "4", "address": "10.88.0.2/16", "interface": 0}]}' ;;
esac
"""
_NETWORK = '{"cniVersion": "0.4.0", "name": "nowhere", "plugins": [{"type": "none"}]}'


class UsersNode(Node):
    def _config(self) -> str:
        # The runtime looks for the rootfs as a user of the pod.
        self.root.chmod(0o711)
        (self.root / "cni").mkdir(exist_ok=True)
        (self.root / "cni/1.conflist").write_text(_NETWORK)
        for name in ("none", "loopback"):
            plugin = self.root / "cni" / name
            plugin.write_text(_PLUGIN)
            plugin.chmod(0o755)
        text = super()._config()
        place = f'conf_dir = "{self.root}/cni"'
        assert place in text
        text = text.replace(place, f'{place}\nbin_dir = "{self.root}/cni"')
        # containerd 2.0 to 2.2 reads the features of no other type, and no containerd yet
        # makes such a pod when another type has options.  The path selects the shim.
        path = f'runtime_path = "{self.executable}"' if RUNTIME != STOCK else ""
        for name, binary in HANDLERS.items():
            table = f'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}'
            text += f"""
[{table}]
runtime_type = "{STOCK}"
{path}
[{table}.options]
BinaryName = "{binary}"
Root = "{self.runc_root}"
"""
        return text


@pytest.fixture(
    scope="module",
    params=[manager for manager in MANAGERS if not manager.version or manager.version >= (2,)],
    ids=lambda manager: f"cri-of-{manager}",
)
def _users_node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    if missing := [str(path) for path in HANDLERS.values() if not path.exists()]:
        pytest.skip(f"tests/managers/fetch.sh has not fetched {missing}")
    with open_node(tmp_path_factory.mktemp("image"), request.param, UsersNode) as node:
        yield node


@pytest.fixture
def node(_users_node: Node, request: pytest.FixtureRequest) -> Node:
    record_manager(request, f"CRI of {_users_node.manager.name}")
    return _users_node


def test_containerd_knows_that_the_runtime_has_user_namespaces(node: Node) -> None:
    """It asks ``-info``, and a kubelet reads the answer before it makes such a pod."""
    handlers = {handler.name: handler.features for handler in node.cri("Status").runtime_handlers}
    for name in HANDLERS:
        assert handlers[name].user_namespaces, name
        assert handlers[name].recursive_read_only_mounts, name


def ids_on_disk(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_uid, stat.st_gid


def volume(node: Node, pod: Pod, *, readonly: bool = False) -> dict[str, object]:
    """Make a volume with a file of the pod's root and one of its user 5."""
    path = node.root / "volume"
    path.mkdir(exist_ok=True)
    for name, owner in (("root", 0), ("user", 5)):
        (path / name).touch()
        os.chown(path / name, owner, owner)
    place = {"container_path": "/volume", "host_path": str(path), "readonly": readonly}
    return {**place, "uidMappings": pod.ids, "gidMappings": pod.ids}


def test_a_pod_sees_its_rootfs_and_its_volumes_as_its_own(
    node: Node, make_pod: Callable[..., Pod]
) -> None:
    pod = make_pod("users-runc", first_id=FIRST)
    container = pod.start(*SLEEP, mounts=[volume(node, pod)])
    pid = pod.pid(container)
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(FIRST), str(IDS)]
    assert ids_on_disk(Path(f"/proc/{pid}")) == (FIRST, FIRST)
    # On the host its files are the pod's; on the snapshot's disk they are still the image's.
    busybox = Path(f"/proc/{pid}/root/bin/busybox")
    assert ids_on_disk(busybox) == (FIRST, FIRST)
    layers = node.root / "root/io.containerd.snapshotter.v1.overlayfs/snapshots"
    assert {ids_on_disk(path) for path in layers.glob("*/fs/bin/busybox")} == {(0, 0)}

    files = "/bin/busybox /etc/hosts /volume/root /volume/user"
    script = f"id -u; stat -c %u:%g {files}; touch /a /volume/a"
    said = pod.exec(container, "sh", "-c", script)
    assert (said.exit_code, said.stderr) == (0, b"")
    assert said.stdout.split() == [b"0", b"0:0", b"0:0", b"0:0", b"5:5"]
    assert ids_on_disk(Path(f"/proc/{pid}/root/a")) == (FIRST, FIRST)
    assert ids_on_disk(node.root / "volume/a") == (0, 0)

    assert pod.exec(container, "chown", "5:6", "/a", "/volume/a").exit_code == 0
    assert ids_on_disk(Path(f"/proc/{pid}/root/a")) == (FIRST + 5, FIRST + 6)
    assert ids_on_disk(node.root / "volume/a") == (5, 6)


def test_two_pods_of_one_image_have_owners_of_their_own(
    node: Node, make_pod: Callable[..., Pod]
) -> None:
    pods = [make_pod("users-runc", first_id=FIRST * (number + 1)) for number in range(2)]
    pids = [pod.pid(pod.start(*SLEEP)) for pod in pods]
    for pid, pod in zip(pids, pods, strict=True):
        busybox = Path(f"/proc/{pid}/root/bin/busybox")
        assert ids_on_disk(busybox) == (pod.first_id, pod.first_id)


@pytest.mark.mortal
def test_a_pod_whose_shim_died_leaves_nothing(node: Node, make_pod: Callable[..., Pod]) -> None:
    pod = make_pod("users-runc", first_id=FIRST)
    container = pod.start(*SLEEP, mounts=[volume(node, pod, readonly=True)])
    (shim,) = node.shims(pod.id)
    os.kill(shim, signal.SIGKILL)
    wait_until("containerd has heard of it", lambda: pod.state(container) == "CONTAINER_EXITED")
