"""A manager that runs for the length of a block; its files are removed afterwards."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.e2e.leftovers import end_fork_servers, mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.e2e.daemon import Daemon


@contextmanager
def running(
    daemon: Daemon,
    prepare: Callable[[], None],
    force_clean: Callable[[], None],
    groups: Callable[[], Iterable[Path]],
    release: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Run ``daemon`` for the block; ``prepare`` imports its images.

    At the end ``force_clean`` ends the processes that a failed test has left, and ``release``
    removes the mounts that the daemon keeps on purpose.  ``groups`` returns its cgroups.
    """
    try:
        daemon.start()
        prepare()
        yield
    finally:
        if daemon.running:
            force_clean()
        daemon.stop()
        end_fork_servers(str(daemon.root))
        release()
        for path in groups():
            with suppress(OSError):  # not there, or reported by the last test
                path.rmdir()
        if not mounts(str(daemon.root)):
            shutil.rmtree(daemon.root)
