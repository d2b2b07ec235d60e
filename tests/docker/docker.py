"""docker, the command, with a bound on every call; questions are asked without it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.docker.api import CALL, Api, ApiError
from tests.e2e.ctr import Result
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docker.dockerd import Dockerd

IMAGE = "bb"


@dataclass
class Docker:
    dockerd: Dockerd
    ids: list[str] = field(default_factory=list)  # of all containers ever made, as far as known
    _count: int = 0

    @property
    def api(self) -> Api:
        return Api(self.dockerd.address)

    def argv(self, *args: str | Path) -> list[str | Path]:
        daemon = self.dockerd
        config, host = daemon.root / "client", f"unix://{daemon.address}"
        return [daemon.bin / "docker", "--config", config, "--host", host, *args]

    def __call__(self, *args: str | Path, stdin: bytes = b"", timeout: float = CALL) -> Result:
        done = subprocess.run(
            self.argv(*args), input=stdin, capture_output=True, timeout=timeout, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def ok(self, *args: str | Path, timeout: float = CALL) -> str:
        """Make a call that must succeed; return its output without the last newline."""
        result = self(*args, timeout=timeout)
        assert result.code == 0, f"docker {args}: {result}"
        return result.text.removesuffix("\n")

    def new_name(self) -> str:
        self._count += 1
        return f"c{self._count:02}"

    def run_args(self, *args: str | Path) -> list[str | Path]:
        """Return ``docker run`` of ``FLAGS... -- COMMAND...``; runtime and image are ours."""
        at = args.index("--")
        cid = self.dockerd.root / "cid" / self.new_name()
        fixed = ["--network", "none", "--runtime", self.dockerd.runtimes[0]]
        return ["run", "--cidfile", cid, *fixed, *args[:at], IMAGE, *args[at + 1 :]]

    def run(self, *args: str | Path, stdin: bytes = b"", timeout: float = CALL) -> Result:
        return self(*self.run_args(*args), stdin=stdin, timeout=timeout)

    def sh(self, script: str, *flags: str | Path, stdin: bytes = b"") -> Result:
        """Run ``script`` in the foreground; nothing is kept of the container."""
        return self.run("--rm", *flags, "--", "sh", "-c", script, stdin=stdin)

    def start(self, *command: str, flags: tuple[str | Path, ...] = ()) -> str:
        """Start a detached container and return its name."""
        name = self.new_name()
        result = self.run("-d", "--name", name, *flags, "--", *command)
        assert result.code == 0, result
        return name

    def exec(self, container: str, *command: str, stdin: bytes | None = None) -> Result:
        """Run a command in a container, by ``docker exec`` if it has an input."""
        if stdin is not None:
            return self("exec", "-i", container, *command, stdin=stdin)
        try:
            code, output = self.api.exec(container, command)
        except ApiError as exc:
            return Result(1, b"", str(exc))
        return Result(code, output.out, output.err.decode(errors="replace"))

    def inspect(self, container: str) -> Any:
        """Return docker's description of ``container``."""
        return self.api.inspect(container)

    def state(self, container: str) -> Any:
        return self.inspect(container)["State"]

    def pid(self, container: str) -> int:
        return int(self.state(container)["Pid"])

    def wait_exit(self, container: str) -> int:
        """Return the exit code of ``container`` once it has stopped for good."""

        def stopped() -> list[int]:
            state = self.state(container)
            return [state["ExitCode"]] if state["Status"] in {"exited", "dead"} else []

        return wait_until(f"{container} has ended", stopped, CALL, every=0.05)[0]

    def logs(self, container: str) -> str:
        """Return its standard output without the last newline."""
        return self.api.logs(container).out.decode().removesuffix("\n")

    def find_ids(self) -> list[str]:
        """Return the full ids of all containers of this dockerd so far, gone or not."""
        for path in (self.dockerd.root / "cid").iterdir():
            self.ids.append(path.read_text())
            path.unlink()
        return self.ids

    def remove_all(self) -> None:
        """Kill and delete the remains of a test, through the API."""
        self.find_ids()
        self.api.remove_all()
