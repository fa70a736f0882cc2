"""From the bytes of one message to a valid `Message`, or to the reason why it cannot be one.

A pure function that never raises: whatever a message holds, it ends as a value [A1]. What only the database can judge
(duplicates, conflicts, the organization's currency) is left to admission.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal, DecimalException
from typing import Any, NamedTuple, NoReturn

from pydantic import ValidationError

from customer_actors.domain.events import EventType, Message, Rejected
from customer_actors.domain.fields import ACCEPTED, Ahead, DecodeError, Envelope, Reading, optional_id

MAX_BODY_BYTES = 65_536
MAX_DEPTH = 20
MAX_INTEGER_DIGITS = 4_300
"""Python's default limit for reading an integer, made independent of the interpreter's settings."""
DEFAULT_ORGANIZATION = "default"

_PLAIN_ENCODINGS = frozenset({"", "identity", "utf-8", "utf8"})
_SHOWN_CHARACTERS = 60

_Path = tuple[str | int, ...]


class Received(NamedTuple):
    """One message as it came, before decoding."""

    body: bytes
    routing_key: str | None
    """None when read from a file: then the body has to name its type."""
    received_at_us: int
    content_encoding: str | None = None
    cut_from: int | None = None
    """The size of a body too large to keep: `body` is its beginning."""

    @classmethod
    def of(cls, body: bytes, routing_key: str | None, received_at_us: int, content_encoding: str | None) -> "Received":
        """The message, its body cut when it is too large to be accepted anyway: memory is bounded by the count."""
        if len(body) <= MAX_BODY_BYTES:
            return cls(body, routing_key, received_at_us, content_encoding)
        return cls(body[:MAX_BODY_BYTES], routing_key, received_at_us, content_encoding, len(body))


class DecodePolicy(NamedTuple):
    """The settings decoding depends on."""

    currency_decimals: int = 2
    naive_timestamps: str = "reject"
    """What a time without a zone is: "reject" or "utc" [A7]."""


def decode(received: Received, policy: DecodePolicy) -> Message | Rejected:
    """The message in `received`, valid by everything it can show alone, or why it is not [A1, A2, A6, A7].

    Never raises. `Rejected.code` is one of bad_encoding, too_large, bad_json, not_an_object, bad_depth, bad_text,
    unknown_type, type_mismatch, bad_field, bad_id, bad_reference, bad_amount, bad_currency, bad_time.
    """
    try:
        text = _text(received)
        document = _document(text)
    except DecodeError as error:
        return Rejected(error.code, error.reason)
    try:
        _check_tree(text, document)
        type_, model = _type(document, received.routing_key)
        reading = Reading(policy.currency_decimals, policy.naive_timestamps, received.received_at_us)
        envelope = model.model_validate(document, context=reading)
        return _message(type_, envelope, received.received_at_us, text)
    except ValidationError as error:
        return Rejected(*_first_fault(error), _readable_organization(document))
    except DecodeError as error:
        return Rejected(error.code, error.reason, _readable_organization(document))


# --- bytes -> JSON object ----------------------------------------------------------------------------------------


def _text(received: Received) -> str:
    """The body as text, without its byte order mark."""
    body, encoding = received.body, received.content_encoding
    if encoding is not None and encoding.lower() not in _PLAIN_ENCODINGS:
        raise DecodeError("bad_encoding", f"content_encoding is {_shown(encoding)}; send the body as plain UTF-8")
    if (size := received.cut_from or len(body)) > MAX_BODY_BYTES:
        raise DecodeError("too_large", f"the body has {size} bytes; at most {MAX_BODY_BYTES} are accepted")
    try:
        return body.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DecodeError("bad_encoding", f"the body is not UTF-8 at byte {error.start}; send it as UTF-8") from None


def _document(text: str) -> dict[str, Any]:
    """The one JSON object that `text` is."""
    try:
        document = _DECODER.decode(text)
    except DecodeError:
        raise
    except RecursionError:
        raise DecodeError("bad_depth", f"the body nests deeper than {MAX_DEPTH} levels; flatten it") from None
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at line {error.lineno} column {error.colno}" if text.strip() else "it is empty"
        raise DecodeError("bad_json", f"the body is not one JSON document: {fault}") from None
    except (ValueError, DecimalException):
        raise DecodeError("bad_json", "the body holds a number too large to read") from None
    if not isinstance(document, dict):
        raise DecodeError("not_an_object", "the body has to be one JSON object, not a list or a single value")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DecodeError("bad_json", f"the key {_shown(twice)} stands twice in one object; send it once")
    return result


def _integer(text: str) -> int | Decimal:
    if len(text) > MAX_INTEGER_DIGITS:
        raise DecodeError("bad_json", f"the body holds an integer of {len(text)} digits; no amount or id is that long")
    return Decimal(text) if text == "-0" else int(text)  # int would lose the sign that A6 refuses


def _no_constant(text: str) -> NoReturn:
    raise DecodeError("bad_json", f"{text} is not JSON; send a number or leave the field out")


# Decimal keeps a literal exactly as it was written; a float would not.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=Decimal, parse_int=_integer, parse_constant=_no_constant
)

UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
"""What no text of a message or command may hold: NUL and lone surrogates."""
_FORBIDDEN_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
"""The only way that what `UNSTORABLE` names can get through UTF-8 and JSON (pairs that are whole look the same)."""


def _check_tree(text: str, document: dict[str, Any]) -> None:
    """Depth and characters of the whole document, unknown fields included: all of it is stored as text."""
    escaped = "\\" in text and _FORBIDDEN_ESCAPE.search(text) is not None
    if not escaped and text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    for path, value in _walk(document):
        if len(path) >= MAX_DEPTH and isinstance(value, (dict, list)):
            raise DecodeError("bad_depth", f"{_dotted(path)} nests deeper than {MAX_DEPTH} levels; flatten it")
        if isinstance(value, str) and UNSTORABLE.search(value):
            raise DecodeError("bad_text", f"{_dotted(path)} holds a NUL or half a surrogate pair; send proper text")


def _walk(document: dict[str, Any]) -> Iterator[tuple[_Path, object]]:
    """Every value and every key of `document`, with its path."""
    waiting: list[tuple[_Path, object]] = [((), document)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, dict):
            for key, item in value.items():
                waiting.append(((*path, key), item))
                waiting.append(((*path, key), key))
        elif isinstance(value, list):
            waiting.extend(((*path, index), item) for index, item in enumerate(value))


# --- JSON object -> message --------------------------------------------------------------------------------------


def _type(document: dict[str, Any], routing_key: str | None) -> tuple[EventType, type[Envelope[Any]]]:
    """The type of a message, and the model it has to fit."""
    event = document.get("event")
    if event is None:
        if routing_key is None:
            raise DecodeError("unknown_type", "event is missing; without a routing key the body has to name its type")
        event = routing_key
    elif not isinstance(event, str):
        raise DecodeError("bad_field", f"event must be a string; it is {_shown(event)}")
    elif routing_key is not None and event != routing_key:
        both = f"event is {_shown(event)}, the routing key {_shown(routing_key)}"
        raise DecodeError("type_mismatch", f"{both}; they have to be equal")
    accepted = ACCEPTED.get(event)
    if accepted is None:
        raise DecodeError("unknown_type", f"event is {_shown(event)}; accepted are {', '.join(ACCEPTED)}")
    return accepted


def _message(type_: EventType, envelope: Envelope[Any], received_at_us: int, text: str) -> Message:
    field = vars(envelope.data).get
    reference = field("reference")
    if not reference:  # only a payment's may be empty [A2]
        if envelope.event_id is None:
            raise DecodeError("bad_reference", "data.payment_reference and event_id are both missing; send one of them")
        reference = f"event:{envelope.event_id}"
    time = field("own_time")
    if time is None:
        time = envelope.timestamp
    unknown = time is None or isinstance(time, Ahead)
    return Message(
        type=type_,
        organization_id=envelope.organization_id or DEFAULT_ORGANIZATION,
        customer_id=field("customer_id"),
        reference=reference,
        amount_minor=field("amount_minor", 0),
        currency=field("currency"),
        occurred_at_us=received_at_us if unknown else time,
        received_at_us=received_at_us,
        payload=text,
        on_credit=field("on_credit", False),
        pos_transaction_id=field("pos_transaction_id"),
        order_id=field("order_id"),
        detail=json.dumps({"occurred_at": time.text}) if isinstance(time, Ahead) else None,
    )


# --- what a person reads -----------------------------------------------------------------------------------------

_EXPECTED = {"string_type": "must be a string", "model_type": "must be a JSON object"}


def _first_fault(error: ValidationError) -> tuple[str, str]:
    """Code and reason of the first field that is wrong."""
    fault = error.errors(include_url=False)[0]
    name = _dotted(fault["loc"])
    if fault["type"] == "missing":
        return "bad_field", f"{name} is missing"
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, DecodeError):
        return cause.code, f"{name} {cause.reason}; it is {_shown(fault['input'])}"
    return "bad_field", f"{name} {_EXPECTED.get(fault['type'], 'has the wrong type')}; it is {_shown(fault['input'])}"


def _readable_organization(document: dict[str, Any]) -> str | None:
    """Whose message it was, as far as a refused document can tell."""
    try:
        organization_id = optional_id(document.get("organization_id")) or DEFAULT_ORGANIZATION
    except DecodeError:
        return None
    return None if UNSTORABLE.search(organization_id) else organization_id


def _dotted(path: _Path) -> str:
    return _cut(json.dumps(".".join(map(str, path)))[1:-1])


def _shown(value: object) -> str:
    """A JSON value in ASCII: a reason is read on a terminal and must not carry a whole payload."""
    return _cut(str(value) if isinstance(value, Decimal) else json.dumps(value, default=str))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
