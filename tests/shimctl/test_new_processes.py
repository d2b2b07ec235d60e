"""Commands as new interpreters, which import by themselves all that they need.

Most tests call shimctl as a fork of a process that has imported everything (``tests/warm.py``).
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.shimctl.place import PATIENCE, Place, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with open_place("ours") as place:
        yield place


def new(place: Place, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        place.command(*argv),
        cwd=place.root,
        env=place.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_each_step_of_a_life_works_in_a_new_process(place: Place) -> None:
    name = "life"
    place.ids.append(name)
    bundle = place.bundle("sh", "-c", "echo up; exec sleep 1000")
    named = ("-n", place.namespace)
    steps: list[tuple[str | Path, ...]] = [
        ("create", *named, "--id", name, bundle),
        *((verb, *named, name) for verb in ("start", "pause", "resume")),
        ("update", *named, name, "--cpu-shares", "512"),
        ("exec", *named, name, "true"),
        ("cp", *named, f"{name}:/bin/busybox", place.root / "copy"),
        ("restart", *named, "-t", "0", name),
        ("kill", *named, name, "KILL"),
    ]
    for step in steps:
        done = new(place, *step)
        assert (done.returncode, done.stderr) == (0, ""), (step, done)
    assert new(place, "wait", *named, name).returncode == 137
    assert new(place, "logs", "--namespace", place.namespace, name).returncode == 0
    done = new(place, "delete", *named, name)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_command_prints_is_the_same_in_a_new_process(place: Place) -> None:
    place.sleeper("same")
    named = ("-n", place.namespace)
    calls = [
        *(
            (verb, *named, "same", "-o", "json")
            for verb in ("inspect", "state", "pids", "version")
        ),
        *(
            ("ps", *named, "-q"),
            ("logs", "--namespace", place.namespace, "same"),
            ("images",),
            ("prune", "--dry-run"),
        ),
        *(("state", *named, "nobody"), ("stop", *named, "nobody"), ("forkserver", "status")),
        *(("help", "ps"), ("completion", "bash"), ("nonsense",), ("checkpoint", "same")),
    ]
    for call in calls:
        known, found = new(place, *call), place.shimctl(*call)
        assert (found.returncode, found.stdout, found.stderr) == (
            known.returncode,
            known.stdout,
            known.stderr,
        ), call
    for call in (
        ("stats", "--no-stream", *named, "same"),
        ("top", *named, "--iterations", "1", "same"),
    ):
        for done in (new(place, *call, "-o", "json"), place.shimctl(*call, "-o", "json")):
            assert done.returncode == 0, done
            assert len(json.loads(done.stdout)) == 1
