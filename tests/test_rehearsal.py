"""What a parent of daemons does before it forks: a life in play, and a heap put in order."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

# In a process of its own: the heap stays as it is arranged, and a reaper reaps.
_REHEARSE = """
import os, sys
from google.protobuf.empty_pb2 import Empty
from shim.start import rehearsal
from shim.linux import libc
from shim.ttrpc.server import unary

class Audience(rehearsal._Audience):
    @unary
    async def Forward(self, request):
        topics.append(request.envelope.topic)
        return Empty()

topics = []
rehearsal._Audience = Audience
libc.set_child_subreaper()
fds = os.listdir("/proc/self/fd")
rehearsal.rehearse(sys.argv[1])
for topic in ("start", "exec-started", "exit", "delete"):
    # An exec's exit is told too.
    expected = rehearsal._ROUNDS * (2 if topic == "exit" else 1)
    assert topics.count(f"/tasks/{topic}") == expected, topics
assert sorted(os.listdir("/proc/self/fd")) == sorted(fds)
try:
    os.waitpid(-1, os.WNOHANG)
    raise AssertionError("a process is left")
except ChildProcessError:
    pass
"""
_SETTLE = """
import json, os, re, sys
from shim.start import heap
from shim.linux import libc

def count():
    return sys.getrefcount(json.dumps)

heap.settle()
held = [json.dumps] * 100
assert (count() >= 0xFFFFFFFF) == libc.has_immortals(), count()
for _ in range(100_000):  # what was there goes on working, and what is new comes and goes
    value = {"a": [1, 2.5, "x" * 40, None]}
    assert json.loads(json.dumps(value)) == value
class Late: pass
del Late, held
print("well")
"""


_GROWTH = """
import resource, trio, google.protobuf
from shim.start import heap

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
heap.settle()
print(peak() - before, len(heap._fillers), sum(map(len, heap._fillers)))
"""


def run(code: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environ},
    )


def test_a_rehearsal_lets_containers_come_and_go_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(_REHEARSE, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_rehearsal_left_is_removed_by_the_next(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f".rehearsal-{gone.pid}" / "b").mkdir(parents=True)
    done = run(_REHEARSE, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_two_rehearsals_at_once_are_in_nobodys_way(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(lambda _: run(_REHEARSE, str(tmp_path)), range(2)))
    assert [(done.returncode, done.stderr) for done in results] == [(0, "")] * 2
    assert list(tmp_path.iterdir()) == []


def test_without_its_tools_a_rehearsal_is_cut_short_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run(
        "import sys; from shim.start.rehearsal import rehearse; rehearse(sys.argv[1])", "/proc/1/x"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_runs_and_ends_on_a_heap_that_was_settled() -> None:
    done = run(_SETTLE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc", "pymalloc_debug", "malloc_debug"])
def test_settling_the_heap_takes_little_memory_whatever_the_allocator(allocator: str) -> None:
    done = run(_GROWTH, PYTHONMALLOC=allocator)
    assert (done.returncode, done.stderr) == (0, "")
    grown, sizes, fillers = map(int, done.stdout.split())
    assert grown < 6000  # KiB
    # Every size has its gaps filled, or the allocator has none to fill.
    assert sizes == (32 if allocator == "pymalloc" else 0)
    assert fillers < 20_000
