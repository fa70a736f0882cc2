"""A publisher of hand-written AMQP 0-9-1 frames: what no client library would send."""

import socket
import struct
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

METHOD, HEADER, BODY, END = 1, 2, 3, b"\xce"
CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
ANSWERS: Final = {(10, 10), (10, 30), (10, 41), (20, 11), (85, 11), (60, 80)}
"""start, tune, open-ok, channel open-ok, confirm select-ok, ack: what a peaceful broker says."""


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def sized(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def table(*fields: tuple[bytes, bytes]) -> bytes:
    """A table of (name, kind and value)."""
    return sized(b"".join(short(name) + value for name, value in fields))


def timestamp(seconds: int) -> bytes:
    return b"T" + struct.pack(">Q", seconds)


def nested(depth: int) -> bytes:
    """A table in a table, so deep."""
    value = table()
    for _ in range(depth):
        value = table((b"a", b"F" + value))
    return b"F" + value


def properties(headers: bytes | None = None, content_encoding: bytes | None = None) -> bytes:
    flags = DELIVERY_MODE | (HEADERS if headers is not None else 0)
    flags |= CONTENT_ENCODING if content_encoding is not None else 0
    encoding = b"" if content_encoding is None else short(content_encoding)
    return struct.pack(">H", flags) + encoding + (headers or b"") + b"\x02"


class FramePublisher:
    """One connection and one channel with confirms. The broker's refusal is a ConnectionError that says why."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._user, self._password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        self._vhost = unquote(parts.path[1:])
        self._socket = socket.create_connection((parts.hostname, parts.port or 5672), timeout=20)
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect((10, 10))
        plain = f"\0{self._user}\0{self._password}".encode()
        self._method(0, (10, 11), table() + short(b"PLAIN") + sized(plain) + short(b"en_US"))
        self._expect((10, 30))
        self._method(0, (10, 31), struct.pack(">HIH", 10, 131_072, 0))
        self._method(0, (10, 40), short(self._vhost.encode()) + b"\0\0")
        self._expect((10, 41))
        self._method(1, (20, 10), b"\0")
        self._expect((20, 11))
        self._method(1, (85, 10), b"\0")
        self._expect((85, 11))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()
        self._socket.close()

    def publish(self, exchange: str, routing_key: bytes, body: bytes, encoded_properties: bytes) -> None:
        """Send one message and wait for its confirmation."""
        self._method(1, (60, 40), b"\0\0" + short(exchange.encode()) + short(routing_key) + b"\0")
        self._frame(HEADER, 1, struct.pack(">HHQ", 60, 0, len(body)) + encoded_properties)
        for at in range(0, len(body), 100_000):
            self._frame(BODY, 1, body[at : at + 100_000])
        self._expect((60, 80))

    def _method(self, channel: int, number: tuple[int, int], arguments: bytes) -> None:
        self._frame(METHOD, channel, struct.pack(">HH", *number) + arguments)

    def _frame(self, kind: int, channel: int, payload: bytes) -> None:
        self._socket.sendall(struct.pack(">BHI", kind, channel, len(payload)) + payload + END)

    def _expect(self, number: tuple[int, int]) -> None:
        assert number in ANSWERS
        while True:
            head = self._stream.read(7)
            if len(head) < 7:
                raise ConnectionError("the broker closed the connection")
            kind, _, size = struct.unpack(">BHI", head)
            payload = self._stream.read(size + 1)[:-1]
            if kind != METHOD:
                continue  # a heartbeat
            said = struct.unpack_from(">HH", payload)
            if said != number:
                raise ConnectionError(f"the broker says {said}: {payload[4:]!r}")
            return
