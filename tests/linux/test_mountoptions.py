from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError, UnsupportedError
from shim.linux import mountoptions
from shim.linux.idmap import IdMap
from shim.linux.mountoptions import Options, parse_options

IDS = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"]


def test_options_are_flags_and_data() -> None:
    options = parse_options(["rbind", "ro", "nosuid", "rslave", "size=4k", "rw", "index=off"])
    assert options.flags == mountoptions.MS_BIND | mountoptions.MS_REC | mountoptions.MS_NOSUID
    assert options.propagation == mountoptions.MS_SLAVE | mountoptions.MS_REC
    assert options.data == ["size=4k", "index=off"]


def test_defaults_are_no_data() -> None:
    assert parse_options(["defaults", ""]) == Options()


@pytest.mark.parametrize("option", ["X-containerd.mkdir.path=/x", "X-containerd.dmverity=/m"])
def test_options_of_containerds_mount_manager_are_refused_in_its_words(option: str) -> None:
    text = f'internal mount option "{option}" was not consumed by the mount manager'
    with pytest.raises(UnsupportedError, match=text):
        parse_options(["ro", option])


def test_a_loop_device_is_no_option_of_the_file_system() -> None:
    options = parse_options(["loop", "direct-io", "ro", "errors=panic"])
    assert options == Options(mountoptions.MS_RDONLY, 0, ["errors=panic"], True, True)


def test_direct_io_without_a_loop_device_is_the_file_systems() -> None:
    assert parse_options(["direct-io", "loop=x"]) == Options(data=["direct-io", "loop=x"])


def test_a_mapping_has_any_number_of_extents() -> None:
    options = parse_options(["uidmap=0:666:1000,1000:6666:64536", "gidmap=0:7:1"])
    assert options.idmap == IdMap("0 666 1000\n1000 6666 64536\n", "0 7 1\n")
    assert not options.data


@pytest.mark.parametrize("alone", IDS)
def test_users_are_not_mapped_without_groups(alone: str) -> None:
    with pytest.raises(InvalidError, match="need each other"):
        parse_options([alone])


@pytest.mark.parametrize(
    "text",
    [
        *("0:1", "0:1:2:3", "0:1:x", "-1:1:1", "0:1:0", "0:1:1,", ",0:1:1", "0:1: 1", "0:1:1\n"),
        *("4294967295:0:1", "0:4294967290:6", "0:0:4294967296", "\u0660:1:1"),
    ],
)
def test_a_malformed_mapping_is_named(text: str) -> None:
    with pytest.raises(InvalidError, match=r"uidmap=.*CONTAINER-ID:HOST-ID:SIZE"):
        parse_options([f"uidmap={text}", IDS[1]])


@given(st.text())
def test_a_mapping_of_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        options = parse_options([f"uidmap={text}", IDS[1]])
    except InvalidError:
        return
    assert options.idmap is not None
    assert options.idmap.users.replace("\n", ",").replace(" ", ":").rstrip(",") == ",".join(
        ":".join(str(int(number)) for number in extent.split(":")) for extent in text.split(",")
    )
