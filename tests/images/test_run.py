"""Containers from images: shimctl as a process, a real shim, the real runc.

SHIM_TEST_RUNTIME chooses the shim, by name or path.
"""

from __future__ import annotations

import json
import os
import pty
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shimctl.launching import DEFAULT_RUNTIME
from tests.images.layouts import OTHER, Layer, Layout, busybox, contents, flip
from tests.shimctl import tool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shimctl.images import Store

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("tools")]

RUNTIME = os.environ.get("SHIM_TEST_RUNTIME", DEFAULT_RUNTIME)
GO = "io.containerd.runc.v2"
NAMESPACE = f"images-test-{secrets.token_hex(4)}"
PATIENCE = 60  # s for what should take one


class Host:
    """Runs containers in a namespace of the test's own."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store
        self.state = root / "state"

    def command(self, *argv: str | Path) -> list[str]:
        return tool.command_line(*argv)

    def shimctl(self, *argv: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return tool.shimctl(*argv, stdin=stdin)

    def run(self, *argv: str | Path, runtime: str = RUNTIME) -> subprocess.CompletedProcess[str]:
        return self.shimctl("run", "-n", NAMESPACE, "--runtime", runtime, *argv)

    def says(self, *argv: str | Path) -> str:
        """Run a container that succeeds; return its output."""
        done = self.run(*argv)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def fails(self, *argv: str | Path) -> str:
        """Run one that is refused; return the line with the reason."""
        done = self.run(*argv)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.startswith("shimctl: ")
        assert done.stderr.count("\n") == 1
        return done.stderr

    def images(self, *argv: str) -> Any:
        return tool.values(self.shimctl("images", *argv, "--json"))

    def left(self) -> list[str]:
        """What there still is of any container that was run here."""
        marks = (NAMESPACE, str(self.root))
        left = tool.mounts_with(*marks)
        left += map(str, self.state.glob("*"))
        left += map(str, Path("/run/containerd/runc", NAMESPACE).glob("*"))
        left += map(str, Path("/sys/fs/cgroup").glob(f"*/shimctl.{NAMESPACE}*"))
        for name in ("containers", "partial", "locks"):
            left += map(str, (self.store.path / name).glob("*"))
        return left


@pytest.fixture
def host(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    missing = [tool for tool in ("runc", "busybox") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    host = Host(tmp_path, store)
    monkeypatch.setenv("SHIMCTL_STATE", str(host.state))
    monkeypatch.chdir(tmp_path)
    yield host
    deadline = time.monotonic() + PATIENCE
    while (left := host.left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def skopeo(*argv: str) -> None:
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *argv]
    subprocess.run(command, check=True, timeout=PATIENCE, capture_output=True)


def test_an_image_of_each_kind_runs(host: Host, layout: Layout) -> None:
    reference = layout.add("a", busybox(), Entrypoint=["echo", "hello"], Cmd=["you"])
    archives = ["oci-archive:o.tar:a", "docker-archive:d.tar:me/it:1"]
    for archive in archives:
        skopeo(reference, archive)
    for each in ("oci:layout:a", *archives):
        assert host.says(each) == "hello you\n"
        assert host.says(each, "me") == "hello me\n"
    assert len(list((host.store.path / "rootfs").iterdir())) == 1


def test_an_image_runs_under_the_usual_shim_as_well(host: Host, layout: Layout) -> None:
    if shutil.which("containerd-shim-runc-v2") is None:
        pytest.skip("needs containerd-shim-runc-v2")
    reference = layout.add("a", busybox(), User="www:logs", WorkingDir="/made", Volumes={"/v": {}})
    done = host.run("--read-only", reference, "sh", "-c", "id -u; pwd; exit 3", runtime=GO)
    assert (done.stdout, done.stderr, done.returncode) == ("33\n/made\n", "", 3)


def test_what_the_image_says_is_so(host: Host, layout: Layout) -> None:
    reference = layout.add(
        "a", busybox(), Env=["A=1", "B=2"], User="www", WorkingDir="/not/there/yet"
    )
    script = "id; pwd; echo $A $B; stat -c %u:%a /not/there/yet; cat /etc/hostname"
    said = host.says("--env", "B=3", "--id", "web", reference, "sh", "-c", script).splitlines()
    assert said == [
        "uid=33(www) gid=34(www) groups=34(www),44(logs)",
        *("/not/there/yet", "1 3", "0:755", "web"),
    ]


def test_a_volume_has_what_the_image_has_there_and_may_be_written(
    host: Host, layout: Layout
) -> None:
    layer = busybox().directory("data", mode=0o700, owner=(33, 34)).file("data/f", "theirs\n")
    reference = layout.add("a", layer, Volumes={"/data": {}, "/new/one": {}})
    script = "cat /data/f; stat -c %u:%g:%a /data; touch /data/g /new/one/h; touch /x; echo $?"
    said = host.says("--read-only", reference, "sh", "-c", f"({script}) 2>&1")
    assert said.splitlines() == [
        *("theirs", "33:34:700", "touch: /x: Read-only file system", "1"),
    ]
    assert not list(host.store.rootfs("*").parent.glob("*/data/g"))


def test_what_the_user_says_is_so(host: Host, layout: Layout, tmp_path: Path) -> None:
    reference = layout.add("a", busybox(), Entrypoint=["false"], User="www")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/f").write_text("ours")
    options = ["--user", "5:6", "--workdir", "/shared", "--hostname", "box", "--entrypoint", "sh"]
    options += ["-v", "shared:/shared:ro", "--memory", "64MiB", "--pids-limit", "50"]
    script = (
        "id; pwd; cat f /etc/hostname /proc/sys/kernel/hostname; touch g 2>&1; "
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max "
        "|| cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; ls /sys/class/net"
    )
    said = host.says(*options, reference, "-c", f"({script}) 2>&1").splitlines()
    assert said == [
        *("uid=5 gid=6 groups=6", "/shared", "oursbox", "box", "touch: g: Read-only file system"),
        *(str(64 << 20), "50", "lo"),
    ]


def test_the_hosts_network_is_given_when_asked_for(host: Host, layout: Layout) -> None:
    reference = layout.add("a", busybox())
    script = "cat /proc/net/dev | busybox wc -l; cat /etc/resolv.conf"
    said = host.says("--network", "host", reference, "sh", "-c", script)
    lines = len(Path("/proc/net/dev").read_text().splitlines())
    assert said == f"{lines}\n{Path('/etc/resolv.conf').read_text()}"


def test_two_containers_share_the_layers_and_nothing_else(host: Host, layout: Layout) -> None:
    reference = layout.add("a", busybox().file("f", "image\n"))
    running = []
    for name in ("one", "two"):
        script = f"echo {name} >> /f; sleep 1000"
        assert host.says("-d", "--id", name, reference, "sh", "-c", script) == f"{name}\n"
        running.append(name)
    for name in running:
        deadline = time.monotonic() + PATIENCE
        while True:
            done = host.shimctl("exec", "-n", NAMESPACE, name, "cat", "/f")
            if done.stdout == f"image\n{name}\n":
                break
            assert time.monotonic() < deadline, done
    mounts = Path("/proc/self/mountinfo").read_text()
    assert mounts.count(f"lowerdir={host.store.rootfs('x').parent}/") == 2
    assert len(list(host.store.path.glob("rootfs/*"))) == 1
    assert next(host.store.path.glob("rootfs/*/f")).read_text() == "image\n"
    (image,) = host.images()
    assert sorted(image["used_by"]) == running
    done = host.shimctl("images", "rm", reference)
    assert done.returncode == 125
    assert "is used by" in done.stderr
    assert host.images("rm", "--unused") == []
    for name in running:
        assert host.shimctl("delete", "-f", "-n", NAMESPACE, name).returncode == 0
    assert host.images("rm", "--unused") == [image["digest"]]
    assert contents(host.store.path) == []


def test_a_container_is_stopped_with_the_signal_of_its_image(host: Host, layout: Layout) -> None:
    reference = layout.add("a", busybox(), StopSignal="SIGUSR1")
    script = "trap 'exit 7' USR1; echo up; while :; do sleep 0.1; done"
    host.says("-d", "--id", "stop", reference, "sh", "-c", script)
    deadline = time.monotonic() + PATIENCE
    while "up" not in host.shimctl("logs", "--namespace", NAMESPACE, "stop").stdout:
        assert time.monotonic() < deadline
    assert host.shimctl("kill", "-n", NAMESPACE, "stop").returncode == 0
    assert host.shimctl("wait", "-n", NAMESPACE, "stop").returncode == 7
    assert host.shimctl("delete", "-n", NAMESPACE, "stop").returncode == 0


def test_a_created_container_keeps_its_image_too(host: Host, layout: Layout) -> None:
    reference = layout.add("a", busybox())
    made = host.shimctl("create", "-n", NAMESPACE, "--id", "later", reference, "true")
    assert (made.returncode, made.stderr) == (0, "")
    assert host.shimctl("images", "rm", reference).returncode == 125
    assert host.shimctl("delete", "-n", NAMESPACE, "later").returncode == 0
    assert host.shimctl("images", "rm", reference).returncode == 0


def test_a_terminal_shows_progress_and_then_the_container(host: Host, layout: Layout) -> None:
    reference = layout.add("a", busybox())
    ours, theirs = pty.openpty()
    argv = ["run", "-n", NAMESPACE, "--runtime", RUNTIME, reference, "echo", "hello"]
    process = subprocess.Popen(
        host.command(*argv), stdin=theirs, stdout=theirs, stderr=theirs, env=terminal()
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the last one has closed it
        pass
    os.close(ours)
    assert process.wait(PATIENCE) == 0
    assert b"unpacking [" in shown
    assert shown.endswith(b"\r\x1b[Khello\r\n")


def terminal() -> dict[str, str]:
    return os.environ | {"TERM": "xterm"}


def test_what_is_wrong_with_an_image_is_one_line_and_leaves_nothing(
    host: Host, layout: Layout
) -> None:
    good = layout.add("good", busybox(), Cmd=["true"])
    mute = layout.add("mute", busybox())
    evil = layout.add("evil", Layer().file("../../etc/evil"))
    other = layout.index(**{OTHER: layout.image(Layer(), architecture=OTHER)})
    layout.tag("other", other)
    damaged = Layout(host.root / "damaged")
    damaged.add("a", Layer().file("f", os.urandom(5000)))
    flip(damaged.largest())
    assert "has no command" in host.fails(mute)
    assert "has no command" in host.fails("--entrypoint", "", good)
    assert "has no user nobody in its" in host.fails("--user", "nobody", good)
    assert "is refused for its entry '../../etc/evil'" in host.fails(evil)
    assert f"there is linux/{OTHER}" in host.fails("oci:layout:other")
    assert "there is evil, good, mute, other" in host.fails("oci:layout:nothing")
    assert "it is damaged" in host.fails("oci:damaged:a")
    assert "must begin with /" in host.fails("--workdir", "x", good)
    assert "there is no /nowhere" in host.fails("-v", "/nowhere:/x", good)
    assert "is not a volume" in host.fails("-v", "/tmp:x", good)
    assert "is not a platform" in host.fails("--platform", "a/b/c/d", good)


def test_prune_a_removes_an_exited_container_with_its_image_and_keeps_what_runs(
    host: Host, layout: Layout
) -> None:
    used = layout.add("used", busybox().file("used"))
    unused = layout.add("unused", busybox().file("unused"))
    host.says("-d", "--id", "stays", used, "sleep", "1000")
    host.says("-d", "--id", "ends", unused, "true")
    assert host.shimctl("wait", "-n", NAMESPACE, "ends").returncode == 0
    digests = {image["references"][0]: image["digest"] for image in host.images()}
    gone = [f"{NAMESPACE}/ends", digests[f"oci:{layout.path}:unused"]]
    listed = json.loads(host.shimctl("prune", "-a", "--dry-run", "-o", "json").stdout)
    assert [one["name"] for one in listed if one["kind"] != "socket"] == gone
    assert len(host.images()) == 2
    done = host.shimctl("prune", "-a", "-f")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == gone
    assert [image["used_by"] for image in host.images()] == [["stays"]]
    assert host.shimctl("delete", "-f", "-n", NAMESPACE, "stays").returncode == 0


def test_a_command_that_is_not_there_is_127_as_in_a_shell(host: Host, layout: Layout) -> None:
    done = host.run(layout.add("a", busybox()), "nothing-of-that-name")
    assert done.returncode == 127


def test_what_is_for_an_image_is_not_for_a_bundle(host: Host, tmp_path: Path) -> None:
    for argv in (["--env", "A=1", "."], [".", "true"], ["--network", "host", "."]):
        assert "for a bundle, change its config.json" in host.fails(*argv)


def test_what_is_neither_is_told_with_what_an_image_is(host: Host) -> None:
    busybox = "docker://busybox:latest"
    for argv in ([busybox], [busybox, "sh", "-c", "id"], ["-e", "A=1", busybox]):
        assert f"for an image run `skopeo copy {busybox} oci:LAYOUT:TAG`" in host.fails(*argv)
    assert "there is no bundle busybox; for an image use oci:LAYOUT:TAG," in host.fails("busybox")
    done = host.shimctl("images", "prepare", busybox)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"is not an image; run `skopeo copy {busybox} oci:LAYOUT:TAG`, then use" in done.stderr


def test_images_are_listed_prepared_and_removed_by_digest_or_name(
    host: Host, layout: Layout
) -> None:
    assert host.images() == []
    assert host.images("rm", "--unused") == []
    layout.add("a", Layer().file("a"))
    layout.add("b", Layer().file("b"))
    digests = [host.images("prepare", f"oci:layout:{tag}")["digest"] for tag in "ab"]
    listed = host.images("ls")
    assert [image["digest"] for image in listed] == digests
    assert listed[0]["references"] == [f"oci:{layout.path}:a"]
    table = host.shimctl("images", "-o", "wide").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["DIGEST", *(d[7:19] for d in digests)]
    for argv, why in (
        (["rm"], "needs images or --unused"),
        (["rm", "--unused", "x"], "needs images or --unused"),
        (["rm", "oci:layout:c"], "there is no image oci:layout:c"),
        (["rm", "123"], "too short for a digest"),
        (["rm", "feedfeedfeed"], "there is no image feedfeedfeed"),
    ):
        done = host.shimctl("images", *argv)
        assert (done.returncode, done.stdout) == (125, "")
        assert why in done.stderr
    assert host.images("rm", "oci:layout:a", digests[0]) == [digests[0]]
    assert host.images("rm", digests[1][:20]) == [digests[1]]
    assert contents(host.store.path) == []
