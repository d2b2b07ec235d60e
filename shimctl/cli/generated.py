"""Pages of the documentation that are generated: written to their file, or compared with it."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_compare(name: str, text: str, module: str, *, check: bool) -> int:
    """Write ``text`` to the file ``name``, or with ``check`` only compare; return the exit code.

    ``module`` is the one to run if the file is stale.
    """
    # Late: where the package is built, click is the only requirement that is installed.
    from shim.linux.modes import write_file

    if not check:
        write_file(Path(name), text, 0o644)
    elif Path(name).read_text() != text:
        print(f"{name} is stale: run python -m {module} {name}", file=sys.stderr)
        return 1
    return 0


def roff(text: str) -> str:
    """Escape a line for a man page."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text
