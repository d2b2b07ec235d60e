"""shimctl runs every config.json that the runtime runs, with any bytes, numbers and depths."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.errors import InvalidError
from shimctl.launching import find_runtime, open_log
from shimctl.options import json_value
from shimctl.standalone import workdir
from shimctl.standalone.run import _follow
from tests.shimctl.host import RUNTIME, Host, _needs, host

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
__all__ = ["_needs", "host"]

NEST = b"[" * 9000 + b"]" * 9000
ID = f"odd{secrets.token_hex(3)}"  # the name of a cgroup, which workers share


def make_odd(path: Path) -> None:
    config = json.loads(path.read_bytes())
    config["process"]["env"].append("ODD=VALUE")
    config["annotations"] = {"VALUE": "VALUE"}
    text = json.dumps(config | {"x": "NEST", "y": "LONG"}).encode()
    text = text.replace(b"VALUE", b"caf\xe9").replace(b'"NEST"', NEST)
    path.write_bytes(text.replace(b'"LONG"', b"9" * 5000))


def test_a_bundle_that_the_runtime_takes_is_run(host: Host) -> None:
    bundle = host.bundle("sh", "-c", 'printf "%s" "$ODD"')
    make_odd(bundle / "config.json")
    done = host.run(bundle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\ufffd", "")


def test_a_process_in_it_is_run_too(host: Host) -> None:
    bundle = host.bundle("sleep", "1000")
    make_odd(bundle / "config.json")
    assert host.run("-d", "--id", ID, bundle).returncode == 0
    done = host.shimctl("exec", ID, "sh", "-c", 'printf "%s" "$ODD"')
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\ufffd", "")
    assert host.shimctl("delete", "-f", ID).returncode == 0


def test_the_copy_of_a_config_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIMCTL_STATE", str(tmp_path / "state"))
    text = b'{"a\xff": {"b": [%s, %s, 1e999, "\xc3\xbc\xed\xa0\x80"]}, "root": {"path": "/r"}}'
    text %= (NEST, b"9" * 5000)
    (tmp_path / "config.json").write_bytes(text)
    config = workdir.absolute_paths(workdir.read_config(tmp_path), tmp_path)
    work = workdir.make(config | {"a\udcff": config["a\udcff"]}, "ns", "c")
    assert (work / "config.json").read_bytes() == text[:-1] + b', "mounts": []}'
    assert json_value("Process", config["a\udcff"]).value in text


@pytest.mark.parametrize("name", [b"caf\xe9", b"x\0"])
def test_a_root_that_no_config_can_name_is_refused(tmp_path: Path, name: bytes) -> None:
    bundle, root = tmp_path, "rootfs"
    if b"\0" in name:
        root = os.fsdecode(name)
    else:
        bundle = tmp_path / os.fsdecode(name)
    with pytest.raises(InvalidError, match="no path that is UTF-8"):
        workdir.absolute_paths({"root": {"path": root}}, bundle)


HOSTILE = "\x1b]0;x\x07\x9b2J\u202eb\u2028\udce9"


def test_no_name_in_a_container_is_a_command_to_the_terminal(host: Host) -> None:
    bundle = host.bundle("sh", "-c", "sleep 1000; true", HOSTILE)
    config = json.loads((bundle / "config.json").read_bytes())
    config["annotations"] = {"a": HOSTILE, HOSTILE: "b"}
    config["process"]["env"].append(f"A={HOSTILE}")
    config["mounts"].append({"destination": f"/{HOSTILE}", "type": "tmpfs", "source": "tmpfs"})
    text = json.dumps(config, ensure_ascii=False)
    (bundle / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert host.run("-d", "--id", ID, bundle).returncode == 0
    for form in ("table", "wide", "json", "yaml"):
        for argv in (["top", "--iterations", "1", ID], ["inspect", ID], ["pids", ID]):
            done = host.shimctl(*argv, "-o", form)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.replace("\n", "").isprintable(), (argv, form)
    assert "202e" in host.shimctl("top", "--iterations", "1", ID, "-o", "json").stdout
    assert host.shimctl("delete", "-f", ID).returncode == 0


async def test_no_line_of_a_shims_log_is_one_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path) as log:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, log, True)
            (tmp_path / "log").write_text("a\x1b[2J\x9b\nb\u202e\nc", encoding="utf-8")
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.wait_writable(log.fd)  # by then trio has seen that it is readable
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert capsys.readouterr().err == "a\\x1b[2J\\u009b\nb\\u202e\nc"


def test_a_runtime_may_have_any_name(host: Host) -> None:
    place = host.root / os.fsdecode(b"caf\xe9")
    place.mkdir()
    shim = place / "containerd-shim-odd-v1"
    shim.symlink_to(find_runtime(RUNTIME))
    host.ids.append(ID)
    argv = host.run_command("--id", ID, host.bundle("true"))[3:]
    argv[argv.index(RUNTIME)] = str(shim)
    done = host.shimctl(*argv)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("argv", [["--binary", "caf\udce9"], ["--binary", "./caf\udce9"]])
def test_what_cannot_be_sent_to_a_shim_is_an_error_of_one_line(
    host: Host, argv: list[str]
) -> None:
    done = host.run(*argv, host.bundle("true"))
    assert done.returncode == 125
    assert done.stderr.startswith("shimctl: ")
    assert done.stderr.count("\n") == 1
