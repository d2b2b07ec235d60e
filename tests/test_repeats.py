"""The failing tests that are run again, and the report about them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repeats import drives_a_manager, reason_of

TESTS = Path(__file__).parent
pytestmark = pytest.mark.slow  # each starts pytest
# Fails at its first run and passes at its second.
FLAKY = """
from pathlib import Path
def test_it():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        raise ValueError("the first run fails")
"""


# The same for two shims.
CASES = """\
import pytest
@pytest.mark.parametrize("kind", ["go", "ours"])
def test_it(kind)"""


# The same in a fixture that two tests share and that depends on another.
SHARED = """\
import pytest
def test_first(shared):
    pass
def test_second(shared):
    pass
@pytest.fixture(scope="session")
def base():
    return 1
@pytest.fixture(scope="session")
def shared(base):
"""


def run(
    root: Path, ring: str, *options: str, program: str = FLAKY
) -> subprocess.CompletedProcess[str]:
    """Run a flaky test that lies in ``ring`` of a project that has our plugins."""
    place = root / "tests" / ring
    place.mkdir(parents=True)
    for name in ("__init__.py", "parallel.py", "repeats.py"):
        (root / "tests" / name).write_text((TESTS / name).read_text())
    (root / "conftest.py").write_text('pytest_plugins = ["tests.parallel", "tests.repeats"]\n')
    (root / "pytest.ini").write_text("[pytest]\n")
    (place / "test_flaky.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(place)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=root,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.mark.parametrize("ring", ["e2e", "docker", "cri"])
def test_a_test_of_a_real_manager_is_repeated_and_named(tmp_path: Path, ring: str) -> None:
    done = run(tmp_path, ring, "--repeat-managers")
    assert done.returncode == 0, done.stdout + done.stderr
    name = f"tests/{ring}/test_flaky.py::test_it"
    assert f"repeated: {name}: ValueError: the first run fails" in done.stdout
    summary = done.stdout.partition(" repeated tests ")[2]
    assert f"{name}\n    ValueError: the first run fails\n" in summary
    assert "1 passed, 1 rerun" in done.stdout


def test_a_test_of_the_stock_shim_is_repeated_beside_another_one(tmp_path: Path) -> None:
    program = FLAKY.replace("def test_it()", CASES).replace('".seen"', 'f".{kind}"')
    done = run(tmp_path, "shimctl", "--repeat-managers", program=program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 2 rerun" in done.stdout  # one of a busy ring is repeated, too


def test_a_shared_fixture_that_failed_is_set_up_again(tmp_path: Path) -> None:
    program = FLAKY.replace("def test_it():", SHARED)
    done = run(tmp_path, "e2e", "--repeat-managers", program=program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 1 rerun" in done.stdout


def test_workers_tell_what_they_repeat(tmp_path: Path) -> None:
    done = run(tmp_path, "e2e", "--repeat-managers", "-n", "2", "--dist", "loadscope")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("    ValueError: the first run fails\n") == 1


@pytest.mark.parametrize("ring", ["container", "ttrpc"])
def test_any_other_test_that_fails_fails(tmp_path: Path, ring: str) -> None:
    done = run(tmp_path, ring, "--repeat-managers")
    assert done.returncode == 1
    assert "repeated" not in done.stdout
    assert "1 failed" in done.stdout


@pytest.mark.parametrize("ring", ["process", "shimctl", "stdio", "minid", "examples"])
def test_a_worker_repeats_one_test_of_a_ring_with_many_processes(
    tmp_path: Path, ring: str
) -> None:
    program = FLAKY + FLAKY.replace("test_it", "test_that").replace(".seen", ".seen2")
    done = run(tmp_path, ring, "--repeat-managers", program=program)
    assert done.returncode == 1
    assert f"repeated: tests/{ring}/test_flaky.py::test_it: ValueError" in done.stdout
    assert "1 failed, 1 passed, 1 rerun" in done.stdout


def test_nothing_is_repeated_unless_it_is_asked_for(tmp_path: Path) -> None:
    done = run(tmp_path, "e2e")
    assert (done.returncode, "1 failed" in done.stdout) == (1, True)


def test_a_test_elsewhere_that_takes_a_manager_drives_one() -> None:
    assert drives_a_manager(TESTS / "stdio/test_it.py", ["tmp_path", "containerd"])
    assert not drives_a_manager(TESTS / "stdio/test_it.py", ["tmp_path"])


def test_the_projects_own_run_repeats_nothing_else() -> None:
    script = (TESTS.parent / ".ci/run").read_text()
    assert "--repeat-managers" in script
    assert not re.search(r"--reruns|--lf|--ff", script)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "    def f():\n>       g()\nE       assert 1 == 2\nE        +  where 1\n",
            "assert 1 == 2",
        ),
        ("  | Group\n  +-+--- 1 ---\n    | KeyError: 'a'\n    +------\n", "KeyError: 'a'"),
        (
            "E  AssertionError: Traceback (most recent call last):\n"
            'E    | File "x.py", line 1\nE    | shim.errors.ExistsError: it is there\nE    +---\n'
            "E  assert (1, 'Traceback') == (0, '')\n",
            "shim.errors.ExistsError: it is there",
        ),
        ("", "no reason is given"),
    ],
)
def test_the_reason_is_one_line(text: str, reason: str) -> None:
    assert reason_of(text) == reason
