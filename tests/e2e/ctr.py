"""containerd's own client, with a bound on every call; lists, kills and deletions need none.

ctr passes a SIGTERM on to the container instead of ending, so that a call which
is late is killed with SIGKILL.

1.6, 1.7 and 2 take the same flags.  They differ in words: a refusal ends in the kind of
error before 2, and `task ps` prints a Go struct in 1.6.  None can update limits, and none
takes --log-uri and --fifo-dir together.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from grpclib.exceptions import GRPCError

from tests.e2e.api import Api
from tests.e2e.image import NAME
from tests.e2e.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.e2e.containerd import Containerd

STOCK = "io.containerd.runc.v2"
RUNTIME = os.environ.get("SHIM_TEST_RUNTIME", "io.containerd.trio.v2")
CALL = 30  # s; far more than any call takes on a busy machine
_EVERY = 0.05  # s between two questions


@dataclass(frozen=True)
class Result:
    """The result of one call."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


@dataclass
class Ctr:
    containerd: Containerd
    ids: list[str] = field(default_factory=list)

    @property
    def api(self) -> Api:
        return Api(self.containerd.address, self.containerd.namespace)

    def new_id(self, prefix: str = "c") -> str:
        name = f"{prefix}{len(self.ids)}"
        self.ids.append(name)
        return name

    def argv(self, *args: str | Path) -> list[str | Path]:
        """Return the command line of a call.  Fifos go where the tests look for them.

        Those of a detached exec do not: ctr makes them and never removes them.
        A call with its own flags for the output is not changed.
        """
        daemon = self.containerd
        ctr = daemon.tool("ctr")
        whole: list[str | Path] = [ctr, "-a", daemon.address, "-n", daemon.namespace, *args]
        says = {"--fifo-dir", "--log-uri"} & set(args)
        for verb in (["run"], ["task", "exec"], ["task", "start"]):
            if list(args[: len(verb)]) == verb and not says:
                at = 5 + len(verb)
                directory = "fifo-detached" if args[:3] == ("task", "exec", "-d") else "fifo"
                whole[at:at] = ["--fifo-dir", daemon.root / directory]
        return whole

    def __call__(self, *args: str | Path, stdin: bytes = b"", timeout: float = CALL) -> Result:
        done = subprocess.run(
            self.argv(*args),
            input=stdin,
            capture_output=True,
            timeout=timeout * PATIENCE,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def ok(self, *args: str | Path, timeout: float = CALL) -> str:
        """Make a call that must succeed; return its output."""
        result = self(*args, timeout=timeout)
        assert result.code == 0, f"ctr {args}: {result}"
        return result.text

    def run(self, *args: str | Path, timeout: float = CALL) -> Result:
        """``ctr run`` of ``FLAGS... -- ID COMMAND...``; the runtime and the image are ours."""
        return self(*self.run_args(*args), timeout=timeout)

    def run_args(self, *args: str | Path) -> list[str | Path]:
        at = args.index("--")
        return ["run", "--runtime", RUNTIME, *args[:at], NAME, *args[at + 1 :]]

    def start(self, *command: str, flags: tuple[str | Path, ...] = ()) -> str:
        """Start a detached container and return its id."""
        name = self.new_id()
        result = self.run("-d", *flags, "--", name, *command)
        assert result.code == 0, result
        return name

    def exec(self, container: str, *command: str, stdin: bytes = b"") -> Result:
        name = self.new_id("e")
        return self("task", "exec", "--exec-id", name, container, *command, stdin=stdin)

    def exec_detached(self, container: str, exec_id: str, *command: str) -> None:
        self.ok("task", "exec", "-d", "--exec-id", exec_id, container, *command)

    def end_exec(self, container: str, exec_id: str) -> int:
        """Kill a detached exec and delete it; return its exit code, which is ctr's own."""
        self.kill(container, exec_id=exec_id)
        return self.wait_exec(container, exec_id)

    def wait_exec(self, container: str, exec_id: str) -> int:
        """Delete a detached exec once it has ended; return its exit code."""

        def codes() -> list[int]:
            code = self.api.delete_exec(container, exec_id)
            return [] if code is None else [code]

        return wait_until("the exec is deleted", codes, every=_EVERY)[0]

    def state(self, container: str) -> str | None:
        task = self.api.tasks().get(container)
        return task.state if task else None

    def pid(self, container: str) -> int:
        return self.api.tasks()[container].pid

    def touch(self, container: str, path: str) -> None:
        """Make a file in a container from outside: an exec could die with the container."""
        Path(f"/proc/{self.pid(container)}/root{path}").touch()

    def kill(self, container: str, name: str = "SIGKILL", exec_id: str = "") -> None:
        self.api.kill(container, signal.Signals[name], exec_id)

    def wait_state(self, container: str, state: str) -> None:
        wait_until(f"{container} is {state}", lambda: self.state(container) == state, every=_EVERY)

    def delete(self, container: str) -> int:
        """Delete a stopped task and its container; return the task's exit code."""
        task = self.api.tasks()[container]
        code = self.api.delete(container)
        _remove_fifos(task.stdio)
        return code

    def remove_all(self) -> None:
        """Kill and delete the remains of a test in the namespace."""
        for container in self.api.tasks():
            self("task", "rm", "-f", container)
        with suppress(GRPCError):  # what remains is found and named
            self.api.delete_containers()


def _remove_fifos(paths: Iterable[str]) -> None:
    """Remove the fifos of a task and their directory, as the client does that deletes it."""
    fifos = [Path(path) for path in paths if path and _is_fifo(path)]
    for path in fifos:
        path.unlink()
    for directory in {path.parent for path in fifos}:
        directory.rmdir()


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(Path(path).lstat().st_mode)
    except FileNotFoundError:  # a URI, or removed
        return False
