"""Where the tests of run, spawn and launch have their containers: under both shims, or ours.

After each test nothing of its containers is left on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.shimctl.place import RUNTIMES, Place, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

LOTS = bytes(range(256)) * 4096  # a mebibyte, more than a fifo holds


@pytest.fixture(params=["ours", "go"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with open_place(request.param) as place:
        monkeypatch.setenv("SHIMCTL_STATE", str(place.state))
        yield place
        # Before the place itself removes anything.
        assert place.left() == []


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with open_place("ours") as place:
        monkeypatch.setenv("SHIMCTL_STATE", str(place.state))
        yield place
        assert place.left() == []


def settings(place: Place) -> dict[str, Any]:
    return {"namespace": place.namespace, "runtime": RUNTIMES[place.kind]}
