"""A program that publishes numbered events until it is killed, once for each line of input.

``python -m tests.events.publishing DIRECTORY``.  For each line on stdin, a number,
a new process opens the journal in the directory and publishes from there on
up, for a manager at ``events`` in there.  On stdout: ``pid N`` of that process,
each number once it is published, and ``over`` when the process is.
"""

from __future__ import annotations

import os
import sys

import trio
import trio.lowlevel

from shim.api.events_pb2 import TaskStart
from shim.events.publisher import open_publisher

COUNT = 200


async def publish(directory: str, first: int) -> None:
    journal = f"{directory}/events.journal"
    async with open_publisher(f"{directory}/events", "ns") as publisher:
        source = publisher.open_source(journal)
        for number in range(first, first + COUNT):
            source.publish(TaskStart(container_id="c1", pid=number))
            os.write(1, b"%d\n" % number)
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()


def main(directory: str) -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            trio.run(publish, directory, int(line))
            os._exit(1)
        os.write(1, b"pid %d\n" % pid)
        os.waitpid(pid, 0)
        os.write(1, b"over\n")


if __name__ == "__main__":
    main(sys.argv[1])
