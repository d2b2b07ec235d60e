"""Runs skopeo and umoci within a time limit, and reports their failures in one line.

Both programs are Debian packages.  Each runs in a new process group, so that the
terminal's Ctrl-C reaches only this process.  A cancelled caller terminates the program.
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
TIMEOUT = 1800  # s for one command; an image may have many gigabytes and the disk be slow
TAG = "image"  # the tag of the only image in a private layout
_MAX_OUTPUT = 64 * 1024  # bytes at the end of the output that are kept
_MESSAGE = re.compile(r'\bmsg="((?:[^"\\]|\\.)*)"')

# Phrases in the tools' error messages, the error that each becomes, and its cause in short.
# Source: containers/image and Go's os package.
_PHRASES: tuple[tuple[str, type[ShimError], str], ...] = (
    ("no space left on device", ShimError, "the disk is full"),
    ("disk quota exceeded", ShimError, "the disk quota is used up"),
    ("digest did not match", InvalidError, "it is damaged"),
    ("unexpected eof", InvalidError, "it is truncated"),
    ("no such file or directory", NotFoundError, "a part of it is missing"),
)


def check_tools() -> None:
    """Check that skopeo and umoci are installed.

    :raises NotFoundError: one is missing; the message names the packages to install.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise NotFoundError(
            f"images need {' and '.join(missing)}; run `apt-get install {' '.join(missing)}`"
        )


async def copy(
    reference: Reference, platform: Platform, layout: Path, scratch: Path, lock: int
) -> None:
    """Copy the image of ``reference`` for ``platform`` to ``layout:image``.

    skopeo checks every digest and uses the directory ``scratch`` for temporary files.
    ``lock`` and the errors are those of :func:`run`.
    """
    command = [
        *("skopeo", "--insecure-policy", "--tmpdir", str(scratch)),
        *("--override-os", platform.os, "--override-arch", platform.architecture),
        *(("--override-variant", platform.variant) if platform.variant else ()),
        *("copy", "--quiet", "--format", "oci"),
        # The layers are unpacked next, so time to compress them would be wasted.
        "--dest-oci-accept-uncompressed-layers",
        *(str(reference), f"oci:{layout}:{TAG}"),
    ]
    await run(command, f"cannot read {reference}", lock=lock)


async def unpack(
    layout: Path, rootfs: Path, reference: Reference, lock: int, line: Callable[[str], None]
) -> None:
    """Unpack ``layout:image`` into the new directory ``rootfs``.

    umoci checks every layer's diff id.  ``lock``, ``line`` and the errors are those of
    :func:`run`.
    """
    command = ["umoci", "--log=info", "raw", "unpack", "--image", f"{layout}:{TAG}", str(rootfs)]
    await run(command, f"cannot unpack {reference}", lock=lock, line=line)


async def run(
    command: Sequence[str],
    action: str,
    *,
    lock: int = -1,
    line: Callable[[str], None] | None = None,
) -> None:
    """Run ``command`` to its end; call ``line`` with each line that it prints.

    The command inherits the fd ``lock``, so that the lock is held while the command
    writes, also after the death of this process.

    :raises ShimError: the command failed; the message begins with ``action``.
    :raises TimedOutError: the command did not end within 30 minutes.
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
    """Return an error with the last line of a tool's output; it begins with ``action``."""
    lines = [text.strip() for text in output.split("\n") if text.strip()]
    last = lines[-1] if lines else "it printed nothing"
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
