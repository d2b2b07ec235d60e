"""The parts that every ring shares: in the project's own run, a skipped test fails.

A test that needs containerd, runc or criu skips itself where they are missing, so that a
laptop can run the rest.  ``.ci/run`` sets ``CI_STRICT=1``: there a skip would hide that a
behaviour was not tested.  A skip whose reason begins with "this machine" remains one: it names
a property of the kernel or of the host that no installation changes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from shim import log
from shim.linux.libc import set_child_subreaper

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

pytest_plugins = [
    *("tests.matrix", "tests.parallel", "tests.repeats", "tests.warm"),
    *("tests.leftout", "tests.sharedserver"),  # imports tests.warm
]
STRICT = "CI_STRICT"
# Whether a phase of a test has failed.
FAILED = pytest.StashKey[bool]()
ALLOWED = "this machine"  # the beginning of the reasons that a strict run accepts

# A fork server outlives its daemons.  Tests use one of their own, or the one that the tests
# of a worker share (tests/sharedserver.py); any other would be left behind.
os.environ["TRIO_SHIM_FORKSERVER"] = "off"

# On busy processors an example takes as long as the scheduler wants: that is no fault.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
    if report.skipped and not hasattr(report, "wasxfail"):
        assert isinstance(report.longrepr, tuple)  # as pytest documents for a skip
        path, line, reason = report.longrepr
        reason = _lost_reason(call) or reason.removeprefix("Skipped: ")
        report.longrepr = (path, line, f"Skipped: {reason}")
        if os.environ.get(STRICT) == "1" and not reason.startswith(ALLOWED):
            report.outcome = "failed"
            report.longrepr = f"{STRICT}=1 and this test was skipped: {reason}"
    return report


def _lost_reason(call: pytest.CallInfo[None]) -> str:
    """Return the reason of a skip inside a nursery, which pytest-trio raises anew without it."""
    raised = call.excinfo.value if call.excinfo else None
    if isinstance(raised, pytest.skip.Exception) and not raised.msg:
        context: BaseException | None = raised.__context__
        while isinstance(context, BaseExceptionGroup) and len(context.exceptions) == 1:
            context = context.exceptions[0]
        if isinstance(context, pytest.skip.Exception):
            return context.msg or ""
    return ""


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Path]:
    """Return the file that this test's log goes to."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    log.configure(fd, log.INFO)
    yield path
    log.configure(2, log.INFO)
    os.close(fd)


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Get the orphans of the test's children, and no others later.

    A run that stayed one would keep every later orphan as a zombie, which a
    runtime that looks for its processes takes for alive.
    """
    set_child_subreaper()
    yield
    set_child_subreaper(wanted=False)


@pytest.fixture
def no_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the parent of this process: a daemon's is the fork server, which has its orphans.

    A parallel run is the parent of workers with this one's command line, as a process has
    that was forked to run a command.
    """
    monkeypatch.setattr(os, "getppid", lambda: 0)
