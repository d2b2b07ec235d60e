"""The shims of these tests are started by the worker's fork server, unless a test is cold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import sharedserver
from tests.conftest import FAILED
from tests.shimctl.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="module")
def _warm(request: pytest.FixtureRequest) -> Iterator[None]:
    # Of the whole module, since some run containers for all of their tests.
    with pytest.MonkeyPatch.context() as monkeypatch:
        sharedserver.use(request, monkeypatch)
        yield


@pytest.fixture(autouse=True)
def _cold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("cold") is not None:
        monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "off")


@pytest.fixture(autouse=True)
def _remains(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the containers of a failed test, which its repetition makes again."""
    place = request.getfixturevalue("place") if "place" in request.fixturenames else None
    made = len(place.ids) if isinstance(place, Place) else 0
    yield
    if isinstance(place, Place) and request.node.stash.get(FAILED, False):
        place.remove(dict.fromkeys(place.ids[made:]))
