"""How this process connects to RabbitMQ."""

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed, AMQPConnectorPhaseErrorBase
from pika.exceptions import AMQPConnectionError, ChannelClosed, ConnectionClosed

from customer_actors.amqp import bounded
from customer_actors.errors import UsageError


def parameters(url: str, name: str) -> pika.URLParameters:
    """How to reach the broker, with a heartbeat and a limit for blocked connections unless the URL sets its own.

    Args:
        url: amqp:// or amqps:// (which verifies certificate and host name).
        name: what the broker's operator sees this connection called.

    Raises:
        UsageError: the URL cannot be read; the text does not repeat it, for it may hold a password.
    """
    try:
        if not url.startswith(("amqp://", "amqps://")):
            raise ValueError
        read = pika.URLParameters(bounded(url))
    except (ValueError, TypeError, AttributeError, OSError):
        raise UsageError(
            "RABBITMQ_URL cannot be read; write it as amqp://user:password@host:5672/vhost, "
            "special characters in user, password and vhost percent-encoded"
        ) from None
    read.client_properties = {"connection_name": name, **(read.client_properties or {})}
    return read


def reason(error: BaseException) -> str:
    """What the broker said, or else the kind of failure: pika's own texts can show what a message held [G23]."""
    cause = _cause(error)
    if isinstance(cause, ChannelClosed | ConnectionClosed):
        return f"{cause.reply_code} {cause.reply_text}"
    return type(cause).__name__


def _cause(error: BaseException) -> BaseException:
    """What happened, out of the exceptions that pika wraps around it when it cannot connect."""
    match error:
        case AMQPConnectionWorkflowFailed(exceptions=[*_, BaseException() as last]):
            return _cause(last)
        case AMQPConnectorPhaseErrorBase(exception=BaseException() as inner):
            return _cause(inner)
        case AMQPConnectionError(args=[BaseException() as inner]):
            return _cause(inner)
        case _:
            return error
