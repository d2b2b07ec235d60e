"""Where the managers keep a container's log, in directories with their layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from shim.errors import NotFoundError
from shimctl.standalone.loglocation import Located, locate_foreign
from shimctl.values import Stdio

if TYPE_CHECKING:
    from pathlib import Path

PIPED = Stdio(stdout="/run/fifo/1-stdout")
CRI = "io.kubernetes.cri."


def bundle_of(path: Path, name: str, **annotations: str) -> tuple[Path, dict[str, Any]]:
    bundle = path / "bundles" / name
    bundle.mkdir(parents=True)
    config = {"annotations": annotations}
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle, config


def file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def pod(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Make the bundles of a sandbox and of its container ``web``; return the container's."""
    logs = {f"{CRI}sandbox-log-directory": str(tmp_path / "pods")}
    bundle_of(tmp_path, "box", **{f"{CRI}container-type": "sandbox"}, **logs)
    notes = {"container-type": "container", "container-name": "web", "sandbox-id": "box"}
    return bundle_of(tmp_path, "c1", **{f"{CRI}{key}": text for key, text in notes.items()})


@pytest.mark.parametrize("last", ["web/10.log", "web-10.log", "web.log"])
def test_a_cri_log_is_that_of_the_last_attempt(tmp_path: Path, last: str) -> None:
    bundle, config = pod(tmp_path)
    wanted = file(tmp_path / "pods" / last)
    for other in ("webb/11.log", "web2-12.log", "we/1.log", "web/x.log"):
        file(tmp_path / "pods" / other)
    if last != "web.log":
        file(tmp_path / "pods" / last.replace("10", "9"))
    assert locate_foreign("k8s.io", "c1", bundle, config, PIPED) == Located(wanted, "cri")


def test_without_its_file_a_cri_container_names_crictl(tmp_path: Path) -> None:
    bundle, config = pod(tmp_path)
    with pytest.raises(NotFoundError, match="see `crictl logs c1`"):
        locate_foreign("k8s.io", "c1", bundle, config, PIPED)
    sandbox = json.loads((tmp_path / "bundles/box/config.json").read_text())
    with pytest.raises(NotFoundError, match="sandbox of a pod"):
        locate_foreign("k8s.io", "box", tmp_path / "bundles/box", sandbox, PIPED)


def test_crio_names_the_log_itself(tmp_path: Path) -> None:
    notes = {"io.kubernetes.cri-o.ContainerType": "container"}
    notes["io.kubernetes.cri-o.LogPath"] = "/var/log/pods/x/0.log"
    bundle, config = bundle_of(tmp_path, "c1", **notes)
    found = locate_foreign("default", "c1", bundle, config, PIPED)
    assert (str(found.path), found.form) == ("/var/log/pods/x/0.log", "cri")


def test_nerdctl_has_a_json_file_unless_its_driver_is_another(tmp_path: Path) -> None:
    state = tmp_path / "state"
    bundle, config = bundle_of(tmp_path, "c1", **{"nerdctl/state-dir": str(state)})
    wanted = file(state / "c1-json.log")
    assert locate_foreign("default", "c1", bundle, config, PIPED) == Located(wanted, "json")
    other = file(tmp_path / "other.log")
    settings = {"driver": "json-file", "opts": {"log-path": str(other)}}
    (state / "log-config.json").write_text(json.dumps(settings))
    assert locate_foreign("default", "c1", bundle, config, PIPED) == Located(other, "json")
    (state / "log-config.json").write_text('{"driver": "journald"}')
    with pytest.raises(
        NotFoundError, match="driver is journald; see `nerdctl -n default logs c1`"
    ):
        locate_foreign("default", "c1", bundle, config, PIPED)


def test_docker_has_a_json_file_below_its_data_root(tmp_path: Path) -> None:
    bundle, config = bundle_of(tmp_path, "c1")
    with pytest.raises(NotFoundError, match="see `docker logs c1`"):
        locate_foreign("moby", "c1", bundle, config, PIPED)
    data = tmp_path / "data/containers/c1"
    config["mounts"] = [{"destination": "/etc/hostname", "source": str(data / "hostname")}]
    wanted = file(data / "c1-json.log")
    assert locate_foreign("moby", "c1", bundle, config, PIPED) == Located(wanted, "json")


@pytest.mark.parametrize("config", [{}, {"annotations": 7, "mounts": [7]}, {"mounts": {}}])
@pytest.mark.parametrize("namespace", ["moby", "default"])
def test_a_strange_config_is_no_failure(
    tmp_path: Path, config: dict[str, Any], namespace: str
) -> None:
    with pytest.raises(NotFoundError, match=r"log of c1|c1 has no log"):
        locate_foreign(namespace, "c1", tmp_path, config, PIPED)


def test_without_a_log_the_reader_of_the_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="goes to the fifo /run/fifo/1-stdout"):
        locate_foreign("default", "c1", tmp_path, {}, PIPED)
    with pytest.raises(NotFoundError, match="goes to /dev/null"):
        locate_foreign("default", "c1", tmp_path, {}, Stdio())
