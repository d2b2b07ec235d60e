"""The work of a fork server before it forks: a life in play, and a heap put in order."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

# In another process: the heap stays as it is arranged, and a reaper reaps.
_WARM_UP = """
import os, sys
from google.protobuf.empty_pb2 import Empty
from shim.start import warmup
from shim.linux import libc
from shim.ttrpc.server import unary

class EventSink(warmup._EventSink):
    @unary
    async def Forward(self, request):
        topics.append(request.envelope.topic)
        return Empty()

topics = []
warmup._EventSink = EventSink
libc.set_child_subreaper()
fds = os.listdir("/proc/self/fd")
warmup.warm_up(sys.argv[1])
for topic in ("start", "exec-started", "exit", "delete"):
    # An exec's exit is told too.
    expected = len(warmup._ROUNDS) * (2 if topic == "exit" else 1)
    assert topics.count(f"/tasks/{topic}") == expected, topics
assert sorted(os.listdir("/proc/self/fd")) == sorted(fds)
try:
    os.waitpid(-1, os.WNOHANG)
    raise AssertionError("a process is left")
except ChildProcessError:
    pass
"""
_ARRANGE = """
import json, os, re, sys
from shim.start import heap
from shim.linux import libc

def count():
    return sys.getrefcount(json.dumps)

heap.arrange()
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
heap.arrange()
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


def test_a_warm_up_runs_containers_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(_WARM_UP, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_killed_warm_up_are_removed_by_the_next(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f".warmup-{gone.pid}" / "b").mkdir(parents=True)
    done = run(_WARM_UP, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_two_warm_ups_can_run_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(lambda _: run(_WARM_UP, str(tmp_path)), range(2)))
    assert [(done.returncode, done.stderr) for done in results] == [(0, "")] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_warm_up_without_its_tools_ends_early_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run(
        "import sys; from shim.start.warmup import warm_up; warm_up(sys.argv[1])", "/proc/1/x"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("settings", "loaded"),
    [("", set()), ("survive = true", {"filehelper", "terminalsplice"})],
    ids=["none", "survive"],
)
def test_a_server_has_the_modules_that_the_hosts_settings_need(
    tmp_path: Path, settings: str, loaded: set[str]
) -> None:
    (tmp_path / "host.toml").write_text(settings)
    code = (
        "import sys; from shim.start.warmup import warm_up; warm_up(sys.argv[1])\n"
        "print(*(name for name in sys.modules if name.startswith('shim.stdio.')))"
    )
    done = run(code, str(tmp_path / "w"), TRIO_SHIM_CONFIG=str(tmp_path / "host.toml"))
    found = {name.rpartition(".")[2] for name in done.stdout.split()}
    assert found & {"filehelper", "terminalsplice", "overflow", "keptoverflow"} == loaded


def test_a_program_runs_and_ends_on_an_arranged_heap() -> None:
    done = run(_ARRANGE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc", "pymalloc_debug", "malloc_debug"])
def test_arranging_the_heap_takes_little_memory_with_any_allocator(allocator: str) -> None:
    done = run(_GROWTH, PYTHONMALLOC=allocator)
    assert (done.returncode, done.stderr) == (0, "")
    grown, sizes, fillers = map(int, done.stdout.split())
    assert grown < 6000  # KiB
    # Every size has its gaps filled, or the allocator has none to fill.
    assert sizes == (32 if allocator == "pymalloc" else 0)
    assert fillers < 20_000
