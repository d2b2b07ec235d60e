"""checkpoint and restore: a container goes on where it was, under our shim and containerd's."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from shim.api.options_pb2 import CheckpointOptions
from shimctl.cli.commands.checkpoint import options_of
from tests.shimctl.commands import parsed
from tests.shimctl.place import Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = "i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.05; done"


def options(*argv: str) -> CheckpointOptions:
    packed = options_of(vars(parsed("checkpoint", "redis", "--image-path", "/images", *argv)))
    assert packed.type_url == "containerd.runc.v1.CheckpointOptions"
    return CheckpointOptions.FromString(packed.value)


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        ([], {"exit": True}),
        (["--leave-running"], {}),
        (["--tcp-established"], {"exit": True, "open_tcp": True}),
        (["--ext-unix-sk"], {"exit": True, "external_unix_sockets": True}),
        (["--shell-job"], {"exit": True, "terminal": True}),
        (["--file-locks"], {"exit": True, "file_locks": True}),
        (["--work-path", "/work"], {"exit": True, "work_path": "/work"}),
        (["--parent-path", "../one"], {"exit": True, "parent_path": "../one"}),
        (["--manage-cgroups-mode", "soft"], {"exit": True, "cgroups_mode": "soft"}),
        (
            ["--empty-ns", "network", "--empty-ns", "user"],
            {"exit": True, "empty_namespaces": ["network", "user"]},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_option_reaches_the_shim_as_the_runtime_calls_it(
    argv: list[str], fields: dict[str, Any]
) -> None:
    assert options(*argv) == CheckpointOptions(image_path="/images", **fields)


@cache
def why_no_criu() -> str:
    if shutil.which("criu") is None or shutil.which("iptables-restore") is None:
        return "criu and iptables; tests/run.sh gets both"
    check = subprocess.run(["criu", "check"], capture_output=True, timeout=60, check=False)
    return f"a criu that works: {check.stderr.decode()[-200:]}" if check.returncode else ""


@pytest.fixture(scope="module", params=["ours", "go"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        yield place


def count(bundle: Path) -> int:
    try:
        return int((bundle / "rootfs/count").read_text())
    except (OSError, ValueError):
        return 0


@pytest.mark.e2e
def test_a_container_goes_on_where_it_was_written_down(place: Place) -> None:
    if reason := why_no_criu():
        pytest.skip(f"needs {reason}")
    inside = ("-n", place.namespace)
    bundle = place.bundle("sh", "-c", COUNT)
    place.made("run", "first", bundle)
    eventually(lambda: count(bundle) > 5)

    kept = place.root / "kept"
    place.done("checkpoint", *inside, "first", "--image-path", kept, "--leave-running")
    assert place.json("state", *inside, "first")["status"] == "running"
    images = place.root / "images"
    told = place.json("checkpoint", *inside, "first", "--image-path", "images")
    assert told["image_path"] == str(images)  # relative to where we are, not to the shim
    assert (images / "inventory.img").exists()
    assert place.shimctl("wait", *inside, "first").returncode == 137
    reached = count(bundle)
    place.done("delete", *inside, "first")

    made = json.loads(place.made("restore", "second", bundle, "--image-path", images, "--json"))
    assert made["pid"] > 0
    assert place.json("state", *inside, "second")["status"] == "running"
    eventually(lambda: count(bundle) > reached)
    assert count(bundle) >= reached > 5
    place.done("delete", "-f", *inside, "second")


@pytest.mark.e2e
def test_a_checkpoint_of_what_does_not_run_is_refused(place: Place) -> None:
    inside = ("-n", place.namespace)
    place.made("create", "new", place.bundle("true"))
    images = place.root / "never"
    done = place.shimctl("checkpoint", *inside, "new", "--image-path", images)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    place.done("delete", *inside, "new")


@pytest.mark.e2e
def test_a_broken_checkpoint_is_not_restored_and_leaves_nothing(place: Place) -> None:
    images = place.root / "broken"
    images.mkdir()
    (images / "inventory.img").write_bytes(b"nonsense")
    made = ("restore", "-n", place.namespace, "--id", "never", "--image-path", images)
    runtime = "io.containerd.runc.v2" if place.kind == "go" else "io.containerd.trio.v2"
    done = place.shimctl(*made, "--runtime", runtime, place.bundle("true"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert "never" not in [row["id"] for row in place.json("ps", "-a", "-n", place.namespace)]
