"""A host for containers without a manager: shimctl as a process, a real shim, the real runc.

:class:`Host` makes bundles and runs shimctl in directories of one test; the fixture ``host``
shows that nothing is left of a container after the test.  A module that uses the fixture
imports ``_needs``, too, which skips its tests where the shim, runc or busybox is missing.

SHIM_TEST_RUNTIME chooses the shim, by name or path.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from shim.errors import NotFoundError
from shim.linux.sockets import socket_address, socket_path
from shimctl.launching import DEFAULT_RUNTIME, find_runtime
from tests.shimctl import tool
from tests.shimctl.place import make_root

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

RUNTIME = os.environ.get("SHIM_TEST_RUNTIME", DEFAULT_RUNTIME)
NAMESPACE = f"shimctl-test-{secrets.token_hex(4)}"
APPLETS = ("sh", "cat", "echo", "sleep", "yes", "stty", "id", "pwd", "true", "grep", "seq")
PATIENCE = 20  # s for what should take a fraction of one


class Host:
    """A place to run containers in, and what must be gone from the host after."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.temporary = root / "tmp"  # /tmp is shared with other tests
        self.temporary.mkdir()
        self.bundles = 0
        self.ids: list[str] = []

    def bundle(self, *args: str, terminal: bool = False) -> Path:
        """Make a bundle with busybox as its root."""
        self.bundles += 1
        bundle = self.root / f"b{self.bundles}"
        make_root(bundle / "rootfs", APPLETS)
        (bundle / "config.json").write_text(json.dumps(config(args, terminal=terminal)))
        return bundle

    def command(self, *argv: str | Path) -> list[str]:
        return tool.command_line(*argv)

    def shimctl(self, *argv: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return tool.shimctl(*argv, stdin=stdin, patience=PATIENCE)

    def run_command(self, *argv: str | Path) -> list[str]:
        """The command line of ``shimctl run``, with an id that is remembered."""
        if "--id" not in argv:
            argv = ("--id", f"c{len(self.ids)}", *argv)
        self.ids.append(str(argv[argv.index("--id") + 1]))
        return self.command("run", "-n", NAMESPACE, "--runtime", RUNTIME, *argv)

    def run(self, *argv: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.shimctl(*self.run_command(*argv)[3:], stdin=stdin)

    def json(self, *argv: str) -> Any:
        return tool.values(self.shimctl(*argv, "--json"))

    def left(self) -> list[str]:
        """What there still is of any container that was run here."""
        marks = (NAMESPACE, str(self.root))
        left = tool.mounts_with(*marks)
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if process.info["status"] != psutil.STATUS_ZOMBIE and NAMESPACE in line:
                left.append(line)
        grpc = str(self.state / "shimctl.sock")
        sockets = [socket_address(grpc, NAMESPACE, name) for name in self.ids]
        left += [path for path in map(socket_path, sockets) if Path(path).exists()]
        # The past events are kept for the next `shimctl events --since`.
        kept = {"events.log", "events.lock"}
        left += [str(path) for path in self.state.glob("*") if path.name not in kept]
        left += map(str, Path("/run/containerd/runc", NAMESPACE).glob("*"))
        left += map(str, Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}*"))
        left += map(str, self.temporary.glob("*"))
        return left


def config(args: tuple[str, ...], *, terminal: bool) -> dict[str, Any]:
    capabilities = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/bin"],
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    try:
        find_runtime(RUNTIME)
        missing = [tool for tool in ("runc", "busybox") if not shutil.which(tool)]
    except NotFoundError as exc:
        missing = [str(exc)]
    if os.geteuid() or missing:
        reason = f"needs root and {', '.join(missing)}"
        pytest.skip(reason)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="sc") as directory:
        host = Host(Path(directory))
        monkeypatch.setenv("SHIMCTL_STATE", str(host.state))
        monkeypatch.setenv("TMPDIR", str(host.temporary))
        yield host
        for path in host.state.glob("*/*/config.json"):
            host.shimctl("delete", "-f", "-n", NAMESPACE, path.parent.name)
        eventually(lambda: host.left() == [], host.left)
        with suppress(OSError):  # made by the first container, kept by the runtime
            Path("/run/containerd/runc", NAMESPACE).rmdir()


def eventually(condition: Any, shown: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.05)  # a process has no event for "another process reaped it"
