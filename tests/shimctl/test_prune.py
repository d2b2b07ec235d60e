"""``shimctl prune``: the removed objects, and those that stay."""

from __future__ import annotations

import json
import secrets
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.linux.sockets import SOCKET_DIR
from shimctl.standalone import pruning
from tests.images.layouts import Layout, busybox
from tests.shimctl.place import Place, open_place
from tests.shimctl.tmux import open_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["ours", "go"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.setenv("SHIMCTL_IMAGES", str(tmp_path / "images"))
    with open_place(request.param) as place:
        yield place


@contextmanager
def bound(path: Path, *, listens: bool = False) -> Iterator[Path]:
    """Bind a socket at ``path``, and close it unless it ``listens``; unlink it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        if listens:
            made.listen()
        else:
            made.close()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def new_socket() -> Path:
    return Path(SOCKET_DIR, secrets.token_hex(32))


def names(place: Place) -> list[str]:
    return [one["name"] for one in place.json("prune", "--dry-run")]


def test_an_exited_container_of_shimctl_is_removed_and_a_running_one_stays(place: Place) -> None:
    place.sleeper("runs")
    place.made("create", "made", place.bundle("true"))
    place.made("run", "over", place.bundle("true"))
    place.done("wait", "over")
    over = f"{place.namespace}/over"
    assert [name for name in names(place) if place.namespace in name] == [over]
    # Without a terminal it does not ask, and removes nothing.
    refused = place.shimctl("prune")
    assert (refused.returncode, refused.stdout) == (125, "")
    assert "cannot ask without a terminal, so nothing was removed; add --force" in refused.stderr
    assert over in names(place)
    assert over in place.done("prune", "-f").splitlines()
    left = json.loads(place.done("ps", "-a", "-n", place.namespace, "-o", "json"))
    assert sorted(one["id"] for one in left) == ["made", "runs"]


def test_an_unused_image_stays_while_it_has_a_reference(place: Place, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    web = layout.add("web", busybox(), Cmd=["sleep", "1000"], Env=["A=1"])
    old = place.json("images", "prepare", web)["digest"]
    layout.add("web", busybox(), Cmd=["sleep", "1000"], Env=["A=2"])
    new = place.json("images", "prepare", web)["digest"]
    assert images(place) == [old]
    assert images(place, "-a") == sorted([old, new])
    # A container that runs keeps its image, an exited one does not.
    place.made("run", "uses", web)
    assert images(place, "--all") == [old]
    place.done("kill", "-9", "uses")
    place.shimctl("wait", "uses")
    assert images(place, "--all") == sorted([old, new])
    assert old in place.done("prune", "-f").splitlines()
    assert [image["digest"] for image in place.json("images")] == [new]
    assert new in place.done("prune", "-f", "-a").splitlines()
    assert place.json("images") == []


def images(place: Place, *options: str) -> list[str]:
    """Return the images that ``prune`` would remove."""
    found = place.json("prune", "--dry-run", *options)
    return sorted(one["name"] for one in found if one["kind"] == "image")


@pytest.mark.parametrize("place", ["ours"], indirect=True)
def test_prune_lists_and_asks_in_a_terminal(place: Place) -> None:
    place.made("run", "over", place.bundle("true"))
    place.done("wait", "over")
    names_of = ("SHIMCTL_STATE", "SHIMCTL_IMAGES", "PYTHONPATH")
    environ = " ".join(f"{name}={place.environ[name]}" for name in names_of)
    command = f"env {environ} {' '.join(place.command('prune'))}"
    with open_tmux() as tmux:
        terminal = tmux.open()
        result = terminal.begin(command)
        terminal.expect("Remove these? [y/N]:")
        assert f"{place.namespace}/over" in terminal.screen()
        terminal.type("\n")
        assert terminal.code(result) == 1
        assert f"{place.namespace}/over" in names(place)
        terminal = tmux.open()  # the first one still shows the question
        result = terminal.begin(command)
        terminal.expect("Remove these? [y/N]:")
        terminal.type("y\n")
        assert terminal.code(result) == 0
    assert f"{place.namespace}/over" not in names(place)


@pytest.mark.parametrize("place", ["ours"], indirect=True)
def test_an_old_socket_without_a_listener_and_a_container_is_removed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "containerd"
    bundle = state / "io.containerd.runtime.v2.task/ns/of-a-manager"
    bundle.mkdir(parents=True)
    monkeypatch.setattr(pruning, "YOUNG", 0)
    with (
        bound(new_socket()) as dead,
        bound(new_socket(), listens=True) as live,
        bound(new_socket()) as known,
        bound(Path(SOCKET_DIR, "another-program")) as other,
    ):
        (bundle / "address").write_text(f"unix://{known}")
        assert str(dead) not in names(place)  # it is new; the command has its own limit
        found = sockets_of(state)
        assert str(dead) in found
        assert not {str(live), str(known), str(other)} & found


def sockets_of(state: Path) -> set[str]:
    """Remove every dead socket, in this process; return their names."""
    import trio

    async def main() -> set[str]:
        found = [one for one in await pruning.leftovers([state]) if one.kind == "socket"]
        for one in found:
            await one.remove()
            assert not Path(one.name).exists()
        return {one.name for one in found}

    time.sleep(0.01)  # the clock of files is coarse
    return trio.run(main)
