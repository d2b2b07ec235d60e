"""Read a bundle's config.json, and make the process of an exec from it.

Source: OCI runtime specification, config.md ("Process").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shim import jsontext
from shim.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def read_config(bundle: Path) -> dict[str, Any]:
    """Read the bundle's config.json.

    :raises NotFoundError: there is no such bundle, or it has no config.json.
    :raises InvalidError: it is not a JSON object.
    """
    path = bundle / "config.json"
    try:
        config = jsontext.loads(path.read_bytes())
    except FileNotFoundError:
        if not bundle.is_dir():
            raise NotFoundError(f"there is no bundle {bundle}") from None
        raise NotFoundError(f"{path} is missing; `runc spec` writes one") from None
    except OSError as exc:
        raise NotFoundError(f"cannot read {path}: {exc.strerror}") from None
    except ValueError as exc:
        raise InvalidError(f"{path} is not valid JSON: {exc}") from None
    if not isinstance(config, dict):
        raise InvalidError(f"{path} must hold a JSON object")
    return config


def process_for(
    config: Mapping[str, Any],
    args: Sequence[str],
    *,
    terminal: bool,
    env: Sequence[str] = (),
    cwd: str = "",
    user: str = "",
) -> dict[str, Any]:
    """Return the init process's specification with other arguments.

    ``env`` are ``NAME=value``, which replace variables of the same name; ``user`` is
    ``UID`` or ``UID:GID``, in numbers.

    :raises InvalidError: ``env`` or ``user`` is malformed.
    """
    process = dict(config.get("process") or {})
    process |= {"args": list(args), "terminal": terminal}
    process.pop("commandLine", None)
    if cwd:
        process["cwd"] = cwd
    if env:
        replaced = {entry.partition("=")[0] for entry in env}
        if "" in replaced or any("=" not in entry for entry in env):
            raise InvalidError("--env takes NAME=VALUE")
        kept = [old for old in process.get("env") or () if old.partition("=")[0] not in replaced]
        process["env"] = [*kept, *env]
    if user:
        uid, colon, gid = user.partition(":")
        if not uid.isdecimal() or (colon and not gid.isdecimal()):
            raise InvalidError("--user takes UID or UID:GID, in numbers")
        process["user"] = {"uid": int(uid), "gid": int(gid or 0)}
    return process
