"""The change of a manager's configuration, and its exact undoing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError, ShimError, WrongStateError
from shimctl.host import managerfiles, setup
from shimctl.host.setup import MANAGERS, Change, Plan, execute
from shimctl.host.setup.change import add_block, remove_block
from shimctl.host.setup.jsonedit import add_member, remove_member

V2 = managerfiles.CRI_PLUGINS[2]
V3 = managerfiles.CRI_PLUGINS[3]


def made(root: Path, files: dict[str, str]) -> str:
    """Write files below ``root``; the shim is installed there."""
    for name, text in {"/usr/local/bin/containerd-shim-trio-v2": "", **files}.items():
        path = Path(f"{root}{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return str(root)


def content(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def plan(manager: str, root: str, *, undo: bool = False, systemd: bool | None = None) -> Plan:
    async def main() -> Plan:
        return await setup.make_plan(manager, undo=undo, root=root, systemd_cgroups=systemd)

    return trio.run(main)


COMMENTED = f"""# my settings
version = 2
[{"plugins"}."{V2}"]
  sandbox_image = "example.test/pause:3.9"  # pinned
  [plugins."{V2}".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."{V2}".containerd.runtimes.runc.options]
      SystemdCgroup = true"""
IMPORTING = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
TEMPLATE = '{{ template "base" . }}\n\n[plugins.x]\nvalue = {{ .SystemdCgroup }}\n'
K3S = managerfiles.K3S
CASES: list[tuple[str, dict[str, str]]] = [
    ("containerd", {}),
    ("containerd", {managerfiles.CONTAINERD: ""}),
    ("containerd", {managerfiles.CONTAINERD: COMMENTED}),
    ("containerd", {managerfiles.CONTAINERD: COMMENTED + "\n\n\n"}),
    ("containerd", {managerfiles.CONTAINERD: IMPORTING}),
    ("containerd", {managerfiles.CONTAINERD: "# all comments\n"}),
    ("docker", {}),
    ("docker", {managerfiles.DOCKER: "{}"}),
    ("docker", {managerfiles.DOCKER: "{ \n }\n"}),
    ("docker", {managerfiles.DOCKER: '{"debug":true,\t"hosts": []}'}),
    ("docker", {managerfiles.DOCKER: '{\n    "runtimes": {"x": {"path": "/x"}},\n "a": 1\n}'}),
    (
        "docker",
        {managerfiles.DOCKER: '{"runtimes": {}, "exec-opts": ["native.cgroupdriver=systemd"]}'},
    ),
    ("crio", {}),
    ("crio", {managerfiles.CRIO: '[crio.runtime]\ncgroup_manager = "cgroupfs"\n'}),
    ("crio", {managerfiles.OPTIONS: "SystemdCgroup = true\n"}),
    ("k3s", {f"{K3S}/config.toml": "version = 2\n"}),
    ("k3s", {f"{K3S}/config.toml": "version = 3\n"}),
    ("k3s", {f"{K3S}/config.toml": "version = 3\n", f"{K3S}/config-v3.toml.tmpl": TEMPLATE}),
]


@pytest.mark.parametrize(("manager", "files"), CASES)
def test_an_installation_is_undone_to_the_byte(
    tmp_path: Path, manager: str, files: dict[str, str]
) -> None:
    root = made(tmp_path, files)
    before = content(tmp_path)
    done = plan(manager, root)
    assert content(tmp_path) == before, "a plan changed a file"
    assert all(change.path.startswith("/") for change in done.changes)
    execute(done.changes, root)
    after = content(tmp_path)
    assert after != before
    # A second installation changes nothing.
    assert [one.difference for one in plan(manager, root).changes if one.difference] == []
    execute(plan(manager, root, undo=True).changes, root)
    assert content(tmp_path) == before
    assert [one for one in plan(manager, root, undo=True).changes if one.difference] == []


@pytest.mark.parametrize(("manager", "files"), CASES)
def test_every_present_setting_stays(tmp_path: Path, manager: str, files: dict[str, str]) -> None:
    root = made(tmp_path, files)
    execute(plan(manager, root).changes, root)

    def check(old: object, new: object, at: str) -> None:
        if isinstance(old, dict):
            assert isinstance(new, dict), at
            for key, value in old.items():
                check(value, new.get(key), f"{at}.{key}")
        else:
            assert old == new, at

    for name, text in files.items():
        now = Path(f"{root}{name}").read_text()
        assert text.strip() in now or name.endswith(".json")
        if name.endswith("daemon.json"):
            check(json.loads(text), json.loads(now), name)
        elif name.endswith((".toml", ".conf")):
            check(tomllib.loads(text), tomllib.loads(now), name)


def test_the_cgroup_driver_is_that_of_the_present_runtime(tmp_path: Path) -> None:
    root = made(tmp_path, {managerfiles.CONTAINERD: COMMENTED})
    execute(plan("containerd", root).changes, root)
    config = tomllib.loads((tmp_path / "etc/containerd/config.toml").read_text())
    ours = managerfiles.cri_runtimes(config)["trio"]
    assert ours["options"] == {"ConfigPath": managerfiles.OPTIONS}
    assert "SystemdCgroup = true" in (tmp_path / "etc/trio-shim-options.toml").read_text()


def test_a_configuration_that_imports_drop_ins_gets_one(tmp_path: Path) -> None:
    root = made(tmp_path, {managerfiles.CONTAINERD: IMPORTING})
    (change,) = plan("containerd", root).changes
    assert change.path == managerfiles.CONTAINERD_DROPIN
    config = tomllib.loads(change.after or "")
    assert managerfiles.cri_runtimes(config)["trio"]["runtime_type"] == "io.containerd.trio.v2"


def test_the_options_stay_while_another_manager_names_them(tmp_path: Path) -> None:
    root = made(tmp_path, {})
    before = content(tmp_path)
    for manager in ("crio", "docker"):
        execute(plan(manager, root, systemd=True).changes, root)
    execute(plan("crio", root, undo=True).changes, root)
    assert (tmp_path / "etc/trio-shim-options.toml").exists()
    execute(plan("docker", root, undo=True).changes, root)
    assert content(tmp_path) == before


REFUSED: list[tuple[str, dict[str, str], str]] = [
    ("containerd", {managerfiles.CONTAINERD: "version = 2\n[plugins"}, "is not TOML"),
    ("containerd", {managerfiles.CONTAINERD: 'disabled_plugins = ["cri"]\n'}, "no version 2 or 3"),
    (
        "containerd",
        {managerfiles.CONTAINERD: f'version = 3\ndisabled_plugins = ["{V3}"]\n'},
        "disables the CRI plugin",
    ),
    ("containerd", {managerfiles.CONTAINERD: "version = 99\n"}, "version 99 is unknown"),
    (
        "containerd",
        {managerfiles.CONTAINERD: f'version = 3\n[plugins]\n"{V3}" = {{containerd = {{}}}}\n'},
        "a table cannot be added",
    ),
    (
        "containerd",
        {
            managerfiles.CONTAINERD: f'version = 3\n[plugins."{V3}".containerd.runtimes.trio]\n'
            'runtime_type = "io.containerd.runsc.v1"\n'
        },
        "is another one",
    ),
    (
        "containerd",
        {managerfiles.CONTAINERD: IMPORTING, managerfiles.CONTAINERD_DROPIN: "version = 3\n"},
        "not written by shimctl",
    ),
    ("docker", {managerfiles.DOCKER: '{"debug": true,}'}, "is not JSON"),
    ("docker", {managerfiles.DOCKER: ""}, "is not JSON"),
    ("docker", {managerfiles.DOCKER: "[]"}, "is not a JSON object"),
    ("docker", {managerfiles.DOCKER: '{"runtimes": []}'}, "is not an object"),
    ("docker", {managerfiles.DOCKER: '{"runtimes": {"trio": {"path": "x"}}}'}, "already"),
    ("crio", {managerfiles.CRIO_DROPIN: "# mine\n"}, "not written by shimctl"),
    ("crio", {managerfiles.CRIO: "[crio"}, "is not TOML"),
    ("k3s", {}, "has not written it"),
]


@pytest.mark.parametrize(("manager", "files", "reason"), REFUSED)
def test_a_file_that_cannot_be_changed_safely_is_refused(
    tmp_path: Path, manager: str, files: dict[str, str], reason: str
) -> None:
    root = made(tmp_path, files)
    before = content(tmp_path)
    with pytest.raises(ShimError, match=reason):
        plan(manager, root)
    assert content(tmp_path) == before


def test_crio_needs_the_path_of_the_shim(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="run `shimctl install` first"):
        plan("crio", str(tmp_path))


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    root = made(tmp_path, {managerfiles.DOCKER: "{}"})
    done = plan("docker", root)
    file = tmp_path / "etc/docker/daemon.json"
    file.write_text('{"debug": true}')
    with pytest.raises(WrongStateError, match="try again"):
        execute(done.changes, root)
    assert file.read_text() == '{"debug": true}'


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    root = made(tmp_path, {"/srv/daemon.json": "{}"})
    target = tmp_path / "srv/daemon.json"
    target.chmod(0o600)
    (tmp_path / "etc/docker").mkdir(parents=True)
    link = tmp_path / "etc/docker/daemon.json"
    link.symlink_to(target)
    execute(plan("docker", root).changes, root)
    assert link.is_symlink()
    assert "trio" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o600


def test_the_difference_is_a_unified_diff() -> None:
    assert Change("/f", "a\nb\n", "a\nc\n").difference == (
        "--- /f\n+++ /f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
    )
    assert Change("/f", None, "a\n").difference.startswith("--- /dev/null\n+++ /f\n")
    assert Change("/f", "a", "a").difference == ""


@given(st.text(max_size=60))
def test_a_block_is_removed_to_the_byte(text: str) -> None:
    text = text.replace("\r", "")
    with_block = add_block(text, "x = 1")
    assert remove_block(with_block) == text
    assert remove_block(add_block(with_block, "x = 2")) == text
    assert remove_block(add_block(None, "x = 1")) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(["a", "runtimes ", "}", '"', "é"]), values, max_size=4)


@given(
    objects,
    st.dictionaries(st.text(max_size=3), values, max_size=2) | st.none(),
    st.sampled_from([None, 1, 4, "\t"]),
)
def test_a_member_is_added_to_any_object_and_removed_to_the_byte(
    config: dict[str, object], inner: dict[str, object] | None, indent: int | str | None
) -> None:
    if inner is not None:
        inner.pop("trio", None)
        config = {**config, "runtimes": inner}
    text = json.dumps(config, indent=indent)
    entry = {"runtimeType": "x"}
    added = add_member(text, "runtimes", "trio", entry)
    assert json.loads(added) == {**config, "runtimes": {**(inner or {}), "trio": entry}}
    assert remove_member(added, "runtimes", "trio", entry) == text


def test_every_manager_has_a_case() -> None:
    assert {manager for manager, _ in CASES} == set(MANAGERS)
