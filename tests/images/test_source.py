"""A fault of an image is reported in one line, before anything is copied."""

from __future__ import annotations

import io
import json
import os
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError, NotFoundError, ShimError
from shimctl.images.manifest import chain_id, read_archived, read_index, read_manifest
from shimctl.images.reference import parse
from shimctl.images.source import Described, describe
from tests.images.layouts import HOST, OTHER, Layer, flip

if TYPE_CHECKING:
    from pathlib import Path

    from tests.images.layouts import Layout


def described(reference: str) -> Described:
    return describe(parse(reference), HOST)


def archive(path: Path, **members: bytes | str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            raw = data.encode() if isinstance(data, str) else data
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    return path


def one_layer(text: str = "x") -> Layer:
    return Layer().file("a", text)


def test_an_image_is_found_by_its_tag(layout: Layout) -> None:
    layout.add("a", one_layer("a"), Cmd=["a"])
    reference = layout.add("b", one_layer("b"), one_layer("c"), Cmd=["b"])
    found = described(reference)
    assert found.config["config"] == {"Cmd": ["b"]}
    assert len(found.diff_ids) == 2
    assert found.size > 0


def test_the_only_image_needs_no_tag(layout: Layout) -> None:
    reference = layout.add("a", one_layer())
    assert described(f"oci:{layout.path}") == described(reference)


def test_a_layout_without_images_is_not_one_with_several(layout: Layout) -> None:
    layout.add("a", one_layer())
    (layout.path / "index.json").write_text('{"manifests": []}')
    for name in ("", ":a"):
        with pytest.raises(NotFoundError, match=r"layout has no images$"):
            described(f"oci:{layout.path}{name}")


def test_a_tag_that_is_missing_is_told_with_those_there_are(layout: Layout) -> None:
    layout.add("a", one_layer("a"))
    layout.add("b", one_layer("b"))
    with pytest.raises(NotFoundError, match=r"layout has no tag c; there is a, b$"):
        described(f"oci:{layout.path}:c")
    with pytest.raises(NotFoundError, match=r"layout has several; name the tag; there is a, b$"):
        described(f"oci:{layout.path}")


def test_of_many_tags_only_some_are_told(layout: Layout) -> None:
    entry = layout.image(one_layer())
    for number in range(30):
        layout.tag(f"t{number:02}", entry)
    with pytest.raises(NotFoundError, match=r"t00, .*t11 and 18 more$"):
        described(f"oci:{layout.path}:x")


def test_the_image_for_this_machine_is_chosen_from_an_index(layout: Layout) -> None:
    other = layout.image(one_layer("other"), architecture=OTHER)
    ours = layout.image(one_layer("ours"))
    index = layout.index(**{OTHER: other, HOST.architecture: ours})
    reference = layout.tag("multi", layout.index(**{HOST.architecture: index}))  # one in another
    assert described(reference).digest == ours["digest"]


def test_a_missing_platform_is_told_with_those_there_are(layout: Layout) -> None:
    other = layout.image(one_layer(), architecture=OTHER)
    for entry in (layout.index(**{OTHER: other}), other):
        reference = layout.tag("multi", entry)
        with pytest.raises(NotFoundError, match=f"is not for {HOST}; there is linux/{OTHER}$"):
            described(reference)


def test_a_wrong_digest_of_a_manifest_or_a_config_is_found(layout: Layout) -> None:
    entry = layout.image(one_layer())
    reference = layout.tag("a", entry)
    config = json.loads(layout.path_of(entry).read_bytes())["config"]
    for blob in (config, entry):
        path = layout.path_of(blob)
        before = path.read_bytes()
        flip(path)
        with pytest.raises(
            InvalidError, match=f"is damaged: blob {blob['digest']} has the digest"
        ):
            described(reference)
        path.write_bytes(before)
    described(reference)


@pytest.mark.parametrize("what", ["config", "layer", "manifest"])
def test_a_missing_blob_is_named(layout: Layout, what: str) -> None:
    entry = layout.image(one_layer())
    reference = layout.tag("a", entry)
    manifest = json.loads(layout.path_of(entry).read_bytes())
    missing = {"config": manifest["config"], "layer": manifest["layers"][0], "manifest": entry}[
        what
    ]
    layout.path_of(missing).unlink()
    with pytest.raises(NotFoundError, match=f"lacks (blob|layer) {missing['digest']}$"):
        described(reference)


def test_a_layer_of_another_length_is_found(layout: Layout) -> None:
    reference = layout.add("a", Layer().file("a", "x" * 100_000))
    with layout.largest().open("ab") as layer:
        layer.write(b"more")
    with pytest.raises(InvalidError, match=r"layer sha256:\w+ of .* has \d+ bytes, not \d+"):
        described(reference)


def test_a_layout_without_a_config_is_no_image(layout: Layout) -> None:
    reference = layout.tag("a", layout.manifest(None, []))
    with pytest.raises(InvalidError, match=r"is not an image manifest: it has no config"):
        described(reference)
    empty = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    reference = layout.tag("a", layout.manifest(empty, []))
    with pytest.raises(
        InvalidError, match=r"is not an image: its config is application/vnd\.oci\.empty"
    ):
        described(reference)


def test_a_digest_is_no_path_out_of_the_layout(layout: Layout) -> None:
    reference = layout.tag("a", {"digest": "sha256:../../../etc/passwd", "size": 1})
    with pytest.raises(InvalidError, match=r"has the invalid digest 'sha256:.*passwd'"):
        described(reference)


def test_an_index_of_itself_comes_to_an_end(layout: Layout) -> None:
    entry = layout.image(one_layer())
    for _ in range(10):
        entry = layout.index(**{HOST.architecture: entry})
    with pytest.raises(InvalidError, match=r"is not an image manifest"):
        described(layout.tag("a", entry))


def test_what_is_no_layout_is_said_to_be_none(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(NotFoundError, match=r"there is no directory .*nowhere"):
        described(f"oci:{tmp_path}/nowhere:a")
    with pytest.raises(InvalidError, match=r"is not an OCI layout: it has no index.json"):
        described(f"oci:{tmp_path}:a")
    for text in ("", "[]", "{}", '{"manifests": 1}', '{"manifests": [1]}', "\xff", "[" * 100_000):
        (layout.path / "index.json").write_text(text, encoding="latin-1")
        with pytest.raises(InvalidError, match=r"index\.json of"):
            described(f"oci:{layout.path}:a")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, kind: str) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file"):
        described(f"{kind}:{tmp_path}/nowhere.tar")
    with pytest.raises(InvalidError, match=f"is not a file, so not a {kind}"):
        described(f"{kind}:{tmp_path}")
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar" * 1000)
    with pytest.raises(InvalidError, match=r"a\.tar is truncated, or not an archive"):
        described(f"{kind}:{path}")
    archive(path, other="")
    with pytest.raises(InvalidError, match=r"it has no (index|manifest).json"):
        described(f"{kind}:{path}")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_nobody_waits_at_a_fifo(tmp_path: Path, layout: Layout, kind: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidError, match=r"fifo is not a file"):
        described(f"{kind}:{tmp_path}/fifo")
    (layout.path / "index.json").unlink()
    os.mkfifo(layout.path / "index.json")
    with pytest.raises(InvalidError, match=r"it has no index\.json"):
        described(f"oci:{layout.path}:a")


def docker_archive(path: Path, *names: str, label: str = "") -> Path:
    settings = {"Labels": {"label": label}}
    config = json.dumps({"rootfs": {"diff_ids": ["sha256:" + "0" * 64]}, "config": settings})
    listed = [{"Config": "c", "RepoTags": [name], "Layers": ["l"]} for name in names]
    return archive(path, **{"manifest.json": json.dumps(listed), "c": config, "l": ""})


def test_an_image_of_an_archive_is_found_by_any_of_its_names(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "a.tar", "me/it:1", "docker.io/library/busybox:latest")
    for name in ("busybox", "busybox:latest", "me/it:1", "docker.io/me/it:1"):
        described(f"docker-archive:{path}:{name}")
    with pytest.raises(
        NotFoundError, match=r"has no image me/it; there is docker.io/.*, me/it:1$"
    ):
        described(f"docker-archive:{path}:me/it")
    with pytest.raises(NotFoundError, match=r"has several; name the image"):
        described(f"docker-archive:{path}")


def test_a_docker_archive_that_lacks_something_says_what(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    listed = json.dumps([{"Config": "c", "RepoTags": None, "Layers": ["l"]}])
    archive(path, **{"manifest.json": listed})
    with pytest.raises(NotFoundError, match=r"a\.tar lacks c"):
        described(f"docker-archive:{path}")
    archive(path, **{"manifest.json": listed, "c": "{}"})
    with pytest.raises(NotFoundError, match=r"a\.tar lacks l"):
        described(f"docker-archive:{path}")
    archive(path, **{"manifest.json": listed, "c": "{}", "l": ""})
    with pytest.raises(InvalidError, match=r"lists no layers"):
        described(f"docker-archive:{path}")
    wrong = json.dumps([{"Config": "0" * 64 + ".json", "Layers": []}])
    archive(path, **{"manifest.json": wrong, "0" * 64 + ".json": "{}"})
    with pytest.raises(InvalidError, match=r"is damaged: blob sha256:0000"):
        described(f"docker-archive:{path}")


def test_an_archive_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "a.tar", "it")
    whole = path.read_bytes()
    needed = whole.index(b"l" + bytes(99)) + 512  # what follows is padding
    for length in range(0, needed, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ShimError):
            described(f"docker-archive:{path}")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (read_index, read_manifest, read_archived):
        with suppress(InvalidError):
            read(data, "it")


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["manifests", "config", "layers", "digest", "size", "Config", "Layers"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(values)
def test_any_json_is_read_or_refused(value: Any) -> None:
    for read in (read_index, read_manifest, read_archived):
        with suppress(InvalidError):
            read(json.dumps(value).encode(), "it")


def test_layers_have_the_chain_id_of_the_specification() -> None:
    # Source: the OCI image specification, config.md ("Layer ChainID"), by sha256sum.
    a, b = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert chain_id([a]) == a
    assert chain_id([a, b]) != chain_id([b, a])
    assert chain_id([a, b]) == chain_id([chain_id([a]), b])
