"""Which bundles use an image, and the removal of an image that none uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shim.errors import InvalidError, NotFoundError, WrongStateError
from shimctl.images import Store, mounts_for, prepare, release
from tests.images.layouts import Layer, left

if TYPE_CHECKING:
    from pathlib import Path

    from tests.images.layouts import Layout

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("tools")]


async def test_a_used_image_stays_until_the_container_is_gone(
    layout: Layout, store: Store, tmp_path: Path
) -> None:
    image = await prepare(layout.add("a", Layer().file("f"), Volumes={"/data": {}}))
    work = tmp_path / "work"
    work.mkdir()
    (mount,) = mounts_for(image, work)
    (record,) = store.records()
    with pytest.raises(WrongStateError, match=r"is used by work; delete that first"):
        await store.remove(record)
    assert mount.type == "overlay"
    assert f"lowerdir={image.layers[0]}" in mount.options
    release(work)
    await store.remove(record)
    assert left(store) == []
    assert os.listdir(work) == []
    with pytest.raises(NotFoundError, match=r"was removed just now; try again"):
        mounts_for(image, work)
    assert left(store) == []


async def test_a_bundle_that_is_gone_uses_nothing(
    layout: Layout, store: Store, tmp_path: Path
) -> None:
    image = await prepare(layout.add("a", Layer().file("f")))
    work = tmp_path / "work"
    work.mkdir()
    mounts_for(image, work)
    (work / "image").unlink()
    assert store.uses() == []
    store.sweep()
    assert os.listdir(store.path / "containers") == []


async def test_layers_that_another_image_has_stay(layout: Layout, store: Store) -> None:
    image = await prepare(layout.add("a", Layer().file("f"), Cmd=["a"]))
    await prepare(layout.add("b", Layer().file("f"), Cmd=["b"]))
    one, other = store.records()
    await store.remove(one)
    assert image.layers[0].is_dir()
    await store.remove(other)
    assert left(store) == []


def test_a_release_removes_only_what_was_made_for_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work/image").symlink_to(tmp_path / "mine")
    release(tmp_path / "work")
    release(tmp_path / "mine")
    assert sorted(os.listdir(tmp_path)) == ["mine", "work"]


def test_a_store_whose_name_overlay_would_misread_is_refused(tmp_path: Path) -> None:
    for name in ("a:b", "a,b", "a\\b"):
        with pytest.raises(InvalidError, match="contains a colon, comma or backslash"):
            Store(tmp_path / name)
