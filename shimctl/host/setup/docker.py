"""Adds the runtime ``trio`` to Docker's configuration; other bytes of the file stay.

Source: dockerd(8), "runtimes" of daemon.json.
"""

from __future__ import annotations

import json
from typing import Any

from shim import names
from shimctl.host import managerfiles
from shimctl.host.managerfiles import table
from shimctl.host.setup.change import Change
from shimctl.host.setup.jsonedit import add_member, remove_member
from shimctl.host.setup.plan import HANDLER, Host, Plan, options_change, options_removal, refusal

_PATH = managerfiles.DOCKER
_RESTART = "systemctl restart docker"
_NEW = "{\n}\n"  # to which a file is added that does not exist
_FIRST = (23,)  # Docker that knows other runtime types


def install(host: Host) -> Plan:
    """Plan the addition of the runtime.

    :raises InvalidError: the present file is invalid, has another runtime of that name, or
        Docker is too old.
    """
    version = host.versions.get("dockerd", _FIRST)
    if version < _FIRST:
        shown = ".".join(map(str, version))
        remedy = "upgrade it, or see examples/docker/docker-20.10.conf"
        raise refusal(_PATH, f"Docker {shown} has no setting for the shim", remedy)
    text = host.read(_PATH)
    config = _parsed(text)
    present = config.get("runtimes", {})
    if not isinstance(present, dict):
        raise refusal(_PATH, "its `runtimes` is not an object", "correct it first")
    systemd = host.systemd_cgroups
    if systemd is None:
        systemd = "native.cgroupdriver=systemd" in map(str, config.get("exec-opts") or [])
    entry = _entry(systemd=systemd)
    if HANDLER in present:
        if present[HANDLER] == entry:
            return Plan((Change(_PATH, text, text),), (), _RESTART)
        raise refusal(_PATH, f"it has a runtime {HANDLER} already", "remove that first")
    filled = _NEW if text is None else text
    changes = [Change(_PATH, text, add_member(filled, "runtimes", HANDLER, entry))]
    remarks: list[str] = []
    if systemd:
        change, remarks = options_change(host, systemd=True)
        changes.append(change)
    if not config.get("live-restore"):
        remarks.append("without live-restore, a restart of dockerd ends every container")
    return Plan(tuple(changes), tuple(remarks), _RESTART)


def uninstall(host: Host) -> Plan:
    """Plan the removal of what :func:`install` wrote."""
    text = host.read(_PATH)
    entry = table(_parsed(text), "runtimes").get(HANDLER)
    if text is None or entry not in (_entry(systemd=True), _entry(systemd=False)):
        return Plan((), (), _RESTART)
    after = remove_member(text, "runtimes", HANDLER, entry)
    if after is None:  # the file was formatted anew
        config = _parsed(text)
        del config["runtimes"][HANDLER]
        if not config["runtimes"]:
            del config["runtimes"]
        after = json.dumps(config, indent=2) + "\n"
    changes = [Change(_PATH, text, None if after == _NEW else after)]
    return Plan((*changes, *options_removal(host, changes)), (), _RESTART)


def _parsed(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise refusal(_PATH, f"it is not JSON: {exc}", "correct that line first") from None
    if not isinstance(config, dict):
        raise refusal(_PATH, "it is not a JSON object", "correct it first")
    return config


def _entry(*, systemd: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"runtimeType": names.RUNTIME}
    if systemd:
        entry["options"] = {"ConfigPath": managerfiles.OPTIONS}
    return entry
