"""The shims of these tests are started by the worker's fork server, unless a test is cold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import sharedserver

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
