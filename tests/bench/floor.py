"""The bare runtime: the commands a shim runs, without a shim.

No shim that runs them all can be faster.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.bench import command, procs
from tests.bench.workplace import CLEANUP, INIT, NAMESPACE, delete_container

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.workplace import Workplace

NAME = "runc alone"


@contextmanager
def _subreaper() -> Iterator[None]:
    """Adopt the runtime's orphans, as a shim does: init may take seconds to reap it."""
    procs.set_subreaper(True)
    try:
        yield
    finally:
        procs.set_subreaper(False)


def measure(place: Workplace) -> dict[str, float]:
    """Create, start, exec ``true``, kill and delete one container; return milliseconds."""
    bundle = place.new_bundle(*INIT)
    root = place.runc_root / NAMESPACE
    pid_file, exec_pid, process = (bundle / name for name in ("pid", "exec.pid", "exec.json"))
    process.write_text(json.dumps(place.config["process"] | {"args": ["true"]}))
    log = ["--log", str(bundle / "log.json"), "--log-format", "json"]

    def runc(*args: str) -> float:
        argv = ["runc", "--root", str(root), *log, *args]
        # The container keeps the output it is given, so there is no end to read to.
        return command.run(argv, env=place.environ, capture=False).seconds * 1000

    turn = {}
    try:
        with _subreaper():
            where = ("--bundle", str(bundle), "--pid-file", str(pid_file))
            turn["create"] = runc("create", *where, bundle.name)
            turn["run"] = runc("start", bundle.name)
            began = time.perf_counter()
            where = ("--process", str(process), "--pid-file", str(exec_pid))
            runc("exec", "--detach", *where, bundle.name)
            command.reap(int(exec_pid.read_text()))
            turn["exec"] = (time.perf_counter() - began) * 1000
            init = int(pid_file.read_text())
            os.kill(init, signal.SIGKILL)
            command.reap(init)
            turn["delete"] = runc("delete", bundle.name)
        turn["sum"] = turn["create"] + turn["run"] + turn["delete"]
    finally:
        if (root / bundle.name).exists():
            delete_container(root / bundle.name, time.monotonic() + CLEANUP)
        shutil.rmtree(bundle, ignore_errors=True)
    return turn
