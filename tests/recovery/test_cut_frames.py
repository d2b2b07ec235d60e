"""Long, cut and unread frames of a connection that several killed servers go on with."""

from __future__ import annotations

import trio
import trio.testing
from grpclib.const import Status

from shim.api.task_pb2 import (
    StateRequest,
    StateResponse,
)
from shim.ttrpc.frames import Kind
from shim.ttrpc.protocol import ClientProtocol
from shim.ttrpc.server import UNSENT_LIMIT
from tests.recovery.generations import TASK, Generations, frame, server

__all__ = ["server"]


async def test_a_long_reply_goes_on_where_the_killed_server_stopped(server: Generations) -> None:
    server.reply_size = 700_000
    await server.replace()
    protocol, replies = ClientProtocol(), 0
    async with await trio.open_unix_socket(server.path) as stream:
        for number in range(3):
            _, data = protocol.encode_request(
                TASK, "State", StateRequest(id=f"c{number}").SerializeToString()
            )
            await stream.send_all(data)
        await trio.testing.wait_all_tasks_blocked()
        while replies < 3:
            await server.replace()
            for _ in range(20):
                data = await stream.receive_some(10_000)
                for response in protocol.receive_data(data):
                    reply = StateResponse.FromString(response.payload)
                    assert (reply.id, reply.stdout) == (f"c{replies}", "x" * 700_000)
                    replies += 1
                if replies == 3:
                    break


async def test_a_request_in_pieces_is_put_together_by_several_servers(
    server: Generations,
) -> None:
    data = frame(1, "State", StateRequest(id="i" * 300_000))
    async with await trio.open_unix_socket(server.path) as stream:
        for at in range(0, len(data), 30_000):
            await stream.send_all(data[at : at + 30_000])
            await trio.testing.wait_all_tasks_blocked()
            service = await server.replace()
        protocol = ClientProtocol()
        while not (replies := protocol.receive_data(await stream.receive_some())):
            pass
    assert StateResponse.FromString(replies[0].payload).id == "i" * 300_000
    assert len(service.replayed) <= 1


async def test_a_message_over_the_limit_is_skipped_by_several_servers(
    server: Generations,
) -> None:
    size = 5 << 20
    data = size.to_bytes(4) + (1).to_bytes(4) + bytes([Kind.REQUEST, 0]) + bytes(size)
    protocol = ClientProtocol()
    for _ in range(2):
        protocol.encode_request(TASK, "State", b"")
    async with await trio.open_unix_socket(server.path) as stream:
        for at in range(0, len(data), 700_000):
            await stream.send_all(data[at : at + 700_000])
            await trio.testing.wait_all_tasks_blocked()
            await server.replace()
        await stream.send_all(frame(2, "State", StateRequest(id="c1")))
        replies = protocol.receive_data(await stream.receive_some())
        while len(replies) < 2:
            replies += protocol.receive_data(await stream.receive_some())
    assert [(one.stream_id, one.status) for one in replies] == [
        (1, Status.RESOURCE_EXHAUSTED),
        (3, Status.OK),
    ]


async def test_a_client_that_does_not_read_is_not_read_from(server: Generations) -> None:
    server.reply_size = 100_000
    await server.replace()
    requests = b"".join(
        frame(number, "State", StateRequest(id=f"c{number}")) for number in range(1, 300)
    )
    protocol = ClientProtocol()
    for _ in range(300):
        protocol.encode_request(TASK, "State", b"")
    async with await trio.open_unix_socket(server.path) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, requests)
        await trio.testing.wait_all_tasks_blocked()
        handled = len(server.service.replayed)
        assert UNSENT_LIMIT < handled * 100_000 < 299 * 100_000
        service = await server.replace()
        await trio.testing.wait_all_tasks_blocked()
        assert not service.replayed
        answered = set[int]()
        while len(answered) < 299:
            for response in protocol.receive_data(await stream.receive_some()):
                assert len(response.payload) > 100_000
                answered.add(response.stream_id)
