"""The search for remains finds what it looks for."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.e2e import leftovers

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_socket_that_no_shim_serves_is_found_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "SOCKETS", tmp_path)
    with socket.socket(socket.AF_UNIX) as served, socket.socket(socket.AF_UNIX) as dead:
        served.bind(str(tmp_path / "served"))
        served.listen()
        dead.bind(str(tmp_path / "dead"))
        dead.listen()
        assert leftovers.sockets("", "", []) == []
        dead.close()
        assert leftovers.sockets("", "", []) == [tmp_path / "dead"]
