"""The managers' own programs read what `shimctl install --for` writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import InvalidError
from shimctl.host import managerfiles, setup
from shimctl.host.doctor.programs import version_in
from shimctl.host.setup import Change, Plan, execute
from shimctl.host.setup.containerd import install
from shimctl.host.setup.plan import Host
from tests.e2e.managers import MANAGERS, Manager
from tests.shimctl.setup.test_plans import COMMENTED, IMPORTING, made, plan

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
CONTAINERDS = [manager for manager in MANAGERS if not manager.modern]
HANDLERS = {"runc", "trio"}


def use(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    if not manager.there:
        pytest.skip(f"tests/managers/fetch.sh has not fetched {manager.directory}")
    directory = os.path.dirname(manager.tool("containerd"))  # noqa: PTH120
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def runtimes(manager: Manager, file: Path) -> dict[str, object]:
    command = [manager.tool("containerd"), "--config", str(file), "config", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return managerfiles.cri_runtimes(tomllib.loads(done.stdout))


@pytest.mark.parametrize("manager", CONTAINERDS, ids=str)
@pytest.mark.parametrize("present", [None, COMMENTED, "version = 2\n"])
def test_each_containerd_reads_its_file_and_keeps_its_settings(
    manager: Manager, present: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(manager, monkeypatch)
    files = {} if present is None else {managerfiles.CONTAINERD: present}
    text = {**files}
    done = install(Host(text.get, versions={"containerd": manager.version}))
    assert trio.run(setup.check, "containerd", done) == ""
    file = tmp_path / "config.toml"
    file.write_text(done.changes[0].after or "")
    assert runtimes(manager, file).keys() == HANDLERS
    if present == COMMENTED:
        command = [manager.tool("containerd"), "--config", str(file), "config", "dump"]
        assert "example.test/pause:3.9" in subprocess.check_output(command, text=True)


@pytest.mark.parametrize("manager", [m for m in CONTAINERDS if m.version >= (2,)], ids=str)
def test_containerd_2_merges_the_drop_in_with_the_file_that_imports_it(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(manager, monkeypatch)
    plugin = managerfiles.CRI_PLUGINS[3]
    own = (
        f'[plugins."{plugin}".containerd.runtimes.crun]\nruntime_type = "io.containerd.runc.v2"\n'
    )
    root = made(tmp_path, {managerfiles.CONTAINERD: IMPORTING + own})
    execute(plan("containerd", root).changes, root)
    file = tmp_path / "etc/containerd/config.toml"
    file.write_text(file.read_text().replace("/etc/", f"{tmp_path}/etc/"))
    assert runtimes(manager, file).keys() == HANDLERS | {"crun"}


@pytest.mark.parametrize("manager", CONTAINERDS, ids=str)
def test_a_result_that_containerd_rejects_is_not_written(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(manager, monkeypatch)
    wrong = Plan((Change(managerfiles.CONTAINERD, None, "version = 2\nroot = 7\n"),))
    with pytest.raises(InvalidError, match="containerd rejects the result"):
        trio.run(setup.check, "containerd", wrong)


def test_dockerd_validates_the_merged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = MANAGERS[-1].tool("containerd")
    directory = os.path.join(os.path.dirname(newest), "../sbin")  # noqa: PTH118, PTH120
    dockerd = shutil.which("dockerd", path=directory)
    if not dockerd:
        pytest.skip("tests/managers/fetch.sh has not fetched dockerd")
    assert (version_in(subprocess.check_output([dockerd, "--version"], text=True)) or ()) >= (23,)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    root = made(
        tmp_path,
        {managerfiles.DOCKER: '{\n    "userland-proxy": false,\n    "labels": ["a=b"]\n}\n'},
    )
    done = plan("docker", root, systemd=True)
    assert trio.run(setup.check, "docker", done) == ""
    wrong = Change(managerfiles.DOCKER, None, '{"userland-proxy": false, "x": 1}')
    with pytest.raises(InvalidError, match="dockerd rejects the result"):
        trio.run(setup.check, "docker", Plan((wrong,)))
