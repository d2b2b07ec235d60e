"""Pods and their containers, with the requests of a kubelet."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.cri.messages import enum, value
from tests.e2e.image import NAME
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.cri.client import Request
    from tests.cri.node import Node

GRACE = 10  # s
IDS = 65536  # of a pod with a user namespace, as the kubelet gives
SLEEP = ("sleep", "1000")
# Ends with 0 when asked to, and lives until then.
GRACEFUL = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done")


@dataclass
class Pod:
    node: Node
    name: str
    id: str = ""
    containers: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    # The first id of the host that is one of the pod, which has a user namespace then,
    # and a network that is not the host's.
    first_id: int = 0

    @property
    def logs(self) -> Path:
        return self.node.root / "logs" / self.name

    @property
    def config(self) -> dict[str, Any]:
        # No container may have another network than its pod.
        return {
            "metadata": {"name": self.name, "uid": self.name, "namespace": "tests"},
            "log_directory": str(self.logs),
            "annotations": self.annotations,
            "linux": {
                "cgroup_parent": f"/{self.node.group}/{self.name}",
                "security_context": {"namespace_options": self._namespaces()},
            },
        }

    def _namespaces(self, pid: str = "POD", target: str = "") -> dict[str, Any]:
        network = value("POD" if self.first_id else "NODE")
        options: dict[str, Any] = {"network": network, "pid": value(pid)}
        options["ipc"] = value("POD")
        if self.first_id:
            users = {"mode": value("POD"), "uids": self.ids, "gids": self.ids}
            options["userns_options"] = users
        return {**options, "target_id": target}

    @property
    def ids(self) -> list[dict[str, int]]:
        """How the ids of this pod are those of the host."""
        return [{"host_id": self.first_id, "container_id": 0, "length": IDS}]

    def run(self, handler: str = "") -> None:
        self.logs.mkdir(parents=True)
        reply = self.node.cri("RunPodSandbox", config=self.config, runtime_handler=handler)
        self.id = reply.pod_sandbox_id

    def create_request(
        self,
        *command: str,
        name: str = "",
        attempt: int = 0,
        memory: int = 0,
        pid: str = "CONTAINER",
        target: str = "",
        tty: bool = False,
        mounts: Sequence[dict[str, Any]] = (),
        image: str = NAME,
    ) -> Request:
        name = name or f"c{len(self.containers)}"
        config = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": image},
            "command": command,
            "mounts": mounts,
            "log_path": f"{name}-{attempt}.log",
            "tty": tty,
            "linux": {
                "resources": {"memory_limit_in_bytes": memory},
                "security_context": {"namespace_options": self._namespaces(pid, target)},
            },
        }
        fields = {"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config}
        return "CreateContainer", fields

    def create(self, *command: str, **config: Any) -> str:
        """Create a container; return its id.  ``config`` is that of :meth:`create_request`."""
        request = self.create_request(*command, **config)
        container: str = self.node.cri.together([request])[0].container_id
        self.containers.append(container)
        return container

    def start(self, *command: str, **config: Any) -> str:
        """Create and start a container; return its id."""
        container = self.create(*command, **config)
        self.node.cri("StartContainer", container_id=container)
        return container

    def exec(self, container: str, *command: str, timeout: int = 0) -> Any:
        """Run a command to its end, for ``timeout`` s or without a bound."""
        return self.node.cri.together([exec_request(container, *command, timeout=timeout)])[0]

    def status(self, container: str) -> Any:
        return self.node.cri("ContainerStatus", container_id=container).status

    def state(self, container: str) -> str:
        return enum("ContainerState", self.status(container).state)

    def ready(self) -> bool:
        status = self.node.cri("PodSandboxStatus", pod_sandbox_id=self.id).status
        return enum("PodSandboxState", status.state) == "SANDBOX_READY"

    def pid(self, container: str) -> int:
        """Return the pid of the container's init on the host."""
        reply = self.node.cri("ContainerStatus", container_id=container, verbose=True)
        return int(json.loads(reply.info["info"])["pid"])

    def wait_exit(self, container: str) -> tuple[int, str]:
        """Wait until it has ended; return its exit code and the reason."""
        wait_until("it has ended", lambda: self.state(container) == "CONTAINER_EXITED")
        status = self.status(container)
        return status.exit_code, status.reason

    def stop(self, container: str, grace: int = GRACE) -> None:
        self.node.cri("StopContainer", container_id=container, timeout=grace)

    def remove(self, container: str) -> None:
        self.node.cri("RemoveContainer", container_id=container)

    def end(self) -> None:
        """Stop and remove the pod with everything in it."""
        self.node.cri("StopPodSandbox", pod_sandbox_id=self.id)
        self.node.cri("RemovePodSandbox", pod_sandbox_id=self.id)

    def log(self, name: str, attempt: int = 0) -> list[str]:
        """Return the lines of a container's log as they are on disk."""
        return (self.logs / f"{name}-{attempt}.log").read_text().splitlines()

    def wait_lines(self, name: str, number: int) -> None:
        """Wait for so many lines of log: containerd publishes an exit before it writes the last
        line.
        """
        wait_until(f"{name} has {number} lines", lambda: len(self.log(name)) >= number)

    def said(self, name: str, attempt: int = 0) -> Iterator[tuple[str, str]]:
        """Split a container's log into pairs of stream and text.

        The format is TIME STREAM TAGS TEXT; F is the tag of a full line.
        """
        for line in self.log(name, attempt):
            _time, stream, tag, *text = line.split(" ", 3)
            assert tag == "F", line
            yield stream, "".join(text)


def exec_request(container: str, *command: str, timeout: int = 0) -> Request:
    return "ExecSync", {"container_id": container, "cmd": command, "timeout": timeout}
