"""Which containers a shared daemon expects, how many it takes, and who ends them after it."""

from __future__ import annotations

import os
import resource
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio

from shim.container.reservations import LIMIT, Reservation, Reservations
from shim.errors import ExistsError, FullError, InvalidError
from shim.linux import sockets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Yield the address of a socket that this process listens on."""
    tmp_path.chmod(0o700)
    found = f"unix://{tmp_path}/shared"
    with closing(sockets.listen(found)):
        yield found


def of(id_: str, group: str = "", **fields: object) -> Reservation:
    return Reservation(id_, f"/bundles/{id_}", group, **fields)  # type: ignore[arg-type] # as given


def test_a_reservation_survives_its_encoding() -> None:
    for one in (of("c1"), of("c1", "p1", group_address="unix:///s", most=7)):
        assert Reservation.parse(one.encode()) == one


@pytest.mark.parametrize("text", ["", "c1", "{", "{}", '{"id": 1}', "{" * 100_000])
def test_a_malformed_reservation_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="invalid reservation"):
        Reservation.parse(text)


async def test_a_place_is_taken_from_the_start_to_the_delete(autojump_clock: MockClock) -> None:
    reservations = Reservations("/bundles/c1", "unix:///s", of("c1", most=2))
    reservations.add(of("c2", most=2), [])
    with pytest.raises(FullError, match="serves 2 containers"):
        reservations.add(of("c3", most=2), [])
    reservations.add(of("c2", most=2), [])  # the same one again
    reservations.fulfil("c1")
    with pytest.raises(FullError):
        reservations.add(of("c3", most=2), ["c1"])
    reservations.drop("c1")
    reservations.add(of("c3", most=2), [])


async def test_a_create_that_does_not_come_is_not_expected_for_ever(
    autojump_clock: MockClock,
) -> None:
    reservations = Reservations("/bundles/c1", "unix:///s", of("c1", most=1))
    assert reservations.expected_until == trio.current_time() + LIMIT
    with pytest.raises(FullError):
        reservations.add(of("c2", most=1), [])
    await trio.sleep(LIMIT)
    assert reservations.expected_until == 0
    reservations.add(of("c2", most=1), [])
    # The late one is known still: its own ``delete`` ends it.
    assert reservations.first_bundle("c1", "/bundles/c1", "") == ""


async def test_a_pod_has_a_name_of_the_daemons_socket(address: str, tmp_path: Path) -> None:
    pod = f"unix://{tmp_path}/pod"
    reservations = Reservations("/b", address, of("p1", "p1", group_address=pod, most=1))
    reservations.add(of("p2", "p1", group_address=pod, most=1), ["p1"])  # a pod is not split
    assert sockets.can_connect(pod)
    reservations.join_pod("p3", "p1")  # without a start
    for id_ in ("p1", "p2"):
        reservations.drop(id_)
        assert sockets.can_connect(pod)
    reservations.drop("p3")
    assert not (tmp_path / "pod").exists()
    reservations.add(of("p1", "p1", group_address=pod), [])
    reservations.close()
    assert os.listdir(tmp_path) == ["shared"]


async def test_a_pod_that_another_daemon_serves_is_left_to_it(
    address: str, tmp_path: Path
) -> None:
    pod = f"unix://{tmp_path}/pod"
    reservations = Reservations("/b", address, of("c1"))
    with closing(sockets.listen(pod)), pytest.raises(ExistsError, match="another process"):
        reservations.add(of("p1", "p1", group_address=pod), [])
    assert reservations.first_bundle("p1", "/bundles/p1", "p1") == "/b"
    reservations.add(of("p1", "p1", group_address=pod), [])  # it has ended
    assert reservations.first_bundle("p2", "/bundles/p2", "p1") == "/bundles/p1"


async def test_the_delete_of_which_bundle_ends_a_container(tmp_path: Path) -> None:
    own = Reservations("/b")
    assert own.first_bundle("c1", "/bundles/c1", "") == "/b"
    shared = Reservations("/b", "unix:///s", of("c1"))
    shared.add(of("p1", "p1"), [])
    assert shared.first_bundle("c1", "/bundles/c1", "") == ""
    assert shared.first_bundle("p1", "/bundles/p1", "p1") == "/bundles/p1"
    assert shared.first_bundle("p2", "/bundles/p2", "p1") == "/bundles/p1"
    # Created without a start, in a sandbox whose id containerd wrote, or in none.
    (tmp_path / "sandbox").write_text("c1")
    assert shared.first_bundle("c9", str(tmp_path), "") == "/bundles/c1"
    assert shared.first_bundle("c9", "/bundles/c9", "") == "/b"


async def test_a_daemon_with_few_files_left_takes_no_container_but_a_pods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reservations = Reservations("/b", "unix:///s", of("p1", "p1"))
    lowest = os.dup(0)
    os.close(lowest)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (lowest, lowest))
    with pytest.raises(FullError, match="few open files"):
        reservations.add(of("c2"), [])
    reservations.add(of("p2", "p1"), [])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 * lowest + 2, 2 * lowest + 2))
    reservations.add(of("c2"), [])
