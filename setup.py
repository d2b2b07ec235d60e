"""Adds to the package what pyproject.toml cannot: generated files, and the examples.

A wheel has them below ``data/share``, which pip, pipx and uv install below the prefix:

    share/man/man1, man8                    from the help of the commands, and of the shim
    share/bash-completion, zsh, fish        the scripts that ``shimctl completion`` prints
    share/doc/trio-shim/examples            configuration for managers, and of the shim
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

HERE = Path(__file__).resolve().parent
DOC = "share/doc/trio-shim"
EXAMPLES = (
    *("containerd", "crio", "docker", "kubernetes", "systemd"),
    *("README.md", "options.toml", "trio-shim.toml"),
)


class Build(build):
    """The build, with the files below share."""

    sub_commands = [*build.sub_commands, ("build_share", None)]  # noqa: RUF012 - setuptools' form


class BuildShare(Command):
    """Generate the man pages and the completions, and list them and the examples as data."""

    user_options: list[tuple[str, str | None, str]] = []  # noqa: RUF012 - setuptools' form

    def initialize_options(self) -> None:
        """Set no option."""

    def finalize_options(self) -> None:
        """Find the directory of the build."""
        self.directory = Path(self.get_finalized_command("build").build_base, "share")

    def get_source_files(self) -> list[str]:
        """Return the files that a source distribution must have for this command."""
        found = [HERE / "examples" / name for name in EXAMPLES]
        files = [path for one in found for path in (one.rglob("*") if one.is_dir() else [one])]
        return sorted(str(path.relative_to(HERE)) for path in files if path.is_file())

    def run(self) -> None:
        """Write the generated files, and set the data files of the distribution."""
        sys.path.insert(0, str(HERE))
        from shimctl.cli.shared import shared_files

        data: dict[str, list[str]] = {}
        for name, text in shared_files().items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            data.setdefault(f"share/{Path(name).parent}", []).append(str(path))
        for name in self.get_source_files():
            data.setdefault(f"{DOC}/{Path(name).parent}", []).append(name)
        self.distribution.data_files = sorted(data.items())


setup(cmdclass={"build": Build, "build_share": BuildShare})
