"""What an image asks for, and the runtime configuration that gives it that.

Values in, JSON out; no I/O happens here.  The result is what ``docker run``
would give as far as a shim alone can: the same capabilities, masked paths,
mounts and namespaces.  Not here: seccomp and AppArmor profiles, rlimits, and a
network of one's own beyond the loopback.

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
# Where a container's own files are, seen from its bundle.
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
    """What an image says about the containers made from it."""

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
class Wishes:
    """What a user asks for besides; what is empty is as the image has it.

    ``entrypoint`` None is the image's; an empty one is none.  ``memory`` is in
    bytes, ``cpus`` in cpus; 0 is no limit.  With ``network`` the container sees
    the host's, else only a loopback of its own.
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
    """Read an image's configuration, which ``what`` names.

    :raises InvalidError: something in it is of the wrong type.
    """
    inner = found.get("config")
    if inner is None:
        return ImageConfig()  # an image of files alone
    if not isinstance(inner, dict):
        raise InvalidError(f"{what}: config is no object")
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


def command_of(config: ImageConfig, wishes: Wishes, what: str) -> list[str]:
    """Return what to run: as in Docker, another entrypoint forgets the image's command.

    :raises InvalidError: neither the image nor the user named any.
    """
    if wishes.entrypoint is None:
        entrypoint, command = config.entrypoint, wishes.args or config.command
    else:
        entrypoint, command = tuple(wishes.entrypoint), wishes.args
    if args := [*entrypoint, *command]:
        return args
    raise InvalidError(f"{what} says no command to run; give one after the image")


def environment_of(config: ImageConfig, wishes: Wishes) -> list[str]:
    """Return the variables: ours, then the image's, then the user's; the last one counts."""
    ours = [PATH, *(["TERM=xterm"] if wishes.terminal else [])]
    if wishes.hostname:
        ours.append(f"HOSTNAME={wishes.hostname}")
    merged: dict[str, str] = {}
    for entry in [*ours, *config.env, *wishes.env]:
        name, equals, value = entry.partition("=")
        if not name or not equals or "\0" in entry:
            raise InvalidError(f"{entry!r} is no variable; say NAME=VALUE")
        merged[name] = value
    return [f"{name}={value}" for name, value in merged.items()]


def runtime_config(
    config: ImageConfig, user: User, wishes: Wishes, *, what: str, cgroup_v2: bool
) -> dict[str, Any]:
    """Make the config.json of a container whose rootfs is mounted in its bundle.

    :raises InvalidError: there is nothing to run, or a path makes no sense.
    """
    capabilities = list(_CAPABILITIES)
    kinds = ["pid", "ipc", "uts", "mount"]
    kinds += ([] if wishes.network else ["network"]) + (["cgroup"] if cgroup_v2 else [])
    linux: dict[str, Any] = {
        "resources": _resources(wishes),
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
    if wishes.cgroup:
        linux["cgroupsPath"] = wishes.cgroup
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": wishes.terminal,
            "user": {
                "uid": user.uid,
                "gid": user.gid,
                # Its own group too: who is kept out as a member must not get in as another.
                "additionalGids": list(dict.fromkeys((user.gid, *user.groups))),
            },
            "args": command_of(config, wishes, what),
            "env": environment_of(config, wishes),
            "cwd": working_dir_of(config, wishes),
            # Nothing inheritable: exec takes them from whoever is not root.
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "root": {"path": "rootfs", "readonly": wishes.read_only},
        "hostname": wishes.hostname,
        "mounts": _mounts(config, wishes),
        "annotations": _annotations(config),
        "linux": linux,
    }


def working_dir_of(config: ImageConfig, wishes: Wishes) -> str:
    """Return the working directory; the runtime makes it if the image lacks it."""
    path = wishes.working_dir or config.working_dir or "/"
    if not path.startswith("/"):
        raise InvalidError(f"the working directory {path!r} must begin with /")
    return path


def anonymous_volumes(config: ImageConfig) -> list[str]:
    """Return the places of the image's volumes, in the order of their directories."""
    for path in config.volumes:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts or not path.startswith("/"):
            raise InvalidError(f"the image's volume {path!r} is no place inside a container")
    return list(config.volumes)


def _mounts(config: ImageConfig, wishes: Wishes) -> list[dict[str, Any]]:
    mounts = [
        {"destination": where, "type": kind, "source": kind, "options": list(options)}
        for where, kind, options in _MOUNTS
    ]
    taken = {_clean(volume.destination) for volume in wishes.volumes}
    own = [("/etc/hostname", f"{OWN}/hostname"), ("/etc/hosts", f"{OWN}/hosts")]
    own += [("/etc/resolv.conf", f"{OWN}/resolv.conf")] if wishes.network else []
    own += [
        (place, f"{OWN}/volumes/{number}")
        for number, place in enumerate(anonymous_volumes(config))
    ]
    mounts += [_bind(source, place) for place, source in own if _clean(place) not in taken]
    for volume in wishes.volumes:
        if not volume.source.startswith("/") or not volume.destination.startswith("/"):
            raise InvalidError(f"a volume needs two absolute paths: {volume.source!r}")
        mounts.append(_bind(volume.source, volume.destination, read_only=volume.read_only))
    return mounts


def _bind(source: str, destination: str, *, read_only: bool = False) -> dict[str, Any]:
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def _clean(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _resources(wishes: Wishes) -> dict[str, Any]:
    # The runtime adds the devices that every container has to this.
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if wishes.memory:
        resources["memory"] = {"limit": wishes.memory}
    if wishes.cpus:
        resources["cpu"] = {"quota": round(wishes.cpus * _PERIOD), "period": _PERIOD}
    if wishes.pids:
        resources["pids"] = {"limit": wishes.pids}
    return resources


def _annotations(config: ImageConfig) -> dict[str, str]:
    said = {"stopSignal": config.stop_signal, "exposedPorts": ",".join(config.ports)}
    named = {f"org.opencontainers.image.{key}": value for key, value in said.items() if value}
    return named | dict(config.labels)


def _text(found: Mapping[str, Any], key: str, what: str) -> str:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidError(f"{what}: {key} is no text")
    return _checked(value or "", key, what)


def _texts(found: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    value = found.get(key)
    if value is not None and not _are_texts(value):
        raise InvalidError(f"{what}: {key} is no list of texts")
    return tuple(_checked(text, key, what) for text in value or ())


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _mapping(found: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    value = found.get(key)
    if value is not None and not isinstance(value, dict):
        raise InvalidError(f"{what}: {key} is no object")
    return {_checked(name, key, what): entry for name, entry in (value or {}).items()}


def _checked(text: str, key: str, what: str) -> str:
    if "\0" in text:
        raise InvalidError(f"{what}: {key} holds a NUL byte")
    return text
