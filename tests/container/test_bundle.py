"""The files that a shim reads from a bundle, and the invalid ones that it refuses."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.container.bundle import Bundle, Config, checked_id
from shim.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path


def config(**members: Any) -> Config:
    return Config.parse(json.dumps(members))


def test_an_empty_config_has_the_defaults() -> None:
    parsed = config()
    assert (parsed.terminal, parsed.root, parsed.group) == (False, "rootfs", "")
    assert not parsed.own_pid_namespace


@pytest.mark.parametrize(
    ("namespaces", "own"),
    [
        ([{"type": "pid"}], True),
        ([{"type": "pid", "path": ""}], True),
        ([{"type": "pid", "path": "/proc/1/ns/pid"}], False),
        ([{"type": "mount"}], False),
        ([], False),
    ],
)
def test_a_pid_namespace_is_the_containers_own_only_without_a_path(
    namespaces: list[dict[str, str]],
    own: bool,
) -> None:
    assert config(linux={"namespaces": namespaces}).own_pid_namespace is own


def test_the_group_is_named_by_the_first_annotation_that_is_there() -> None:
    names = [
        "io.containerd.runc.v2.group",
        "io.kubernetes.cri.sandbox-id",
        "io.kubernetes.cri-o.SandboxID",
    ]
    annotations = {name: name for name in names}
    for name in names:
        assert config(annotations=annotations).group == name
        del annotations[name]
    assert config(annotations=annotations).group == ""


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["process", "linux", "namespaces", "root", "annotations"]), x
            )
        ),
    )
)
def test_no_json_crashes_the_parser(value: Any) -> None:
    with contextlib.suppress(InvalidError):
        Config.parse(json.dumps(value))


def test_json_too_deep_to_be_read_is_invalid() -> None:
    with pytest.raises(InvalidError, match="not JSON"):
        Config.parse("[" * 100_000)


def test_what_the_runtime_reads_is_read_as_the_runtime_has_it() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    parsed = Config.parse(
        b'{"x": [%s, %s], "root": {"path": "/caf\xe9"}, "process": {"terminal": true},'
        b' "annotations": {"a\xff": "\xe2\x82", "\\ud800": "\xf0\x9f\x92\x80"}}'
        % (deep, b"9" * 5000)
    )
    assert (parsed.terminal, parsed.root) == (True, "/caf\ufffd")
    assert parsed.annotations == {"a\ufffd": "\ufffd\ufffd", "\ufffd": "\U0001f480"}


@pytest.mark.parametrize("text", ["a", "c1", "a.b_c-d", "x" * 76])
def test_ids_containerd_accepts_are_accepted(text: str) -> None:
    assert checked_id(text) == text


@pytest.mark.parametrize("text", ["", "-a", "a-", "a..b", "a/b", "a b", "ä", "x" * 77, "a\n"])
def test_ids_that_are_no_file_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        checked_id(text)


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        Bundle.open(str(tmp_path / "nowhere"))


def test_a_pid_file_that_is_missing_or_half_written_is_no_pid(tmp_path: Path) -> None:
    bundle = Bundle.open(str(tmp_path))
    assert bundle.read_pid() == 0
    (tmp_path / "init.pid").write_text("")
    assert bundle.read_pid() == 0
    (tmp_path / "init.pid").write_text("123\n")
    assert bundle.read_pid() == 123


def test_the_files_of_an_exec_are_its_own_and_go_with_it(tmp_path: Path) -> None:
    bundle = Bundle.open(str(tmp_path))
    for name in ("e1.pid", ".e1.pid", "e1.log.json"):
        (tmp_path / name).touch()
    bundle.write_exec_spec("e1", {})
    assert (tmp_path / "e1.process.json").exists()
    (tmp_path / "init.pid").touch()
    bundle.remove_exec_files("e1")
    bundle.remove_exec_files("e1")
    assert [p.name for p in tmp_path.iterdir()] == ["init.pid"]
