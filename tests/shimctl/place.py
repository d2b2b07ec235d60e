"""A place to run containers in with shimctl, under one shim or another.

Everything is in a directory of the test's own, and nothing of it is left on
the host after :func:`open_place`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from shim.errors import NotFoundError
from shimctl.launching import DEFAULT_RUNTIME, find_runtime
from tests import warm
from tests.e2e.leftovers import subdirectories
from tests.process.runtimes import FETCHED, GVISOR
from tests.shimctl import tool

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[2]
PATIENCE = tool.PATIENCE
TOOLS = ("sh", "cat", "echo", "sleep", "yes", "true", "dd", "head", "id", "pwd", "env", "seq")

# The kind of shim, and the runtime's name.  gVisor is a runtime under a shim.
RUNTIMES = {"ours": DEFAULT_RUNTIME, "go": "io.containerd.runc.v2", "gvisor": DEFAULT_RUNTIME}


@dataclass
class Place:
    """What :func:`open_place` gives."""

    root: Path
    kind: str
    binary: str = ""
    namespace: str = field(default_factory=lambda: f"place-{secrets.token_hex(4)}")
    ids: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "SHIMCTL_STATE": str(self.state), "PYTHONPATH": str(ROOT)}

    def bundle(self, *args: str, **changes: Any) -> Path:
        """Make a bundle with busybox as its root; ``changes`` replace keys of its config."""
        bundle = self.root / f"b{secrets.token_hex(4)}"  # may be an id, without "_" at its end
        bundle.mkdir()
        make_root(bundle / "rootfs", TOOLS)
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "args": list(args),
                "cwd": "/",
                "env": ["PATH=/bin", "MARK=yes"],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                # Without it runc makes /dev/ptmx in the rootfs: containers of one bundle that
                # start side by side would meet there.
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        }
        (bundle / "config.json").write_text(json.dumps(config | changes))
        return bundle

    def command(self, *argv: str | Path) -> list[str]:
        return tool.command_line(*argv)

    def begun(self, *argv: str | Path, **streams: Any) -> warm.Popen:
        """Start a command, with the streams of :class:`subprocess.Popen`."""
        return warm.Popen("shimctl", list(map(str, argv)), env=self.environ, **streams)

    def shimctl(self, *argv: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return tool.shimctl(*argv, stdin=stdin, cwd=self.root, env=self.environ)

    def done(self, *argv: str | Path, stdin: str = "") -> str:
        """Run a command that must succeed; return its output."""
        done = self.shimctl(*argv, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def done_with_errors(self, *argv: str | Path) -> str:
        """Run a command that must succeed, whatever it prints on stderr; return its stdout."""
        done = self.shimctl(*argv)
        assert done.returncode == 0, done
        return done.stdout

    def json(self, *argv: str | Path) -> Any:
        return json.loads(self.done(*argv, "-o", "json"))

    def made(self, verb: str, id_: str, *argv: str | Path) -> str:
        """Create, run or restore container ``id_`` under the shim of this place."""
        self.ids.append(id_)
        options = ["-n", self.namespace, "--runtime", RUNTIMES[self.kind], "--id", id_]
        if self.binary:
            options += ["--binary", self.binary]
        detach = ["-d"] if verb == "run" else []
        return self.done(verb, *detach, *options, *argv)

    def sleeper(self, id_: str) -> Path:
        """Run a container that sleeps; return its bundle."""
        bundle = self.bundle("sleep", "1000")
        self.made("run", id_, bundle)
        return bundle

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the events of every shim that is started in the block."""
        with open(os.devnull, "r+b") as null:
            fds = (null.fileno(), null.fileno(), 2)
            with warm.start("shimctl", ["events"], fds, env=self.environ) as listener:
                try:
                    eventually((self.state / "events.sock").exists)
                    yield
                finally:
                    listener.terminate()

    def remove(self, ids: Iterable[str]) -> None:
        """Remove the containers that still exist."""
        for id_ in ids:
            self.shimctl("delete", "-f", "-n", self.namespace, id_)

    def homes(self) -> list[Path]:
        """Return the state directories of the containers, while other processes remove some."""
        found: list[Path] = []
        for space in subdirectories(self.state):
            with suppress(FileNotFoundError):  # it is removed with its last container
                found += space.iterdir()
        return found

    def left(self) -> list[str]:
        """What there still is of any container that was made here."""
        left = []
        # Not the bare name: other people's containers may be called so.
        ours = re.compile(rf"-namespace {self.namespace}\b|run\w+/{self.namespace}\b|{self.root}")
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if process.info["status"] != psutil.STATUS_ZOMBIE and ours.search(line):
                left.append(line)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        left += [line for line in mounts if ours.search(line)]
        left += map(str, self.homes())
        left += map(str, Path("/run/containerd/runc", self.namespace).glob("*"))
        return left


def make_root(root: Path, applets: Iterable[str]) -> None:
    """Make a root file system of busybox with these applets."""
    for name in ("bin", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin/busybox")
    for name in applets:
        (root / "bin" / name).symlink_to("busybox")


def eventually(condition: Callable[[], Any], shown: Callable[[], object] = str) -> None:
    """Poll for a change without an event."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.05)


def missing(kind: str) -> str:
    """Return the requirement of ``kind`` that this machine lacks, or ""."""
    lacking = [tool for tool in ("runc", "busybox") if not shutil.which(tool)]
    if kind == "gvisor" and not (FETCHED / "runsc").exists():
        lacking.append("runsc, which tests/managers/fetch.sh fetches")
    try:
        find_runtime(RUNTIMES[kind])
    except NotFoundError as exc:
        lacking.append(str(exc))
    if os.geteuid():
        lacking.append("root")
    return ", ".join(lacking)


@contextmanager
def open_place(kind: str) -> Iterator[Place]:
    """Own a place under the shim that ``kind`` names, and see that nothing is left of it."""
    if lacking := missing(kind):
        pytest.skip(f"needs {lacking}")
    with tempfile.TemporaryDirectory(prefix="place") as directory:
        place = Place(Path(directory), kind)
        if kind == "gvisor":
            wrapper = place.root / "runsc"
            wrapper.write_text(f"#!/bin/sh\n{GVISOR.format(runsc=FETCHED / 'runsc')}\n")
            wrapper.chmod(0o755)
            place.binary = str(wrapper)
        # Some shims try for seconds to deliver an event without a receiver.
        with place.listening():
            try:
                yield place
            finally:
                place.remove(path.parent.name for path in place.state.glob("*/*/config.json"))
        eventually(lambda: place.left() == [], place.left)
        with suppress(OSError):  # made by the first container, kept by the runtime
            Path("/run/containerd/runc", place.namespace).rmdir()
