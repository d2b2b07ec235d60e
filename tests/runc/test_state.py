"""Whose a container is, by what the runtime wrote down."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from shim.runc.state import foreign_bundle, has_state

if TYPE_CHECKING:
    from pathlib import Path


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
