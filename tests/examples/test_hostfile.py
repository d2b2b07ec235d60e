"""examples/trio-shim.toml and options.toml, read by the shim itself."""

from __future__ import annotations

from dataclasses import fields

from shim.container.options import Options
from shim.hostfile import HostFile, Output, parse
from shim.names import HOST_FILE
from tests.examples.files import OPTIONS_FILE, text_of, with_choices


def test_the_hosts_file_is_what_the_shim_reads() -> None:
    told = parse(text_of("trio-shim.toml").encode())
    assert told == HostFile(Output("spool", 64 << 20, 1 << 30, "/var/lib/trio-shim"))
    assert f"Install it as {HOST_FILE}." in text_of("trio-shim.toml")


def test_each_setting_of_the_host_is_in_it() -> None:
    chosen = parse(with_choices("trio-shim.toml").encode())
    assert all(getattr(chosen, one.name) != one.default for one in fields(HostFile))


def test_each_policy_it_explains_is_one() -> None:
    text = text_of("trio-shim.toml")
    for policy in ("block", "spool", "drop"):
        assert f"#   {policy}   " in text
        changed = text.replace('policy = "spool"', f'policy = "{policy}"')
        assert parse(changed.encode()).output.policy == policy
    assert "block   the container blocks when its pipe is full (the default)" in text
    assert Output().policy == "block"


def test_the_options_are_what_the_shim_takes_from_a_manager() -> None:
    assert Options.from_toml(text_of("options.toml")) == Options(systemd_cgroup=True)
    assert Options.from_toml(with_choices("options.toml")) == Options(
        systemd_cgroup=True, binary_name="/usr/bin/crun", root="/run/containerd/crun"
    )


def test_whoever_names_the_options_names_the_same_file() -> None:
    assert f"Install it as {OPTIONS_FILE}." in text_of("options.toml")
    for name in ("containerd/config-v2.toml", "crio/10-trio.conf", "docker/daemon.json"):
        assert f'"{OPTIONS_FILE}"' in text_of(name), name
