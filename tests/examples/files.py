"""The files of examples/, and their contents."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
# A setting that is there to be chosen: `#key = value` or `#[table]`; prose has one space, and
# lines below a key in YAML have two or more.
_CHOICE = re.compile(r"^#(?=\S)", re.MULTILINE)
_CHOICE_OF_YAML = re.compile(r"^#(?=\S|  )", re.MULTILINE)

HANDLER = "trio"
RUNTIME_TYPE = "io.containerd.trio.v2"
EXECUTABLE = "/usr/local/bin/containerd-shim-trio-v2"
OPTIONS_FILE = "/etc/trio-shim-options.toml"


def text_of(name: str) -> str:
    return (EXAMPLES / name).read_text()


def with_choices(name: str) -> str:
    """Return the file with every setting in it that is commented out."""
    choice = _CHOICE_OF_YAML if name.endswith(".yaml") else _CHOICE
    return choice.sub("", text_of(name))


def toml_of(name: str, *, choices: bool = False) -> dict[str, Any]:
    return tomllib.loads(with_choices(name) if choices else text_of(name))
