"""Reading messages whose properties no client library can decode [M6].

pika decodes every header before it hands a message over: a timestamp past the year 9999 or a table nested 3,000 deep
ends the connection. Here a content header stays bytes, and only what is needed of it is read, by its length prefixes:
nothing is nested, nothing is converted to a date.
"""

import struct
from typing import Final, NamedTuple

import pika
from pika import frame, spec

_HEADER_START: Final = spec.FRAME_HEADER_SIZE
_PROPERTIES_START: Final = _HEADER_START + 12
"""After class, weight and body size."""
_PROPERTIES: Final[tuple[tuple[str, str | int], ...]] = (
    ("content_type", "short"),
    ("content_encoding", "short"),
    ("headers", "sized"),
    ("delivery_mode", 1),
    ("priority", 1),
    ("correlation_id", "short"),
    ("reply_to", "short"),
    ("expiration", "short"),
    ("message_id", "short"),
    ("timestamp", 8),
    ("type", "short"),
    ("user_id", "short"),
    ("app_id", "short"),
    ("cluster_id", "short"),
)
"""In the order of their flags, from the highest bit down, which is that of their values."""
_FIXED_BYTES: Final = {
    **dict.fromkeys((b"t", b"b", b"B"), 1),
    **dict.fromkeys((b"U", b"u", b"s"), 2),
    **dict.fromkeys((b"I", b"i", b"f"), 4),
    **dict.fromkeys((b"L", b"l", b"d", b"T"), 8),
    b"D": 5,
    b"V": 0,
}
_SIZED: Final = frozenset({b"S", b"x", b"A", b"F"})
"""Four bytes of length, then so many bytes."""


class RawProperties(spec.BasicProperties):
    """Properties as their bytes on the wire, neither decoded nor encoded."""

    raw: bytes = b""

    def encode(self) -> list[bytes]:
        return [self.raw]


class RawConnection(pika.SelectConnection):
    """A connection whose messages carry `RawProperties`."""

    _frame_buffer: bytes

    def _read_frame(self) -> tuple[int, frame.Frame | frame.ProtocolHeader | None]:
        return _content_header(self._frame_buffer) or frame.decode_frame(self._frame_buffer)


def _content_header(buffer: bytes) -> tuple[int, frame.Header] | None:
    """The content header at the start of the buffer and its size; None when something else or less is there."""
    if len(buffer) < _HEADER_START:
        return None
    kind, channel, size = struct.unpack_from(">BHL", buffer)
    end = _HEADER_START + size
    if kind != spec.FRAME_HEADER or buffer[end : end + 1] != bytes([spec.FRAME_END]):
        return None
    _, _, body_bytes = struct.unpack_from(">HHQ", buffer, _HEADER_START)
    properties = RawProperties()
    properties.raw = bytes(buffer[_PROPERTIES_START:end])
    return end + spec.FRAME_END_SIZE, frame.Header(channel, body_bytes, properties)


class Death(NamedTuple):
    """The last time a broker gave a message up."""

    queue: str
    routing_key: str | None


def split(raw: bytes) -> dict[str, bytes]:
    """The properties that are set, each as its bytes on the wire. Raises ValueError when they make no sense."""
    try:
        (flags,) = struct.unpack_from(">H", raw)
        found, at = {}, 2
        for number, (name, kind) in enumerate(_PROPERTIES):
            if flags & 1 << (15 - number):
                end = _end(raw, at, kind)
                found[name], at = raw[at:end], end
    except (struct.error, IndexError):
        raise ValueError("no AMQP properties") from None
    return found


def joined(properties: dict[str, bytes]) -> bytes:
    """What `split` took apart."""
    flags = sum(1 << (15 - number) for number, (name, _) in enumerate(_PROPERTIES) if name in properties)
    return struct.pack(">H", flags) + b"".join(properties[name] for name, _ in _PROPERTIES if name in properties)


def _end(raw: bytes, at: int, kind: str | int) -> int:
    if isinstance(kind, int):
        return at + kind
    return _short(raw, at)[1] if kind == "short" else _sized(raw, at)[1]


def last_death(properties: dict[str, bytes]) -> Death | None:
    """When the broker gave the message up last, by its own header; None when it never did."""
    try:
        return _death(properties["headers"][4:]) if "headers" in properties else None
    except (struct.error, IndexError, ValueError):
        return None


def _death(headers: bytes) -> Death | None:
    deaths = _fields(headers).get(b"x-death")
    if deaths is None or deaths[0] != b"A":
        return None
    kind, latest, _ = _value(deaths[1], 0)  # the latest comes first
    fields = _fields(latest) if kind == b"F" else {}
    if b"queue" not in fields:
        return None
    keys = fields.get(b"routing-keys", (b"", b""))[1]
    key = _value(keys, 0)[1].decode(errors="backslashreplace") if keys else None
    return Death(fields[b"queue"][1].decode(errors="backslashreplace"), key)


def _fields(table: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    """Name -> kind and bytes of each field, the tables and arrays among them not looked into."""
    found = {}
    at = 0
    while at < len(table):
        name, at = _short(table, at)
        kind, value, at = _value(table, at)
        found[name] = kind, value
    return found


def _value(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    kind = data[at : at + 1]
    at += 1
    if kind in _SIZED:
        value, end = _sized(data, at)
    elif kind in _FIXED_BYTES:
        end = at + _FIXED_BYTES[kind]
        value = data[at:end]
    else:
        raise ValueError("no kind of AMQP field")
    return kind, value, end


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from(">I", data, at)
    at += 4
    if at + size > len(data):
        raise ValueError("a field longer than what holds it")
    return data[at : at + size], at + size


def _short(data: bytes, at: int) -> tuple[bytes, int]:
    size = data[at]
    return data[at + 1 : at + 1 + size], at + 1 + size
