"""Adds the runtime handler ``trio`` for pods to containerd's configuration.

containerd 2 merges an imported file table by table, so a drop-in is written if the
configuration imports the directory of drop-ins.  containerd 1 replaces a whole plugin by
that of an imported file, and would lose the settings of the CRI plugin: there, and
without imports, a block is added at the end of the file.

Source: containerd services/server/config/config.go of 1.6 and 1.7, and
cmd/containerd/server/config/config.go of 2.0 to 2.3, mergeConfig().
"""

from __future__ import annotations

import tomllib
from typing import Any

from shim import names
from shimctl.host import managerfiles
from shimctl.host.managerfiles import table
from shimctl.host.setup.change import Change, add_block, has_block, remove_block
from shimctl.host.setup.plan import (
    HANDLER,
    Host,
    Plan,
    is_ours,
    options_change,
    options_removal,
    refusal,
)

_RESTART = "systemctl restart containerd"
_PATH = managerfiles.CONTAINERD
_DROPIN = managerfiles.CONTAINERD_DROPIN
# The first containerd that imports the drop-ins by default.
_IMPORTS_BY_DEFAULT = (2, 2)


def install(host: Host) -> Plan:
    """Plan the addition of the handler.

    :raises InvalidError: the present file is invalid, or cannot have the handler.
    """
    text = host.read(_PATH)
    present = host.read(_DROPIN)
    version = host.versions.get("containerd", ())
    config = parsed(_PATH, text or "")
    number = managerfiles.version_of(config) if config else (2 if version < (2,) else 3)
    rest = remove_block(text) if text is not None else None
    others = parsed(_PATH, rest or "")
    _check(others, number, present)
    systemd = host.systemd_cgroups
    if systemd is None:
        runc = table(managerfiles.cri_runtimes(others), "runc", "options")
        systemd = runc.get("SystemdCgroup") is True
    body = _body(others, number, systemd=systemd, with_runc=number == 2)
    dropin = (number == 3 or version >= (2,)) and _imports(others, version, text)
    changes: list[Change] = []
    remarks: list[str] = []
    if dropin and not has_block(text):
        body = f"version = {number}\n\n{_body({}, number, systemd=systemd, with_runc=False)}"
        changes.append(Change(_DROPIN, present, add_block(present, body)))
    else:
        if not others:
            body = f"version = {number}\n\n{body}"
        changed = add_block(text, body)
        _check_result(text or "", changed, number)
        changes.append(Change(_PATH, text, changed))
    if number == 2 and systemd:
        change, remarks = options_change(host, systemd=True)
        changes.append(change)
    return Plan(tuple(changes), tuple(remarks), _RESTART)


def uninstall(host: Host) -> Plan:
    """Plan the removal of what :func:`install` wrote."""
    changes = [
        Change(path, text, remove_block(text))
        for path in (_PATH, _DROPIN)
        if (text := host.read(path)) is not None and has_block(text)
    ]
    return Plan((*changes, *options_removal(host, changes)), (), _RESTART)


def parsed(path: str, text: str) -> dict[str, Any]:
    """Parse a present file.

    :raises InvalidError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise refusal(path, f"it is not TOML: {exc}", "correct that line first") from None


def _check(config: dict[str, Any], number: int, dropin: str | None) -> None:
    """Refuse a file that cannot have the handler; ``config`` is without our block."""
    if config and managerfiles.version_of(config) == 1:
        remedy = "convert it first with `containerd config migrate`"
        raise refusal(_PATH, "it has no version 2 or 3", remedy)
    if number not in managerfiles.CRI_PLUGINS:
        remedy = "add the runtime by hand, as in examples/containerd"
        raise refusal(_PATH, f"its version {number} is unknown", remedy)
    plugin = managerfiles.CRI_PLUGINS[number]
    disabled = config.get("disabled_plugins")
    if isinstance(disabled, list) and {"cri", plugin} & set(map(str, disabled)):
        remedy = "remove it from disabled_plugins; ctr and nerdctl need no configuration"
        raise refusal(_PATH, "it disables the CRI plugin", remedy)
    present = managerfiles.cri_runtimes(config).get(HANDLER)
    if present is not None:
        reason = "is this shim already" if is_ours(present) else "is another one"
        raise refusal(_PATH, f"its runtime {HANDLER} {reason}", "remove that table first")
    if dropin is not None and not has_block(dropin):
        raise refusal(_DROPIN, "it was not written by shimctl", "remove or rename it first")


def _body(config: dict[str, Any], number: int, *, systemd: bool, with_runc: bool) -> str:
    plugin = f'plugins."{managerfiles.CRI_PLUGINS[number]}".containerd.runtimes'
    lines = [
        f"[{plugin}.{HANDLER}]",
        f'runtime_type = "{names.RUNTIME}"',
        'pod_annotations = ["io.trio-shim.*"]',
        'container_annotations = ["io.trio-shim.*"]',
    ]
    if systemd:
        option = (
            f'ConfigPath = "{managerfiles.OPTIONS}"' if number == 2 else "SystemdCgroup = true"
        )
        lines += ["", f"[{plugin}.{HANDLER}.options]", option]
    parent = table(config, "plugins", managerfiles.CRI_PLUGINS[number], "containerd")
    default = parent.get("default_runtime_name", "runc")
    if with_runc and default == "runc" and "runc" not in table(parent, "runtimes"):
        # 1.6 and 1.7 drop their own table of it if a file has another.
        lines += ["", f"[{plugin}.runc]", 'runtime_type = "io.containerd.runc.v2"']
    return "\n".join(lines)


def _imports(config: dict[str, Any], version: tuple[int, ...], text: str | None) -> bool:
    if text is None:
        return version >= _IMPORTS_BY_DEFAULT
    imports = config.get("imports")
    wanted = (f"{managerfiles.CONTAINERD_DROPINS}/*.toml", "conf.d/*.toml")
    return isinstance(imports, list) and any(name in imports for name in wanted)


def _check_result(before: str, after: str, number: int) -> None:
    """Refuse a result that is invalid or that changes anything else."""
    try:
        result = tomllib.loads(after)
    except ValueError as exc:
        remedy = "add the runtime by hand, as in examples/containerd"
        raise refusal(_PATH, f"a table cannot be added at its end: {exc}", remedy) from None
    runtimes = managerfiles.cri_runtimes(result)
    assert is_ours(runtimes.get(HANDLER)), f"version {number}"
    assert before in after or has_block(before)
