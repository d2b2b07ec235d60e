"""Where the stop signal of a container is found, and its time until SIGKILL."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from shim.api.containers_pb2 import Container
from shimctl.standalone.containerdrecords import stop_signal_in
from shimctl.standalone.stopsignal import Stopping, in_files

if TYPE_CHECKING:
    from pathlib import Path

OF_IMAGE = {"org.opencontainers.image.stopSignal": "SIGINT"}


@pytest.mark.parametrize(
    ("annotations", "found"),
    [
        (OF_IMAGE, Stopping("SIGINT")),
        (OF_IMAGE | {"nerdctl/stop-timeout": "30"}, Stopping("SIGINT", 30)),
        ({"nerdctl/stop-timeout": "-1"}, Stopping("", float("inf"))),
        ({"nerdctl/stop-timeout": "long"}, Stopping()),
        ({"org.opencontainers.image.stopSignal": 15}, Stopping()),
        ([], Stopping()),
        (None, Stopping()),
    ],
)
def test_annotations_name_the_signal_and_the_time(
    tmp_path: Path, annotations: Any, found: Stopping
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"annotations": annotations}))
    assert in_files(tmp_path) == found


def test_a_bundle_that_cannot_be_read_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no json")
    assert in_files(tmp_path) == in_files(tmp_path / "nowhere") == Stopping()


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ({"StopSignal": "SIGUSR1"}, Stopping("SIGUSR1")),
        ({"StopSignal": "SIGUSR1", "StopTimeout": 5}, Stopping("SIGUSR1", 5)),
        ({"StopTimeout": -1}, Stopping("", float("inf"))),
        ({"StopTimeout": True, "StopSignal": None}, Stopping()),
        ("no object", Stopping()),
    ],
)
def test_dockers_file_names_the_signal_and_the_time(
    tmp_path: Path, made: Any, found: Stopping
) -> None:
    directory = tmp_path / "containers" / "0123"
    directory.mkdir(parents=True)
    (directory / "config.v2.json").write_text(json.dumps({"Config": made}))
    mounts = [{"destination": "/etc/hostname", "source": f"{directory}/hostname"}]
    (tmp_path / "config.json").write_text(json.dumps({"mounts": mounts}))
    assert in_files(tmp_path) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'{"Version": "v1", "Metadata": {"ID": "a", "StopSignal": "SIGQUIT"}}', "SIGQUIT"),
        (b'{"Version": "v1", "Metadata": {"ID": "a"}}', ""),
        (b'{"Metadata": null}', ""),
        (b"\xff", ""),
    ],
)
def test_the_record_of_the_cri_plugin_has_the_signal(value: bytes, found: str) -> None:
    record = Container(id="a")
    record.extensions["io.cri-containerd.container.metadata"].value = value
    assert stop_signal_in(record) == found
    record.labels["io.containerd.image.config.stop-signal"] = "SIGHUP"
    assert stop_signal_in(record) == "SIGHUP"
