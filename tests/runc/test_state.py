"""The owner of a container, from the runtime's state file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from shim.runc.state import foreign_bundle, has_state

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_directory_of_all_containers_is_not_read_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands of containers it is long."""
    for name in ("c1", "c1_a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"bundle": f"/{name}"}))
    listed: list[str] = []

    def listdir(path: str) -> list[str]:
        listed.append(path)
        return []

    monkeypatch.setattr(os, "listdir", listdir)
    assert has_state(str(tmp_path), "c1")
    assert foreign_bundle(str(tmp_path), "c1", "/b") == "/c1"
    assert listed == []
    assert not has_state(str(tmp_path), "c2")
    assert listed == [str(tmp_path)]


def test_a_state_that_makes_no_sense_is_nobody_elses(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert not has_state(root, "c1")
    assert foreign_bundle(root, "c1", "/b") == ""
    (tmp_path / "c1").mkdir()
    state = tmp_path / "c1/state.json"
    assert has_state(root, "c1")
    for text in (
        "",
        "{",
        "[]",
        '{"config": null}',
        '{"config": {"labels": [1, "x"]}}',
        '{"a":' * 9999,
    ):
        state.write_text(text)
        assert foreign_bundle(root, "c1", "/b") == ""
    state.write_text(json.dumps({"config": {"labels": ["a=b", "bundle=/other"]}}))
    assert foreign_bundle(root, "c1", "/b") == "/other"
    assert foreign_bundle(root, "c1", "/other") == ""
    assert foreign_bundle(root, "c1", "/x/../other") == ""
    os.truncate(state, 1 << 40)
    assert foreign_bundle(root, "c1", "/b") == ""
