from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim.errors import ExistsError, InvalidError, NotFoundError
from shimctl.standalone import workdir
from shimctl.standalone.run import process_for

BUNDLE = Path("/my/bundle")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIMCTL_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_paths_into_the_bundle_become_absolute_and_others_stay() -> None:
    config: dict[str, Any] = {
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "data"},
            {"destination": "/b", "source": "more", "options": ["rbind", "ro"]},
            {"destination": "/c", "type": "bind", "source": "/etc"},
        ],
    }
    changed = workdir.absolute_paths(config, BUNDLE)
    assert changed["root"] == {"path": "/my/bundle/rootfs", "readonly": True}
    sources = [mount["source"] for mount in changed["mounts"]]
    assert sources == ["proc", "/my/bundle/data", "/my/bundle/more", "/etc"]
    assert config["root"]["path"] == "rootfs"


@pytest.mark.parametrize(
    "config", [{}, {"root": "x"}, {"root": {}}, {"root": {"path": "r"}, "mounts": [7]}]
)
def test_a_config_that_breaks_the_specification_is_invalid(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        workdir.absolute_paths(config, BUNDLE)


def test_a_bundle_or_config_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no bundle"):
        workdir.read_config(tmp_path / "none")
    with pytest.raises(NotFoundError, match="is missing"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_config_that_is_no_json_object_is_invalid(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidError):
        workdir.read_config(tmp_path)


def test_a_directory_is_made_once_and_removed_with_its_namespace(state: Path) -> None:
    work = workdir.make({"root": {}}, "ns", "c")
    assert work == state / "ns" / "c"
    with pytest.raises(ExistsError, match="delete -f c"):
        workdir.make({}, "ns", "c")
    workdir.remove(work)
    assert list(state.iterdir()) == []


def test_a_namespace_stays_while_others_live_in_it(state: Path) -> None:
    workdir.make({}, "ns", "other")
    workdir.remove(workdir.make({}, "ns", "c"))
    assert [path.name for path in (state / "ns").iterdir()] == ["other"]


@pytest.mark.parametrize("text", ["", "a b", "../x", "-a", "a..b", "a" * 77, "ä", "a\n"])
def test_ids_that_containerd_would_refuse_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        workdir.check_id(text)


@pytest.mark.parametrize("name", ["bundle", "my bundle!", "...", "x" * 200, "ü"])
def test_made_up_ids_are_valid(name: str) -> None:
    assert workdir.check_id(workdir.new_id(Path("/") / name))


def test_an_exec_is_like_the_containers_process_with_other_arguments() -> None:
    own = {"args": ["init"], "cwd": "/", "env": ["A=1", "B=2"], "capabilities": {}, "user": {}}
    process = process_for(
        {"process": own}, ["ls"], terminal=True, env=["B=3", "C="], cwd="/tmp", user="7:8"
    )
    assert process == {
        "args": ["ls"],
        "terminal": True,
        "cwd": "/tmp",
        "env": ["A=1", "B=3", "C="],
        "capabilities": {},
        "user": {"uid": 7, "gid": 8},
    }


@pytest.mark.parametrize(
    "wrong", [{"env": ["A"]}, {"env": ["=1"]}, {"user": "root"}, {"user": "1:"}]
)
def test_an_exec_with_senseless_options_is_invalid(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        process_for({"process": {}}, ["ls"], terminal=False, **wrong)
