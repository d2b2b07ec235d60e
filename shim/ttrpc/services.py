"""Services without I/O: handlers, streams, and the checks of a request.

The classes match the service bases that grpclib's plugin generates.  :mod:`.server`
(trio), :mod:`.aio` (asyncio) and :mod:`.blocking_server` (threads) read the requests and
run the methods.

Source: grpclib.server, for the names; containerd/ttrpc server.go, for the rejections.
"""

from __future__ import annotations

import functools
import math
import os
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError

from shim.errors import InvalidError, ShimError
from shim.linux.peers import peer_of
from shim.ttrpc.strings import check_strings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping

    from shim.linux.peers import HasPeer
    from shim.ttrpc.protocol import RequestReceived

Service = TypeVar("Service")
Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

UNSENT_LIMIT = 1 << 20  # bytes of unsent replies to one client

# An attribute of the methods made by :func:`replayable`.
_TOLD = "told_of_replays"


class PeerRefusedError(ShimError):
    """The client's process belongs to another user or group."""

    status: ClassVar[Status] = Status.PERMISSION_DENIED


class Stream(Generic[Request, Reply]):
    """One call, the argument of a method of a generated service base.

    ``deadline`` is on the clock of the server, infinite if the caller set none.
    The keys of ``metadata`` are lower case.  ``lost`` is set when the call is
    cancelled because the caller's connection has ended.  ``replayed`` is set if a server
    that was killed had received the call: its method may have done all of its work, a part
    or nothing.  ``begun`` is set if that method had called :meth:`begin`.
    """

    def __init__(
        self,
        request: Request,
        metadata: dict[str, list[str]],
        deadline: float = math.inf,
        *,
        replayed: bool = False,
    ) -> None:
        self.metadata = metadata
        self.deadline = deadline
        self.lost = False
        self.replayed = replayed
        self.begun = False
        self.record_begin: Callable[[], None] | None = None
        self.reply: bytes | None = None
        self._request: Request | None = request

    async def recv_message(self) -> Request | None:
        """Return the request; None after it has been received once."""
        request, self._request = self._request, None
        return request

    def begin(self) -> None:
        """Record that the call begins to have effects; call it directly before the first one."""
        if self.record_begin is not None:
            self.record_begin()

    async def send_message(self, message: Reply) -> None:
        """Set the reply.  It is sent when the method returns, unless the method raises."""
        if self.reply is not None:
            raise ProtocolError("a unary method sends one reply")
        self.reply = message.SerializeToString()


def unary(
    method: Callable[[Service, Request], Awaitable[Reply]],
) -> Callable[[Service, Stream[Request, Reply]], Coroutine[Any, Any, None]]:
    """Turn ``async def Kill(self, request) -> reply`` into a method of a service base."""

    @functools.wraps(method)
    async def serve_stream(service: Service, stream: Stream[Request, Reply]) -> None:
        request = await stream.recv_message()
        assert request is not None  # this is the first recv_message()
        await stream.send_message(await method(service, request))

    return serve_stream


def replayable(
    method: Callable[[Service, Request, bool], Awaitable[Reply]],
) -> Callable[[Service, Stream[Request, Reply]], Coroutine[Any, Any, None]]:
    """Turn ``async def Start(self, request, replayed) -> reply`` into a method, as :func:`unary`.

    ``replayed`` is :attr:`Stream.replayed`.
    """

    @functools.wraps(method)
    async def serve_stream(service: Service, stream: Stream[Request, Reply]) -> None:
        request = await stream.recv_message()
        assert request is not None  # this is the first recv_message()
        await stream.send_message(await method(service, request, stream.replayed))

    serve_stream.__dict__[_TOLD] = True
    return serve_stream


def recorded(
    method: Callable[[Service, Request, Stream[Request, Reply]], Awaitable[Reply]],
) -> Callable[[Service, Stream[Request, Reply]], Coroutine[Any, Any, None]]:
    """Turn ``async def Kill(self, request, call) -> reply`` into a method, as :func:`unary`.

    ``call`` is for :meth:`Stream.begin` and its attributes.
    """

    @functools.wraps(method)
    async def serve_stream(service: Service, stream: Stream[Request, Reply]) -> None:
        request = await stream.recv_message()
        assert request is not None  # this is the first recv_message()
        await stream.send_message(await method(service, request, stream))

    return serve_stream


class Servable(Protocol):
    """A generated service base."""

    def __mapping__(self) -> dict[str, Handler]: ...


def handlers_of(
    *services: Servable, aliases: Mapping[str, str] | None = None
) -> dict[str, Handler]:
    """Return the methods of ``services`` by their ``/package.Service/Method``.

    ``aliases`` maps the full name of a service to another full name that serves it too.
    """
    handlers: dict[str, Handler] = {}
    for service in services:
        for name, handler in service.__mapping__().items():
            handlers[name] = handler
            full_name, _, method = name.removeprefix("/").rpartition("/")
            if aliases and full_name in aliases:
                handlers[f"/{aliases[full_name]}/{method}"] = handler
    return handlers


def check_peer(sock: HasPeer) -> None:
    """Check that the connected process has our user and our group.

    :raises PeerRefusedError: it has another user or group.
    """
    pid, uid, gid = peer_of(sock)
    if (uid, gid) != (os.geteuid(), os.getegid()):
        raise PeerRefusedError(
            f"process {pid} of user {uid}, group {gid} may not use the socket of "
            f"user {os.geteuid()}, group {os.getegid()}; call as that user"
        )


PlainMethod: TypeAlias = "Callable[[Any], Coroutine[Any, Any, Message]]"


def plain_methods(
    handlers: Mapping[str, Handler], names: Container[str], *, replayed: bool = False
) -> dict[str, PlainMethod]:
    """Return the methods with a short name in ``names``, without the wrapper of :func:`unary`.

    Each value is the bound ``async def Kill(self, request) -> reply``; the methods of
    :func:`replayable` get ``replayed``.
    """
    methods: dict[str, PlainMethod] = {}
    for name, handler in handlers.items():
        function = getattr(handler.func, "__wrapped__", None)
        if name.rpartition("/")[2] not in names or function is None:
            continue
        method = MethodType(function, handler.func.__self__)
        told = hasattr(handler.func, _TOLD)
        methods[name] = _with_flag(method, replayed) if told else method
    return methods


def _with_flag(method: Callable[..., Coroutine[Any, Any, Message]], replayed: bool) -> PlainMethod:
    return lambda request: method(request, replayed)


def accept(
    event: RequestReceived,
    handlers: Mapping[str, Handler],
    now: float,
    *,
    replayed: bool = False,
) -> tuple[Handler, Stream[Any, Any]]:
    """Return the handler of a request, and its call; ``now`` is on the server's clock.

    :raises GRPCError: the request is rejected; the message has the reason.
    """
    handler, request = admit(event, handlers)
    deadline = math.inf if event.timeout is None else now + event.timeout
    return handler, Stream(request, event.metadata, deadline, replayed=replayed)


def admit(event: RequestReceived, handlers: Mapping[str, Handler]) -> tuple[Handler, Message]:
    """Return the handler of a request, and the request's message.

    :raises GRPCError: the request is rejected; the message has the reason.
    """
    name = f"/{event.service}/{event.method}"
    handler = handlers.get(name)
    if handler is None:
        raise GRPCError(Status.UNIMPLEMENTED, f"there is no method {name}")
    if handler.cardinality is not Cardinality.UNARY_UNARY:
        raise GRPCError(Status.UNIMPLEMENTED, f"{name} streams, which is not supported")
    if event.timeout is not None and event.timeout <= 0:
        raise GRPCError(Status.DEADLINE_EXCEEDED, f"{name} came after its deadline")
    try:
        request = handler.request_type.FromString(event.payload)
    except DecodeError as exc:
        text = f"the request to {name} is malformed: {exc}"
        raise GRPCError(Status.INVALID_ARGUMENT, text) from exc
    if b"\0" in event.payload:  # rare; bytes fields may have it, strings may not
        try:
            check_strings(request)
        except InvalidError as exc:
            raise GRPCError(exc.status, str(exc)) from None
    return handler, request


def expected(exc: BaseException) -> bool:
    """Return whether ``exc`` is an error that methods raise on purpose, not a bug."""
    if isinstance(exc, BaseExceptionGroup):
        return len(exc.exceptions) == 1 and expected(exc.exceptions[0])
    return isinstance(exc, (ShimError, GRPCError, OSError))
