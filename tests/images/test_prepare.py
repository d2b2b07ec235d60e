"""Images unpacked by the real skopeo and umoci."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import InvalidError, NotFoundError, ShimError
from shimctl.images import Image, Step, Store, prepare
from tests.images.layouts import HOST, OTHER, Layer, flip, left

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.images.layouts import Layout

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("tools")]

CONFIG = "application/vnd.oci.image.config.v1+json"
PREPARE = "import sys, trio; from shimctl.images import prepare; trio.run(prepare, sys.argv[1])"


def skopeo(*argv: str | Path) -> None:
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *map(str, argv)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def text(image: Image, name: str) -> str:
    path: Path = image.layers[0] / name
    return path.read_text()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True, timeout=20)
    yield disk
    subprocess.run(["umount", disk], check=True, timeout=20)


def wrap(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another skopeo first on PATH."""
    tool = directory / "bin/skopeo"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("zipped", [False, True])
async def test_the_layers_lie_one_upon_the_other(
    layout: Layout, store: Store, zipped: bool
) -> None:
    below = Layer().directory("d", mode=0o711, owner=(5, 6))
    below.file("d/kept", "1").file("d/gone", "2").file("changed", "3").file("sticky", mode=0o4755)
    below.directory("opaque").file("opaque/gone").symlink("link", "/etc").hardlink(
        "same", "sticky"
    )
    above = Layer().file("d/.wh.gone").file("changed", "4").file("opaque/.wh..wh..opq")
    above.file("opaque/new").file("/absolute", "5")
    reference = layout.tag("a", layout.image(below, above, zipped=zipped))
    image = await prepare(reference)
    (rootfs,) = image.layers
    assert (text(image, "changed"), text(image, "absolute")) == ("4", "5")
    assert os.listdir(rootfs / "d") == ["kept"]
    assert os.listdir(rootfs / "opaque") == ["new"]
    assert str((rootfs / "link").readlink()) == "/etc"
    status = (rootfs / "d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o711, 5, 6)
    assert stat.S_IMODE((rootfs / "same").stat().st_mode) == 0o4755
    assert (rootfs / "same").stat().st_nlink == 2


async def test_every_kind_of_reference_gives_the_same_layers(
    layout: Layout, store: Store, tmp_path: Path
) -> None:
    reference = layout.add("a", Layer().file("f", "x"), Layer().file("g", "y"), Cmd=["sh"])
    archives = [f"oci-archive:{tmp_path}/o.tar:a", f"docker-archive:{tmp_path}/d.tar:me/it:1"]
    for archive in archives:
        skopeo(reference, archive)
    images = [await prepare(each) for each in (reference, *archives)]
    assert len({image.layers for image in images}) == 1
    assert {image.config.command for image in images} == {("sh",)}
    assert len(os.listdir(store.path / "rootfs")) == 1


def tool(*argv: str | Path) -> None:
    subprocess.run([*map(str, argv)], check=True, timeout=60, capture_output=True)


@pytest.fixture(params=["ours", "zipped", "umoci"])
def original(request: pytest.FixtureRequest, layout: Layout, tmp_path: Path) -> str:
    """An image with the file d/f, which holds x; ``umoci insert`` writes no padding."""
    if request.param != "umoci":
        layer = Layer().directory("d").file("d/f", "x")
        return layout.tag("a", layout.image(layer, zipped=request.param == "zipped"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    made = f"{tmp_path}/umoci:a"
    tool("umoci", "init", "--layout", tmp_path / "umoci")
    tool("umoci", "new", "--image", made)
    tool("umoci", "insert", "--image", made, tmp_path / "d", "/d")
    return f"oci:{made}"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
async def test_an_empty_store_takes_every_kind_of_source(
    original: str, store: Store, tmp_path: Path, kind: str, compressed: bool
) -> None:
    name = {"oci": "a", "oci-archive": "a", "docker-archive": "me/it:1"}[kind]
    path = tmp_path / "source"
    skopeo(*(["--dest-compress"] if compressed else []), original, f"{kind}:{path}:{name}")
    if compressed and path.is_file():
        tool("gzip", path)
        path = path.with_suffix(".gz")
    image = await prepare(f"{kind}:{path}:{name}")
    assert text(image, "d/f") == "x"


@pytest.mark.parametrize("zipped", [False, True])
async def test_the_type_of_a_layer_is_taken_from_its_bytes(
    layout: Layout, store: Store, zipped: bool
) -> None:
    data = Layer().file("f", "x").bytes()
    wrong = "application/vnd.oci.image.layer.v1.tar" + ("" if zipped else "+gzip")
    stored = layout.blob(gzip.compress(data) if zipped else data, wrong)
    config = {
        "architecture": HOST.architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]},
    }
    described = layout.blob(json.dumps(config).encode(), CONFIG)
    image = await prepare(layout.tag("a", layout.manifest(described, [stored])))
    assert text(image, "f") == "x"


@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2"])
async def test_an_archive_may_be_compressed(
    original: str, store: Store, tmp_path: Path, program: str
) -> None:
    skopeo(original, f"docker-archive:{tmp_path}/d.tar:me/it:1")
    tool(program, tmp_path / "d.tar")
    (path,) = tmp_path.glob("d.tar.*")
    assert text(await prepare(f"docker-archive:{path}"), "d/f") == "x"
    path.write_bytes(path.read_bytes()[:-20])
    await images_without(store)
    with pytest.raises(InvalidError, match=r"truncated|decompress"):
        await prepare(f"docker-archive:{path}")
    assert not list((store.path / "partial").iterdir())


async def images_without(store: Store) -> None:
    for record in store.records():
        await store.remove(record)


async def test_a_layer_without_any_block_is_empty(layout: Layout, store: Store) -> None:
    image = await prepare(layout.add("a", Layer().file("f", "x"), b""))
    assert os.listdir(image.layers[0]) == ["f"]


async def test_a_layer_that_ends_inside_a_file_is_refused(layout: Layout, store: Store) -> None:
    whole = Layer().file("f", b"x" * 700).bytes()
    reference = layout.add("a", whole[: 512 + 600])
    with pytest.raises(ShimError, match=r"cannot unpack .* EOF"):
        await prepare(reference)
    assert left(store) == []


async def test_what_is_there_is_not_unpacked_again(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = layout.add("a", Layer().file("f"))
    first = await prepare(reference)
    layout.largest()  # the layer is there, and need not be read
    monkeypatch.setenv("PATH", "/nowhere")
    assert await prepare(reference) == first


async def test_images_with_other_configurations_share_their_layers(
    layout: Layout, store: Store
) -> None:
    one = await prepare(layout.add("a", Layer().file("f"), Cmd=["a"]))
    other = await prepare(layout.add("b", Layer().file("f"), Cmd=["b"]))
    assert one.digest != other.digest
    assert one.layers == other.layers


async def test_an_image_may_have_no_layer_at_all(layout: Layout, store: Store) -> None:
    image = await prepare(layout.add("a", Cmd=["a"]))
    assert os.listdir(image.layers[0]) == []


async def test_the_platform_can_be_another(layout: Layout, store: Store) -> None:
    ours = layout.image(Layer().file("f", "ours"))
    other = layout.image(Layer().file("f", "other"), architecture=OTHER)
    index = layout.index(**{HOST.architecture: ours, OTHER: other})
    reference = layout.tag("a", index)
    assert text(await prepare(reference), "f") == "ours"
    assert text(await prepare(reference, platform=f"linux/{OTHER}"), "f") == "other"


async def test_the_steps_are_told(layout: Layout, store: Store) -> None:
    steps: list[Step] = []
    layers = [Layer().file(name, os.urandom(100_000)) for name in "ab"]
    await prepare(layout.add("a", *layers), progress=steps.append)
    told = list(dict.fromkeys(step.what for step in steps))
    assert told == ["reading", "checking", "unpacking", "writing to disk"]
    half = [step.done / step.total for step in steps if step.what == "unpacking"]
    assert half[-1] == pytest.approx(0.5, abs=0.1)


async def test_a_wrong_digest_of_a_layer_leaves_nothing(layout: Layout, store: Store) -> None:
    reference = layout.add("a", Layer().file("f", os.urandom(5000)))
    flip(layout.largest())
    with pytest.raises(InvalidError, match=r"cannot read oci:.*: it is damaged: .*sha256:"):
        await prepare(reference)
    assert left(store) == []


async def test_a_layer_that_is_not_what_the_config_says_leaves_nothing(
    layout: Layout, store: Store
) -> None:
    right = layout.image(Layer().file("f", "right"))
    manifest = layout.path_of(right).read_text()
    wrong = layout.blob(Layer().file("f", "wrong").bytes(), "")
    old = layout.largest().name
    # The manifest and its digest are fine; only the config knows better.
    stored = layout.blob(Layer().file("f", "right").bytes(), "")
    assert old
    changed = manifest.replace(stored["digest"], wrong["digest"]).encode()
    reference = layout.tag("a", layout.blob(changed, right["mediaType"]))
    with pytest.raises(ShimError, match=r"cannot unpack oci:"):
        await prepare(reference)
    assert left(store) == []


@pytest.mark.parametrize("name", ["../../etc/evil", "a/../../evil", "link/evil", ".wh..."])
async def test_a_layer_that_leads_outside_leaves_nothing(
    layout: Layout, store: Store, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = Layer().symlink("link", str(outside)).file(name, "evil")
    with pytest.raises(InvalidError, match=r"layer sha256:\w+ is refused for its entry"):
        await prepare(layout.add("a", layer))
    assert left(store) == []
    assert os.listdir(outside) == []


async def test_a_link_of_one_layer_is_no_way_out_for_the_next(
    layout: Layout, store: Store, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    below = Layer().symlink("link", str(outside)).symlink("up", "../../../../..")
    above = Layer().file("link/evil").file(f"up{outside}/evil")
    image = await prepare(layout.add("a", below, above))
    assert os.listdir(outside) == []
    assert sorted(os.listdir(outside.parent)) == ["layout", "outside", "store"]
    assert sorted(os.listdir(image.layers[0]))[:1] != ["evil"]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
async def test_a_damaged_archive_leaves_nothing(
    layout: Layout, store: Store, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a.tar"
    skopeo(layout.add("a", Layer().file("f", os.urandom(100_000))), f"{kind}:{path}:it:a")
    whole = path.read_bytes()
    for length in (10_000, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises((InvalidError, NotFoundError)):
            await prepare(f"{kind}:{path}")
        assert left(store) == []
    path.write_bytes(whole)
    # Somewhere in the random bytes, which is the layer.
    middle = whole.index(b"f" + bytes(99)) + 5000 if kind == "docker-archive" else None
    data = bytearray(whole)
    data[middle or len(whole) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShimError, match=r"cannot (read|unpack)"):
        await prepare(f"{kind}:{path}")
    assert left(store) == []


@pytest.mark.parametrize("count", [2_000_000, 600_000])
async def test_a_full_disk_is_said_to_be_one_and_left_empty(
    layout: Layout, full: Path, count: int
) -> None:
    # The larger does not even fit as it is, the smaller not beside its copy.
    layer = Layer().file("f", os.urandom(count))
    with pytest.raises(ShimError, match=r"the disk is full"):
        await prepare(layout.add("a", layer), store=full / "store")
    assert left(Store(full / "store")) == []


async def test_missing_tools_are_named_with_the_command_that_gets_them(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = layout.add("a", Layer().file("f"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotFoundError) as caught:
        await prepare(reference)
    told = "images need skopeo and umoci; run `apt-get install skopeo umoci`"
    assert str(caught.value) == told


async def test_many_at_once_unpack_it_once(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = f'echo >> {tmp_path}/count\nexec {shutil.which("skopeo")} "$@"'
    wrap(tmp_path, count, monkeypatch)
    reference = layout.add("a", Layer().file("f", os.urandom(3_000_000)))
    command = [sys.executable, "-c", PREPARE, reference]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(partial(trio.run_process, command))
        for _ in range(5):
            nursery.start_soon(prepare, reference)
    assert (tmp_path / "count").read_text() == "\n"
    assert len(os.listdir(store.path / "rootfs")) == 1
    assert os.listdir(store.path / "partial") == []
    assert os.listdir(store.path / "locks") == []
    (record,) = store.records()
    assert record.references == (reference,)


async def test_after_being_killed_half_way_the_next_one_succeeds(
    layout: Layout, store: Store
) -> None:
    reference = layout.add("a", *(Layer().file(f"f{n}", os.urandom(8_000_000)) for n in range(4)))
    command = [sys.executable, "-c", PREPARE, reference]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, check=False))
        with trio.fail_after(60):
            while not list(store.path.glob("partial/*/rootfs/f*")) and process.poll() is None:
                await trio.sleep(0.002)
        process.kill()
    assert process.returncode < 0, "it was too quick to be killed"
    image = await prepare(reference)
    assert len(os.listdir(image.layers[0])) == 4
    # The killed process may have had a child that still wrote.
    with trio.fail_after(60):
        while os.listdir(store.path / "partial"):
            store.sweep()
            await trio.sleep(0.05)


async def test_giving_up_half_way_leaves_nothing(layout: Layout, store: Store) -> None:
    reference = layout.add("a", *(Layer().file(f"f{n}", os.urandom(8_000_000)) for n in range(4)))

    def give_up(step: Step) -> None:
        if step.what == "unpacking":
            scope.cancel()

    with trio.CancelScope() as scope:
        await prepare(reference, progress=give_up)
    assert scope.cancelled_caught
    assert left(store) == []


async def test_an_image_that_changes_while_it_is_read_is_not_taken_for_the_old_one(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reference = layout.add("a", Layer().file("f", "old"))
    new = layout.tag("new", layout.image(Layer().file("f", "new")))
    # skopeo itself, which comes after something else has moved the tag.
    command = f'{shutil.which("skopeo")} --insecure-policy copy -q {new} "$last"'
    wrap(tmp_path, f"for last; do :; done\nexec {command}", monkeypatch)
    with pytest.raises(InvalidError, match=r"changed while it was read; try again"):
        await prepare(reference)
    assert left(store) == []


async def test_a_tag_that_moved_is_the_new_image(layout: Layout, store: Store) -> None:
    reference = layout.add("a", Layer().file("f", "old"))
    await prepare(reference)
    layout.add("a", Layer().file("f", "new"))
    assert text(await prepare(reference), "f") == "new"
    old, new = store.records()
    assert (old.references, new.references) == ((), (reference,))
