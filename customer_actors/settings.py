"""Settings: environment variables (and a `.env` file) in, one frozen object out.

The variable is the name an operator knows, so every message names the variable and the fix, never the field.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit
from zoneinfo import ZoneInfo

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasGenerator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from customer_actors.domain.rules import Rules, Tier
from customer_actors.errors import UsageError
from customer_actors.telemetry import redact

PREFIX: Final = "CUSTOMER_ACTORS_"
_WELL_KNOWN: Final = frozenset({"database_url", "rabbitmq_url"})
"""Fields whose variable is a convention that other tools share, hence without our prefix."""

_RULES: Final = Rules()
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`: `batch_size` -> `CUSTOMER_ACTORS_BATCH_SIZE`."""
    return field.upper() if field in _WELL_KNOWN else PREFIX + field.upper()


def _split(url: str, schemes: Mapping[str, str]) -> SplitResult:
    """The parts of a URL of one of `schemes` (scheme -> example). Messages quote nothing: it may be a password."""
    example = " or ".join(dict.fromkeys(schemes.values()))
    try:
        parts = urlsplit(url)
        host_is_possible = parts.port != 0 and _HOST.fullmatch(parts.hostname or "localhost")
    except ValueError:
        host_is_possible = None
    # An "@" this far right ends a password that holds a "/".
    if not host_is_possible or url != url.strip() or (parts.netloc and "@" in parts.path):
        raise ValueError(f"is no URL; write {example}, with special characters of the password percent-encoded")
    if parts.scheme not in schemes:
        raise ValueError(f"must look like {example}")
    return parts


def _database_url(url: str) -> str:
    postgres = "postgresql://user:password@host:5432/database"
    sqlite = "sqlite:///relative/file.db or sqlite:////absolute/file.db"
    parts = _split(url, {"postgresql": postgres, "postgres": postgres, "sqlite": sqlite})
    if parts.scheme != "sqlite":
        if not parts.path.strip("/") and "dbname" not in parse_qs(parts.query):
            raise ValueError(f"names no database; write {postgres}")
        return url
    if parts.netloc or not parts.path.strip("/") or parts.path.endswith("/") or parts.query or parts.fragment:
        raise ValueError(f"names no file; write {sqlite}")
    if parts.path == "/:memory:":
        raise ValueError(f"would forget every event at exit; name a file: {sqlite}")
    return url


def _rabbitmq_url(url: str) -> str:
    example = "amqp://user:password@host:5672/vhost"
    parts = _split(url, {"amqp": example, "amqps": example.replace("amqp", "amqps")})
    if not parts.hostname:
        raise ValueError(f"names no host; write {example}")
    # Clients log in as guest when the URL names nobody.
    user, password = (unquote(part or "guest") for part in (parts.username, parts.password))
    if (user, password) == ("guest", "guest") and not _is_local(parts.hostname):
        raise ValueError(
            f"logs in to {parts.hostname} with the default credentials, which everyone knows; "
            "create a user with `rabbitmqctl add_user` and name it in the URL"
        )
    for name in ("heartbeat", "blocked_connection_timeout"):
        if "0" in parse_qs(parts.query).get(name, ()):
            raise ValueError(f"lets a dead connection hang for ever: remove {name}=0 from it")
    return url


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, KeyError, OSError):
        raise ValueError("is no time zone; write an IANA name such as UTC or Europe/Berlin") from None
    return name


def _cron(expression: str) -> str:
    from apscheduler.triggers.cron import CronTrigger  # only who sets a cron pays for the import

    try:
        trigger = CronTrigger.from_crontab(expression, timezone=UTC)
    except ValueError as error:
        raise ValueError(f'{error}; write minute hour day month weekday, such as "15 3 * * *"') from None
    if re.search(r"\d", expression.split()[4]):
        raise ValueError("numbers its weekdays, and 0 is Sunday to cron but Monday to the scheduler; write mon, tue, …")
    if trigger.get_next_fire_time(None, datetime(2000, 1, 1, tzinfo=UTC)) is None:
        raise ValueError("names a date that never comes")
    return expression


def _json_list(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError as error:
        example = '[{"name": "bronze", "threshold": 0, "multiplier": "1.0"}]'
        raise ValueError(f"is not JSON ({error}); write a list such as {example}") from None


def _upper(text: Any) -> Any:
    return text.upper() if isinstance(text, str) else text


class _GivenVariables(EnvSettingsSource):
    """Reads the variables it was given, where its base class reads the process environment."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str | None]) -> None:
        self._variables = variables
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in self._variables.items() if value}


class Settings(BaseSettings):
    """Everything an operator can choose. Made by `load_settings`; each field's variable is `variable(field)`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        case_sensitive=True,
        use_attribute_docstrings=True,
        alias_generator=AliasGenerator(validation_alias=variable),
    )

    database_url: Annotated[str, AfterValidator(_database_url)] = "sqlite:///customer_actors.db"
    """Where streams and states live: PostgreSQL for real, an SQLite file for one process."""
    rabbitmq_url: Annotated[str, AfterValidator(_rabbitmq_url)] | None = None
    """The broker; unset: everything runs in one process (embedded mode)."""

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] | None = None
    """ISO 4217 code every amount is in; unset: the first currency an organization sends [A6]."""
    currency_decimals: int = _RULES.currency_decimals
    """Digits of the minor unit: 2 for cents [A6]."""
    timezone: Annotated[str, AfterValidator(_timezone)] = _RULES.timezone
    """Business time zone, an IANA name: days of purchase, due dates and the nightly jobs follow it [A7]."""
    naive_timestamps: Literal["reject", "utc"] = "reject"
    """What to do with a time that has no zone: quarantine the message, or read it as UTC [A7]."""
    points_per_unit: Decimal = _RULES.points_per_unit
    """Loyalty points for one unit of currency [L1]."""
    tiers: Annotated[tuple[Tier, ...], NoDecode, BeforeValidator(_json_list)] = _RULES.tiers
    """Loyalty tiers as JSON, ascending from threshold 0 (lifetime points) [L1]."""
    default_terms_days: int = _RULES.default_terms_days
    """Days until a credit sale without an account is due [C4]."""
    suspend_after_days: int = _RULES.suspend_after_days
    """Days overdue after which the nightly run suspends an account [C7]."""

    batch_size: int = Field(default=1000, ge=1, le=10_000)
    """Most messages that ingest commits in one transaction."""
    batch_age_ms: int = Field(default=15, ge=1, le=10_000)
    """Least time, in milliseconds, between the starts of two batches that are not full; up to 100 on a busy machine."""
    prefetch: int = Field(default=2000, ge=1, le=65_535)
    """Most messages the broker hands to ingest without an acknowledgement."""
    round_events: int = Field(default=2000, ge=1, le=10_000)
    """Most events an actor folds in one transaction."""
    bundle_size: int = Field(default=400, ge=1, le=10_000)
    """Most customers in one message to an actor."""
    sweep_seconds: int = Field(default=5, ge=1, le=3600)
    """Age, in seconds, at which an unanswered bell is rung again."""
    worker_threads: int = Field(default=4, ge=1, le=64)
    """Worker threads of the embedded mode; the `dramatiq` command has its own option."""

    nightly_segments_cron: Annotated[str, AfterValidator(_cron)] = "15 3 * * *"
    """When all customers are rescored, in the business time zone; keep out of the hours of a daylight saving change."""
    nightly_credit_cron: Annotated[str, AfterValidator(_cron)] = "45 3 * * *"
    """When credit is reconciled, likewise."""
    catch_up: int = Field(default=360, ge=1, le=1440)
    """How late, in minutes, a missed nightly job still runs when a scheduler comes back."""

    health_max_lag_seconds: int = Field(default=300, ge=1, le=86_400)
    """Greatest age, in seconds, of the oldest waiting event with which `health ready` is green."""
    health_max_held: int = Field(default=100, ge=0, le=1_000_000)
    """Most held customers, likewise; one held by two actors counts twice."""
    health_max_parked: int = Field(default=0, ge=0, le=1_000_000)
    """Most parked customers, likewise."""
    health_max_quarantined: int = Field(default=100, ge=0, le=1_000_000)
    """Most messages quarantined within 24 hours and not resolved, likewise."""

    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    """Least severe message to log."""

    def __init__(self, variables: Mapping[str, str | None]) -> None:
        """Raises pydantic's ValidationError; operators get `load_settings`, which says it in their words."""
        super().__init__(variables=variables)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(init_settings, InitSettingsSource)
        return (_GivenVariables(settings_cls, init_settings.init_kwargs["variables"]),)

    @model_validator(mode="after")
    def _broker_needs_a_database_server(self) -> "Settings":
        if self.rabbitmq_url and self.database_url.startswith("sqlite:"):
            raise ValueError(
                "rabbitmq_url needs a database server: DATABASE_URL is an SQLite file, which workers on other hosts "
                "cannot reach; set DATABASE_URL to a postgresql:// URL"
            )
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return iter(self.redacted().items())

    def rules(self) -> Rules:
        """The business settings as the folds use them; admission numbers and stores them [A10]."""
        return Rules(**{name: getattr(self, name) for name in Rules.model_fields})

    def redacted(self) -> dict[str, str]:
        """Variable -> value as text, fit for printing: no credentials; unset is an empty text."""
        return {variable(name): redact(_text(getattr(self, name))) for name in type(self).model_fields}


def load_settings(env: Mapping[str, str] | None = None) -> Settings:
    """The settings in `env`; None: in the environment and, behind it, in the working directory's `.env`.

    An empty variable counts as unset, also when it stands before a value in `.env`. Raises UsageError naming every
    unusable variable with the fix.
    """
    variables = env if env is not None else {**_dotenv(Path(".env")), **os.environ}
    try:
        settings = Settings(variables)
        settings.rules()
    except ValidationError as error:
        raise UsageError("\n".join(_complaint(each, variables) for each in error.errors())) from None
    return settings


def _dotenv(path: Path) -> dict[str, str | None]:
    try:
        return dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); correct or remove it") from None


def _complaint(error: Any, variables: Mapping[str, str | None]) -> str:
    """One pydantic error in the operator's words. A check across fields begins its message with the field to change."""
    cause = error.get("ctx", {}).get("error")
    reason = str(cause) if cause is not None else error["msg"][:1].lower() + error["msg"][1:]
    where, *within = error["loc"] or (None,)
    if where is None:
        where, _, reason = reason.partition(" ")
    name = variable(where) if where in Settings.model_fields else where
    field, default = next((f, _text(i.default)) for f, i in Settings.model_fields.items() if variable(f) == name)
    if error["type"] == "string_pattern_mismatch":
        reason = "must be three capital letters, such as EUR"
    if within:
        reason = f"{'.'.join(str(part) for part in within)}: {reason}"
    given = "" if field in _WELL_KNOWN else "=" + (variables.get(name) or "")
    return f"{name}{given}: {reason}; or unset it{f' for the default, {default}' if default else ''}"


def _text(value: Any) -> str:
    """A value as one writes it into a variable."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return json.dumps([tier.model_dump(mode="json") for tier in value])
    return str(value)
