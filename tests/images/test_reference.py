from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError
from shimctl.images import is_reference, platforms
from shimctl.images.platforms import Platform
from shimctl.images.reference import Reference, full_name, parse


@pytest.mark.parametrize(
    ("text", "kind", "path", "name"),
    [
        ("oci:/srv/images:redis", "oci", "/srv/images", "redis"),
        ("oci:images", "oci", "images", ""),
        ("oci-archive:a.tar", "oci-archive", "a.tar", ""),
        ("docker-archive:a.tar:me/it:1.2", "docker-archive", "a.tar", "me/it:1.2"),
        (
            "docker-archive:a.tar:h.example:5000/it:1",
            "docker-archive",
            "a.tar",
            "h.example:5000/it:1",
        ),
    ],
)
def test_a_reference_has_a_kind_a_path_and_a_name(
    text: str, kind: str, path: str, name: str
) -> None:
    assert is_reference(text)
    assert parse(text) == Reference(kind, Path(path), name)
    assert str(parse(text)) == text


@pytest.mark.parametrize("text", ["./bundle", "/run/oci", "oci", "docker://busybox", "", "a:b"])
def test_a_path_is_no_reference(text: str) -> None:
    assert not is_reference(text)


@pytest.mark.parametrize(
    "text", ["oci:", "oci::tag", "oci:layout:", "oci-archive:", "docker:x", "x"]
)
def test_half_a_reference_is_refused_with_a_whole_one(text: str) -> None:
    with pytest.raises(InvalidError, match=r"is not an image; (use|run) \S+"):
        parse(text)


@given(st.text())
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    for kind in ("oci", "oci-archive", "docker-archive"):
        try:
            reference = parse(f"{kind}:{text}")
        except InvalidError:
            continue
        assert parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("me/it", "docker.io/me/it:latest"),
        ("localhost/it", "localhost/it:latest"),
        ("h.example:5000/it", "h.example:5000/it:latest"),
        ("docker.io/library/busybox:latest", "docker.io/library/busybox:latest"),
    ],
)
def test_docker_names_mean_the_same_short_and_long(short: str, full: str) -> None:
    assert full_name(short) == full


@pytest.mark.parametrize(
    ("wanted", "image", "runs"),
    [
        ("linux/amd64", Platform("linux", "amd64"), True),
        ("amd64", Platform("linux", "amd64"), True),
        ("linux/amd64", Platform("", ""), True),
        ("linux/amd64", Platform("windows", "amd64"), False),
        ("linux/amd64", Platform("linux", "arm64"), False),
        ("linux/arm64", Platform("linux", "arm64", "v8"), True),
        ("linux/arm64/v8", Platform("linux", "arm64"), True),
        ("linux/arm/v7", Platform("linux", "arm", "v6"), False),
    ],
)
def test_an_image_runs_on_its_platform(wanted: str, image: Platform, runs: bool) -> None:
    assert platforms.parse(wanted).runs(image) is runs


@pytest.mark.parametrize("text", ["linux/", "/", "a/b/c/d", "linux/amd 64", "../x"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="is not a platform; use linux/amd64"):
        platforms.parse(text)


def test_the_machine_has_gos_name() -> None:
    assert str(platforms.of_machine("x86_64")) == "linux/amd64"
    assert str(platforms.of_machine("armv7l")) == "linux/arm/v7"
    assert str(platforms.of_machine("riscv64")) == "linux/riscv64"
