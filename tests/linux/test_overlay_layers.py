from __future__ import annotations

import os
from pathlib import Path
from threading import Event, Thread

from shim.linux.layers import short_layers


def test_a_mount_in_a_thread_leaves_the_others_where_they_are(tmp_path: Path) -> None:
    inside, leave = Event(), Event()
    stood: list[str] = []

    def stand() -> None:
        with short_layers([f"lowerdir={tmp_path}:{tmp_path}"]) as options:
            stood.extend(str(Path(name).resolve()) for name in options[9:].split(":"))
            inside.set()
            leave.wait(10)

    here = Path.cwd()
    thread = Thread(target=stand)
    thread.start()
    try:
        assert inside.wait(10)
        assert Path.cwd() == here
        os.chdir("/")
    finally:
        leave.set()
        thread.join()
        elsewhere = Path.cwd()
        os.chdir(here)
    assert str(elsewhere) == "/"
    assert stood == [str(tmp_path)] * 2
