"""What doctor thinks of versions, mounts, directories and configurations: no host is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shim import hostfile, names
from shim.linux.mountinfo import parse
from shim.version import VERSION
from shimctl.discover import Found
from shimctl.host.doctor import (
    Finding,
    Level,
    Report,
    configuration,
    machine,
    places,
    programs,
    servers,
    shims,
)

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


def finding(level: Level) -> Finding:
    return Finding("area", "subject", level, "text")


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ([], 0),
        ([Level.OK, Level.NOTE], 0),
        ([Level.ADVICE, Level.OK], 1),
        ([Level.BROKEN, Level.ADVICE], 2),
    ],
)
def test_the_most_serious_finding_decides_the_exit_code(levels: list[Level], code: int) -> None:
    assert Report(VERSION, tuple(map(finding, levels))).exit_code == code


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev", (1, 1, 5)),
        ("containerd github.com/containerd/containerd/v2 2.1.9+unknown", (2, 1, 9)),
        ("containerd containerd.io v1.7.24 88bf19b", (1, 7, 24)),
        ("Docker version 20.10.24+dfsg1, build 5d6db84", (20, 10, 24)),
        ("Version: 4.1.1\n", (4, 1, 1)),
        ("crun version 1.28\ncommit: 5e", (1, 28)),
        ("no number", None),
    ],
)
def test_the_version_of_each_program_is_found(text: str, version: tuple[int, ...] | None) -> None:
    assert programs.version_in(text) == version


def program(name: str) -> programs.Program:
    return next(one for one in programs.PROGRAMS if one.name == name)


def test_an_old_program_lacks_the_features_of_newer_ones() -> None:
    old = programs.judge(program("runc"), "/usr/bin/runc", "runc version 1.1.5", required=True)
    assert old.level is Level.NOTE
    assert "lacks pods in a user namespace" in old.text
    new = programs.judge(program("runc"), "/usr/bin/runc", "runc version 1.3.0", required=True)
    assert (new.level, new.remedy) == (Level.OK, "")


def test_only_a_missing_runtime_is_a_fault_among_missing_programs() -> None:
    levels = {
        one.name: programs.judge(one, "", "", required=one.name == "runc").level
        for one in programs.PROGRAMS
    }
    assert levels.pop("runc") is Level.BROKEN
    assert set(levels.values()) == {Level.NOTE}


def test_a_shim_of_another_version_on_path_is_advice() -> None:
    assert programs.judge_shim("/bin/s", f"s:\n  Version:  {VERSION}").level is Level.OK
    assert programs.judge_shim("/bin/s", "s:\n  Version:  0.0.1").level is Level.ADVICE
    assert programs.judge_shim("", "").level is Level.ADVICE


@pytest.mark.parametrize(
    ("release", "level"),
    [("4.19.0-24-amd64", Level.BROKEN), ("5.10.0", Level.NOTE), ("6.18.44-x", Level.OK)],
)
def test_an_old_kernel_is_a_fault(release: str, level: Level) -> None:
    assert machine.kernel(release).level is level


V1 = "".join(
    f"3{n} 2 0:3{n} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
    for n, name in enumerate(("cpu", "memory", "pids"))
)
V2 = "30 2 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mounts", "unified", "mode", "level"),
    [
        (V1, "", "version 1", Level.OK),
        (V2, "cpuset cpu io memory pids", "version 2", Level.OK),
        (V1 + V2.replace("cgroup rw", "cgroup/unified rw"), "", "hybrid", Level.OK),
        (V2, "cpu pids", "lacks memory", Level.ADVICE),
        ("", "", "no hierarchy", Level.BROKEN),
    ],
)
def test_the_mode_of_the_cgroups_is_named(
    mounts: str, unified: str, mode: str, level: Level
) -> None:
    found = machine.cgroups(parse(mounts.encode()), unified.split())
    assert mode in found.text
    assert found.level is level


def test_a_directory_that_others_may_write_to_is_a_fault(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    assert places.judge(str(place), "sockets").level is Level.OK
    place.chmod(0o777)
    found = places.judge(str(place), "sockets")
    assert found.level is Level.BROKEN
    assert "mode 0777" in found.text
    assert found.remedy.startswith(f"chmod go-w {place}")
    assert places.judge(str(tmp_path / "absent"), "sockets").level is Level.OK
    assert not (tmp_path / "absent").exists()


def levels_of(found: list[Finding]) -> list[Level]:
    return [one.level for one in found]


def everything(_: str) -> bool:
    return True


def nothing(_: str) -> bool:
    return False


@pytest.mark.parametrize("name", ["config-v2.toml", "config-v3.toml"])
def test_the_examples_for_containerd_are_fine(name: str) -> None:
    found = configuration.judge_containerd(
        name, (EXAMPLES / "containerd" / name).read_text(), everything
    )
    assert [(one.level, one.text) for one in found] == [(Level.OK, "runtime trio is this shim")]


CRI2 = 'plugins."io.containerd.grpc.v1.cri"'
CRI3 = 'plugins."io.containerd.cri.v1.runtime"'
RUNC2 = f'[{CRI2}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = 2\n[plugins", "is not TOML"),
        ("oom_score = 0\n[plugins.cri]\nx = 1\n", "has version 1"),
        (f"version = 2\n[{CRI3}.containerd]\n", "has no effect"),
        (
            f'version = 2\ndisabled_plugins = ["cri"]\n{RUNC2}'
            f'[{CRI2}.containerd.runtimes.trio]\nruntime_type = "io.containerd.trio.v2"\n',
            "disables the CRI plugin",
        ),
        (
            f"version = 2\n[{CRI2}.containerd.runtimes.trio]\n"
            'runtime_type = "io.containerd.trio.v2"\n',
            "no table of the default runtime runc",
        ),
        (
            f"version = 3\n[{CRI3}.containerd.runtimes.t]\n"
            'runtime_type = "io.containerd.runc.v2"\n'
            'runtime_path = "/opt/bin/containerd-shim-trio-v2"\n',
            "/opt/bin/containerd-shim-trio-v2, which does not exist",
        ),
        (
            f"version = 3\n[{CRI3}.containerd.runtimes.t]\n"
            'runtime_type = "io.containerd.trio.v2"\n'
            f'[{CRI3}.containerd.runtimes.t.options]\nConfigPath = "/etc/absent.toml"\n',
            "ConfigPath is /etc/absent.toml",
        ),
    ],
)
def test_a_mistake_in_the_configuration_of_containerd_is_found(text: str, says: str) -> None:
    found = configuration.judge_containerd("config.toml", text, nothing)
    (bad,) = [one for one in found if one.level in (Level.ADVICE, Level.BROKEN)]
    assert says in bad.text
    assert bad.remedy


def test_the_examples_for_docker_and_crio_are_fine() -> None:
    text = (EXAMPLES / "docker/daemon.json").read_text()
    assert set(levels_of(configuration.judge_docker("f", text, everything))) == {Level.OK}
    text = (EXAMPLES / "crio/10-trio.conf").read_text()
    assert set(levels_of(configuration.judge_crio("f", text, everything))) == {Level.OK}
    assert Level.BROKEN in levels_of(configuration.judge_crio("f", text, nothing))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"runtimes": {"trio": {"runtimeType": "io.containerd.trio.v2"}},}', "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"runtimes": {"trio": {"path": "/usr/local/bin/containerd-shim-trio-v2"}}}', "`path`"),
    ],
)
def test_a_mistake_in_the_configuration_of_docker_is_found(text: str, says: str) -> None:
    (bad, *_) = configuration.judge_docker("daemon.json", text, everything)
    assert bad.level is Level.BROKEN
    assert says in bad.text


def test_a_runtime_of_crio_with_another_type_is_found() -> None:
    text = (EXAMPLES / "crio/10-trio.conf").read_text().replace('"vm"', '"oci"')
    (bad, *_) = configuration.judge_crio("f", text, everything)
    assert "only as vm" in bad.text


def test_files_below_another_root_are_read_and_a_fifo_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "etc/containerd").mkdir()
    (tmp_path / "etc/docker/daemon.json").write_text("{")
    os.mkfifo(tmp_path / "etc/containerd/config.toml")
    found = configuration.check(str(tmp_path))
    assert [(one.subject, one.level) for one in found] == [
        ("/etc/containerd/config.toml", Level.BROKEN),
        ("/etc/docker/daemon.json", Level.BROKEN),
    ]


def test_shims_that_serve_more_than_one_pod_are_named_and_the_greatest_loss(
    tmp_path: Path,
) -> None:
    def found(id_: str, shim_pid: int, pod: str = "") -> Found:
        bundle = tmp_path / id_
        bundle.mkdir()
        annotations = {"io.kubernetes.cri.sandbox-id": pod} if pod else {}
        (bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
        return Found("ns", id_, "unix:///s", str(bundle), shim_pid=shim_pid)

    pods = [found("a", 7, "a"), found("b", 7, "a"), found("c", 8)]
    assert shims.judge_shared(pods) == []
    (one,) = shims.judge_shared([*pods, found("d", 8), found("e", 9), found("f", 8, "f")])
    assert one.level is Level.NOTE
    assert "1 serve 3 containers" in one.text
    assert "without `survive = true` the death of pid 8 ends 3 of them" in one.text
    (bundle,) = tmp_path.glob("d")
    (bundle / "config.json").write_text("{")
    assert len(shims.judge_shared([Found("ns", "d", "x", str(bundle), shim_pid=1)] * 2)) == 0


def test_a_shim_that_a_fork_server_gave_up_is_found_for_a_day(tmp_path: Path) -> None:
    record = {"namespace": "ns", "id": "c1", "reason": "it died 3 times in 60 seconds"}
    day = 86_400
    lines = [
        json.dumps(record | {"time": 1000, "id": "old"}),
        "not a record",
        json.dumps({"time": 5 * day}),
        json.dumps(record | {"time": 5 * day - 120}),
    ]
    path = tmp_path / names.GIVEN_UP
    path.write_text("\n".join([*lines, ""]))
    [found] = servers.given_up(str(tmp_path), 5 * day)
    assert (found.subject, found.level) == ("ns/c1", Level.ADVICE)
    assert found.text == "its shim was given up 2 minutes ago: it died 3 times in 60 seconds"
    assert found.remedy.endswith(f"remove {path}")
    assert servers.given_up(str(tmp_path), 8 * day) == []
    assert servers.given_up(str(tmp_path / "none"), 5 * day) == []


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("", "output without a reader: block; each pod has a shim of its own; "),
        ('share = "namespace"', "block; the containers of a namespace share a shim; "),
        ("share = 30", "block; a shim serves at most 30 containers; "),
        (
            'output = {policy = "spool", limit = 4096, directory = "/d"}',
            "spool, 4096 bytes a stream in /d; each pod has a shim of its own; ",
        ),
    ],
)
def test_the_settings_of_the_host_are_shown_in_one_line(text: str, described: str) -> None:
    for survive, ending in (("true", "a killed shim is replaced"), ("false", "not replaced")):
        settings = hostfile.parse(f"survive = {survive}\n{text}".encode())
        shown = configuration.describe(settings)
        assert described in shown
        assert shown.endswith(ending)


@pytest.mark.parametrize("setting", ["off", "0", "no"])
async def test_a_fork_server_that_is_disabled_is_noted(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER", setting)
    (found,) = await servers.check()
    assert found.level is Level.NOTE
    assert found.text.startswith(f"TRIO_SHIM_FORKSERVER={setting}: ")


async def test_the_fork_servers_of_another_user_are_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def list_servers() -> list[object]:
        raise PermissionError(13, "Permission denied", "/run/f")

    monkeypatch.delenv("TRIO_SHIM_FORKSERVER", raising=False)
    monkeypatch.setattr("shimctl.host.forkserver.list_servers", list_servers)
    (found,) = await servers.check()
    assert (found.level, found.text) == (Level.NOTE, "/run/f: permission denied")
    assert "root" in found.remedy


def test_an_options_file_that_is_no_toml_stops_no_manager(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/trio-shim-options.toml").write_text("= 1")
    (found,) = configuration.check(str(tmp_path))
    assert found.level is Level.BROKEN
    assert found.remedy == "correct that line; every Create fails whose runtime names it"


def test_shims_without_a_fork_server_are_named_with_a_remedy() -> None:
    assert shims.judge_unkept({}) == []
    waiting = [Found("ns", f"c{pid}", "unix://x", "", shim_pid=pid) for pid in (12, 11)]
    (one,) = shims.judge_unkept({names.NO_KEEPER: waiting})
    assert one.level is Level.ADVICE
    assert one.text.endswith("ns/c11, ns/c12")
    assert one.remedy.startswith("start a container")
    assert "--like 11" in one.remedy
    (one,) = shims.judge_unkept({"version 2 cannot continue it": waiting})
    assert one.text.endswith(
        "ns/c11, ns/c12; a fork server refused them: version 2 cannot continue it"
    )
    assert one.remedy.startswith("install a version that can read their states")
