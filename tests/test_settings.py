"""Settings say what they accept, and a refusal names the variable and the fix."""

from decimal import Decimal
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic import ValidationError

from customer_actors.domain.rules import Rules, Tier
from customer_actors.errors import UsageError
from customer_actors.settings import Settings, load_settings, variable

ROOT = Path(__file__).parents[1]
POSTGRES = "postgresql://somebody:s3cret@db.example/shop"
BROKER = "amqp://somebody:s3cret@mq.example:5672/shop"


def refusal(**env: str) -> str:
    with pytest.raises(UsageError) as refused:
        load_settings(env)
    return str(refused.value)


# What is accepted


def test_without_any_variable_everything_runs_in_one_process_on_a_file() -> None:
    settings = load_settings({})
    assert (settings.database_url, settings.rabbitmq_url) == ("sqlite:///customer_actors.db", None)
    assert (settings.batch_size, settings.batch_age_ms, settings.prefetch) == (1000, 15, 2000)
    assert (settings.nightly_segments_cron, settings.nightly_credit_cron) == ("15 3 * * *", "45 3 * * *")


def test_default_business_rules_are_those_of_the_domain() -> None:
    assert load_settings({}).rules() == Rules()


def test_business_rules_follow_their_variables_exactly() -> None:
    rules = load_settings(
        {
            "CUSTOMER_ACTORS_CURRENCY_DECIMALS": "0",
            "CUSTOMER_ACTORS_TIMEZONE": "Europe/Berlin",
            "CUSTOMER_ACTORS_POINTS_PER_UNIT": "0.1",
            "CUSTOMER_ACTORS_TIERS": '[{"name": "a", "threshold": 0, "multiplier": 1.1}]',
            "CUSTOMER_ACTORS_DEFAULT_TERMS_DAYS": "14",
            "CUSTOMER_ACTORS_SUSPEND_AFTER_DAYS": "0",
        }
    ).rules()
    assert rules == Rules(
        currency_decimals=0,
        timezone="Europe/Berlin",
        points_per_unit=Decimal("0.1"),
        tiers=(Tier(name="a", threshold=0, multiplier=Decimal("1.1")),),
        default_terms_days=14,
        suspend_after_days=0,
    )


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///relative.db",
        "sqlite:////absolute/file.db",
        "postgres://somebody@db.example/shop",
        "postgresql://somebody:p%40ss@db.example:5433/shop?sslmode=verify-full",
        "postgresql://somebody@[::1]/shop",
        "postgresql:///shop?host=/var/run/postgresql",
        "postgresql://?dbname=shop",
    ],
)
def test_a_database_url_of_postgres_or_sqlite_is_taken_as_it_is(url: str) -> None:
    assert load_settings({"DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize(
    "url",
    [
        BROKER,
        "amqps://somebody:s3cret@mq.example/",
        "amqp://guest:guest@localhost/",
        "amqp://127.0.0.1",
        "amqp://[::1]/",
    ],
)
def test_a_broker_url_is_taken_as_it_is(url: str) -> None:
    assert load_settings({"DATABASE_URL": POSTGRES, "RABBITMQ_URL": url}).rabbitmq_url == url


def test_an_empty_variable_is_unset() -> None:
    assert load_settings(dict.fromkeys(map(variable, Settings.model_fields), "")) == load_settings({})


def test_a_log_level_may_be_written_small() -> None:
    assert load_settings({"CUSTOMER_ACTORS_LOG_LEVEL": "debug"}).log_level == "DEBUG"


def test_variables_of_others_are_ignored() -> None:
    foreign = {"BATCH_SIZE": "1", "batch_size": "1", "CUSTOMER_ACTORS_DATABASE_URL": "x", "TIMEZONE": "Mars"}
    assert load_settings(foreign) == load_settings({})


def test_settings_are_frozen() -> None:
    settings = load_settings({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.batch_size = 1


# The environment and .env


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dotenv_in_the_working_directory_is_read_and_the_environment_goes_first(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_directory / ".env").write_text("CUSTOMER_ACTORS_BATCH_SIZE=7\nCUSTOMER_ACTORS_PREFETCH=8\n")
    monkeypatch.setenv("CUSTOMER_ACTORS_PREFETCH", "9")
    settings = load_settings()
    assert (settings.batch_size, settings.prefetch) == (7, 9)


def test_an_empty_variable_in_the_environment_unsets_what_dotenv_says(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_directory / ".env").write_text("CUSTOMER_ACTORS_BATCH_SIZE=7\n")
    monkeypatch.setenv("CUSTOMER_ACTORS_BATCH_SIZE", "")
    assert load_settings().batch_size == load_settings({}).batch_size


def test_given_variables_are_the_only_ones(working_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_directory / ".env").write_text("CUSTOMER_ACTORS_BATCH_SIZE=7\n")
    monkeypatch.setenv("CUSTOMER_ACTORS_PREFETCH", "9")
    assert load_settings({}).model_dump() == Settings({}).model_dump()
    assert load_settings({}).batch_size == 1000
    assert load_settings({}).prefetch == 2000


def test_a_dotenv_that_is_no_text_is_refused_by_name(working_directory: Path) -> None:
    (working_directory / ".env").write_bytes(b"A=\xff\n")
    with pytest.raises(UsageError, match=r"^\.env cannot be read"):
        load_settings()


# What is refused


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("DATABASE_URL", "mysql://db.example/shop", "postgresql://user:password@host:5432/database"),
        ("DATABASE_URL", "db.example/shop", "postgresql://user:password@host:5432/database"),
        ("DATABASE_URL", "postgresql://db.example", "names no database"),
        ("DATABASE_URL", "postgresql://db.example:99999/shop", "is no URL"),
        ("DATABASE_URL", "postgresql://db.example:0/shop", "is no URL"),
        ("DATABASE_URL", "postgresql://somebody:p#ss@db.example/shop", "percent-encoded"),
        ("DATABASE_URL", "postgresql://somebody@db example/shop", "is no URL"),
        ("DATABASE_URL", " sqlite:///file.db", "is no URL"),
        ("DATABASE_URL", "sqlite://file.db", "sqlite:///relative/file.db"),
        ("DATABASE_URL", "sqlite:///", "sqlite:///relative/file.db"),
        ("DATABASE_URL", "sqlite:///folder/", "sqlite:///relative/file.db"),
        ("DATABASE_URL", "sqlite:///file.db?mode=ro", "sqlite:///relative/file.db"),
        ("DATABASE_URL", "sqlite:///:memory:", "forget every event"),
        ("RABBITMQ_URL", "http://mq.example", "amqp://user:password@host:5672/vhost"),
        ("RABBITMQ_URL", "amqp:///vhost", "names no host"),
        ("RABBITMQ_URL", "amqp://a:b@mq.example/shop?heartbeat=0", "remove heartbeat=0"),
        ("RABBITMQ_URL", "amqp://a:b@mq.example/?blocked_connection_timeout=0", "remove blocked_connection_timeout=0"),
        ("CUSTOMER_ACTORS_CURRENCY", "eur", "three capital letters"),
        ("CUSTOMER_ACTORS_CURRENCY", "EURO", "three capital letters"),
        ("CUSTOMER_ACTORS_CURRENCY_DECIMALS", "5", "less than or equal to 4"),
        ("CUSTOMER_ACTORS_CURRENCY_DECIMALS", "two", "integer"),
        ("CUSTOMER_ACTORS_TIMEZONE", "Mars/Olympus", "IANA name"),
        ("CUSTOMER_ACTORS_TIMEZONE", "Europe", "IANA name"),
        ("CUSTOMER_ACTORS_TIMEZONE", "../../etc/passwd", "IANA name"),
        ("CUSTOMER_ACTORS_NAIVE_TIMESTAMPS", "local", "'reject' or 'utc'"),
        ("CUSTOMER_ACTORS_POINTS_PER_UNIT", "-1", "greater than or equal to 0"),
        ("CUSTOMER_ACTORS_POINTS_PER_UNIT", "NaN", "finite"),
        ("CUSTOMER_ACTORS_TIERS", "gold", "is not JSON"),
        ("CUSTOMER_ACTORS_TIERS", "[]", "must start at threshold 0 and ascend"),
        ("CUSTOMER_ACTORS_TIERS", '[{"name": "a", "threshold": 5, "multiplier": 1}]', "must start at threshold 0"),
        ("CUSTOMER_ACTORS_TIERS", '[{"name": "a", "threshold": 0}]', "0.multiplier: field required"),
        ("CUSTOMER_ACTORS_DEFAULT_TERMS_DAYS", "-1", "greater than or equal to 0"),
        ("CUSTOMER_ACTORS_SUSPEND_AFTER_DAYS", "-1", "greater than or equal to 0"),
        ("CUSTOMER_ACTORS_PREFETCH", "65536", "less than or equal to 65535"),
        ("CUSTOMER_ACTORS_NIGHTLY_SEGMENTS_CRON", "15 3 * *", "minute hour day month weekday"),
        ("CUSTOMER_ACTORS_NIGHTLY_SEGMENTS_CRON", "61 3 * * *", "minute hour day month weekday"),
        ("CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON", "15 3 * * 0", "write mon, tue"),
        ("CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON", "0 0 30 2 *", "a date that never comes"),
        ("CUSTOMER_ACTORS_LOG_LEVEL", "loud", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        *(
            (variable(field), size, "greater than or equal to 1")
            for field in (
                *("batch_size", "batch_age_ms", "prefetch", "round_events", "bundle_size"),
                *("sweep_seconds", "worker_threads", "catch_up"),
            )
            for size in ("0", "-3")
        ),
    ],
)
def test_a_bad_value_names_its_variable_and_the_fix(name: str, value: str, fix: str) -> None:
    message = refusal(**{"DATABASE_URL": POSTGRES, name: value})
    assert message.startswith(name)
    assert fix in message
    assert "unset it" in message
    assert "\n" not in message


def test_every_bad_variable_is_named_at_once() -> None:
    message = refusal(CUSTOMER_ACTORS_BATCH_SIZE="0", CUSTOMER_ACTORS_TIMEZONE="Mars")
    assert [line.split("=")[0] for line in message.splitlines()] == [
        "CUSTOMER_ACTORS_TIMEZONE",
        "CUSTOMER_ACTORS_BATCH_SIZE",
    ]


def test_no_message_names_a_field() -> None:
    message = refusal(**dict.fromkeys(map(variable, Settings.model_fields), "?"))
    assert not [field for field in Settings.model_fields if field in message.replace(variable(field), "")]


def test_a_broker_with_an_sqlite_file_is_refused_with_the_reason() -> None:
    message = refusal(DATABASE_URL="sqlite:///file.db", RABBITMQ_URL=BROKER)
    assert message.startswith("RABBITMQ_URL")
    assert "workers on other hosts cannot reach" in message
    assert "set DATABASE_URL to a postgresql:// URL" in message


@pytest.mark.parametrize(
    "url",
    [
        "amqp://guest:guest@mq.example/",
        "amqp://gu%65st:guest@mq.example/",
        "amqp://mq.example/",
        "amqp://guest@10.0.0.1/",
        "amqp://guest:guest@localhost.example/",
    ],
)
def test_default_credentials_are_refused_unless_the_broker_is_local(url: str) -> None:
    message = refusal(DATABASE_URL=POSTGRES, RABBITMQ_URL=url)
    assert message.startswith("RABBITMQ_URL")
    assert "default credentials" in message


# Secrets


@pytest.mark.parametrize(
    "env",
    [
        {"DATABASE_URL": "mysql://somebody:s3cret@db.example/shop"},
        {"DATABASE_URL": "postgresql://somebody:/s3cret@db.example/shop"},
        {"DATABASE_URL": "somebody:s3cret@db.example/shop"},
        {"DATABASE_URL": "postgresql://db.example:s3cret/shop"},
        {"DATABASE_URL": POSTGRES, "RABBITMQ_URL": "amqp://somebody:s3cret@/"},
        {"DATABASE_URL": "sqlite:///file.db", "RABBITMQ_URL": BROKER},
    ],
)
def test_no_refusal_shows_a_password(env: dict[str, str]) -> None:
    assert "s3cret" not in refusal(**env)


def test_printed_settings_show_every_variable_and_no_password() -> None:
    settings = load_settings({"DATABASE_URL": POSTGRES + "?password=s3cret", "RABBITMQ_URL": BROKER})
    printed = settings.redacted()
    assert list(printed) == [variable(field) for field in Settings.model_fields]
    assert printed["RABBITMQ_URL"] == "amqp://***@mq.example:5672/shop"
    for text in (str(printed), str(settings), repr(settings)):
        assert "s3cret" not in text


# .env.example


def test_the_example_lists_every_setting_in_order_with_its_default_and_its_meaning() -> None:
    text = (ROOT / ".env.example").read_text()
    expected = load_settings({}).redacted()
    assert list(dotenv_values(ROOT / ".env.example").items()) == list(expected.items())
    for field, info in Settings.model_fields.items():
        assert info.description
        assert f"# {info.description}\n" in text, f"the line above {variable(field)} must say: {info.description}"


def test_the_example_as_it_is_changes_nothing() -> None:
    values = {name: value or "" for name, value in dotenv_values(ROOT / ".env.example").items()}
    assert load_settings(values) == load_settings({})
