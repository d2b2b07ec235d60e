"""metrics: print or serve figures of containers and shims for Prometheus."""

from __future__ import annotations

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import FILE, Where, search_options


@declare(
    "metrics",
    example="shimctl metrics --output /var/lib/node_exporter/textfile_collector/shims.prom",
)
@click.option(
    "--output",
    "file",
    type=FILE,
    default="",
    metavar="FILE",
    help="Replace this file in one step, for node_exporter's textfile collector.",
)
@click.option(
    "--listen",
    default="",
    metavar="[HOST:]PORT",
    help="Serve them over HTTP until interrupted (default host: 127.0.0.1).",
)
@search_options
async def command(file: str, listen: str, where: Where) -> None:
    """Print figures of containers and shims for Prometheus.

    Each container has the figures of its cgroup, each shim its memory, open files, waiting
    events, bytes of output that were stored or dropped, and the times of its execs and
    exits.  A shim that does not answer within a second has shim_up 0.
    It needs the Python package prometheus_client: pip install 'trio-shim[metrics]'.
    """
    from pathlib import Path

    from shim.errors import InvalidError, UnsupportedError

    try:
        from shimctl.metrics import exposition
    except ModuleNotFoundError as exc:
        raise UnsupportedError(
            f"metrics need the Python package {exc.name}; "
            "install it: pip install 'trio-shim[metrics]'"
        ) from None
    if file and listen:
        raise InvalidError("--output excludes --listen; give one of them")
    if listen:
        await _serve(listen, where)
        return
    from shimctl.metrics.collect import collect

    snapshot = await collect(namespace=where.namespace, states=where.states)
    text = exposition.text_of(snapshot)
    if file:
        exposition.write(Path(file), text)
    else:
        print(text, end="")


async def _serve(address: str, where: Where) -> None:
    import sys

    import trio

    from shim.text import printable
    from shimctl.metrics import exposition

    url = exposition.serve(address, namespace=where.namespace, states=where.states)
    print(f"shimctl: serving metrics at {printable(url)}", file=sys.stderr)
    await trio.sleep_forever()
