"""Writes the package's two executables: executables.py ROOT VERSION.

They run Debian's interpreter of any version with the package's and Debian's modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from shimctl.host.install import build
from shimctl.host.interpreter import Interpreter

LIB = "/usr/lib/trio-shim"
MARK = "of the Debian package trio-shim"


def main(root: Path, version: str) -> None:
    """Write below ``root``/usr/bin."""
    path = (LIB, "/usr/lib/python3/dist-packages")
    interpreter = Interpreter("/usr/bin/python3", path, f"{LIB}/shim/start", version)
    write(root / "usr/bin/containerd-shim-trio-v2", trio.run(build, interpreter))
    write(root / "usr/bin/shimctl", interpreter.script("shimctl.cli", MARK).encode())


def write(path: Path, content: bytes) -> None:
    """Write an executable file."""
    path.write_bytes(content)
    path.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
