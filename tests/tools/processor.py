"""The processor seconds and the wall seconds of each test: ``pytest -p tests.tools.processor``.

    SHIM_TEST_PROCESSOR=FILE tests/worker python -m pytest -p tests.tools.processor tests/minid

Each test adds a line of JSON to FILE: its name, its processor seconds with those of every
process of its worker, and its wall seconds.  The processor seconds are those of the worker's
cgroup, so they contain daemons, managers and containers, also those that an earlier test left.
A fixture of a module or a session counts for the test that sets it up or takes it down.

``python -m tests.tools.processor FILE`` prints the sums by file and the longest tests.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

VARIABLE = "SHIM_TEST_PROCESSOR"
# The root of the worker's cgroup namespace (tests/isolation.py).
_V1, _V2 = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage"), Path("/sys/fs/cgroup/cpu.stat")
_LONGEST = 40


def used() -> float:
    """Return the processor seconds of this worker's cgroup."""
    if _V1.exists():
        return int(_V1.read_text()) / 1e9
    fields = dict(line.split() for line in _V2.read_text().splitlines())
    return int(fields["usage_usec"]) / 1e6


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    began, before = time.monotonic(), used()
    result = yield
    line = [item.nodeid, round(used() - before, 3), round(time.monotonic() - began, 3)]
    with open(os.environ[VARIABLE], "a") as file:
        file.write(json.dumps(line) + "\n")
    return result


def main(path: str) -> None:
    """Print the sums of a file of lines."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    for name, processor, wall in lines:
        total = sums[name.partition("::")[0]]
        for number, value in enumerate((processor, wall, 1)):
            total[number] += value
    lines.sort(key=lambda line: -line[1])
    print("processor s   wall s")
    for name, (processor, wall, tests) in sorted(sums.items(), key=lambda pair: -pair[1][0]):
        print(f"{processor:11.1f} {wall:8.1f} {tests:5.0f} tests  {name}")
    totals = [sum(column) for column in zip(*sums.values(), strict=True)]
    print(f"{totals[0]:11.1f} {totals[1]:8.1f} {totals[2]:5.0f} tests  all\n")
    for name, processor, wall in lines[:_LONGEST]:
        print(f"{processor:11.1f} {wall:8.1f}  {name}")


if __name__ == "__main__":
    main(sys.argv[1])
