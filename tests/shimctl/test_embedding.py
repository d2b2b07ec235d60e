"""Every program of docs/embedding.md, run as it stands there: a real shim, a real runc."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimctl import blocking
from tests.commandlines import command_lines
from tests.process.rig import alive
from tests.shimctl.place import PATIENCE, RUNTIMES, Place, eventually, missing, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/embedding.md").read_text()
_FEWEST_KILLS, _REPETITIONS = 3, 4
LIFE = ["on trio", "on asyncio", "in plain threads"]
NAMESPACE = "demo"  # the page's
IMAGE = "oci:/srv/images:busybox"


def programs() -> dict[str, str]:
    """Return the programs of the page by the title of their section."""
    sections = re.split(r"^##? ", PAGE, flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        blocks = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        assert len(blocks) <= 1
        if blocks:
            found[section.splitlines()[0]] = blocks[0]
    return found


PROGRAMS = programs()


def program(words: str) -> str:
    (found,) = [text for title, text in PROGRAMS.items() if words in title]
    return found


@pytest.fixture
def place() -> Iterator[Place]:
    if lacking := missing("ours"):
        pytest.skip(lacking)
    with open_place("ours") as place:
        place.namespace = NAMESPACE
        yield place
        eventually(lambda: not place.left(), place.left)


def container(place: Place, *args: str) -> Path:
    """Make a bundle; its name is the id of its container."""
    bundle = place.bundle(*args)
    return bundle.rename(place.root / f"c-{secrets.token_hex(4)}")


def run(text: str, bundle: Path, place: Place) -> list[str]:
    """Run a program of the page as its reader would; return the lines it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text, str(bundle)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=place.environ,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def test_every_face_has_its_program_and_the_page_no_other() -> None:
    assert len(PROGRAMS) == len(LIFE) + 3
    assert all(program(words) for words in ("Embedding", *LIFE, "restarts", "terminal"))
    assert not re.search(r"^```py$", PAGE, flags=re.MULTILINE)


def test_the_shortest_program(place: Place) -> None:
    """With the place of a bundle where the page has an image."""
    text = program("Embedding")
    assert text.count(IMAGE) == 2
    bundle = container(place, "true")
    lines = run(text.replace(IMAGE, str(bundle)), bundle, place)
    assert lines == ["0 b'hello\\n'", r"b'to and fro\n'", r"b'inside\n'", "137"]


@pytest.mark.parametrize("words", LIFE)
def test_a_containers_whole_life(words: str, place: Place) -> None:
    bundle = container(place, "sh", "-c", "echo hello; exit 7")
    lines = run(program(words), bundle, place)
    assert [line for line in lines if not line.startswith("it said")] == [
        *("/tasks/create", "/tasks/start", "/tasks/exit 7", "/tasks/delete 7"),
        "ended with 7",
    ]
    assert "it said: hello" in lines
    assert not (bundle / "events.sock").exists()


def test_a_manager_that_restarts_finds_its_container(place: Place) -> None:
    text = program("restarts")
    bundle = container(place, "sh", "-c", "until test -e /go; do sleep 0.1; done; exit 7")
    assert run(text, bundle, place) == []
    argv = [sys.executable, "-u", "-c", text, str(bundle)]
    with subprocess.Popen(argv, env=place.environ, stdout=subprocess.PIPE, text=True) as manager:
        assert manager.stdout is not None
        assert manager.stdout.readline() == "found it running\n"
        (bundle / "rootfs/go").touch()
        assert manager.communicate(timeout=PATIENCE)[0] == "ended with 7\n"


def test_a_manager_that_restarts_learns_what_became_of_it_without_a_shim(place: Place) -> None:
    text = program("restarts")
    bundle = container(place, "sh", "-c", "exit 7")
    assert run(text, bundle, place) == []
    eventually((bundle / "init.exit").exists)
    pid = int((bundle / "shim.pid").read_text()) if (bundle / "shim.pid").exists() else 0
    pid = pid or shim_of(bundle)
    subprocess.run(["kill", "-9", str(pid)], check=True)
    eventually(lambda: not alive(pid))
    assert run(text, bundle, place) == ["the shim is gone", "ended with 7"]


@pytest.fixture
def running(place: Place) -> Iterator[Path]:
    """Give the bundle of a running container that has terminals."""
    bundle = container(place, "sleep", "1000")
    config = json.loads((bundle / "config.json").read_text())
    config["mounts"] += [
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}
        | {"options": ["newinstance", "ptmxmode=0666", "mode=0620"]}
    ]
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "rootfs/bin/stty").symlink_to("busybox")
    assert run(program("restarts"), bundle, place) == []  # which starts it
    try:
        yield bundle
        with blocking.connect(blocking.read_address(bundle), namespace=NAMESPACE) as shim:
            assert len(shim.task(bundle.name).pids()) == 1
    finally:
        blocking.dispose(bundle, bundle.name, namespace=NAMESPACE, runtime=RUNTIMES["ours"])


def test_another_process_has_a_terminal_of_the_size_it_was_told(
    running: Path, place: Place
) -> None:
    for _ in range(2):
        lines = run(program("terminal"), running, place)
        assert lines[-2:] == ["24 80", "left with 3"]


def shim_of(bundle: Path) -> int:
    """Return the pid of the daemon, which has the id among its arguments."""
    for pid, words in command_lines():
        if b"-id" in words and bundle.name.encode() in words:
            return pid
    raise AssertionError("there is no such shim")


@pytest.mark.parametrize("title", PROGRAMS)
def test_the_programs_pass_a_type_checker(title: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAMS[title])
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


# Runs a program once on a first bundle, and then on a second one, killed at later and later
# moments until a run has ended; prints its output, and the number of kills.
KILLER = """
import os, select, signal, sys, time, traceback
import asyncio, trio, shimctl.aio, shimctl.blocking  # a kill during these imports tests nothing

code = compile(sys.argv[1], "program", "exec")

def run(bundle, limit):
    child = os.fork()
    if child == 0:
        sys.argv = ["program", bundle]
        try:
            exec(code, {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    pidfd = os.pidfd_open(child)
    if not select.select([pidfd], [], [], limit)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

began = time.monotonic()
assert run(sys.argv[2], None) == 0
duration = time.monotonic() - began
print("--", flush=True)
kills = 0
while (code_ := run(sys.argv[3], duration * kills / 12)) == -signal.SIGKILL:
    kills += 1
    if kills > 12:  # a run that removes what others left takes longer
        duration *= 1.5
print("kills", kills)
sys.exit(code_)
"""


def run_and_kill(text: str, first: Path, second: Path, place: Place) -> list[str]:
    """Run a program on ``first``, then on ``second``, killed at later and later moments.

    Returns the lines of the runs on ``second``.  If these were much faster than the one on
    ``first``, as on processors that others use, too few of them were killed, and all are
    repeated.
    """
    printed: list[str] = []
    killed = 0
    for _ in range(_REPETITIONS):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", KILLER, text, str(first), str(second)],
            capture_output=True,
            text=True,
            timeout=10 * PATIENCE,
            check=False,
            env=place.environ,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        *lines, kills = done.stdout.splitlines()
        printed += lines[lines.index("--") + 1 :]
        killed += int(kills.removeprefix("kills "))
        if killed > _FEWEST_KILLS:
            return printed
    raise AssertionError(f"{killed} kills")


@pytest.mark.cold  # a slow start is killed at more moments
@pytest.mark.parametrize("words", LIFE)
def test_a_program_may_be_killed_at_any_moment_and_started_again(words: str, place: Place) -> None:
    first, second = (container(place, "sh", "-c", "echo hello; exit 7") for _ in range(2))
    assert run_and_kill(program(words), first, second, place)[-1] == "ended with 7"


@pytest.mark.cold  # a slow start is killed at more moments
def test_a_manager_may_be_killed_at_any_moment(place: Place) -> None:
    first, second = (container(place, "sh", "-c", "exit 7") for _ in range(2))
    lines: list[str] = []
    try:
        # The first run that ends has started the container, a later one reports its exit.
        for _ in range(3):
            lines += run_and_kill(program("restarts"), first, second, place)
            if "ended with 7" in lines:
                break
        assert "ended with 7" in lines
    finally:
        for bundle in (first, second):
            blocking.dispose(bundle, bundle.name, namespace=NAMESPACE, runtime=RUNTIMES["ours"])


def test_a_shell_may_lose_its_client_at_any_moment(running: Path, place: Place) -> None:
    lines = run_and_kill(program("terminal"), running, running, place)
    assert lines[-2:] == ["24 80", "left with 3"]
