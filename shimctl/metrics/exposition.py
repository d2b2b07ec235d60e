"""Writes metrics into a file for node_exporter's textfile collector, or serves them.

Source: Prometheus, "Exposition formats"; node_exporter README.md, "Textfile Collector".
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from shim.errors import InvalidError, UnavailableError
from shim.text import explain
from shimctl.metrics.collect import collect
from shimctl.metrics.families import families_of
from shimctl.replacing import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prometheus_client.core import Metric

    from shimctl.metrics.collect import Snapshot


class _Snapshots(Protocol):
    def collect(self) -> Iterator[Metric]: ...


class _Fixed:
    """A collector of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return families_of(self._snapshot)


class _Live:
    """A collector that measures for each request, in the thread that serves it."""

    def __init__(self, namespace: str, states: Sequence[str | Path]) -> None:
        self._measure = partial(collect, namespace=namespace, states=states)

    def collect(self) -> Iterator[Metric]:
        return families_of(trio.run(self._measure))

    def describe(self) -> list[Metric]:
        """Return nothing: the registry would otherwise measure at once."""
        return []


def text_of(snapshot: Snapshot) -> str:
    """Return the metrics in Prometheus's text format."""
    return generate_latest(_registry(_Fixed(snapshot))).decode()


def _registry(collector: _Snapshots) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def serve(address: str, *, namespace: str = "", states: Sequence[str | Path] = ()) -> str:
    """Serve the metrics over HTTP from now on, in a thread; return their URL.

    ``address`` is ``HOST:PORT`` or a port; without a host it is 127.0.0.1.

    :raises InvalidError: the address is malformed.
    :raises UnavailableError: it cannot be bound.
    """
    host, port = parse_address(address)
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        start_http_server(port, host, _registry(_Live(namespace, states)))
    except OSError as exc:
        text = f"cannot listen on {shown}: {explain(exc)}"
        raise UnavailableError(f"{text}; use another address or port") from None
    except UnicodeError:
        raise InvalidError(
            f"cannot listen on {shown}: no host has this name; correct it"
        ) from None
    return f"http://{shown}/metrics"


def parse_address(address: str) -> tuple[str, int]:
    """Return the host and the port of ``127.0.0.1:9842``, ``[::1]:9842``, ``:9842`` or ``9842``.

    :raises InvalidError: it is malformed.
    """
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise InvalidError(
            f"cannot listen on {address!r}; use HOST:PORT, as in 127.0.0.1:9842, with a port "
            "from 1 to 65535"
        )
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def write(path: Path, text: str) -> None:
    """Replace the file in one step, readable for all: node_exporter is another user.

    :raises OSError: it cannot be written.
    """
    replace_file(path, text.encode(), 0o644)
