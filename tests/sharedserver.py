"""One fork server for the tests of a worker that are not about the start of a daemon.

A daemon that a fork server starts costs an eighth of the processor time of one that starts
alone.  The server is started before the first test that uses it, in an environment of no
test, and ends with the session.  shimctl finds the native launcher, which asks the same
server: pip's script has another path of the interpreter and so another server.  A test, or
a module, with ``pytest.mark.cold`` starts its daemons alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import nativelauncher, warm
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ROOT = Path(__file__).parents[1]
_TIMEOUT = 120.0  # seconds for a server to start or to end on a busy machine


def make(environ: Mapping[str, str]) -> None:
    """Make a fork server as a ``start`` does, without the imports; wait until it listens.

    If there is one already, this returns at once.  Again if it fails: a start gives up a
    server after ten seconds, which a busy machine may take.
    """
    values = {**os.environ, **environ, "PYTHONPATH": str(_ROOT)}
    call = partial(warm.run_bytes, "tests.newserver", [], package="shim", cwd=_ROOT, env=values)
    wait_until("there is a fork server", lambda: not call(timeout=_TIMEOUT).returncode, _TIMEOUT)


def stop(environ: Mapping[str, str]) -> None:
    """Stop the fork servers in their directory; again, if it fails, as above."""
    values = {**os.environ, **environ, "PYTHONPATH": str(_ROOT)}
    call = partial(warm.run, "shimctl", ["forkserver", "stop"], env=values)
    wait_until("they are stopped", lambda: not call(timeout=_TIMEOUT).returncode, _TIMEOUT)


@pytest.fixture(scope="session")
def _shared_server() -> Iterator[dict[str, str]]:
    """Own a fork server; return the variables with which a shim is started by it."""
    directory = tempfile.mkdtemp(prefix="forkserver", dir="/run")
    environ = {"TRIO_SHIM_FORKSERVER": "on", "TRIO_SHIM_FORKSERVER_DIR": directory}
    try:
        make({**environ, "TRIO_SHIM_FORKSERVER_IDLE": "0"})
        yield environ
        stop(environ)
        # It stays for shims that survive.
        wait_until(
            "the fork server has exited",
            lambda: not any(Path(directory).glob(".stopped-*")),
            _TIMEOUT,
        )
    finally:
        shutil.rmtree(directory)


def use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the shims of a test be started by the worker's fork server, unless it is cold."""
    if request.node.get_closest_marker("cold") is None and not os.geteuid():
        for name, value in request.getfixturevalue("_shared_server").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", str(nativelauncher.directory()), prepend=os.pathsep)
