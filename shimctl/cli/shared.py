"""The files below PREFIX/share: the man pages, and shimctl's scripts for completion.

setup.py puts them into the package, ``shimctl install`` below its prefix.  Nothing but
click is imported, because the build of the package has no other requirement.

Source: the Filesystem Hierarchy Standard, 4.11 (man pages); bash-completion's README; zsh's
``configure --enable-site-fndir``; fish's "Writing your own completions".
"""

from __future__ import annotations

from shimctl.cli import shimpage
from shimctl.cli.completion import script
from shimctl.cli.pages import man_pages

# The path of each shell's script.
COMPLETIONS = {
    "bash": "bash-completion/completions/shimctl",
    "zsh": "zsh/site-functions/_shimctl",
    "fish": "fish/vendor_completions.d/shimctl.fish",
}
MAN, MAN_SHIM = "man/man1", "man/man8"


def shared_files() -> dict[str, str]:
    """Return the text of each file by its path below ``share``."""
    pages = {f"{MAN}/{name}": text for name, text in man_pages().items()}
    pages[f"{MAN_SHIM}/{shimpage.MAN}"] = shimpage.man_page()
    return pages | {path: script(shell) for shell, path in COMPLETIONS.items()}
