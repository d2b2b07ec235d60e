"""A manager as a process: started, killed, restarted and stopped by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PYTEST = "PYTEST_CURRENT_TEST"


@dataclass
class Daemon:
    """``root`` is the directory of all its files, which is short and its own."""

    root: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{type(self).__name__} is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.kill()
        self.start()

    def _spawn(self, argv: Sequence[str | Path], environ: Mapping[str, str]) -> None:
        """Run ``argv`` with ``environ`` and a separate directory for the fork server."""
        # pytest's own variable differs between two runs of one manager.
        inherited = {key: value for key, value in os.environ.items() if key != _PYTEST}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **inherited,
                    "TRIO_SHIM_FORKSERVER": "on",
                    "TRIO_SHIM_FORKSERVER_DIR": str(self.root / "f"),
                    **environ,
                },
                start_new_session=True,
            )

    def _check_running(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(60 * PATIENCE)
        self._process = None
