"""``shimctl rm`` and ``prune`` while another command starts the container again."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimctl.standalone import runlock
from shimctl.standalone.runlock import Part
from tests.shimctl.place import Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests import warm


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with open_place("ours") as place:
        yield place


def begun(place: Place, *argv: str) -> warm.Popen:
    return place.begun(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def exited(place: Place, id_: str, *options: str) -> Path:
    """Run a container that exits at once, and sleeps when it is run again; return its work."""
    bundle = place.bundle("sh", "-c", "[ -e /tmp/again ] && sleep 1000; touch /tmp/again")
    place.made("run", id_, *options, bundle)
    assert place.shimctl("wait", id_).returncode == 0
    return place.state / place.namespace / id_


def waits_for_lock(process: warm.Popen, work: Path) -> bool:
    lock = work / runlock.FILE
    with suppress(OSError):  # an fd was closed meanwhile
        fds = Path(f"/proc/{process.pid}/fd").iterdir()
        return any(fd.readlink() == lock for fd in fds)
    return False


def state_of(place: Place, id_: str) -> str:
    return str(place.json("inspect", id_)["state"]["status"])


def test_rm_keeps_a_container_that_is_started_meanwhile(place: Place) -> None:
    """The runtime waits in its second create, so the start holds the lock."""
    gate = place.root / "gate"
    runtime = place.root / "runtime"
    runtime.write_text(
        f"""#!/bin/sh
case " $* " in *" create "*)
    if [ -e {gate} ]; then touch {gate}.begun; while [ -e {gate} ]; do sleep 0.02; done; fi;;
esac
exec runc "$@"
"""
    )
    runtime.chmod(0o755)
    work = exited(place, "removed", "--binary", str(runtime))
    gate.touch()
    with begun(place, "start", "removed") as start:
        eventually((place.root / "gate.begun").exists)
        with begun(place, "rm", "removed") as remove:
            eventually(lambda: waits_for_lock(remove, work))
            gate.unlink()
            assert start.wait(60) == 0
            assert remove.wait(60) == 125
            assert remove.stderr is not None
            assert "removed is running; kill it first, or use --force" in remove.stderr.read()
    assert state_of(place, "removed") == "running"


def test_prune_keeps_a_container_that_was_started_since_it_was_listed(place: Place) -> None:
    first, _ = exited(place, "a-pruned"), exited(place, "b-pruned")
    with runlock.held(first, Part.CHANGE):
        prune = begun(place, "prune", "-f")
        eventually(lambda: waits_for_lock(prune, first))
        place.done("start", "b-pruned")
    with prune:
        assert prune.wait(60) == 125
        assert prune.stderr is not None
        assert "b-pruned was started again" in prune.stderr.read()
    assert not first.exists()
    assert state_of(place, "b-pruned") == "running"


def test_start_of_a_created_container_does_not_cross_with_its_removal(place: Place) -> None:
    place.made("create", "crossed", place.bundle("sleep", "1000"))
    work = place.state / place.namespace / "crossed"
    with runlock.held(work, Part.CHANGE):
        refused = place.shimctl("start", "crossed")
        assert refused.returncode == 125
        assert "another command is starting or removing it; try again" in refused.stderr
    assert state_of(place, "crossed") == "created"
