"""The fields of a container in templates, by docker's names.

``{{json .}}`` prints the fields of docker; the others are for templates only.

Source: docker's references of ``docker ps --format`` and ``docker stats --format``;
``docker inspect`` of a container.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from shimctl import units
from shimctl.gotemplate import Document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from shimctl.host.usage import Usage
    from shimctl.listing.row import Row

COMMAND = 20  # characters of a command line, as docker shortens it

# The headers of `table` templates that are not the field's name in capitals.
HEADERS = {
    "ID": "CONTAINER ID",
    "RunningFor": "CREATED",
    "CreatedAt": "CREATED AT",
    "LocalVolumes": "LOCAL VOLUMES",
    "ExitCode": "EXIT CODE",
    "ShimPid": "SHIM",
    "ShimVersion": "VERSION",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
}


def listed(row: Row, now: datetime, *, whole: bool = False) -> Document:
    """Return the fields of ``docker ps`` for ``row``; only ``whole`` ones are not shortened.

    Ports, networks, mounts and sizes are those of docker's engine; no shim knows them, and
    they are empty.
    """
    found, origin = row.found, row.origin
    command = shortened(" ".join(row.command), 0 if whole else COMMAND)
    labels = ",".join(f"{key}={value}" for key, value in sorted(origin.labels.items()))
    absent = dict.fromkeys(("LocalVolumes", "Mounts", "Networks", "Ports", "Size"), "")
    fields = {
        "Command": json.dumps(command, ensure_ascii=False),
        "CreatedAt": _time(row.created_at),
        "ID": found.id if whole else row.id,
        "Image": origin.image,
        "Labels": labels,
        "Names": row.name,
        "RunningFor": units.age(row.created_at, now),
        "State": row.state,
        "Status": row.status(now),
        **absent,
    }
    others = {
        "Name": row.name,
        "Created": units.age(row.created_at, now),
        "StartedAt": _time(row.started_at),
        "Namespace": found.namespace,
        "Runtime": row.runtime,
        "Pid": found.pid,
        "ShimPid": found.shim_pid,
        "ShimVersion": found.version,
        "ExitCode": row.exit_status if row.exit_status is not None else 0,
        "Pod": origin.pod,
        "PodNamespace": origin.pod_namespace,
        "PodId": origin.pod_id,
        "Bundle": found.bundle,
        "Address": found.address,
        "Health": found.health.value,
        "Detail": found.detail,
        "Label": lambda key: origin.labels.get(key, "") if isinstance(key, str) else "",
    }
    return Document(dict(sorted(fields.items())), others)


def measured(row: Row, usage: Usage, *, whole: bool = False) -> Document:
    """Return the fields of ``docker stats``; a figure that is unknown is ``-``.

    A shim counts no bytes of a network, so ``NetIO`` is ``-``.
    """
    read, written = units.size(usage.io_read), units.size(usage.io_written)
    fields = {
        "BlockIO": f"{read or '-'} / {written or '-'}",
        "CPUPerc": percent(usage.cpu_percent),
        "Container": row.found.id if whole else row.id,
        "ID": row.found.id if whole else row.id,
        "MemPerc": percent(usage.memory_percent),
        "MemUsage": memory(usage),
        "Name": row.name,
        "NetIO": "-",
        "PIDs": "-" if usage.pids is None else str(usage.pids),
    }
    others = {
        "Names": row.name,
        "Namespace": row.found.namespace,
        "Problem": usage.problem,
        "Status": usage.status.value,
    }
    return Document(fields, others)


def percent(number: float | None) -> str:
    """Format a percentage with two digits, as docker does; ``-`` if it is unknown."""
    return "-" if number is None else f"{number:.2f}%"


def memory(usage: Usage) -> str:
    """Format memory and its limit: ``1.5MiB / 512.0MiB``; no limit is ``max``."""
    if usage.memory is None:
        return "- / -"
    return f"{units.size(usage.memory)} / {units.size(usage.memory_limit) or 'max'}"


def inspected(values: Mapping[str, Any], row: Row) -> Document:
    """Return ``values``, which ``inspect -o json`` prints, with docker's names beside them.

    ``.State.Pid`` is found in ``values`` itself, as ``state.pid``.
    """
    state, exited = values.get("state"), row.found.exited
    own = state if isinstance(state, dict) else {}
    names = {
        "Status": row.state,
        "Running": row.state in ("running", "paused"),
        "Paused": row.state == "paused",
        "Dead": row.state == "dead",
        "Pid": row.found.pid,
        "ExitCode": row.exit_status if row.exit_status is not None else 0,
        "StartedAt": _time(row.started_at),
        "FinishedAt": _time(exited.exited_at if exited else None),
    }
    config = values.get("config")
    labels = dict(row.origin.labels)
    own_config = config if isinstance(config, dict) else {}
    docker_config = {
        "Image": row.origin.image,
        "Cmd": list(row.command),
        "Labels": labels,
        "WorkingDir": own_config.get("cwd"),
        "Tty": own_config.get("terminal"),
    }
    return Document(
        {
            **values,
            # Without an answer of the shim, the fields of State are docker's only.
            "state": Document(own, names) if own else None,
            "config": Document(own_config, docker_config) if own_config else None,
        },
        {
            "State": Document(own or names, names),
            "Config": Document(own_config, docker_config),
            "Name": row.name,
            "Image": row.origin.image,
            "Created": _time(row.created_at),
            "Path": row.command[0] if row.command else "",
            "Args": list(row.command[1:]),
            "Runtime": row.runtime,
            "Labels": labels,
            "Pod": row.origin.pod,
        },
    )


def shortened(text: str, most: int) -> str:
    """Cut ``text`` to ``most`` characters with an ellipsis; zero is no limit."""
    return f"{text[: most - 1]}…" if 0 < most < len(text) else text


def _time(at: datetime | None) -> str:
    return at.isoformat().replace("+00:00", "Z") if at else ""
