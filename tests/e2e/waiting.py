"""Waiting for the asynchronous work of a daemon: asked again and again, with a bound.

SHIM_TEST_PATIENCE, a number, multiplies the bounds: 10 or so on an emulated machine.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
PATIENCE = float(os.environ.get("SHIM_TEST_PATIENCE", "1"))


def wait_until(what: str, probe: Callable[[], T], timeout: float = 20, every: float = 0.02) -> T:
    """Return the first true answer of ``probe``; fail, naming ``what``, after ``timeout`` s."""
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while True:
        if answer := probe():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(every)
