"""``shimctl upgrade`` of shims that do not answer, or cannot be seen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shimctl import discover
from shimctl.discover import Found, Health
from tests.shimctl.tool import called

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_shim_that_does_not_answer_is_named_unless_it_is_another_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for id_, executable in (
        ("ours", "containerd-shim-trio-v2"),
        ("go", "containerd-shim-runc-v2"),
    ):
        (tmp_path / id_).mkdir()
        (tmp_path / id_ / "shim-binary-path").write_text(f"/usr/bin/{executable}")
        address, bundle = f"unix://{tmp_path}/{id_}/socket", str(tmp_path / id_)
        found.append(Found("ns", id_, address, bundle, Health.SILENT, shim_pid=0))

    async def list_shims(**_: object) -> list[Found]:
        return found

    monkeypatch.setattr(discover, "list_shims", list_shims)
    done = called("upgrade", "--all", "--check")
    text = "shimctl: ours: its shim does not answer; `shimctl doctor` shows its state\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", text)


def test_another_user_is_told_that_the_shims_are_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    async def list_shims(**_: object) -> list[Found]:
        return []

    monkeypatch.setattr(discover, "list_shims", list_shims)
    for user, code, text in ((0, 0, ""), (65534, 125, "shimctl: no shim was found; try again as")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        done = called("upgrade", "--all")
        assert (done.returncode, done.stderr[: len(text)]) == (code, text)
