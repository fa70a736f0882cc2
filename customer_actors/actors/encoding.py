"""What may travel between actors: JSON of exactly our shape. Everything else is refused before a thread works on it.

Dramatiq trusts its queues: options that are null loop a consumer for ever, and a wrong queue name or a `throws` kills a
worker thread for good. A refused message does no harm, for the sweep rings again.
"""

import json
import time
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Annotated, Any, Final, get_type_hints

from dramatiq.common import q_name
from dramatiq.encoder import JSONEncoder, MessageData
from dramatiq.errors import DecodeError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

LONGEST_DELAY_MS: Final = 60 * 60 * 1_000
"""No message of ours is delayed longer. One that waits too long sits unacknowledged until the broker cuts it off."""
LARGEST: Final = 2**63 - 1
_STRICT: Final = ConfigDict(strict=True, extra="forbid", frozen=True)

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Options(BaseModel):
    """What Dramatiq notes on a message that is delayed or tried again; other options steer its middleware."""

    model_config = _STRICT

    eta: Count = 0
    retries: Count = 0
    traceback: str = ""
    requeue_timestamp: Count = 0


class _Fields(BaseModel):
    model_config = _STRICT

    queue_name: Name
    actor_name: Name
    args: list[Any]
    kwargs: Annotated[dict[str, Any], Field(max_length=0)]
    options: _Options
    message_id: Name
    message_timestamp: Count


class MalformedError(DecodeError):
    """A message between actors is not one of ours. Its text quotes nothing of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, b"", None)  # type: ignore[no-untyped-call]


class StrictEncoder(JSONEncoder):
    """JSON whose decoding refuses what our processes never send."""

    def decode(self, data: bytes) -> MessageData:
        """The fields of a message.

        Raises:
            MalformedError: it is not one of ours.
        """
        try:
            fields = json.loads(data.decode("utf-8"))
            checked = _Fields.model_validate(fields)
        except ValidationError as error:
            raise MalformedError(_places(error)) from None
        except (ValueError, RecursionError) as error:
            raise MalformedError(f"is no JSON ({type(error).__name__})") from None
        if q_name(checked.queue_name) != checked.actor_name:
            raise MalformedError("names an actor and another one's queue")
        if checked.options.eta > time.time_ns() // 1_000_000 + LONGEST_DELAY_MS:
            raise MalformedError("is delayed too long")
        return dict(fields)


def refusal(work: Callable[..., object], args: tuple[Any, ...]) -> str | None:
    """Why this work cannot take these arguments, by the types it names; None: it can."""
    types, needed = _shape(work)
    if not needed <= len(args) <= len(types):
        return "arguments: their number"
    try:
        for type_, value in zip(types, args, strict=False):
            type_.validate_python(value, strict=True)
    except ValidationError as error:
        return f"arguments: {_places(error)}"
    return None if _fits(args) else "arguments: a number is out of range"


@cache
def _shape(work: Callable[..., object]) -> tuple[tuple[TypeAdapter[Any], ...], int]:
    """The types of the parameters, and how many of them have no default."""
    hints, parameters = get_type_hints(work), signature(work).parameters.values()
    needed = sum(parameter.default is parameter.empty for parameter in parameters)
    return tuple(TypeAdapter(hints.get(parameter.name, Any)) for parameter in parameters), needed


def _fits(value: object) -> bool:
    match value:
        case int():
            return -LARGEST <= value <= LARGEST
        case list() | tuple():
            return all(map(_fits, value))
        case dict():
            return all(map(_fits, value.values()))
        case _:
            return True


def _places(error: ValidationError) -> str:
    """Where and which error, without any value; a key may be a text from outside and is left out."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = first["loc"][0] if first["loc"] and first["type"] != "extra_forbidden" else "fields"
    return f"{place}: {first['type']}"
