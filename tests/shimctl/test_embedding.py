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
from tests.process.rig import alive
from tests.shimctl.place import PATIENCE, RUNTIMES, Place, eventually, missing, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/embedding.md").read_text()
LIFE = ["on trio", "on asyncio", "in plain threads"]
NAMESPACE = "demo"  # the page's


def programs() -> dict[str, str]:
    """Return the programs of the page by the title of their section."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
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
    assert len(PROGRAMS) == len(LIFE) + 2
    assert all(program(words) for words in (*LIFE, "restarts", "terminal"))


@pytest.mark.parametrize("words", LIFE)
def test_a_containers_whole_life(words: str, place: Place) -> None:
    bundle = container(place, "sh", "-c", "echo hello; exit 7")
    lines = run(program(words), bundle, place)
    assert [line for line in lines if not line.startswith("it said")] == [
        *("/tasks/create ", "/tasks/start ", "/tasks/exit 7", "/tasks/delete 7"),
        "ended with 7",
    ]
    assert "it said: hello" in lines
    assert not (bundle / "events.sock").exists()


def test_a_manager_that_restarts_finds_its_container(place: Place) -> None:
    text = program("restarts")
    bundle = container(place, "sh", "-c", "sleep 2; exit 7")
    assert run(text, bundle, place) == []
    assert run(text, bundle, place) == ["found it running", "ended with 7"]


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


def test_another_process_has_a_terminal_of_the_size_it_was_told(place: Place) -> None:
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
        for _ in range(2):
            lines = run(program("terminal"), bundle, place)
            assert lines[-2:] == ["24 80", "left with 3"]
    finally:
        blocking.dispose(bundle, bundle.name, namespace=NAMESPACE, runtime=RUNTIMES["ours"])
    assert not list(bundle.glob("look-*"))


def shim_of(bundle: Path) -> int:
    """Return the pid of the daemon, which has the id among its arguments."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-id" in argv and bundle.name.encode() in argv:
            return int(path.parent.name)
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


def test_a_manager_may_be_killed_between_any_two_steps(place: Place) -> None:
    """It is killed at later and later moments, until it has reported the exit status."""
    text = program("restarts")
    bundle = container(place, "sh", "-c", "exit 7")
    argv = [sys.executable, "-c", text, str(bundle)]
    reported: list[str] = []
    for number in range(200):
        piped = subprocess.PIPE
        with subprocess.Popen(argv, env=place.environ, stdout=piped, text=True) as manager:
            try:
                reported += manager.communicate(timeout=0.1 + 0.04 * number)[0].splitlines()
            except subprocess.TimeoutExpired:
                manager.kill()
                continue
        assert manager.returncode == 0
        if any(line.startswith("ended with") for line in reported):
            break
    assert reported[-1] == "ended with 7"
