"""Read the runtime's state files: whether a container exists, and which bundle it has.

An id is unique only within one state directory, and several managers may share a
directory: a delete by id could hit another manager's container.

Source: runc libcontainer/configs ("bundle=" among the labels of state.json),
crun src/libcrun/status.c (``bundle`` in ``status``), youki's state.json, gVisor
runsc/container/state_file.go (``bundleDir``).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shim.linux.files import read_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST = 16 << 20  # bytes; the file contains the whole configuration
_LABEL = "bundle="


def has_state(root: str, id_: str) -> bool:
    """Return whether the runtime may have state of the container ``id_``.

    runc, crun and youki keep a directory with that name, gVisor files that begin with it.
    """
    return any(True for _ in _names(root, id_))


def foreign_bundle(root: str, id_: str, bundle: str) -> str:
    """Return the bundle of the runtime's container ``id_`` if it is not ``bundle``.

    Return "" if it is, or if no state file has the bundle: the container counts as ours.
    """
    for name in _names(root, id_):
        files = (name,) if name.endswith(".state") else (f"{name}/state.json", f"{name}/status")
        for file in files:
            with suppress(OSError, ValueError, RecursionError):
                theirs = _bundle(json.loads(read_whole(f"{root}/{file}", _LONGEST)))
                if theirs and not _is_same(theirs, bundle):
                    return theirs
    return ""


def _names(root: str, id_: str) -> Iterator[str]:
    if os.path.isdir(f"{root}/{id_}"):  # noqa: PTH112 - a plain string
        yield id_
        return
    # The names of gVisor's files contain the id of the sandbox, too.
    with suppress(OSError):
        for name in os.listdir(root):  # noqa: PTH208 - names are wanted
            if name == id_ or name.startswith(f"{id_}_"):
                yield name


def _bundle(state: Any) -> str:
    match state:
        case {"config": {"labels": [*labels]}}:
            named = (label for label in labels if isinstance(label, str))
            return next((one[len(_LABEL) :] for one in named if one.startswith(_LABEL)), "")
        case {"bundle": str(bundle)} | {"bundleDir": str(bundle)}:
            return bundle
    return ""


def _is_same(one: str, other: str) -> bool:
    if one == other or os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # noqa: PTH121 - plain strings
    except (OSError, ValueError):
        return False
