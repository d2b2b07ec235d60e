"""The check that the disk of a bundle responds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shim.container import disk as module
from shim.container.bundle import Bundle
from shim.errors import TimedOutError
from tests.frozen import freezable_disk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("has_tmpfile", [True, False])
async def test_a_disk_that_hangs_is_noticed_with_and_without_files_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_tmpfile: bool
) -> None:
    """NFS has none, and such an open fails at once while its server does not respond."""
    if not has_tmpfile:  # as a kernel that does not know the flag
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    monkeypatch.setattr(module, "LIMIT", 0.3)
    with freezable_disk(tmp_path / "image", tmp_path / "disk", 8) as disk:
        bundle = Bundle(disk.path)
        found = os.listdir(disk.path)
        disk.freeze()
        with pytest.raises(TimedOutError, match="check the disk"):
            await module.wait_responsive(bundle, 0.3)
        assert not await module.is_responsive(bundle, "c1")
        disk.thaw()
        await module.wait_responsive(bundle, 10)
        assert os.listdir(disk.path) == found
