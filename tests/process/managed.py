"""Makes the fork server of a manager with an attribute of :mod:`tests.process.attributes`."""

from __future__ import annotations

import runpy
import sys

from tests.process.attributes import PROLOGUE

if __name__ == "__main__":
    exec(PROLOGUE + sys.argv.pop(1), {})
    runpy.run_module("tests.newserver", run_name="__main__")
