"""An image's configuration, and the config.json made from it.

Values in, JSON out; no I/O happens here.  The result has Docker's default
capabilities, masked paths, mounts and namespaces.  It has no seccomp and
AppArmor profile, no rlimits, and no network beyond a private loopback.

Source: the OCI image specification, config.md and conversion.md; Docker's
oci/defaults.go and oci/caps for the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shim.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shimctl.images.accounts import User

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The directory of a container's own files, relative to its bundle.
OWN = "image"
_PERIOD = 100_000  # us, the kernel's default

_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE"),
    *("CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"),
)
_MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list"),
    *("/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_SAFE = ["nosuid", "noexec", "nodev"]
_MOUNTS: tuple[tuple[str, str, list[str]], ...] = (
    ("/proc", "proc", _SAFE),
    ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/sys", "sysfs", [*_SAFE, "ro"]),
    ("/sys/fs/cgroup", "cgroup", [*_SAFE, "relatime", "ro"]),
    ("/dev/mqueue", "mqueue", _SAFE),
    ("/dev/shm", "tmpfs", [*_SAFE, "mode=1777", "size=65536k"]),
)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The settings of an image for containers created from it."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host at a place in the container."""

    source: str
    destination: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Overrides:
    """A user's settings, which replace the image's; empty values keep the image's.

    ``entrypoint`` None keeps the image's; an empty one removes it.  ``memory`` is in
    bytes, ``cpus`` in cpus; 0 is no limit.  With ``network`` the container has the
    host's network, else only a private loopback.
    """

    args: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    env: Sequence[str] = ()
    working_dir: str = ""
    hostname: str = ""
    volumes: Sequence[Volume] = ()
    memory: int = 0
    cpus: float = 0
    pids: int = 0
    read_only: bool = False
    network: bool = False
    terminal: bool = False
    cgroup: str = ""


def read_image_config(found: Mapping[str, Any], what: str) -> ImageConfig:
    """Read an image's configuration; ``what`` names it in errors.

    :raises InvalidError: a value is of the wrong type.
    """
    inner = found.get("config")
    if inner is None:
        return ImageConfig()  # an image without settings
    if not isinstance(inner, dict):
        raise InvalidError(f"{what}: config is not an object")
    return ImageConfig(
        entrypoint=_texts(inner, "Entrypoint", what),
        command=_texts(inner, "Cmd", what),
        env=_texts(inner, "Env", what),
        user=_text(inner, "User", what),
        working_dir=_text(inner, "WorkingDir", what),
        stop_signal=_text(inner, "StopSignal", what),
        volumes=tuple(sorted(_mapping(inner, "Volumes", what))),
        ports=tuple(sorted(_mapping(inner, "ExposedPorts", what))),
        labels={key: str(value) for key, value in _mapping(inner, "Labels", what).items()},
    )


def command_of(config: ImageConfig, overrides: Overrides, what: str) -> list[str]:
    """Return the command; as in Docker, another entrypoint drops the image's command.

    :raises InvalidError: neither the image nor the user names a command.
    """
    if overrides.entrypoint is None:
        entrypoint, command = config.entrypoint, overrides.args or config.command
    else:
        entrypoint, command = tuple(overrides.entrypoint), overrides.args
    if args := [*entrypoint, *command]:
        return args
    raise InvalidError(f"{what} has no command; give one after the image")


def environment_of(config: ImageConfig, overrides: Overrides) -> list[str]:
    """Return the defaults, then the image's, then the user's variables; the last one counts."""
    ours = [PATH, *(["TERM=xterm"] if overrides.terminal else [])]
    if overrides.hostname:
        ours.append(f"HOSTNAME={overrides.hostname}")
    merged: dict[str, str] = {}
    for entry in [*ours, *config.env, *overrides.env]:
        name, equals, value = entry.partition("=")
        if not name or not equals or "\0" in entry:
            raise InvalidError(f"{entry!r} is not a variable; use NAME=VALUE")
        merged[name] = value
    return [f"{name}={value}" for name, value in merged.items()]


def runtime_config(
    config: ImageConfig, user: User, overrides: Overrides, *, what: str, cgroup_v2: bool
) -> dict[str, Any]:
    """Return the config.json of a container whose rootfs is mounted in its bundle.

    :raises InvalidError: there is no command, or a path is malformed.
    """
    capabilities = list(_CAPABILITIES)
    kinds = ["pid", "ipc", "uts", "mount"]
    kinds += ([] if overrides.network else ["network"]) + (["cgroup"] if cgroup_v2 else [])
    linux: dict[str, Any] = {
        "resources": _resources(overrides),
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
    if overrides.cgroup:
        linux["cgroupsPath"] = overrides.cgroup
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": overrides.terminal,
            "user": {
                "uid": user.uid,
                "gid": user.gid,
                # List the primary gid, too, or group-deny modes can be bypassed.
                "additionalGids": list(dict.fromkeys((user.gid, *user.groups))),
            },
            "args": command_of(config, overrides, what),
            "env": environment_of(config, overrides),
            "cwd": working_dir_of(config, overrides),
            # None inheritable: execve(2) drops them for a user that is not root.
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "root": {"path": "rootfs", "readonly": overrides.read_only},
        "hostname": overrides.hostname,
        "mounts": _mounts(config, overrides),
        "annotations": _annotations(config),
        "linux": linux,
    }


def working_dir_of(config: ImageConfig, overrides: Overrides) -> str:
    """Return the working directory; the runtime creates it if the image lacks it."""
    path = overrides.working_dir or config.working_dir or "/"
    if not path.startswith("/"):
        raise InvalidError(f"the working directory {path!r} must begin with /")
    return path


def anonymous_volumes(config: ImageConfig) -> list[str]:
    """Return the paths of the image's volumes, in the order of their directories."""
    for path in config.volumes:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts or not path.startswith("/"):
            raise InvalidError(f"the image's volume {path!r} is not a path inside a container")
    return list(config.volumes)


def _mounts(config: ImageConfig, overrides: Overrides) -> list[dict[str, Any]]:
    mounts = [
        {"destination": where, "type": kind, "source": kind, "options": list(options)}
        for where, kind, options in _MOUNTS
    ]
    taken = {_clean(volume.destination) for volume in overrides.volumes}
    own = [("/etc/hostname", f"{OWN}/hostname"), ("/etc/hosts", f"{OWN}/hosts")]
    own += [("/etc/resolv.conf", f"{OWN}/resolv.conf")] if overrides.network else []
    own += [
        (place, f"{OWN}/volumes/{number}")
        for number, place in enumerate(anonymous_volumes(config))
    ]
    mounts += [_bind(source, place) for place, source in own if _clean(place) not in taken]
    for volume in overrides.volumes:
        if not volume.source.startswith("/") or not volume.destination.startswith("/"):
            raise InvalidError(f"a volume needs two absolute paths: {volume.source!r}")
        mounts.append(_bind(volume.source, volume.destination, read_only=volume.read_only))
    return mounts


def _bind(source: str, destination: str, *, read_only: bool = False) -> dict[str, Any]:
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def _clean(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _resources(overrides: Overrides) -> dict[str, Any]:
    # The runtime adds the default devices.
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if overrides.memory:
        resources["memory"] = {"limit": overrides.memory}
    if overrides.cpus:
        resources["cpu"] = {"quota": round(overrides.cpus * _PERIOD), "period": _PERIOD}
    if overrides.pids:
        resources["pids"] = {"limit": overrides.pids}
    return resources


def _annotations(config: ImageConfig) -> dict[str, str]:
    values = {"stopSignal": config.stop_signal, "exposedPorts": ",".join(config.ports)}
    named = {f"org.opencontainers.image.{key}": value for key, value in values.items() if value}
    return named | dict(config.labels)


def _text(found: Mapping[str, Any], key: str, what: str) -> str:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidError(f"{what}: {key} is not a string")
    return _checked(value or "", key, what)


def _texts(found: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    value = found.get(key)
    if value is not None and not _are_texts(value):
        raise InvalidError(f"{what}: {key} is not a list of strings")
    return tuple(_checked(text, key, what) for text in value or ())


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _mapping(found: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    value = found.get(key)
    if value is not None and not isinstance(value, dict):
        raise InvalidError(f"{what}: {key} is not an object")
    return {_checked(name, key, what): entry for name, entry in (value or {}).items()}


def _checked(text: str, key: str, what: str) -> str:
    if "\0" in text:
        raise InvalidError(f"{what}: {key} holds a NUL byte")
    return text
