"""A service on asyncio that keeps one container running, and survives kill -9.

    python examples/python/service.py BUNDLE

The container runs under its shim, so it does not notice that this program ends.  The next
start finds the shim by the address in the bundle, and goes on where the last one stopped.
It needs root, runc, and the shim's executable on PATH.
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import shimctl.aio as shimctl

NAMESPACE = "service"


async def address_of(bundle: Path) -> str:
    """Return the address of the bundle's shim; start one if there is none."""
    try:
        return shimctl.read_address(bundle)
    except shimctl.NotFoundError:
        launched = await shimctl.launch(bundle, bundle.name, namespace=NAMESPACE)
        return launched.address


async def watch(bundle: Path) -> int:
    """Create and start the container as far as that was not done; wait for its exit."""
    address = await address_of(bundle)
    async with shimctl.connect(address, namespace=NAMESPACE) as shim:
        task = shim.task(bundle.name)
        try:
            state = await task.state()
        except shimctl.NotFoundError:
            with suppress(shimctl.ExistsError):  # a run that was killed has created it
                await shim.create(bundle.name, bundle)
            state = await task.state()
        if state.status is shimctl.Status.CREATED:
            try:
                await task.start()
                print("started", flush=True)
            except shimctl.WrongStateError:  # a run that was killed has started it just now
                print("found it", shimctl.Status.RUNNING.value, flush=True)
        else:
            print("found it", state.status.value, flush=True)
        return (await task.wait()).exit_status


async def exit_without_shim(bundle: Path) -> int | None:
    """Return the exit status of a container without its shim; None if there is no container.

    A shim has no container yet if this program was killed before it created one.  Then the
    shim has ended, and the next one gets the container.
    """
    record = shimctl.read_exit(bundle)
    if record is None:
        record = await shimctl.run_delete(bundle, bundle.name, namespace=NAMESPACE)
        if record is None or not record.pid:
            for name in ("bootstrap.json", "address"):
                (bundle / name).unlink(missing_ok=True)
            return None
    return record.exit_status


async def main(bundle: Path) -> None:
    """Watch the container, keep its exit status, and remove it and its shim."""
    result = bundle / "result"
    while not result.exists():
        try:
            status: int | None = await watch(bundle)
        except shimctl.UnavailableError:  # the shim has died, and its container with it
            status = await exit_without_shim(bundle)
        if status is not None:
            draft = bundle / "result.new"
            draft.write_text(f"{status}")
            draft.rename(result)  # in one step: a kill leaves no half of it
    await shimctl.dispose(bundle, bundle.name, namespace=NAMESPACE)
    print("exited with", result.read_text(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).absolute()))
