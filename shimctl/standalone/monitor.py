"""The process that removes a container of ``run --rm -d`` at its end.

It waits for the exit of the init process through a pidfd that it inherits, without a time
limit and without waking up, and then calls :mod:`shimctl.standalone.autoremoval`.  Neither
a dead shim nor a dead manager ends it.  If it is killed, the container stays after its exit
until ``shimctl prune``.

It runs as long as the container, so it imports as little as possible until the exit.

Source: pidfd_open(2), which becomes readable at the exit.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows only signal
import select


def main(work: str, container: str, namespace: str, run: int, pidfd: int) -> None:
    """Wait for the exit of the process of ``pidfd``; then remove the container in ``work``.

    ``run`` is the number of the run to which the process belongs.
    """
    for number in (_signal.SIGHUP, _signal.SIGINT):
        _signal.signal(number, _signal.SIG_IGN)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    from shimctl.standalone.autoremoval import remove_ended

    remove_ended(work, container, namespace, run)
