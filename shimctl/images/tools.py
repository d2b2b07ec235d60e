"""skopeo and umoci: what is run, how it is bounded, and what it said in one line.

Both come from Debian.  They get a process group of their own, so that a Ctrl-C
for us is not for them; giving up terminates them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import trio

from shim.errors import InvalidError, NotFoundError, ShimError, TimedOutError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shimctl.images.platforms import Platform
    from shimctl.images.reference import Reference

TOOLS = ("skopeo", "umoci")
TIMEOUT = 1800  # s for one command; images of many gigabytes on slow disks are
TAG = "image"  # of the only image in a private layout
_MAX_OUTPUT = 64 * 1024  # bytes of output
_MESSAGE = re.compile(r'\bmsg="((?:[^"\\]|\\.)*)"')

# What the tools say in prose.  Source: containers/image and Go's os package.
_PHRASES: tuple[tuple[str, type[ShimError], str], ...] = (
    ("no space left on device", ShimError, "the disk is full"),
    ("disk quota exceeded", ShimError, "the disk quota is used up"),
    ("digest did not match", InvalidError, "it is damaged"),
    ("unexpected eof", InvalidError, "it is truncated"),
    ("no such file or directory", NotFoundError, "something of it is missing"),
)


def check_tools() -> None:
    """See that everything we run is there.

    :raises NotFoundError: it is not; the message says how to get it.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise NotFoundError(
            f"images need {' and '.join(missing)}; `apt-get install {' '.join(missing)}` gets "
            f"{'it' if len(missing) == 1 else 'them'}"
        )


async def copy(
    reference: Reference, platform: Platform, layout: Path, scratch: Path, lock: int
) -> None:
    """Copy the one image that is wanted to ``layout:image``; every digest is checked."""
    command = [
        *("skopeo", "--insecure-policy", "--tmpdir", str(scratch)),
        *("--override-os", platform.os, "--override-arch", platform.architecture),
        *(("--override-variant", platform.variant) if platform.variant else ()),
        *("copy", "--quiet", "--format", "oci"),
        # Compressing what is unpacked the next moment would be the longest part.
        "--dest-oci-accept-uncompressed-layers",
        *(str(reference), f"oci:{layout}:{TAG}"),
    ]
    await run(command, f"cannot read {reference}", lock=lock)


async def unpack(
    layout: Path, rootfs: Path, reference: Reference, lock: int, line: Callable[[str], None]
) -> None:
    """Unpack ``layout:image`` into the new directory ``rootfs``; checks every layer's diff id."""
    command = ["umoci", "--log=info", "raw", "unpack", "--image", f"{layout}:{TAG}", str(rootfs)]
    await run(command, f"cannot unpack {reference}", lock=lock, line=line)


async def run(
    command: Sequence[str],
    action: str,
    *,
    lock: int = -1,
    line: Callable[[str], None] | None = None,
) -> None:
    """Run ``command`` to its end; ``line`` is told what it prints.

    It inherits ``lock``, which stays held for as long as it writes, even without us.

    :raises ShimError: it failed; the message begins with ``action``.
    :raises TimedOutError: it did not end within 30 minutes.
    """
    output = b""
    with trio.move_on_after(TIMEOUT) as scope:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(_start, command, lock)
            assert process.stdout is not None
            rest = b""
            async for chunk in process.stdout:
                output = (output + chunk)[-_MAX_OUTPUT:]
                *lines, rest = (rest + chunk).split(b"\n")
                for text in lines if line else ():
                    assert line is not None
                    line(text.decode(errors="replace"))
            await process.wait()
    if scope.cancelled_caught:
        raise TimedOutError(f"{action}: {command[0]} did not end within {TIMEOUT} s")
    if process.returncode:
        raise error_from_output(output.decode(errors="replace"), action)


async def _start(
    command: Sequence[str], lock: int, task_status: trio.TaskStatus[trio.Process]
) -> None:
    await trio.run_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        process_group=0,
        pass_fds=(lock,) if lock >= 0 else (),
        task_status=task_status,
    )


def error_from_output(output: str, action: str) -> ShimError:
    """Make the error from what a tool said last, in one line."""
    lines = [text.strip() for text in output.split("\n") if text.strip()]
    last = lines[-1] if lines else "it said nothing"
    if found := _MESSAGE.search(last):
        last = re.sub(r"\\(.)", r"\1", found[1])
    last = last.removeprefix("\u2a2f").strip()
    lowered = last.lower()
    if "unsupported" in lowered or "unknown media" in lowered:
        return UnsupportedError(f"{action}: {last}")
    for phrase, kind, meaning in _PHRASES:
        if phrase in lowered:
            return kind(f"{action}: {meaning}: {last}")
    return ShimError(f"{action}: {last}")
