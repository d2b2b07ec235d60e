"""The programs of examples/python, as a reader runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimctl import blocking
from tests.process.rig import alive
from tests.shimctl.place import PATIENCE, Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples/python"


@pytest.fixture
def place() -> Iterator[Place]:
    with open_place("ours") as place:
        place.namespace = "service"
        yield place


def command(name: str, *argv: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, argv)]


def test_ten_jobs_run_and_each_has_its_output_and_its_status(place: Place) -> None:
    done = subprocess.run(
        command("jobs.py", place.bundle("true")),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=place.environ,
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = [f"job{n}: {n % 3}, working on {n}" for n in range(10)]
    assert done.stdout.splitlines() == [*expected, "failed: 6"]
    assert not list(place.state.glob("*/*"))


def test_a_service_that_is_killed_finds_its_container_again(place: Place) -> None:
    bundle = place.bundle("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 7")
    argv = command("service.py", bundle)
    pipe = subprocess.PIPE
    for expected in ("started\n", "found it running\n", "found it running\n"):
        with subprocess.Popen(argv, env=place.environ, stdout=pipe, text=True) as service:
            assert service.stdout
            assert service.stdout.readline() == expected
            service.send_signal(signal.SIGKILL)
    with subprocess.Popen(argv, env=place.environ, stdout=pipe, text=True) as service:
        assert service.stdout
        assert service.stdout.readline() == "found it running\n"
        (bundle / "rootfs/tmp/go").touch()
        assert service.stdout.readline() == "exited with 7\n"
        assert service.wait(PATIENCE) == 0


def test_a_service_is_killed_at_later_and_later_moments_and_has_the_status(place: Place) -> None:
    bundle = place.bundle("sh", "-c", "exit 7")
    argv = command("service.py", bundle)
    for number in range(70):
        with subprocess.Popen(
            argv, env=place.environ, stdout=subprocess.PIPE, text=True
        ) as service:
            try:
                # Each moment is a tenth later, so that a slow machine needs few more of them.
                printed, _ = service.communicate(timeout=0.1 * 1.1**number)
            except subprocess.TimeoutExpired:
                service.kill()
                continue
        assert (service.returncode, printed.splitlines()[-1:]) == (0, ["exited with 7"])
        return
    pytest.fail("it never came to its end")


def test_a_service_whose_shim_ended_without_a_container_starts_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place.environ.items():
        monkeypatch.setenv(name, value)
    bundle = place.bundle("sh", "-c", "exit 7")
    launched = blocking.launch(bundle, bundle.name, namespace=place.namespace)
    with blocking.connect(launched.address, namespace=place.namespace) as shim:
        pid = shim.connect(bundle.name).shim_pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    argv = command("service.py", bundle)
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=PATIENCE, check=False, env=place.environ
    )
    assert (done.stdout.splitlines(), done.stderr) == (["started", "exited with 7"], "")


def test_each_test_has_a_container_of_its_own(place: Place) -> None:
    source = str(place.bundle("true"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest"]
        + ["-c", os.devnull, "--rootdir", str(EXAMPLES), str(EXAMPLES / "test_in_container.py")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**place.environ, "CONTAINER_SOURCE": source},
    )
    assert done.returncode == 0, done.stdout
    eventually(lambda: not place.homes())
