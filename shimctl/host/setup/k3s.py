"""Adds the runtime handler ``trio`` to k3s's template of containerd's configuration.

k3s writes containerd's file at each start, from the template if there is one.  The
template ``base`` is a part of k3s.  The name of the file depends on the version of the
configuration that k3s has written.

Source: k3s's documentation, "Configuring containerd".
"""

from __future__ import annotations

from shim import names
from shimctl.host import managerfiles
from shimctl.host.setup.change import Change, add_block, has_block, remove_block
from shimctl.host.setup.containerd import parsed
from shimctl.host.setup.plan import HANDLER, Host, Plan, refusal

_RESTART = "systemctl restart k3s  (k3s-agent on an agent)"
_WRITTEN = f"{managerfiles.K3S}/config.toml"
TEMPLATES = {
    2: f"{managerfiles.K3S}/config.toml.tmpl",
    3: f"{managerfiles.K3S}/config-v3.toml.tmpl",
}
_BASE = '{{ template "base" . }}\n'


def install(host: Host) -> Plan:
    """Plan the block in the template; make the template if there is none.

    :raises InvalidError: k3s has not written its configuration yet, or the template has
        another runtime of that name.
    """
    written = host.read(_WRITTEN)
    if written is None:
        reason = "k3s has not written it, so its version is not known"
        raise refusal(_WRITTEN, reason, "start k3s once")
    number = managerfiles.version_of(parsed(_WRITTEN, written))
    if number not in TEMPLATES:
        reason = f"its version {number} is unknown"
        raise refusal(_WRITTEN, reason, "add the runtime by hand, as in examples/containerd")
    path = TEMPLATES[number]
    text = host.read(path)
    rest = remove_block(text) if text is not None else None
    table = f'plugins."{managerfiles.CRI_PLUGINS[number]}".containerd.runtimes'
    if f"containerd.runtimes.{HANDLER}]" in (rest or "").replace('"', "").replace("'", ""):
        raise refusal(path, f"it has a runtime {HANDLER} already", "remove that table first")
    body = "\n".join(
        (
            *([] if rest else [_BASE]),
            f"[{table}.{HANDLER}]",
            f'runtime_type = "{names.RUNTIME}"',
            'pod_annotations = ["io.trio-shim.*"]',
            'container_annotations = ["io.trio-shim.*"]',
            "",
            f"[{table}.{HANDLER}.options]",
            "SystemdCgroup = {{ .SystemdCgroup }}",
        )
    )
    return Plan((Change(path, text, add_block(text, body)),), (), _RESTART)


def uninstall(host: Host) -> Plan:
    """Plan the removal of what :func:`install` wrote."""
    changes = [
        Change(path, text, remove_block(text))
        for path in TEMPLATES.values()
        if (text := host.read(path)) is not None and has_block(text)
    ]
    return Plan(tuple(changes), (), _RESTART)
