"""Pods come and go while containerd is killed again and again.

    python -m tests.torture.churn --kills 100 [--workers 4] [--containerd DIRECTORY]

Each worker handles a pod as a kubelet does: it runs the sandbox, creates and starts
containers, waits for their ends and removes the pod, and after a call that the death of
containerd interrupted it looks at the state and repeats the call.  Then every line that
the containers wrote has to be in their logs, every exit code has to be right, and no
repeated call may have failed.

Needs what ``tests/cri`` needs.  Prints figures; exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cri.conftest import open_node
from tests.cri.leftovers import wait_nothing_left
from tests.cri.messages import enum
from tests.cri.pods import Pod
from tests.e2e.managers import MANAGERS, Manager, find
from tests.e2e.waiting import PATIENCE
from tests.torture.streams import STREAMS, Log, script

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cri.node import Node

# Seconds before the first line, lines, and seconds between two, for each container of a pod.
_KINDS = {"burst": (0.0, 1500, 0.0), "late": (1.0, 1500, 0.0), "paced": (0.0, 40, 0.05)}
# Seconds that containerd lives before it is killed.
_LIFE = (0.2, 2.5)
# Seconds that it hangs first, every other time: containers end with a reader that takes nothing.
_HANG = (0.0, 1.0)
# Seconds for a container to end, and for the rest of its log to be written.
_END, _LOGGED = 60 * PATIENCE, 10 * PATIENCE
_UNKNOWN = 255  # the code that the CRI plugin shows when it has lost a task


@dataclass
class Report:
    kills: int = 0
    pods: int = 0
    containers: int = 0
    lines: int = 0
    retries: int = 0  # of calls that a death of containerd interrupted
    unread: int = 0  # lines in the fifos when containerd was dead
    taken: int = 0  # lines that a killed containerd had read and not yet logged
    given_up: int = 0  # streams that containerd closed while it opened them
    unknown: int = 0  # exit codes that containerd lost by its death
    failed: list[str] = field(default_factory=list)  # calls, first ones and retries
    lost: list[str] = field(default_factory=list)  # lines
    wrong: list[str] = field(default_factory=list)  # codes
    left: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return self.failed + self.lost + self.wrong + self.left

    def __str__(self) -> str:
        counts = (
            f"{self.kills} kills, {self.pods} pods, {self.containers} containers, "
            f"{self.lines} lines\n"
            f"retries: {self.retries}, of these and of first calls failed: {len(self.failed)}\n"
            f"unread at the kills: {self.unread} lines; lost: {len(self.lost)} streams; "
            f"taken by a killed containerd: {self.taken}; "
            f"given up by a new one: {self.given_up} streams\n"
            f"wrong codes: {len(self.wrong)}; lost by containerd (255): {self.unknown}\n"
            f"left behind: {len(self.left)}"
        )
        return "\n".join([counts, *self.faults])


class InterruptedCallError(Exception):
    """containerd died during the call."""


class Churn:
    """``calm`` kills containerd only while no call that creates a task is under way.

    When containerd dies after the shim has answered Create and before it calls Start, the
    next containerd deletes the task with its fifos, and its StartContainer always fails.
    """

    def __init__(self, node: Node, *, seed: int = 0, calm: bool = False) -> None:
        self.node = node
        self._calm = calm
        self.report = Report()
        self.pods: list[Pod] = []
        self._random = random.Random(seed)
        self._up = threading.Event()
        self._up.set()
        self._life = 0  # counts the containerds
        self._over = False
        self._lock = threading.Lock()
        self._live: dict[str, Log] = {}
        self._starts = 0  # calls under way that create tasks
        self._starting = threading.Condition()

    def run(self, kills: int, workers: int) -> Report:
        """Kill containerd ``kills`` times under so many workers."""
        with ThreadPoolExecutor(workers) as pool:
            working = [pool.submit(self._work, number) for number in range(workers)]
            try:
                for _ in range(kills):
                    time.sleep(self._random.uniform(*_LIFE))
                    self._kill()
            finally:
                self._over = True
                self._rise()
        for each in working:
            each.result()
        self.report.left = wait_nothing_left(self.node, self.pods)
        return self.report

    def _kill(self) -> None:
        self._up.clear()
        hangs = self.report.kills % 2
        if hangs or self._calm:
            with self._starting:
                self._starting.wait_for(lambda: not self._starts)
        if hangs:
            os.kill(self.node.pid, signal.SIGSTOP)
            time.sleep(self._random.uniform(*_HANG))
        self._life += 1
        self.node.kill()
        with self._lock:
            for id_, log in self._live.items():
                log.look(self._pipes(id_))
        self.report.kills += 1
        self.node.start()
        self._rise()

    def _rise(self) -> None:
        with self._starting:
            self._up.set()
            self._starting.notify_all()

    def _pipes(self, id_: str) -> Path:
        """Return the directory that has the directories of a container's fifos."""
        return self.node.root / "state/io.containerd.grpc.v1.cri/containers" / id_ / "io"

    # -- a worker --------------------------------------------------------------

    def _work(self, worker: int) -> None:
        number = 0
        while not self._over:
            name = f"w{worker}-{number}"
            try:
                self._live_pod(Pod(self.node, name))
            except Exception as exc:
                self.report.failed.append(f"{name}: {type(exc).__name__}: {exc}")
            number += 1

    def _live_pod(self, pod: Pod) -> None:
        pod.logs.mkdir(parents=True)
        self.pods.append(pod)
        self._repeat(lambda again: self._run_sandbox(pod, again=again))
        logs = {}
        try:
            for code, (kind, (delay, lines, pause)) in enumerate(_KINDS.items(), 3):
                command = ("sh", "-c", script(delay, lines, pause, code))
                id_ = self._repeat(
                    lambda again, c=command, k=kind: self._create(pod, c, k, again=again)  # type: ignore[misc] # a default is how a loop is bound
                )
                log = logs[id_] = Log(pod.logs / f"{kind}-0.log", lines)
                with self._lock:
                    self._live[id_] = log
                self._repeat(lambda again, i=id_: self._start(i, again=again))  # type: ignore[misc]
            for code, (id_, log) in enumerate(logs.items(), 3):
                self._check_end(pod, id_, code)
                self._check_log(id_, log)
                self.report.containers += 1
        finally:
            with self._lock:
                for id_ in logs:
                    del self._live[id_]
            self._repeat(lambda _again: self._remove(pod))
        self.report.pods += 1

    def _repeat(self, step: Callable[[bool], Any]) -> Any:
        """Take a step until no death of containerd interrupts it."""
        again = False
        while True:
            try:
                return step(again)
            except InterruptedCallError:
                self.report.retries += 1
                again = True

    def _call(self, name: str, **fields: Any) -> Any:
        """Make a call of the CRI.

        :raises InterruptedCallError: containerd was killed meanwhile.
        :raises grpclib.GRPCError: the answer is an error.
        """
        starts = name in {"RunPodSandbox", "StartContainer"}
        with self._starting:
            self._starting.wait_for(self._up.is_set)
            life = self._life
            self._starts += starts
        try:
            return self.node.cri(name, **fields)
        except Exception:  # a connection that breaks fails in many ways
            if life != self._life:
                raise InterruptedCallError from None
            raise
        finally:
            with self._starting:
                self._starts -= starts
                self._starting.notify_all()

    def _run_sandbox(self, pod: Pod, *, again: bool) -> None:
        config = pod.config
        if again:
            attempts = 0
            for sandbox in self._call("ListPodSandbox").items:
                if sandbox.metadata.name == pod.name:
                    attempts = max(attempts, sandbox.metadata.attempt + 1)
                    self._remove_sandbox(sandbox.id)
            config["metadata"]["attempt"] = attempts
        pod.id = self._call("RunPodSandbox", config=config).pod_sandbox_id

    def _create(self, pod: Pod, command: tuple[str, ...], name: str, *, again: bool) -> str:
        if again:
            for container in self._call("ListContainers").containers:
                if (container.pod_sandbox_id, container.metadata.name) == (pod.id, name):
                    return str(container.id)
        method, fields = pod.create_request(*command, name=name)
        id_ = str(self._call(method, **fields).container_id)
        pod.containers.append(id_)
        return id_

    def _start(self, id_: str, *, again: bool) -> None:
        if again and self._state(id_) != "CONTAINER_CREATED":
            return
        self._call("StartContainer", container_id=id_)

    def _state(self, id_: str) -> str:
        status = self._call("ContainerStatus", container_id=id_).status
        return enum("ContainerState", status.state)

    def _check_end(self, pod: Pod, id_: str, code: int) -> None:
        deadline = time.monotonic() + _END
        while self._repeat(lambda _again: self._state(id_)) != "CONTAINER_EXITED":
            if time.monotonic() > deadline:
                state = self._repeat(lambda _again: self._state(id_))
                raise AssertionError(f"container {id_} is {state} after {_END:g} s")
            time.sleep(0.05)
        status = self._repeat(
            lambda _again: self._call("ContainerStatus", container_id=id_)
        ).status
        if status.exit_code == _UNKNOWN:
            self.report.unknown += 1
        elif status.exit_code != code:
            told = f"{status.exit_code} ({status.reason}: {status.message})"
            self.report.wrong.append(f"{pod.name}: {id_} exited with {code}, the CRI says {told}")

    def _check_log(self, id_: str, log: Log) -> None:
        deadline = time.monotonic() + _LOGGED
        for stream in STREAMS:
            while True:
                taken, lost = log.missing(stream)
                if not (taken or lost) or (time.monotonic() > deadline and self._up.is_set()):
                    break
                time.sleep(0.05)
            self.report.lines += log.lines
            self.report.unread += sum(look.waiting for look in log.looks[stream])
            self.report.taken += len(taken)
            if lost and log.offered(stream) and self.node.gave_up(id_, stream):
                self.report.given_up += 1
            elif lost:
                told = f"{log.path}: {stream} lacks {len(lost)} lines from {lost[0]}"
                self.report.lost.append(f"{told}; looks: {log.looks[stream]}")

    def _remove(self, pod: Pod) -> None:
        for sandbox in self._call("ListPodSandbox").items:
            if sandbox.metadata.name == pod.name:
                self._remove_sandbox(sandbox.id)

    def _remove_sandbox(self, id_: str) -> None:
        self._call("StopPodSandbox", pod_sandbox_id=id_)
        self._call("RemovePodSandbox", pod_sandbox_id=id_)


def newest() -> Manager:
    """Return the newest containerd there is, which calls the shim as it does by itself."""
    return max((m for m in MANAGERS if not m.modern), key=lambda manager: manager.version)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--calm", action="store_true", help="kill between calls of StartContainer")
    parser.add_argument("--containerd", type=Path, help="the directory with containerd and ctr")
    options = parser.parse_args()
    manager = find(options.containerd) if options.containerd else newest()
    if not manager.there:
        parser.error(f"there is no containerd in {manager.directory or 'PATH'}")
    print(f"{manager.name}, seed {options.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_node(Path(scratch), manager) as node,
    ):
        report = Churn(node, seed=options.seed, calm=options.calm).run(
            options.kills, options.workers
        )
        if report.faults:
            kept = Path(tempfile.mkdtemp(prefix="churn-"))
            with suppress(OSError):
                (kept / "log").write_bytes(node.log.read_bytes())
            print(f"containerd's log is in {kept}")
    print(report)
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
