"""How the tests of a run share its workers, and how long each ring took.

A run of the whole suite has several workers (``tests/run.sh``), each in separate namespaces and
cgroups (``tests/worker``).  The tests of one module stay together, as they
share fixtures.  The tests of one real manager stay together across modules, so that each
manager is started once.  ``pytest.mark.alone`` makes a group of one test, for a long one.

The longest groups run first, so that all workers end at about the same time.

A ring is a directory below ``tests``; files directly in ``tests`` form the ring "shim".
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

_TESTS = Path(__file__).parent
# The session fixtures that start a real manager; a test that takes one names it as a parameter.
MANAGERS = ("containerd", "_session_docker", "_session_node")
# Seconds that long groups take on two idle processors, to begin with the longest: a group
# is a ring under a manager, a module, or a test that is alone.  The others take less, and
# count as :data:`_USUAL` seconds a test.  An outdated number costs a minute at most.
_SECONDS = {
    "e2e under containerd-1.6": 85,
    "e2e under containerd-2-modern": 65,
    "e2e under containerd-2": 65,
    "bench/test_bench.py": 63,
    "docker under sid": 60,
    "docker under bookworm": 60,
    "cri under containerd-2": 60,
    "process/test_stopped.py": 55,
    "cri under containerd-1.6": 55,
    "shimctl/test_install.py": 52,
    "process/test_upgrade.py": 48,
    "shimctl/test_restart.py": 47,
    "cri under containerd-2-modern": 45,
    "minid/test_killed.py": 45,
    "images/test_run.py": 41,
    "stdio/test_survival.py": 36,
    "examples/test_python.py": 36,
    "process/test_hung_bundle.py": 35,
    "process/test_start.py": 34,
    "shimctl/test_stop.py": 33,
    "bench/test_density.py": 31,
    "cri/test_pods_churn.py": 30,
    "process/test_hung_disk.py": 28,
    "stdio/whole/test_terminals.py": 27,
    "shimctl/test_embedding.py": 26,
    "linux/test_sockets.py": 26,
    "process/test_update.py": 25,
    "shimctl/test_spawning.py": 25,
    "process/test_survival_steps.py": 25,
    "stdio/test_overflow.py": 24,
    "process/test_survival_calls.py": 23,
    "process/test_stuck.py": 22,
    "test_mutate.py": 22,
    "stdio/test_readers.py": 21,
    "shimctl/test_run.py": 20,
    "process/test_sharing.py": 20,
    "process/test_streams.py": 20,
    "process/test_scale.py": 20,
    "process/test_survival.py": 19,
    "process/test_survive.py": 18,
    "shimctl/test_containers.py": 17,
    "minid/test_crash.py": 17,
    "shimctl/test_watchers.py": 16,
    "process/test_leaks.py": 16,
    "stdio/whole/test_loggers.py": 16,
    "stdio/whole/test_policies.py": 15,
    "shimctl/test_ending.py": 15,
    "bench/test_scale.py": 14,
    "stdio/test_file_helper.py": 14,
    "shimctl/test_cp.py": 14,
    "process/test_abandoned.py": 14,
    "shimctl/test_terminal_sessions.py": 14,
    "process/test_pods.py": 13,
    "process/test_shared_daemon.py": 13,
    "images/test_prepare.py": 13,
    "shimctl/test_new_processes.py": 12,
    "shimctl/test_exec.py": 12,
    "shimctl/test_forkserver.py": 12,
    "process/test_inheritance.py": 12,
    "process/test_crowd.py": 11,
    "process/test_traps.py": 11,
}
_USUAL = 0.15


def ring_of(path: Path) -> str:
    """Name the ring of a test file: its first directory below ``tests``."""
    parts = path.relative_to(_TESTS).parts if path.is_relative_to(_TESTS) else ()
    return parts[0] if len(parts) > 1 else "shim"


def group_of(item: pytest.Item) -> str:
    """Name the tests that must run in one worker with ``item``."""
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec is not None else {}
    for fixture in MANAGERS:
        if fixture in params:
            return f"{ring_of(item.path)} under {params[fixture]}"
    path = str(item.path.relative_to(_TESTS) if item.path.is_relative_to(_TESTS) else item.path)
    return f"{path}::{item.name}" if item.get_closest_marker("alone") else path


def longest_first(groups: list[str]) -> list[str]:
    """Order the groups of the tests, given once for each test, by the seconds they take."""
    counts = Counter(groups)
    return sorted(counts, key=lambda group: -_SECONDS.get(group, _USUAL * counts[group]))


def rings(durations: Iterable[tuple[str, float]]) -> list[str]:
    """Sum up seconds by ring; the slowest ring comes first."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for ring, seconds in durations:
        totals[ring] += seconds
        counts[ring] += 1
    slowest = sorted(totals, key=lambda ring: -totals[ring])
    return [f"{totals[ring]:7.1f} s  {counts[ring]:5d} tests  {ring}" for ring in slowest]


class Rings:
    """Collects the duration of each test and prints the sum of each ring."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seconds: dict[str, float] = defaultdict(float)
        self._start = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self._seconds) < 2:
            return
        terminalreporter.section("time by ring")
        named = (
            (ring_of(self._root / nodeid.partition("::")[0]), seconds)
            for nodeid, seconds in self._seconds.items()
        )
        for line in rings(named):
            terminalreporter.write_line(line)
        wall = time.monotonic() - self._start
        terminalreporter.write_line(f"{wall:7.1f} s  wall clock")


class Order:
    """In a worker: sorts the tests by group, and reports their groups to the first process."""

    def __init__(self, groups: Path, worker: str) -> None:
        self._groups = groups
        self._worker = worker

    @pytest.hookimpl(trylast=True)  # after pytest has sorted them by the parameters of fixtures
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        groups = longest_first([group_of(item) for item in items])
        rank = {group: number for number, group in enumerate(groups)}
        items.sort(key=lambda item: rank[group_of(item)])

    @pytest.hookimpl(tryfirst=True)  # before pytest-xdist reports the tests
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        new = self._groups.with_suffix(f".{self._worker}")  # all workers may have one pid
        new.write_text(json.dumps({item.nodeid: group_of(item) for item in session.items}))
        new.replace(self._groups)  # every worker finds the same groups


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each group to one worker, in the order of the workers' tests.

    pytest-xdist has ``--dist loadgroup`` for groups, which does not work with pytest 9.2:
    it adds the group to an attribute that the name of a test is no longer read from.
    """

    def __init__(self, config: pytest.Config, log: Producer, groups: Path) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)
        self._file = groups
        self._groups: dict[str, str] = {}

    def _split_scope(self, nodeid: str) -> str:
        if not self._groups:
            self._groups = json.loads(self._file.read_text())
        return self._groups[nodeid]


class Workers:
    """In the first process: makes the scheduler, and names the file of groups to the workers."""

    def __init__(self, config: pytest.Config) -> None:
        directory = tempfile.TemporaryDirectory(prefix="groups")
        config.add_cleanup(directory.cleanup)
        self._groups = Path(directory.name) / "groups.json"

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        node.workerinput["groups"] = str(self._groups)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> Scheduling:
        return Scheduling(config, log, self._groups)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting thousands of tests in each collection."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        order = Order(Path(config.workerinput["groups"]), config.workerinput["workerid"])
        config.pluginmanager.register(order, "order")
        return
    config.pluginmanager.register(Rings(config.rootpath), "rings")
    if config.getoption("dist", "no") != "no":
        config.pluginmanager.register(Workers(config), "workers")
