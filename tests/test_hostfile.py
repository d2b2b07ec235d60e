"""The host's file, and the changes by a container's annotations."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import hostfile
from shim.errors import InvalidError
from shim.hostfile import OWN, UNLIMITED, HostFile, Output, read_output, share_of

WHOLE = b"""
[output]
policy = "spool"
limit = "16MiB"
max-limit = "2GiB"
directory = "/srv/spool"
"""


def parse(data: bytes, path: str = "/etc/trio-shim.toml") -> Output:
    return hostfile.parse(data, path).output


def test_a_whole_file() -> None:
    assert parse(WHOLE) == Output("spool", 16 << 20, 2 << 30, "/srv/spool")


def test_the_documented_defaults_are_the_defaults() -> None:
    text = (Path(__file__).parents[1] / "docs/output.md").read_text()
    example = text.partition("```toml\n[output]\n")[2].partition("```")[0]
    assert example.count(" = ") == 4
    assert parse(f"[output]\n{example}".encode()) == Output()


@pytest.mark.parametrize("text", [b"", b"[output]\n", b"# nothing yet\n"])
def test_what_is_not_said_is_as_without_a_file(text: bytes) -> None:
    assert parse(text) == Output("block", 64 << 20, 1 << 30, "/var/lib/trio-shim")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("4KiB", 4096),
        ("64 KiB", 64 << 10),
        (" 7MiB ", 7 << 20),
        ("2GiB", 2 << 30),
        ("1024GiB", 1 << 40),
    ],
)
def test_a_size_is_a_number_of_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert parse(f'[output]\nlimit = "{text}"'.encode()).limit == size
    assert Output(max_limit=size).annotated({"io.trio-shim.output-limit": text}).limit == size


def test_a_size_in_the_file_may_be_a_plain_number() -> None:
    assert parse(b"[output]\nlimit = 65536").limit == 65536


@pytest.mark.parametrize(
    "text", ["", "-1", "0", "4095", "1.5GiB", "12MB", "64mib", "MiB", "1TiB", "1025GiB", "٣MiB"]
)
def test_a_size_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidError, match=r"/some/file: output\.limit must be a size"):
        parse(f'[output]\nlimit = "{text}"'.encode(), "/some/file")
    with pytest.raises(InvalidError, match=r"annotation io\.trio-shim\.output-limit must be"):
        Output().annotated({"io.trio-shim.output-limit": text})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[output]\npolicy = 'spol'", "output.policy must be block, spool or drop, not 'spol'"),
        ("[output]\npolicy = 3", "output.policy must be block, spool or drop, not 3"),
        ("[output]\npolicy = ['drop']", "output.policy must be block, spool or drop"),
        ("[output]\nmax-limit = 0", "output.max-limit must be a size"),
        ("[output]\nlimit = true", "output.limit must be a size"),
        ("[output]\nlimit = 1.5e6", "output.limit must be a size"),
        ("[output]\nlimit = -65536", "output.limit must be a size"),
        ("[output]\ndirectory = 'spool'", "output.directory must be an absolute path"),
        ("[output]\ndirectory = ''", "output.directory must be an absolute path"),
        ("[output]\ndirectory = 7", "output.directory must be an absolute path"),
        ('[output]\ndirectory = "/a\\u0000"', "output.directory must be an absolute path"),
        (
            "[output]\npolcy = 'drop'",
            "'output.polcy' is unknown; known keys: output.policy, ",
        ),
        ('[output]\n"a\\nb" = 1', "'output.a\\nb' is unknown"),
        ("[outputs]\npolicy = 'drop'", "'outputs' is unknown; known keys: output"),
        ("policy = 'drop'", "'policy' is unknown"),
        ("output = 'drop'", "output must be a table, [output]"),
        ("[[output]]\npolicy = 'drop'", "output must be a table, [output]"),
        ("[output\n", "is not TOML: "),
        ("[output]\n[output]", "is not TOML: "),
        ("[output]\npolicy = 'drop'\npolicy = 'drop'", "is not TOML: "),
    ],
)
def test_a_mistake_is_one_line_with_the_file_and_the_key(text: str, said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(text.encode(), "/some/file")
    line = str(caught.value)
    assert line.startswith("/some/file")
    assert said in line
    assert "\n" not in line


def test_what_is_no_text_is_not_toml() -> None:
    with pytest.raises(InvalidError, match="is not TOML"):
        parse(b"\xff\xfe[output]")


@given(st.binary(max_size=200))
def test_no_file_crashes_the_parser(data: bytes) -> None:
    with contextlib.suppress(InvalidError):
        parse(data)


def test_without_a_file_the_defaults_hold() -> None:
    if not os.path.exists("/etc/trio-shim.toml"):  # noqa: PTH110 - one look
        assert read_output({}) == Output()
        assert read_output({"TRIO_SHIM_CONFIG": ""}) == Output()


def test_the_environment_may_name_another_file(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(WHOLE)
    assert read_output({"TRIO_SHIM_CONFIG": str(path)}).policy == "spool"


def test_a_file_that_is_named_and_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"TRIO_SHIM_CONFIG names .*/none, which does not"):
        read_output({"TRIO_SHIM_CONFIG": f"{tmp_path}/none"})


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"cannot read .*: Is a directory"):
        read_output({"TRIO_SHIM_CONFIG": str(tmp_path)})


def test_what_has_no_end_is_no_file_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    for path in (tmp_path / "fifo", "/dev/zero", tmp_path / "huge"):
        with pytest.raises(InvalidError, match="is not a settings file"):
            read_output({"TRIO_SHIM_CONFIG": str(path)})


def test_dev_null_is_a_file_without_settings() -> None:
    assert read_output({"TRIO_SHIM_CONFIG": "/dev/null"}) == Output()


def test_annotations_win_over_the_file() -> None:
    host = Output("spool", 1 << 20, directory="/srv")
    assert host.annotated({}) is host
    dropping = host.annotated({"io.trio-shim.output": "drop"})
    assert dropping == Output("drop", 1 << 20, directory="/srv")
    smaller = host.annotated({"io.trio-shim.output-limit": "8KiB"})
    assert smaller == Output("spool", 8192, directory="/srv")


def test_an_annotation_may_not_ask_for_more_disk_than_the_host_allows() -> None:
    asked = {"io.trio-shim.output-limit": "4GiB"}
    with pytest.raises(InvalidError, match=r"may be 1073741824 bytes .* as output\.max-limit"):
        Output().annotated(asked)
    assert parse(b'[output]\nmax-limit = "4GiB"').annotated(asked).limit == 4 << 30
    assert Output(limit=4 << 30).annotated(asked).limit == 4 << 30  # the host's own is allowed


@pytest.mark.parametrize("value", ["", "Spool", "spool ", "none", "é" * 1000])
def test_a_bad_annotation_is_named(value: str) -> None:
    with pytest.raises(InvalidError, match=r"annotation io\.trio-shim\.output must be") as caught:
        Output().annotated({"io.trio-shim.output": value})
    assert len(str(caught.value)) < 250


def test_annotations_of_others_are_none_of_ours() -> None:
    assert Output().annotated({"io.trio-shim.outputs": "x", "policy": "drop"}) == Output()


@pytest.mark.parametrize(
    ("text", "most"),
    [('"pod"', OWN), ('"namespace"', UNLIMITED), ("1", 1), ("20", 20), ('"10000"', 10_000)],
)
def test_share_is_a_word_or_a_number_of_containers(text: str, most: int) -> None:
    assert hostfile.parse(f"share = {text}".encode()) == HostFile(Output(), most)
    assert share_of(text.strip('"'), "annotation") == most


def test_without_share_each_container_or_pod_has_its_own_daemon() -> None:
    assert hostfile.parse(WHOLE).share == hostfile.parse(b"").share == OWN


@pytest.mark.parametrize(
    "text", ["0", "-1", "10001", "true", "1.5", '""', '"pods"', '"0"', '"٣"', "[]", '"1e3"']
)
def test_a_share_that_is_neither_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidError, match="/some/file: share must be pod, namespace or a num"):
        hostfile.parse(f"share = {text}".encode(), "/some/file")
