"""A containerd with its CRI plugin on, and nothing of Kubernetes around it.

Pods use the host's network, so that no CNI plugin is needed.  One configuration,
of version 2, is read by 1.6 and 1.7, and converted by 2.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

from grpclib import GRPCError

from tests.cri.client import Cri
from tests.e2e.containerd import UNUSED, Containerd
from tests.e2e.ctr import RUNTIME, Ctr
from tests.e2e.image import NAME, write_image
from tests.e2e.leftovers import is_shim, processes
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = "k8s.io"
PAUSE = "docker.io/library/pause:latest"
# The pause program waits, and reaps orphans.
_PAUSE = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]
# Runtime handlers with options: in a table, and in a file, which is all that 1.6 passes on.
WITH_OPTIONS, WITH_FILE = "with-options", "with-file"


class Node(Containerd):
    @property
    def disabled(self) -> list[str]:
        return UNUSED

    @property
    def group(self) -> str:
        """The cgroup of all pods, below the root of each hierarchy."""
        return self.root.name

    @property
    def runc_root(self) -> Path:
        """Where the handlers with options have runc keep its state."""
        return self.root / "runc"

    @property
    def cri(self) -> Cri:
        return Cri(self.address)

    def shims(self, pod: str = "") -> set[int]:
        """Find the shims on the host, of one pod or of all."""
        known = {self.pid} if self.running else set()
        return {
            pid
            for pid, line in processes(str(self.root), self.group, known)
            if str(self.address) in line and is_shim(line) and pod in line
        }

    def gave_up(self, container: str, stream: str) -> bool:
        """Return whether containerd closed the fifo of a stream before its own open(2) returned.

        It does when it finds the task stopped, at once after it began to open the fifo:
        containerd client/task.go, the Cancel in Delete.
        """
        pipe = f'Failed to pipe {stream} of container \\"{container}\\""'
        return f'{pipe} error="reading from a closed fifo' in self.log.read_text(errors="replace")

    def import_images(self, scratch: Path) -> None:
        write_image(scratch / "busybox.tar", scratch)
        _write_pause(scratch / "pause.tar", scratch / "busybox.tar")
        for archive in ("pause.tar", "busybox.tar"):
            Ctr(self).ok("images", "import", scratch / archive)
        # The plugin learns of images by events.
        wait_until("the CRI knows the images", lambda: all(map(self.has_image, (PAUSE, NAME))))

    def has_image(self, name: str) -> bool:
        return bool(self.cri("ImageStatus", image={"image": name}).image.id)

    def _answers(self) -> bool:
        if not super()._answers():
            return False
        try:
            self.cri("ListPodSandbox")
        except GRPCError:
            return False  # the plugin is still reading its state
        return True

    def _config(self) -> str:
        plugin = 'plugins."io.containerd.grpc.v1.cri"'
        runtimes = f"{plugin}.containerd.runtimes"
        names = {"BinaryName": self.root / "runtime", "Root": self.runc_root}
        options = "\n".join([*(f'{k} = "{v}"' for k, v in names.items()), "SystemdCgroup = false"])
        file = self.root / "options.toml"
        file.write_text(options)
        return f"""\
{super()._config()}\
[{plugin}]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[{plugin}.cni]
conf_dir = "{self.root}/cni"
[{plugin}.containerd]
default_runtime_name = "trio"
[{runtimes}.trio]
runtime_type = "{RUNTIME}"
pod_annotations = ["io.trio-shim.*"]
[{runtimes}.{WITH_OPTIONS}]
runtime_type = "{RUNTIME}"
[{runtimes}.{WITH_OPTIONS}.options]
{options}
[{runtimes}.{WITH_FILE}]
runtime_type = "{RUNTIME}"
[{runtimes}.{WITH_FILE}.options]
ConfigPath = "{file}"
"""


def _write_pause(path: Path, busybox: Path) -> None:
    """Write the image of ``busybox`` with another name and command to ``path``."""
    with tarfile.open(busybox) as source, tarfile.open(path, "w") as target:
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name == "config.json":
                config = json.loads(data)
                config["config"]["Cmd"] = _PAUSE
                data = json.dumps(config).encode()
            elif member.name == "manifest.json":
                manifest = json.loads(data)
                manifest[0]["RepoTags"] = [PAUSE]
                data = json.dumps(manifest).encode()
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
