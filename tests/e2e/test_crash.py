"""Something dies in the middle of a call: the container works, or no part of it remains."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.attached import attached
from tests.e2e.ctr import RUNTIME, STOCK, Ctr
from tests.e2e.leftovers import RUNC, cgroup_parents, mounts, processes
from tests.e2e.test_restart import remove_stock_sockets, shim_pids
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
SCENARIO = "Crashes in the middle of a call"


@dataclass(frozen=True)
class StuckRuntime:
    """A runc that stops before one of its commands until a file exists."""

    directory: Path
    verb: str

    @property
    def flags(self) -> tuple[str | Path, ...]:
        program, options = self.directory / "stuck-runc", self.directory / "options.toml"
        program.write_text(
            "#!/bin/sh\n"
            f'for word; do if [ "$word" = {self.verb} ]; then\n'
            f"  touch {self.directory}/reached\n"
            f"  while ! [ -e {self.directory}/go ]; do sleep 0.05; done\n"
            "fi; done\n"
            f'exec {shutil.which("runc")} "$@"\n'
        )
        program.chmod(0o755)
        options.write_text(f'BinaryName = "{program}"\n')
        if RUNTIME == STOCK:
            return ("--runc-binary", program)
        return ("--runtime-config-path", options)

    def wait_reached(self) -> None:
        wait_until(f"runc {self.verb}", (self.directory / "reached").exists, every=0.002)

    def let_go(self) -> None:
        (self.directory / "go").touch()


def assert_working_or_nothing(ctr: Ctr, name: str) -> None:
    """A container that is reported as running runs; otherwise its id can soon be used again."""
    if ctr.state(name) == "RUNNING":
        assert ctr.exec(name, "echo", "in").text == "in\n"
        ctr.kill(name)
        ctr.wait_state(name, "STOPPED")
        assert ctr.delete(name) == 137
    assert_free(ctr, name)


def assert_free(ctr: Ctr, name: str) -> None:
    """``name`` can be deleted and used again, once containerd has cleaned up behind itself."""

    def gone() -> bool:
        ctr("task", "rm", "-f", name)  # again: a container that is being created has no task yet
        return not ctr.containerd.bundle(name).exists()

    # An empty shim without a Shutdown exits after half a minute.
    wait_until("its bundle is gone", gone, timeout=60)
    wait_until("its shim is gone", lambda: not shim_pids(ctr), timeout=60)
    ctr("c", "rm", name)
    result = ctr.run("--rm", "--null-io", "--", name, "sh", "-c", "exit 8")
    assert result.code == 8, result


@pytest.mark.parametrize("moment", ["config.json", "address", "init.pid", "started"])
def test_containerd_dies_during_a_run(ctr: Ctr, moment: str) -> None:
    name = ctr.new_id()
    with attached(ctr, *ctr.run_args("-d", "--null-io", "--", name, "sleep", "1000")) as process:
        if moment == "started":
            assert process.wait(30) == 0
        else:
            path = ctr.containerd.bundle(name) / moment
            wait_until(f"{moment} is there", path.exists, every=0.001)
        ctr.containerd.kill()
    ctr.containerd.start()
    if moment == "started":
        assert ctr.state(name) == "RUNNING"
    assert_working_or_nothing(ctr, name)


@pytest.mark.parametrize("verb", ["create", "start"])
@pytest.mark.parametrize("back", ["before", "after"])
def test_containerd_dies_while_runc_works(ctr: Ctr, tmp_path: Path, verb: str, back: str) -> None:
    """``back`` is whether containerd is back before runc ends, or after."""
    name, runtime = ctr.new_id(), StuckRuntime(tmp_path, verb)
    run = ctr.run_args("-d", "--null-io", *runtime.flags, "--", name, "sleep", "1000")
    with attached(ctr, *run):
        runtime.wait_reached()
        ctr.containerd.kill()
    if back == "before":
        ctr.containerd.start()
        runtime.let_go()
    else:
        runtime.let_go()
        ctr.containerd.start()
    assert_working_or_nothing(ctr, name)


@pytest.mark.parametrize("pod", [False, True], ids=["alone", "in a pod"])
@pytest.mark.parametrize("back", ["before", "after"])
def test_a_create_that_containerd_did_not_live_to_see_can_be_tried_again(
    ctr: Ctr, tmp_path: Path, back: str, pod: bool
) -> None:
    """``back`` is whether containerd is back before the runtime continues, or after."""
    runtime = StuckRuntime(tmp_path, "create")
    flags: tuple[str | Path, ...] = ("--null-io",)
    if pod:
        flags += ("--annotation", f"io.containerd.runc.v2.group={ctr.new_id('pod')}")
        first = ctr.start("sleep", "1000", flags=flags)
    name = ctr.new_id()
    run = ctr.run_args("-d", *flags, *runtime.flags, "--", name, "sleep", "1000")
    with attached(ctr, *run):
        runtime.wait_reached()
        ctr.containerd.kill()
    if back == "after":
        wait_until("the runtime is ended", lambda: not running(str(tmp_path)))
        wait_until("nothing of it is left", lambda: not traces(ctr, name))
    ctr.containerd.start()
    runtime.let_go()
    # The same container, not another of its name: as the CRI plugin tries again.
    again = ("task", "start", "-d", "--null-io", name)

    def started() -> bool:
        return ctr(*again).code == 0

    wait_until("it can be started", started, timeout=20)
    assert ctr.exec(name, "echo", "in").text == "in\n"
    ctr.kill(name)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137
    if pod:
        assert ctr.exec(first, "echo", "in").text == "in\n"


def running(word: str) -> list[str]:
    lines = (line for _, line in processes("/nonexistent", "no-namespace"))
    return [line for line in lines if word in line]


def traces(ctr: Ctr, name: str) -> list[str]:
    """Name what there is of ``name`` besides its bundle: processes, state, cgroups, mounts."""
    daemon = ctr.containerd
    found = [line for _, line in processes(str(daemon.bundle(name)), f"{daemon.namespace}/{name}")]
    found += [path.name for path in (RUNC / daemon.namespace).glob(name)]
    found += [str(path) for top in cgroup_parents(daemon.namespace) for path in top.glob(name)]
    return found + mounts(str(daemon.bundle(name)))


# Not "create": a runtime that outlives its shim may put mount points where they were undone.
@pytest.mark.mortal
@pytest.mark.parametrize("verb", ["start"])
def test_the_shim_dies_while_runc_works(ctr: Ctr, tmp_path: Path, verb: str) -> None:
    name, runtime = ctr.new_id(), StuckRuntime(tmp_path, verb)
    run = ctr.run_args("-d", "--null-io", *runtime.flags, "--", name, "sleep", "1000")
    with attached(ctr, *run) as process:
        runtime.wait_reached()
        for shim in shim_pids(ctr):
            os.kill(shim, signal.SIGKILL)
        assert process.wait(30) != 0
    runtime.let_go()
    assert_free(ctr, name)
    remove_stock_sockets(ctr)


def test_containerd_dies_during_an_exec_and_the_container_goes_on(
    ctr: Ctr, tmp_path: Path
) -> None:
    runtime = StuckRuntime(tmp_path, "exec")
    name = ctr.start("sleep", "1000", flags=("--null-io", *runtime.flags))
    fifos = ("--fifo-dir", ctr.containerd.root / "fifo-detached")  # the killed ctr's
    command = ("task", "exec", *fifos, "--exec-id", "half", name, "sleep", "1000")
    with attached(ctr, *command):
        runtime.wait_reached()
        ctr.containerd.kill()
    runtime.let_go()
    ctr.containerd.start()
    assert ctr.exec(name, "echo", "in").text == "in\n"
    ctr.kill(name)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137


@pytest.mark.mortal
def test_a_dead_shim_takes_its_whole_pod_along(ctr: Ctr) -> None:
    group = ("--annotation", f"io.containerd.runc.v2.group={ctr.new_id('pod')}", "--null-io")
    names = [ctr.start("sleep", "1000", flags=group) for _ in range(2)]
    (shim,) = shim_pids(ctr)
    os.kill(shim, signal.SIGKILL)
    gone = {None, "STOPPED"}
    wait_until("they are gone", lambda: {ctr.state(name) for name in names} <= gone)
    for name in names:
        ctr("task", "rm", name)
        ctr.ok("c", "rm", name)
    remove_stock_sockets(ctr)
