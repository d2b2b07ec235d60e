"""Containers for the length of a call or a block, on each face and under each shim."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

import shimctl
from shimctl import aio, blocking
from tests.images.layouts import Layout, busybox
from tests.process.rig import alive
from tests.shimctl.faces import FACES, on
from tests.shimctl.place import PATIENCE, Place, eventually
from tests.shimctl.spawning import LOTS, ours, place, settings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ours", "place"]
pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("name", FACES)
def test_a_command_has_its_input_and_returns_its_output(name: str, place: Place) -> None:
    bundle = place.bundle("false")

    async def scenario(face: Any) -> Any:
        command = ["sh", "-c", "cat; echo wrong >&2; exit 3"]
        return await face.run(bundle, command, input=LOTS, **settings(place))

    finished = on(name, scenario)
    assert (finished.exit_status, finished.stderr) == (3, b"wrong\n")
    assert finished.stdout == LOTS


@pytest.mark.parametrize("name", FACES)
def test_a_command_without_input_reads_the_end(name: str, place: Place) -> None:
    bundle = place.bundle("cat")

    async def scenario(face: Any) -> Any:
        return await face.run(bundle, **settings(place))

    assert on(name, scenario) == shimctl.Finished(0, b"", b"")


@pytest.mark.parametrize("name", FACES)
def test_a_command_over_its_time_is_killed_and_its_output_is_kept(name: str, place: Place) -> None:
    bundle = place.bundle("false")

    async def scenario(face: Any) -> None:
        command = ["sh", "-c", "echo said; echo wrong >&2; sleep 1000"]
        await face.run(bundle, command, timeout=3, **settings(place))

    with pytest.raises(shimctl.RunTimedOutError, match="did not end within 3 s") as caught:
        on(name, scenario)
    assert (caught.value.stdout, caught.value.stderr) == (b"said\n", b"wrong\n")


@pytest.mark.parametrize("name", FACES)
def test_a_container_has_streams_for_a_block(name: str, place: Place) -> None:
    bundle = place.bundle("false")

    async def scenario(face: Any) -> list[Any]:
        seen: list[Any] = []
        command = ["sh", "-c", "while read word; do echo got $word; done; exit 4"]
        async with face.spawn(bundle, command, stdin=True, **settings(place)) as process:
            await process.stdin.write(b"one\ntwo\n")
            seen.append(await process.stdout.readline())
            await process.stdin.write(b"three\n")
            await process.stdin.close()
            seen += [line async for line in process.stdout]
            seen.append((await process.wait(timeout=PATIENCE)).exit_status)
            seen.append(await process.stderr.read())
            await process.kill()  # which has exited
        return seen

    assert on(name, scenario) == [b"got one\n", b"got two\n", b"got three\n", 4, b""]


@pytest.mark.parametrize("name", FACES)
def test_the_end_of_the_block_kills_the_container(name: str, place: Place) -> None:
    bundle = place.bundle("sleep", "1000")

    async def scenario(face: Any) -> int:
        async with face.spawn(bundle, **settings(place)) as process:
            with pytest.raises(shimctl.TimedOutError, match="still runs after"):
                await process.wait(timeout=0.01)
            assert "running" in repr(process)
            pid: int = process.pid
            assert alive(pid)
        return pid

    pid = on(name, scenario)
    eventually(lambda: not alive(pid))


@pytest.mark.parametrize("signal_", ["TERM", "SIGTERM", "15", 15, signal.SIGTERM])
def test_a_signal_has_a_name_or_a_number(signal_: int | str, ours: Place) -> None:
    bundle = ours.bundle("sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done")
    with blocking.spawn(bundle, **settings(ours)) as process:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(shimctl.InvalidError, match="'TERMX' is not a signal"):
            process.kill("TERMX")
        process.task.kill(signal_)
        assert process.wait(timeout=PATIENCE).exit_status == 5


def sleeper_in_bin(place: Place) -> Path:
    """Make a bundle whose process sleeps in the directory /bin."""
    bundle = place.bundle("sleep", "1000")
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["cwd"] = "/bin"
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


@pytest.mark.parametrize("name", FACES)
def test_a_command_runs_in_a_running_container(name: str, place: Place) -> None:
    bundle = sleeper_in_bin(place)

    async def scenario(face: Any) -> list[Any]:
        seen = []
        async with face.spawn(bundle, **settings(place)) as process:
            task = process.task
            show = ["sh", "-c", "pwd; echo $MARK $MORE; cat >&2"]
            seen.append(await task.exec_output(show, env={"MORE": "2"}, input=LOTS))
            seen.append(await task.exec_output(["sh", "-c", "pwd"], cwd="/tmp"))
            with pytest.raises(face.ExitStatusError, match="exit status 6: why") as status:
                await task.exec_output(["sh", "-c", "echo why >&2; exit 6"], check=True)
            seen.append(status.value.finished.exit_status)
            with pytest.raises(face.RunTimedOutError) as late:
                await task.exec_output(["sh", "-c", "echo a; sleep 1000"], timeout=2)
            seen.append(late.value.stdout)
            with pytest.raises(face.ShimError, match="nonesuch"):
                await task.exec_output(["nonesuch"])
            # A background process may hold the output open; the exec has ended.
            seen.append(await task.exec_output(["sh", "-c", "sleep 1000 & echo b"]))
            assert [found.exec_id for found in await task.pids() if found.exec_id] == []
            assert (await task.state()).status is face.Status.RUNNING
        return seen

    assert on(name, scenario) == [
        shimctl.Finished(0, b"/bin\nyes 2\n", LOTS),
        shimctl.Finished(0, b"/tmp\n", b""),
        6,
        b"a\n",
        shimctl.Finished(0, b"b\n", b""),
    ]


@pytest.mark.parametrize("name", FACES)
def test_an_exec_without_a_directory_has_that_of_the_container(name: str, ours: Place) -> None:
    bundle = sleeper_in_bin(ours)
    out = ours.root / "out"

    async def scenario(face: Any) -> None:
        async with face.spawn(bundle, **settings(ours)) as process:
            spec = {"args": ["sh", "-c", "pwd"], "env": ["PATH=/bin"]}
            stdio = face.Stdio(stdout=f"file://{out}")
            added = await process.task.exec("e1", spec, stdio=stdio)
            assert "exec 'e1'" in repr(added)
            await added.start()
            assert (await added.wait(timeout=PATIENCE)).exit_status == 0
            await added.delete()

    on(name, scenario)
    assert out.read_text() == "/bin\n"


@pytest.mark.parametrize("name", FACES)
def test_an_earlier_container_or_exec_of_the_same_id_is_replaced(name: str, place: Place) -> None:
    bundle = place.bundle("sleep", "1000")
    options = {"id": "same", **settings(place)}
    sleep = ["sleep", "1000"]

    async def scenario(face: Any) -> None:
        async with face.spawn(bundle, **options) as first:
            with pytest.raises(face.ExistsError, match="same is already in namespace"):
                await face.run(bundle, ["true"], **options)
            async with first.task.spawn(sleep, exec_id="e") as exec_:
                with pytest.raises(face.ExistsError):
                    async with first.task.spawn(["true"], exec_id="e"):
                        pass
                command = ["echo", "new"]
                async with first.task.spawn(command, exec_id="e", replace=True) as other:
                    assert (await other.communicate()).stdout == b"new\n"
                assert (await exec_.wait(timeout=PATIENCE)).exit_status == 137
            async with face.spawn(bundle, sleep, replace=True, **options) as second:
                with pytest.raises(face.UnavailableError):
                    await first.task.state()
                assert (await second.task.state()).status is face.Status.RUNNING

    on(name, scenario)


def test_a_program_whose_container_was_replaced_leaves_the_new_one_alone(place: Place) -> None:
    bundle = place.bundle("sleep", "1000")
    options = {"id": "same", **settings(place)}
    with ExitStack() as first:
        first.enter_context(blocking.spawn(bundle, **options))
        with blocking.spawn(bundle, replace=True, **options) as second:
            first.close()
            assert second.task.state().status is shimctl.Status.RUNNING


@pytest.mark.parametrize("name", FACES)
def test_a_bad_id_is_invalid_and_starts_nothing(name: str, ours: Place) -> None:
    bundle = ours.bundle("true")
    before = sorted(bundle.iterdir())

    async def scenario(face: Any) -> None:
        for bad in ("a/b", "../up", "", "x" * 77, "a b", "-a", "é"):
            with pytest.raises(face.InvalidError, match="is not a valid id"):
                await face.launch(bundle, bad, namespace=ours.namespace)
            with pytest.raises(face.InvalidError, match="is not a valid namespace"):
                await face.run(bundle, namespace=bad)
            if bad:
                with pytest.raises(face.InvalidError, match="is not a valid id"):
                    await face.run(bundle, id=bad, namespace=ours.namespace)
        async with face.spawn(bundle, ["sleep", "1000"], **settings(ours)) as process:
            with pytest.raises(face.InvalidError, match="is not a valid exec id"):
                await process.task.exec("a/b", ["true"])

    on(name, scenario)
    assert sorted(bundle.iterdir()) == before


@pytest.mark.parametrize("name", FACES)
def test_an_image_is_prepared_and_run_on_each_face(
    name: str, ours: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: None
) -> None:
    monkeypatch.setenv("SHIMCTL_IMAGES", str(tmp_path / "store"))
    Layout(tmp_path / "layout").add("a", busybox(), Entrypoint=["echo"], WorkingDir="/tmp")
    reference = f"oci:{tmp_path}/layout:a"
    steps: list[str] = []

    async def scenario(face: Any) -> list[Any]:
        image = await face.images.prepare(reference, progress=lambda step: steps.append(step.what))
        assert isinstance(image, face.images.Image)
        return [
            await face.run(reference, ["hello"], namespace=ours.namespace),
            await face.run(image, ["image"], namespace=ours.namespace),
        ]

    assert [each.stdout for each in on(name, scenario)] == [b"hello\n", b"image\n"]
    assert "unpacking" in steps


@pytest.fixture
def tools() -> None:
    from shimctl.images.tools import check_tools

    try:
        check_tools()
    except shimctl.NotFoundError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("name", FACES)
def test_a_killed_shim_is_an_error_and_leaves_nothing(name: str, place: Place) -> None:
    bundle = place.bundle("sh", "-c", "echo begun; sleep 1000")

    async def scenario(face: Any) -> None:
        async with face.spawn(bundle, **settings(place)) as process:
            assert await process.stdout.readline() == b"begun\n"
            os.kill((await process.task.shim.connect(process.task.id)).shim_pid, signal.SIGKILL)
            with pytest.raises(face.UnavailableError):
                await process.communicate(timeout=PATIENCE)

    on(name, scenario)


def test_a_cancelled_run_leaves_nothing_on_trio(ours: Place) -> None:
    bundle = ours.bundle("sh", "-c", "echo a; sleep 1000")
    chance = random.Random(1)

    async def main() -> None:
        async def one(delay: float) -> None:
            with trio.move_on_after(delay):
                await shimctl.run(bundle, **settings(ours))

        for _ in range(5):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(one, chance.uniform(0, 0.6))

    trio.run(main)


def test_a_cancelled_run_leaves_nothing_on_asyncio(ours: Place) -> None:
    bundle = ours.bundle("sh", "-c", "echo a; sleep 1000")
    chance = random.Random(2)

    async def one(delay: float) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await aio.run(bundle, **settings(ours))

    async def main() -> None:
        for _ in range(5):
            await asyncio.gather(*(one(chance.uniform(0, 0.6)) for _ in range(4)))

    asyncio.run(main())


def test_an_interrupted_run_leaves_nothing_in_threads(ours: Place) -> None:
    """Ctrl-C, which raises KeyboardInterrupt, at any step."""
    bundle = ours.bundle("sh", "-c", "echo a; sleep 1000")
    code = (
        "import sys; from shimctl import blocking; print('go', flush=True);"
        "blocking.run(sys.argv[1], namespace=sys.argv[2])"
    )
    argv = [sys.executable, "-c", code, str(bundle), ours.namespace]
    chance = random.Random(3)
    for _ in range(6):
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdout=pipe, stderr=pipe, env=ours.environ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"go\n"
            threading.Timer(chance.uniform(0, 0.8), program.send_signal, [signal.SIGINT]).start()
            _, error = program.communicate(timeout=PATIENCE)
            assert b"KeyboardInterrupt" in error
        assert ours.left() == []


def test_ten_containers_run_side_by_side(ours: Place) -> None:
    bundle = ours.bundle("true")

    async def main() -> list[shimctl.Finished]:
        found: list[shimctl.Finished] = []

        async def one(number: int) -> None:
            command = ["sh", "-c", f"echo {number}; exit {number}"]
            found.append(await shimctl.run(bundle, command, **settings(ours)))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
        return found

    found = sorted(trio.run(main), key=lambda each: each.exit_status)
    assert found == [shimctl.Finished(n, b"%d\n" % n, b"") for n in range(10)]
