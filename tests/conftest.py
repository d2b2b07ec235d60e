"""What every ring shares: in the project's own run, a skipped end-to-end test fails.

A test that needs containerd, runc or criu skips itself where they are missing,
so that a laptop can run the rest.  ``.ci/run`` sets ``CI_STRICT=1``: there a
skip would hide that the proof was never made.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from shim.linux.libc import set_child_subreaper

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytest_plugins = ["tests.matrix", "tests.parallel", "tests.repeats"]
STRICT = "CI_STRICT"

# A warm parent outlives its daemons on purpose.  The tests of it ask for one;
# to the others it would be something left behind.
os.environ["TRIO_SHIM_FORKSERVER"] = "off"

# On busy processors an example takes as long as the scheduler wants: that is no fault.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    strict = os.environ.get(STRICT) == "1" and item.get_closest_marker("e2e") is not None
    if strict and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{STRICT}=1 and this end-to-end test was skipped: {reason}"
    return report


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Get the orphans of the test's children, and of nobody's later.

    A run that stayed one would keep every later orphan as a zombie, which a
    runtime that looks for its processes takes for alive.
    """
    set_child_subreaper()
    yield
    set_child_subreaper(wanted=False)
