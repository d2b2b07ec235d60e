"""Reads images in a child process with limits of memory and time.

An image is untrusted input.  A child process reads it, so that a bad image can only
harm the child.  The child has a limit of address space and of processor time.  It is
killed at once when its caller is cancelled, for example by Ctrl-C.

The child prints its progress, the bytes read so far, one number a line.  Its last
line is one JSON object: the result or the error.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim import errors
from shim.errors import InvalidError, ShimError, TimedOutError
from shimctl.images.layers import check_layer
from shimctl.images.platforms import Platform
from shimctl.images.reference import Reference
from shimctl.images.source import Described, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEMORY = 768 << 20  # bytes of address space
# Seconds of processor time: a base for each image, and more for each MiB of its stored
# layers.  gzip expands a MiB to 1 GiB at most, which takes about five seconds to read.
_CPU_TIME, _CPU_TIME_PER_MIB = 60, 5
TIMEOUT = 1800  # s of wall time, as for skopeo and umoci
_REPORT_INTERVAL = 0.1  # s between two reports of the progress
_MAX_OUTPUT = 64 << 20  # bytes; a configuration has 8 MiB, and JSON may escape each as \uXXXX


async def check_layers(layers: Sequence[tuple[Path, str]], report: Callable[[int], None]) -> None:
    """Check the names in each layer; a layer is a file and its digest.

    ``report`` is called with the number of bytes read so far, of all layers.

    :raises InvalidError: a name leads out of the image, a layer is not a tar, or reading
        exceeds the limit of memory or processor time.
    :raises TimedOutError: the check took more than 30 minutes.
    :raises UnsupportedError: umoci does not support a layer's compression.
    """
    size = sum(path.stat().st_size for path, _ in layers)
    subject = (
        "the layers" if len(layers) > 1 else f"layer {layers[0][1]}" if layers else "no layer"
    )
    await _run("check", [[str(path), digest] for path, digest in layers], size, subject, report)


async def describe_archive(reference: Reference, platform: Platform) -> Described:
    """Call :func:`shimctl.images.source.describe` in the child; it raises the same errors.

    :raises InvalidError: also: reading exceeds the limit of memory or processor time.
    :raises TimedOutError: reading took more than 30 minutes.
    """
    try:
        size = reference.path.stat().st_size
    except OSError:
        size = 0  # the child reports the error
    arguments = [reference.kind, str(reference.path), reference.name, *asdict(platform).values()]
    found = await _run("describe", arguments, size, str(reference.path), lambda _: None)
    return Described(
        **found | {"platform": Platform(**found["platform"]), "diff_ids": tuple(found["diff_ids"])}
    )


async def _run(
    verb: str, arguments: list[Any], size: int, subject: str, report: Callable[[int], None]
) -> Any:
    import trio  # not imported by the child

    from shimctl.host.interpreter import Interpreter, search_path

    seconds = min(_CPU_TIME + _CPU_TIME_PER_MIB * (size >> 20), TIMEOUT)
    code = Interpreter(sys.executable, tuple(search_path()), "", "").code(__name__, named=False)
    limits = [str(seconds), str(MEMORY)]
    command = [sys.executable, "-IS", "-c", code, verb, *limits, json.dumps(arguments)]
    rest = last_line = b""
    too_long = False
    with trio.move_on_after(TIMEOUT) as scope:
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(_start, command)
            assert process.stdout is not None
            async for chunk in process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.isdigit():
                        report(int(line))
                    else:
                        last_line = line
                if len(rest) > _MAX_OUTPUT:
                    process.kill()
                    too_long = True
            await process.wait()
    if scope.cancelled_caught:
        raise TimedOutError(f"cannot check {subject}: it took more than {TIMEOUT} s")
    if too_long:
        raise InvalidError(f"cannot read {subject}: its configuration is too long")
    if process.returncode == -signal.SIGXCPU:
        raise InvalidError(
            f"cannot read {subject}: it takes more than {seconds} s of processor time"
        )
    if process.returncode == -signal.SIGKILL:
        raise ShimError(
            f"cannot read {subject}: the child process was killed; try again when the machine "
            "has more free memory"
        )
    try:
        answer = json.loads(last_line)
    except ValueError:
        raise ShimError(
            f"cannot check {subject}: the child process ended with {process.returncode}"
        ) from None
    if name := answer.get("error"):
        if answer.get("memory"):
            raise InvalidError(
                f"cannot read {subject}: it takes more than {MEMORY >> 20} MiB of memory"
            )
        kind: type[ShimError] = getattr(errors, name)
        raise kind(answer["message"])
    return answer.get("result")


async def _start(command: Sequence[str], task_status: Any) -> None:
    import trio

    await trio.run_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        cwd="/",
        process_group=0,  # the terminal's Ctrl-C is not sent to it; the parent kills it
        task_status=task_status,
    )


# In the child


def main() -> int:
    """Run the command in ``sys.argv``; print its progress and its result."""
    verb, *limits, arguments = sys.argv[1:]
    seconds, memory = map(int, limits)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: dict[str, Any]
    try:
        words = json.loads(arguments)
        answer = {"result": _describe(words) if verb == "describe" else _check(words)}
    except ShimError as exc:
        answer = {"error": type(exc).__name__, "message": str(exc)}
    except MemoryError:
        answer = {"error": "InvalidError", "memory": True}
    print(json.dumps(answer))
    return 0


def _check(layers: list[tuple[str, str]]) -> object:
    before, reported = 0, time.monotonic()

    def report(done: int) -> None:
        nonlocal reported
        if (now := time.monotonic()) > reported + _REPORT_INTERVAL:
            reported = now
            os.write(1, b"%d\n" % (before + done))

    for name, digest in layers:
        path = Path(name)
        check_layer(path, digest, report)
        before += path.stat().st_size
    return None


def _describe(arguments: list[str]) -> dict[str, Any]:
    kind, path, name, *platform = arguments
    return asdict(describe(Reference(kind, Path(path), name), Platform(*platform)))
