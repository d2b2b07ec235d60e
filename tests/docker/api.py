"""dockerd's HTTP API, for the calls of tests that do not test the command.

A start of docker takes 40 ms of processor time, and a call here 1 ms.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from pathlib import Path

CALL = 60  # s; far more than any call takes on a busy machine
# Before each piece of output: the stream, three bytes, the length.
_HEADER = struct.Struct(">B3xI")
_STDOUT, _STDERR = 1, 2


class ApiError(Exception):
    """dockerd has refused a call."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CALL)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CALL)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Output:
    """The output of a program, by stream."""

    out: bytes
    err: bytes

    @classmethod
    def of(cls, data: bytes) -> Output:
        """Split what dockerd sends for a container without a terminal."""
        streams: dict[int, list[bytes]] = {_STDOUT: [], _STDERR: []}
        at = 0
        while at < len(data):
            stream, size = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            streams[stream].append(data[at : at + size])
            at += size
        return cls(b"".join(streams[_STDOUT]), b"".join(streams[_STDERR]))


@dataclass(frozen=True)
class Api:
    address: Path

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> bytes:
        """Make one call; return the answer.

        :raises ApiError: dockerd refuses it.
        :raises OSError: no dockerd listens.
        """
        connection = _Connection(self.address)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            text = None if body is None else json.dumps(body)
            connection.request(method, f"{path}?{urlencode(query)}", text, headers)
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        if reply.status >= 400:
            raise ApiError(json.loads(data)["message"])
        return data

    def json(self, path: str, **query: Any) -> Any:
        return json.loads(self.call("GET", path, **query))

    def version(self) -> str:
        return str(self.json("/version")["Version"])

    def inspect(self, container: str) -> Any:
        return self.json(f"/containers/{container}/json")

    def logs(self, container: str) -> Output:
        return Output.of(self.call("GET", f"/containers/{container}/logs", stdout=1, stderr=1))

    def exec(self, container: str, command: tuple[str, ...]) -> tuple[int, Output]:
        """Run a command to its end; return its exit code and its output."""
        body = {"Cmd": command, "AttachStdout": True, "AttachStderr": True}
        made = json.loads(self.call("POST", f"/containers/{container}/exec", body))
        path = f"/exec/{made['Id']}"
        output = Output.of(self.call("POST", f"{path}/start", {"Detach": False, "Tty": False}))
        return int(self.json(f"{path}/json")["ExitCode"]), output

    def events(self, container: str, since: float, until: float) -> list[dict[str, Any]]:
        filters = json.dumps({"container": [container]})
        span = {"since": f"{since:.9f}", "until": f"{until:.9f}"}
        lines = self.call("GET", "/events", filters=filters, **span).splitlines()
        return [json.loads(line) for line in lines]

    def remove_all(self) -> None:
        """Kill and delete all containers, with their volumes."""
        for container in self.json("/containers/json", all=1):
            self.call("DELETE", f"/containers/{container['Id']}", force=1, v=1)
