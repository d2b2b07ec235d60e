"""Adds the runtime handler ``trio`` to CRI-O, as a drop-in.

Source: crio.conf(5), crio.conf.d(5).
"""

from __future__ import annotations

import tomllib

from shim import names
from shimctl.host import managerfiles
from shimctl.host.managerfiles import table
from shimctl.host.setup.change import Change, add_block, has_block, remove_block
from shimctl.host.setup.containerd import parsed
from shimctl.host.setup.plan import HANDLER, Host, Plan, options_change, options_removal, refusal

_PATH = managerfiles.CRIO_DROPIN
_RESTART = "systemctl restart crio"


def install(host: Host) -> Plan:
    """Plan the drop-in and the options file.

    :raises InvalidError: the shim is not installed, or a present file is invalid or
        was not written by this module.
    """
    present = host.read(_PATH)
    if present is not None and not has_block(present):
        raise refusal(_PATH, "it was not written by shimctl", "remove or rename it first")
    main = parsed(managerfiles.CRIO, host.read(managerfiles.CRIO) or "")
    if HANDLER in table(main, "crio", "runtime", "runtimes"):
        reason = f"it has a runtime {HANDLER} already"
        raise refusal(managerfiles.CRIO, reason, "remove that table first")
    if not host.executable:
        reason = f"{names.EXECUTABLE} is not installed, and CRI-O needs its path"
        raise refusal(_PATH, reason, "run `shimctl install` first")
    systemd = host.systemd_cgroups
    if systemd is None:
        systemd = table(main, "crio", "runtime").get("cgroup_manager", "systemd") == "systemd"
    body = "\n".join(
        (
            f"[crio.runtime.runtimes.{HANDLER}]",
            'runtime_type = "vm"',
            f'runtime_path = "{host.executable}"',
            'runtime_root = "/run/trio-shim"',
            f'runtime_config_path = "{managerfiles.OPTIONS}"',
            "privileged_without_host_devices = true",
        )
    )
    after = add_block(present, body)
    tomllib.loads(after)
    options, remarks = options_change(host, systemd=systemd)
    return Plan((Change(_PATH, present, after), options), tuple(remarks), _RESTART)


def uninstall(host: Host) -> Plan:
    """Plan the removal of what :func:`install` wrote."""
    text = host.read(_PATH)
    changes = []
    if text is not None and has_block(text):
        changes.append(Change(_PATH, text, remove_block(text)))
    return Plan((*changes, *options_removal(host, changes)), (), _RESTART)
