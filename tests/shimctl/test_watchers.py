"""events as a command: several watchers, one of them killed, and their output."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.shimctl.place import PATIENCE, Place, eventually
from tests.shimctl.test_attach import line, place, tmux

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.shimctl.tmux import Tmux

__all__ = ["place", "tmux"]
pytestmark = pytest.mark.e2e


class Watcher:
    """A ``shimctl events -o json`` with its output in a file."""

    def __init__(self, place: Place, path: Path, *options: str) -> None:
        self.path = path
        self._out = path.open("wb")
        self.process = subprocess.Popen(
            place.command("events", "-o", "json", *options),
            env=place.environ,
            stdout=self._out,
            stderr=subprocess.PIPE,
        )

    def events(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(text) for text in lines if text.endswith("\n")]

    def topics(self, container: str) -> list[str]:
        return [one["topic"] for one in self.events() if container in one["fields"].values()]

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)
        self._out.close()


@contextmanager
def watching(place: Place, count: int, *options: str) -> Iterator[list[Watcher]]:
    watchers = [Watcher(place, place.root / f"events{n}", *options) for n in range(count)]
    try:
        yield watchers
    finally:
        for watcher in watchers:
            watcher.close()


def test_watchers_see_the_same_though_one_after_the_other_is_killed(place: Place) -> None:
    with watching(place, 4, "-n", place.namespace, "--since", "1m") as watchers:
        ids: list[str] = []
        while watchers:
            name = f"c{len(ids)}"
            ids.append(name)
            place.made("run", name, place.bundle("sh", "-c", "exit 3"))
            place.shimctl("wait", name)
            for watcher in watchers:
                eventually(lambda: "/tasks/exit" in watcher.topics(name))  # noqa: B023 - is called at once
            for watcher in watchers:
                for other in ids:
                    assert watcher.topics(other)[:3] == [
                        "/tasks/create",
                        "/tasks/start",
                        "/tasks/exit",
                    ]
            last = watchers.pop(0)
            last.process.kill()
            last.process.wait(PATIENCE)
            last.close()
    exits = [one for one in watchers_events(place) if one["topic"] == "/tasks/exit"]
    assert [one["fields"]["exit_status"] for one in exits] == [3] * 4
    assert all(one["at"].endswith("Z") for one in exits)


def watchers_events(place: Place) -> list[dict[str, Any]]:
    """Return the past events of the place."""
    options = ["-n", place.namespace, "--since", "10m", "--until", "0s", "-o", "json"]
    return [json.loads(text) for text in place.done("events", *options).splitlines()]


def test_past_events_are_filtered_and_end(place: Place, tmux: Tmux) -> None:
    for name in ("one", "two"):
        place.made("run", name, place.bundle("true"))
        place.shimctl("wait", name)
    eventually(lambda: sum(e["topic"] == "/tasks/exit" for e in watchers_events(place)) == 2)
    terminal = tmux.open(columns=200)
    options = ["-n", place.namespace, "--since", "10m", "--until", "0s"]
    filters = ["--filter", "event=exit", "--filter", "event=start", "--filter", "container=one"]
    assert terminal.command(line(place, "events", *options, *filters)) == 0
    shown = [text for text in terminal.screen().splitlines() if f"Z {place.namespace} " in text]
    assert [text.split()[2] for text in shown] == ["/tasks/start", "/tasks/exit"]
    assert all("container_id=one" in text for text in shown)
    done = place.shimctl("events", "--filter", "name=x")
    assert done.returncode in (2, 125)
    assert "is not a filter" in done.stderr
    assert place.shimctl("events", "--since", "soon").returncode in (2, 125)
