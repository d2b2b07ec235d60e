"""A minid of one's own: its file, its process, and the outside view of both.

minid is a fork of a process that has imported it (tests/warm.py), and its shims come from the
worker's fork server.  Everything else is below one directory and in one namespace, by which it
is found after any process died.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.linux.mounts import unmount_all
from tests import warm
from tests.e2e.leftovers import processes, subdirectories
from tests.e2e.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.warmclient import Process

MINID = Path(__file__).parents[2] / "examples" / "minid"
RUNC = Path("/run/containerd/runc")
CGROUPS = Path("/sys/fs/cgroup")


class Manager:
    """``root`` is where everything is.  See :func:`open_manager`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.namespace = root.name
        self.file = root / "minid.yaml"
        self.state = root / "state"
        self.process: Process | subprocess.Popen[bytes] | None = None
        self._log = open(root / "minid.log", "ab")  # noqa: SIM115 - as long as this is

    # -- containers ------------------------------------------------------------

    def write(self, **containers: dict[str, Any]) -> None:
        """Write the file: containers of the busybox bundle by default."""
        self.bundle()
        described = {
            name.replace("_", "-"): {"bundle": "busybox"} | one if "image" not in one else one
            for name, one in containers.items()
        }
        values = {"state": "state", "namespace": self.namespace, "containers": described}
        self.file.write_text(json.dumps(values, indent=1))  # which is YAML, and without aliases

    def bundle(self) -> Path:
        bundle = self.root / "busybox"
        if bundle.exists():
            return bundle
        rootfs = bundle / "rootfs"
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "bin")
        install = ["chroot", str(rootfs), "/bin/busybox", "--install", "-s", "/bin"]
        subprocess.run(install, check=True)
        subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"] |= {"terminal": False, "env": ["PATH=/bin", "TERM=xterm"]}
        config["process"].pop("rlimits", None)
        config["root"]["readonly"] = False
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    # -- the process -------------------------------------------------------------

    def start(self) -> None:
        """Start it, and do not wait."""
        with open(os.devnull, "rb") as null:
            fds = (null.fileno(), self._log.fileno(), self._log.fileno())
            self.process = warm.start("minid", ["-c", str(self.file)], fds, env=self.environ)

    def start_new(self) -> None:
        """Start it by its path in a new interpreter, and do not wait."""
        self.process = subprocess.Popen(
            [sys.executable, str(MINID), "-c", str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self.environ | {"PYTHONPATH": str(MINID.parents[1])},
        )

    @property
    def environ(self) -> dict[str, str]:
        return os.environ | {
            "TRIO_SHIM_CONFIG": str(self.root / "shim.toml"),
            "SHIMCTL_IMAGES": str(self.root / "images"),
            "PYTHONPATH": f"{MINID.parent}:{MINID.parents[1]}",
        }

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        return process.wait(20 * PATIENCE)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run its command line beside it."""
        argv = ["-c", str(self.file), *args]
        return warm.run("minid", argv, env=self.environ, timeout=60 * PATIENCE)

    # -- replies ------------------------------------------------------------

    def send(self, data: bytes, timeout: float = 60) -> bytes:
        """Send bytes to its socket; return the reply."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout * PATIENCE)
            sock.connect(str(self.state / "control.sock"))
            sock.sendall(data)
            answer = b""
            while more := sock.recv(1 << 16):
                answer += more
        return answer

    def ask(self, verb: str, name: str = "") -> dict[str, Any]:
        """Ask it, by name of the container."""
        line = json.dumps({"do": verb, "name": name}).encode() + b"\n"
        reply = json.loads(self.send(line))
        assert "error" not in reply, reply
        return {one["name"]: one for one in reply["containers"]}

    def wait_for(
        self, what: str, true: Callable[[dict[str, Any]], object], timeout: float = 30
    ) -> dict[str, Any]:
        """Wait until it answers and the output of ``ps`` satisfies ``true``; return that
        output.
        """

        def probe() -> dict[str, Any]:
            assert self.process is not None
            assert self.process.poll() is None, "it has left"
            with suppress(OSError, ValueError):
                found = self.ask("ps")
                if true(found):
                    return found
            return {}

        try:
            return wait_until(what, probe, timeout)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.said}") from None

    def wait_status(self, name: str, status: str, timeout: float = 30) -> dict[str, Any]:
        """Wait until ``ps`` has this status for ``name``; return its other fields."""
        found = self.wait_for(
            f"{name} is {status}",
            lambda found: found.get(name, {}).get("status") == status,
            timeout,
        )
        return dict(found[name])

    @property
    def said(self) -> str:
        return (self.root / "minid.log").read_text()

    # -- the outside view ------------------------------------------------------

    def exits(self, name: str = "") -> list[dict[str, Any]]:
        """The exits log, of one container or all."""
        path = self.state / "exits.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [one for one in found if name in ("", one["container"])]

    def codes(self, name: str) -> list[int | None]:
        return [one["code"] for one in self.exits(name)]

    def output(self, name: str) -> str:
        """All of a container's log, the rotated files too."""
        path = self.state / "logs" / f"{name}.log"
        older = sorted(
            path.parent.glob(f"{path.name}.*"), key=lambda p: int(p.suffix[1:]), reverse=True
        )
        return "".join(one.read_bytes().decode() for one in (*older, path) if one.exists())

    def left(self) -> list[str]:
        """The remains of containers and shims; empty after ``down``."""
        known = {self.process.pid} if self.process else set()
        root, namespace = str(self.root), self.namespace
        found = [f"process {pid}: {line}" for pid, line in processes(root, namespace, known)]
        for directory in (RUNC / namespace, *self._cgroups()):
            found += [f"directory {path}" for path in subdirectories(directory)]
        for home in subdirectories(self.state / "containers"):
            found += [f"generation {path}" for path in subdirectories(home)]
        return found

    def wait_nothing_left(self, timeout: float = 20) -> None:
        try:
            wait_until("nothing is left", lambda: not self.left(), timeout)
        except AssertionError:
            raise AssertionError(f"{self.left()}\n{self.said}") from None

    def _cgroups(self) -> list[Path]:
        return [CGROUPS / self.namespace, *CGROUPS.glob(f"*/{self.namespace}")]

    def close(self) -> None:
        """End everything, politely or not."""
        if self.process is not None:
            self.end(signal.SIGKILL)
        self._log.close()
        for state in subdirectories(RUNC / self.namespace):
            delete = ["runc", "--root", str(state.parent), "delete", "--force", state.name]
            subprocess.run(delete, check=False, capture_output=True)
        deadline = time.monotonic() + 10 * PATIENCE
        while left := [pid for pid, _ in processes(str(self.root), self.namespace)]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        for directory in (RUNC / self.namespace, *self._cgroups()):
            with suppress(OSError):
                directory.rmdir()
        unmount_all(str(self.root))


@contextmanager
def open_manager() -> Iterator[Manager]:
    """Own a directory, and every process that has to do with it."""
    root = Path("/run", f"md{secrets.token_hex(4)}")
    root.mkdir(mode=0o700)
    (root / "shim.toml").write_text(f'[output]\ndirectory = "{root}/spool"\n')
    manager = Manager(root)
    try:
        yield manager
    finally:
        manager.close()
        shutil.rmtree(root, ignore_errors=True)
