"""`quarantine` on the command line: what is kept, and the same admission again after a fix [A1]."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from customer_actors.domain.envelope import MAX_BODY_BYTES, DecodePolicy, Received, decode
from customer_actors.domain.events import EventType
from customer_actors.errors import DataFault
from customer_actors.ingest import again
from customer_actors.ingest.topology import DEAD_LETTER_QUEUE, declare
from customer_actors.storage.append import AppendPolicy, Incoming, append
from customer_actors.storage.rules import number_of
from tests.cli import running
from tests.cli.running import NOBODY_LISTENS
from tests.cli.shop import ESCAPED, HOSTILE, Shop, is_harmless
from tests.cli.test_triage import ON_POSTGRESQL, ON_SQLITE, WHY, actions
from tests.storage.support import NOW_US, dump

FIXED = {"CUSTOMER_ACTORS_NAIVE_TIMESTAMPS": "utc"}
"""The fix: times without a zone are UTC, as the publisher says."""
ORDER = EventType.ORDER_COMPLETED.value


def body(order_id: str, at: str = "2024-01-31T12:00:00", **data: object) -> bytes:
    """An order whose time has no zone."""
    return running.order(order_id, **data).replace("2025-01-31T12:00:00Z", at).encode()  # type: ignore[arg-type]


def arrive(shop: Shop, *bodies: bytes, routing_key: str | None = ORDER, encoding: str | None = None) -> list[str]:
    """The outcomes of one batch, decoded and appended as ingest does."""
    received = [Received.of(each, routing_key, NOW_US, encoding) for each in bodies]
    policy = AppendPolicy(number_of(shop.database, shop.rules, NOW_US), shop.rules.tiers[0].name)
    batch = [Incoming(each, decode(each, DecodePolicy())) for each in received]
    return [decision.outcome.value for decision in append(shop.database, batch, policy, NOW_US).decisions]


def kept(shop: Shop) -> list[tuple[Any, ...]]:
    return shop.database.query("SELECT code, seen, outcome FROM quarantine ORDER BY id")


def retried(shop: Shop) -> dict[str, Any]:
    """What `retry --all` prints after the fix."""
    view: dict[str, Any] = json.loads(shop.run("quarantine", "retry", "--all", *WHY, "--json", **FIXED).stdout)
    return view


def positions(shop: Shop) -> list[tuple[int, int, int]]:
    """(head, position of statistics, of loyalty) of every customer."""
    return shop.database.query(
        "SELECT c.head, s.position, l.position FROM customer c JOIN stats_state s ON s.customer = c.id "
        "JOIN loyalty_state l ON l.customer = c.id ORDER BY c.id"
    )


# --- list and show --------------------------------------------------------------------------------------------------


def test_list_of_nothing(shop: Shop) -> None:
    assert shop.json("quarantine", "list") == {"codes": [], "messages": [], "more_messages": 0}
    assert shop.run("quarantine", "list").stdout == "nothing is in quarantine\n"


def test_list_groups_by_code_and_is_narrowed_and_bounded(shop: Shop) -> None:
    arrive(shop, body("O-1"), body("O-1"), body("O-2"), b"x")
    view = shop.json("quarantine", "list", "--limit", "2")
    assert [(one["code"], one["distinct"], one["seen"]) for one in view["codes"]] == [
        ("bad_time", 2, 3),
        ("bad_json", 1, 1),
    ]
    assert (len(view["messages"]), view["more_messages"]) == (2, 1)
    assert "and 1 more messages" in shop.run("quarantine", "list", "--limit", "2").stdout
    narrowed = shop.json("quarantine", "list", "--code", "bad_json")
    assert [one["code"] for one in narrowed["messages"]] == ["bad_json"]
    assert [*view["codes"][0]] == ["code", "distinct", "seen", "first_seen", "last_seen", "resolved"]


def shown(shop: Shop, raw: bytes, **how: Any) -> tuple[dict[str, Any], str]:
    """What `show` tells of a message, as JSON and as text."""
    arrive(shop, raw, **how)
    ((number,),) = shop.database.query("SELECT max(id) FROM quarantine")
    text = shop.run("quarantine", "show", str(number)).stdout
    assert is_harmless(text)
    return shop.json("quarantine", "show", str(number)), text


def test_show_of_json_has_every_key_and_number_as_it_came(shop: Shop) -> None:
    view, text = shown(shop, b'{"a": [1, {}, []], "b": 10.10, "b": 1e400, "c": "x,{\\"y"}')
    assert text.endswith(
        '{\n  "a": [\n    1,\n    {\n      \n    },\n    [\n      \n    ]\n  ],\n  "b": 10.10,\n  "b": 1e400,\n'
        '  "c": "x,{\\"y"\n}\n'
    )
    assert (view["body"], view["body_hex"]) == ('{"a": [1, {}, []], "b": 10.10, "b": 1e400, "c": "x,{\\"y"}', None)
    assert (view["code"], view["seen"], view["cut"], view["routing_key"]) == ("bad_json", 1, False, ORDER)


def test_show_of_text_is_escaped_and_of_bytes_is_hex(shop: Shop) -> None:
    _, text = shown(shop, HOSTILE.replace("\r\n", "").encode())
    assert ESCAPED.replace(r"\r\n", "") in text
    view, text = shown(shop, b"\xff\x00" * 4_000)
    assert "ff 00 ff 00" in text
    assert "... and 3904 bytes more" in text
    assert (view["body"], view["body_hex"]) == (None, "ff00" * 4_000)


@ON_SQLITE
@pytest.mark.parametrize("raw", [b"[" * 50_000, b'{"a":' * 5_000, b""], ids=["list", "object", "empty"])
def test_show_of_a_deep_nest_fills_no_screen(shop: Shop, raw: bytes) -> None:
    _, text = shown(shop, raw)
    assert len(text) < 10_000


def test_show_of_a_message_that_is_not_there_ends_with_1(shop: Shop) -> None:
    done = shop.run("quarantine", "show", "99")
    assert (done.exit_code, "quarantine list" in done.stderr) == (1, True)


# --- retry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whom", [("--all",), ("--code", "bad_time"), ("1", "2", "1")])
def test_after_a_fix_messages_are_admitted_and_applied_here(shop: Shop, whom: Sequence[str]) -> None:
    arrive(shop, body("O-1"), body("O-2"))
    done = shop.run("quarantine", "retry", *whom, *WHY, **FIXED)
    assert (done.exit_code, done.stdout) == (0, "2 tried; became: 2 accepted\n")
    assert kept(shop) == [("bad_time", 1, "accepted")] * 2
    assert positions(shop) == [(2, 2, 2)]
    ((operator, action, reason, *_, detail),) = actions(shop)
    assert (operator, action, reason) == ("op", "quarantine retry", "the fold is fixed")
    assert detail.endswith(": 2")
    assert shop.json("quarantine", "list")["codes"] == []
    assert shop.json("quarantine", "list", "--all")["codes"][0]["resolved"] == 2
    assert shop.json("status")["quarantined"] == {"distinct": 0, "seen": 0, "codes": {}}
    assert shop.value("SELECT count(*) FROM bell") == 0


def test_the_time_of_receipt_is_that_of_the_first_arrival(shop: Shop) -> None:
    arrive(shop, body("O-1"))
    shop.run("quarantine", "retry", "--all", *WHY, **FIXED)
    assert shop.value("SELECT received_at_us FROM event") == NOW_US


def test_routing_key_and_encoding_are_decoded_again_as_well(shop: Shop) -> None:
    arrive(shop, body("O-1", "2024-01-31T12:00:00Z"), routing_key="order.cancelled")
    arrive(shop, body("O-2", "2024-01-31T12:00:00Z"), encoding="gzip")
    view = retried(shop)
    assert {one["code"] for one in view["refused"]} == {"type_mismatch", "bad_encoding"}


def test_what_is_refused_again_stays_with_its_reason_of_now_and_is_not_seen_once_more(shop: Shop) -> None:
    arrive(shop, body("O-1", amount="ten"), body("O-2"))
    done = shop.run("quarantine", "retry", "--all", *WHY, "--json", **FIXED)
    assert done.exit_code == 1
    view = json.loads(done.stdout)
    assert (view["tried"], view["outcomes"]) == (2, {"accepted": 1, "quarantined": 1})
    assert [(one["code"], one["messages"]) for one in view["refused"]] == [("bad_amount", 1)]
    assert sorted(kept(shop), key=str) == sorted([("bad_time", 1, "accepted"), ("bad_amount", 1, None)], key=str)
    assert "1 stay with bad_amount" in shop.run("quarantine", "retry", "--all", *WHY, **FIXED).stdout


def test_a_body_that_was_cut_stays_and_says_so(shop: Shop) -> None:
    whole = body("O-1", "2024-01-31T12:00:00Z")
    cut, fits = (whole.strip() + b" " * (size - len(whole.strip())) for size in (MAX_BODY_BYTES + 1, MAX_BODY_BYTES))
    assert arrive(shop, cut) == ["quarantined"]
    shop.run("quarantine", "retry", "--all", *WHY)
    assert kept(shop) == [("too_large", 1, None)]
    assert "sent again" in shop.value("SELECT reason FROM quarantine")
    assert "the rest was cut off" in shop.run("quarantine", "show", "1").stdout
    assert arrive(shop, fits.replace(b"12:00:00Z", b"12:00:00 ")) == ["quarantined"]
    assert [one["code"] for one in shop.json("quarantine", "retry", "2", *WHY)["refused"]] == ["bad_time"]


def test_a_second_retry_after_a_lost_note_yields_a_duplicate(shop: Shop) -> None:
    """As if the process had been killed after the admission and before the note, were those two transactions."""
    arrive(shop, body("O-1"))
    shop.run("quarantine", "retry", "--all", *WHY, **FIXED)
    shop.execute("UPDATE quarantine SET resolved_us = NULL, outcome = NULL")
    assert retried(shop)["outcomes"] == {"duplicate": 1}
    assert kept(shop) == [("bad_time", 1, "duplicate")]
    assert positions(shop) == [(1, 1, 1)]


def test_admission_and_note_are_one_transaction(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    arrive(shop, body("O-1"))
    before = dump(shop.database)
    with monkeypatch.context() as broken:
        broken.setattr(again, "resolve", killed)
        shop.run("quarantine", "retry", "--all", *WHY, **FIXED)
    assert {table: rows for table, rows in dump(shop.database).items() if table != "rules"} == {
        table: rows for table, rows in before.items() if table != "rules"
    }


def test_the_same_content_quarantined_again_opens_it_again(shop: Shop) -> None:
    arrive(shop, body("O-1"))
    shop.run("quarantine", "retry", "--all", *WHY, **FIXED)
    arrive(shop, body("O-1"))
    assert kept(shop) == [("bad_time", 2, None)]


def test_a_message_the_database_refuses_stays_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(database: Any, batch: Sequence[Incoming], *rest: Any) -> Any:
        with database.transaction():
            done = append(database, batch, *rest)
            if any("O-2" in str(one.decoded) for one in batch):
                raise DataFault("the database refused the data (DataError)")
        return done

    arrive(shop, *(body(f"O-{number}") for number in range(5)))
    monkeypatch.setattr(again, "append", refuse)
    view = retried(shop)
    assert (view["outcomes"], view["refused"][0]["code"]) == ({"accepted": 4, "quarantined": 1}, "database_refused")
    assert positions(shop) == [(4, 4, 4)]


def test_many_are_admitted_in_batches_and_recorded_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "BATCH", 3)
    arrive(shop, *(body(f"O-{number}") for number in range(7)))
    assert retried(shop)["outcomes"] == {"accepted": 7}
    assert len(actions(shop)) == 1
    assert positions(shop) == [(7, 7, 7)]


@ON_POSTGRESQL
def test_with_workers_it_leaves_a_bell_even_if_the_broker_is_away(shop: Shop) -> None:
    arrive(shop, body("O-1"))
    done = shop.run("quarantine", "retry", "--all", *WHY, RABBITMQ_URL=NOBODY_LISTENS, **FIXED)
    assert done.exit_code == 0
    assert positions(shop) == [(1, 0, 0)]
    assert shop.value("SELECT count(*) FROM bell") == 1


@pytest.mark.parametrize("env", [{}, FIXED], ids=["refused", "admitted"])
def test_a_dry_run_tells_the_outcome_and_changes_no_row(shop: Shop, env: dict[str, str]) -> None:
    arrive(shop, body("O-1"), body("O-2"))
    before = dump(shop.database)
    done = shop.run("quarantine", "retry", "--all", *WHY, "--dry-run", **env)
    would = "2 accepted" if env else "2 quarantined"
    assert done.exit_code == (0 if env else 1)
    assert f"would become: {would}" in done.stdout
    assert "nothing was changed" in done.stdout
    assert dump(shop.database) == before


# --- dead letters ---------------------------------------------------------------------------------------------------


@ON_POSTGRESQL
def test_dead_letters_are_put_back_and_that_is_recorded(shop: Shop, rabbitmq_url: str) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
        connection.channel().basic_publish("customer_dead_letter", ORDER, body("O-1"))
        args = ("quarantine", "retry", "--dead-letters", *WHY)
        would = json.loads(shop.run(*args, "--dry-run", "--json", RABBITMQ_URL=rabbitmq_url).stdout)
        assert (would["dry_run"], would["dead_letters"]["put_back"], actions(shop)) == (True, 1, [])
        done = shop.run(*args, RABBITMQ_URL=rabbitmq_url)
        assert (done.exit_code, done.stdout) == (0, "1 dead letters; 1 were put back, 0 stay\n")
        assert connection.channel().basic_get(DEAD_LETTER_QUEUE)[0] is None
    assert [action[-1] for action in actions(shop)] == ["dead letters"]


# --- all of them ----------------------------------------------------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (("retry", *WHY), 2, "--all"),
        (("retry", "--all", "1", *WHY), 2, "--all"),
        (("retry", "--all", "--dead-letters", *WHY), 2, "--all"),
        (("retry", "--dead-letters", *WHY), 2, "RABBITMQ_URL"),
        (("retry", "--all"), 2, "--reason"),
        (("retry", "--all", "--reason", " "), 2, "--reason"),
        (("retry", "0", *WHY), 2, "ID"),
        (("retry", "x", *WHY), 2, "ID"),
        (("retry", "99999999999999999999", *WHY), 2, "ID"),
        (("retry", "1", "99", *WHY), 1, "not all of these"),
        (("retry", "--code", "", *WHY), 2, "--code"),
        (("list", "--code", "a\0"), 2, "--code"),
        (("show", "x"), 2, "ID"),
    ],
)
def test_the_impossible_names_what_is_wrong_and_changes_nothing(
    shop: Shop, args: tuple[str, ...], code: int, named: str
) -> None:
    arrive(shop, body("O-1"))
    before = dump(shop.database)
    done = shop.run("quarantine", *args)
    assert (done.exit_code, named in done.stderr) == (code, True), done.stderr
    assert dump(shop.database) == before


@ON_SQLITE
@pytest.mark.parametrize("args", [("list",), ("show", "1"), ("retry", "--all", *WHY)])
def test_a_database_that_is_away_ends_with_4(shop: Shop, args: tuple[str, ...]) -> None:
    assert shop.run("quarantine", *args, DATABASE_URL="postgresql://postgres:x@127.0.0.1:1/shop").exit_code == 4


@ON_SQLITE
@pytest.mark.parametrize("args", [(), ("list",), ("show",), ("retry",)])
def test_help_explains_with_an_example(shop: Shop, args: tuple[str, ...]) -> None:
    done = shop.run("quarantine", *args, "--help")
    assert (done.exit_code, "Example: customer-actors quarantine" in done.stdout) == (0, True)
