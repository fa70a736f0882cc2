"""`held` on the command line: what it tells, whom it lets go on, and what it leaves alone."""

import json
from typing import Any

import pytest

from customer_actors.domain import loyalty
from customer_actors.domain.routing import LOYALTY, SEGMENTATION, STATS
from customer_actors.storage.triage import LOST
from tests.cli.running import NOBODY_LISTENS
from tests.cli.shop import ESCAPED, HOSTILE, Shop, failing_at, is_harmless
from tests.model.examples import order
from tests.storage.support import dump
from tests.storage.test_skips_refolded import fails_at

WHY = ("--reason", "the fold is fixed", "--operator", "op")
ORG = ("--org", "org-1")

ON_POSTGRESQL = pytest.mark.parametrize("shop", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True)
"""Workers and their broker need it."""
ON_SQLITE = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
"""For what ends before any database matters."""


@pytest.fixture
def broken(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Customer c1 held for loyalty at its second event, two behind it; c2 at its first."""
    failing_at(monkeypatch, "bad")
    shop.settle(order("O-1", "5"), order("bad", "5"), order("O-3", "5"), order("O-4", "5"))
    shop.settle(order("bad", "5", customer_id="c2")._replace(organization_id="org-2"))
    return shop


def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("customer_actors.storage.loyalty.fold", loyalty.fold)


def place(shop: Shop, customer_id: str = "c1", organization_id: str = "org-1") -> tuple[int, int | None]:
    sql = "SELECT position, held_position FROM loyalty_state WHERE customer = ?"
    found: tuple[int, int | None] = shop.database.query(sql, (shop.number(customer_id, organization_id),))[0]
    return found


def actions(shop: Shop) -> list[tuple[Any, ...]]:
    sql = "SELECT operator, action, reason, actor, customer, position, detail FROM operator_action ORDER BY id"
    return shop.database.query(sql)


# --- list and show --------------------------------------------------------------------------------------------------


def test_list_of_nothing(shop: Shop) -> None:
    assert shop.json("held", "list") == {"held": 0, "errors": [], "more_errors": 0}
    assert shop.run("held", "list").stdout == "nothing is held\n"


def test_list_groups_by_error(broken: Shop) -> None:
    view = broken.json("held", "list", "--customers")
    (error,) = view["errors"]
    assert error.pop("since").endswith("Z")
    assert error == {"actor": LOYALTY, "error": "ValueError: boom", "customers": 2, "parked": 0, "events_waiting": 2}
    assert (view["held"], view["more_errors"], view["more_customers"]) == (2, 0, 0)
    assert {one["customer_id"]: one["events_waiting"] for one in view["customers"]} == {"c1": 2, "c2": 0}
    assert [*view["customers"][0]] == [
        "organization_id",
        "customer_id",
        "actor",
        "position",
        "status",
        "attempts",
        "next_try",
        "since",
        "events_waiting",
        "error",
    ]
    text = broken.run("held", "list", "--customers").stdout
    assert "ValueError: boom" in text
    assert "c2" in text
    assert "c2" not in broken.run("held", "list").stdout


def test_list_is_narrowed_and_bounded_and_says_how_many_more(broken: Shop) -> None:
    assert broken.json("held", "list", "--actor", STATS)["held"] == 0
    assert broken.json("held", "list", "--error", "BOOM")["held"] == 0
    assert broken.json("held", "list", "--error", "boom")["held"] == 2
    view = broken.json("held", "list", "--customers", "--limit", "1")
    assert (len(view["customers"]), view["more_customers"]) == (1, 1)
    assert "and 1 more" in broken.run("held", "list", "--customers", "--limit", "1").stdout


def test_show_tells_the_event_what_waits_and_the_last_traceback(broken: Shop) -> None:
    (view,) = broken.json("held", "show", "c1", *ORG)
    assert view["event"] == {"type": "order.completed", "reference": "bad", "occurred_at": "2024-06-01T00:00:00Z"}
    assert (view["position"], view["status"], view["attempts"], view["events_waiting"]) == (2, "held", 1, 2)
    assert "raise ValueError(error)" in view["traceback"]
    text = broken.run("held", "show", "c1", *ORG).stdout
    assert "order.completed bad" in text
    assert "2 events behind it" in text
    assert "raise ValueError(error)" in text


def test_show_tells_that_a_customer_is_parked(broken: Shop) -> None:
    broken.execute("UPDATE held_group SET next_try_us = NULL, attempts = 10")
    (view,) = broken.json("held", "show", "c1", *ORG)
    assert (view["status"], view["next_try"], view["attempts"]) == ("parked", None, 10)
    assert "parked: waits for a person" in broken.run("held", "show", "c1", *ORG).stdout
    assert broken.json("held", "list")["errors"][0]["parked"] == 2


def test_a_hold_that_has_lost_its_details_is_listed_shown_and_released_with_all(
    broken: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken.execute("DELETE FROM held_group WHERE customer = ?", broken.number())
    view = broken.json("held", "list", "--customers")
    assert (view["held"], {error["since"] is None: error["error"] for error in view["errors"]}) == (
        *(2, {True: LOST, False: "ValueError: boom"}),
    )
    lost = view["customers"][0]
    assert (lost["customer_id"], lost["status"], lost["attempts"], lost["since"]) == ("c1", "parked", 0, None)
    shown = [broken.run("held", *args).stdout for args in (("list",), ("list", "--customers"), ("show", "c1", *ORG))]
    assert all(LOST in text and "None" not in text for text in shown)
    fixed(monkeypatch)
    assert broken.run("held", "release", "--all", *WHY).stdout == "released 2: 2 went on, 0 are held again\n"
    assert (place(broken), place(broken, "c2", "org-2")) == ((4, None), (1, None))


@pytest.mark.parametrize("args", [("c1",), ("c1", "--actor", STATS, *ORG), ("\udcff", *ORG), ("a\0b",)])
def test_show_of_who_is_not_held_or_not_known_ends_with_1(broken: Shop, args: tuple[str, ...]) -> None:
    done = broken.run("held", "show", *args)
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_what_an_error_says_moves_no_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "bad", HOSTILE)
    shop.settle(order("bad", "5"))
    for args in (("list", "--customers"), ("show", "c1", *ORG)):
        done = shop.run("held", *args)
        assert is_harmless(done.stdout)
        assert ESCAPED in done.stdout


# --- release --------------------------------------------------------------------------------------------------------


def test_release_of_one_after_a_fix_drains_it_here(broken: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch)
    view = broken.json("held", "release", "c1", "--actor", LOYALTY, *ORG, *WHY)
    assert view == {"dry_run": False, "released": 1, "drained": 1, "held_again": 0}
    assert (place(broken), place(broken, "c2", "org-2")) == ((4, None), (0, 1))
    number = broken.number()
    assert actions(broken) == [("op", "release", "the fold is fixed", LOYALTY, number, 2, "1 of loyalty")]
    assert broken.value("SELECT count(*) FROM bell") == 0


@pytest.mark.parametrize("whom", [("--all",), ("--error", "boom"), ("--actor", LOYALTY), ("--all", "--actor", LOYALTY)])
def test_release_of_many_after_a_fix(broken: Shop, monkeypatch: pytest.MonkeyPatch, whom: tuple[str, ...]) -> None:
    fixed(monkeypatch)
    done = broken.run("held", "release", *whom, *WHY)
    assert (done.exit_code, done.stdout) == (0, "released 2: 2 went on, 0 are held again\n")
    assert (place(broken), place(broken, "c2", "org-2")) == ((4, None), (1, None))
    ((*who, actor, customer, position, detail),) = actions(broken)
    assert (who, actor, customer, position) == (["op", "release", "the fold is fixed"], None, None, None)
    assert detail.startswith("2 of loyalty")


def test_released_without_a_fix_they_are_held_again_and_it_ends_with_1(broken: Shop) -> None:
    done = broken.run("held", "release", "--all", *WHY)
    assert (done.exit_code, done.stdout) == (1, "released 2: 0 went on, 2 are held again\n")
    assert (place(broken), place(broken, "c2", "org-2")) == ((1, 2), (0, 1))


@ON_POSTGRESQL
def test_with_workers_the_release_leaves_a_bell_even_if_the_broker_is_away(
    broken: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(monkeypatch)
    broken.execute("DELETE FROM bell")
    done = broken.run("held", "release", "--all", *WHY, "--json", RABBITMQ_URL=NOBODY_LISTENS)
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"dry_run": False, "released": 2, "drained": None, "held_again": 0}
    assert place(broken) == (1, None)
    assert broken.value("SELECT count(*) FROM bell") == 1


def test_release_is_guarded_by_the_position(broken: Shop) -> None:
    before = dump(broken.database)
    done = broken.run("held", "release", "c1", "--actor", LOYALTY, "--position", "1", *ORG, *WHY)
    assert done.exit_code == 1
    assert "nothing was released: loyalty stands at position 1 of c1 and is held at position 2" in done.stderr
    done = broken.run("held", "release", "c1", "--actor", STATS, *ORG, *WHY)
    assert (done.exit_code, "is not held" in done.stderr) == (1, True)
    assert dump(broken.database) == before


def test_release_where_nobody_is_meant_changes_nothing(broken: Shop) -> None:
    before = dump(broken.database)
    done = broken.run("held", "release", "--error", "no such text", *WHY)
    assert (done.exit_code, "nothing was released" in done.stdout) == (0, True)
    assert dump(broken.database) == before


# --- skip -----------------------------------------------------------------------------------------------------------


def test_skip_steps_over_the_event_and_the_rest_goes_on_here(broken: Shop) -> None:
    done = broken.run("held", "skip", "c1", "--actor", LOYALTY, "--position", "2", *ORG, *WHY)
    assert done.exit_code == 0, done.output
    assert done.stdout == "skipped position 2 of c1 for loyalty; it stands at position 4 now\n"
    assert place(broken) == (4, None)
    assert actions(broken) == [("op", "skip", "the fold is fixed", LOYALTY, broken.number(), 2, None)]


@ON_POSTGRESQL
def test_skip_advances_here_also_where_workers_are(broken: Shop) -> None:
    args = ("held", "skip", "c1", "--actor", LOYALTY, "--position", "2", *ORG, *WHY, "--json")
    done = broken.run(*args, RABBITMQ_URL=NOBODY_LISTENS)
    assert json.loads(done.stdout) == {"dry_run": False, "skipped": 2, "position": 4, "held_position": None}


def test_skip_tells_the_next_hold(broken: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "O-3")
    done = broken.run("held", "skip", "c1", "--actor", LOYALTY, "--position", "2", *ORG, *WHY)
    assert (done.exit_code, "now held at position 3" in done.stdout) == (0, True)


def test_skip_of_the_last_event_of_the_statistics_leaves_no_segment_behind(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fails_at(patch, lambda who, event: (who, event.reference) == (STATS, "bad"))
        shop.settle(order("O-1", "5"), order("bad", "5"))
    done = shop.run("held", "skip", "c1", "--actor", STATS, "--position", "2", *ORG, *WHY)
    assert done.exit_code == 0, done.output
    assert shop.value("SELECT position FROM customer_segment") == 2
    assert shop.value("SELECT count(*) FROM bell") == 0
    assert [shop.run(*args).exit_code for args in (("audit",), ("explain", "c1", *ORG))] == [0, 0]


def test_a_skipped_segment_is_no_difference_until_an_event_brings_it_up_to_date(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("cannot score")

    with monkeypatch.context() as patch:
        patch.setattr("customer_actors.storage.segmentation.segment_of", fail)
        shop.settle(order("O-1", "5"), order("O-2", "5"))
        done = shop.run("held", "skip", "c1", "--actor", SEGMENTATION, "--position", "2", *ORG, *WHY)
    assert done.exit_code == 0, done.output
    for verb in (("audit",), ("explain", "c1", *ORG), ("rebuild", SEGMENTATION, *WHY, "--dry-run")):
        assert shop.run(*verb).exit_code == 0
    assert shop.value("SELECT orders FROM customer_segment") == 0
    shop.settle(order("O-3", "5"))
    assert shop.value("SELECT orders FROM customer_segment") == 3
    shop.execute("UPDATE customer_segment SET orders = 2")
    assert [shop.run(*verb).exit_code for verb in (("audit",), ("explain", "c1", *ORG))] == [1, 1]


@pytest.mark.parametrize(("actor", "position"), [(LOYALTY, "1"), (LOYALTY, "3"), (STATS, "2")])
@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_skip_is_guarded_by_the_position(broken: Shop, actor: str, position: str, dry_run: tuple[str, ...]) -> None:
    before = dump(broken.database)
    done = broken.run("held", "skip", "c1", "--actor", actor, "--position", position, *ORG, *WHY, *dry_run)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "nothing was skipped" in done.stderr
    assert dump(broken.database) == before


@pytest.mark.parametrize("whom", [("--all",), ("--error", "boom"), ("--actor", LOYALTY), ("--all", "--actor", LOYALTY)])
def test_skip_of_many_steps_over_the_one_event_of_each_on_record(broken: Shop, whom: tuple[str, ...]) -> None:
    done = broken.run("held", "skip", *whom, *WHY)
    assert (done.exit_code, done.stdout) == (0, "skipped 2: 2 went on, 0 are held again\n")
    assert (place(broken), place(broken, "c2", "org-2")) == ((4, None), (1, None))
    who = ("op", "skip", "the fold is fixed", LOYALTY)
    c1, c2 = broken.number(), broken.number("c2", "org-2")
    assert sorted(action[:-1] for action in actions(broken)) == sorted([(*who, c1, 2), (*who, c2, 1)])
    assert {action[-1] for action in actions(broken)} == {
        "one of 2 of loyalty" + ("; error with 'boom'" if "--error" in whom else "")
    }
    assert broken.run("audit").exit_code == 0


def test_skip_of_many_takes_no_second_event_of_a_customer_that_is_held_again(
    broken: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(monkeypatch, "O-3")
    done = broken.run("held", "skip", "--all", *WHY, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"dry_run": False, "skipped_events": 2, "drained": 1, "held_again": 1}
    assert (place(broken), place(broken, "c2", "org-2")) == ((2, 3), (1, None))
    assert len(actions(broken)) == 2


def test_skip_of_many_where_nobody_is_meant_changes_nothing(broken: Shop) -> None:
    before = dump(broken.database)
    done = broken.run("held", "skip", "--error", "no such text", *WHY)
    assert (done.exit_code, "nothing was skipped" in done.stdout) == (0, True)
    assert dump(broken.database) == before


@ON_POSTGRESQL
def test_with_workers_the_skip_of_many_leaves_a_bell(broken: Shop) -> None:
    broken.execute("DELETE FROM bell")
    done = broken.run("held", "skip", "--all", *WHY, "--json", RABBITMQ_URL=NOBODY_LISTENS)
    assert json.loads(done.stdout) == {"dry_run": False, "skipped_events": 2, "drained": None, "held_again": 0}
    assert place(broken) == (2, None)
    assert broken.value("SELECT count(*) FROM bell") == 1


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("release", "--all"),
        ("release", "c1", "--actor", LOYALTY, *ORG),
        ("skip", "c1", "--actor", LOYALTY, "--position", "2", *ORG),
        ("skip", "--error", "boom"),
    ],
)
def test_a_dry_run_changes_no_row(broken: Shop, args: tuple[str, ...]) -> None:
    before = dump(broken.database)
    done = broken.run("held", *args, *WHY, "--dry-run")
    assert (done.exit_code, "nothing was changed" in done.stdout) == (0, True)
    assert broken.json("held", *args, *WHY, "--dry-run")["dry_run"] is True
    assert dump(broken.database) == before


@ON_SQLITE
@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("release", *WHY), "--all"),
        (("release", "--all"), "--reason"),
        (("release", "--all", "--reason", " "), "--reason"),
        (("release", "--all", "--reason", "x" * 501), "--reason"),
        (("release", "--all", "--reason", "x", "--operator", " "), "--operator"),
        (("release", "--all", "--reason", "x", "--operator", "a\0"), "--operator"),
        (("release", "--position", "1", "--actor", LOYALTY, *WHY), "CUSTOMER"),
        (("release", "c1", *ORG, *WHY), "--actor"),
        (("release", "c1", "--actor", LOYALTY, "--all", *ORG, *WHY), "nothing else"),
        (("release", "--error", "", *WHY), "--error"),
        (("release", "--all", "--actor", "nobody", *WHY), "--actor"),
        (("release", "--all", *ORG, *WHY), "--org"),
        (("skip", "--error", "boom", *ORG, *WHY), "--org"),
        (("skip", *WHY), "--all"),
        (("skip", "--all"), "--reason"),
        (("skip", "--all", "--position", "2", *WHY), "CUSTOMER"),
        (("skip", "c1", "--actor", LOYALTY, "--position", "2", "--error", "boom", *ORG, *WHY), "nothing else"),
        (("skip", "c1", "--actor", LOYALTY, *ORG, *WHY), "--position"),
        (("skip", "c1", "--position", "2", *ORG, *WHY), "--actor"),
        (("skip", "c1", "--actor", LOYALTY, "--position", "2", *ORG), "--reason"),
        (("skip", "c1", "--actor", LOYALTY, "--position", "0", *ORG, *WHY), "--position"),
        (("list", "--limit", "0"), "--limit"),
    ],
)
def test_the_impossible_ends_with_2_names_the_option_and_changes_nothing(
    broken: Shop, args: tuple[str, ...], named: str
) -> None:
    before = dump(broken.database)
    done = broken.run("held", *args)
    assert done.exit_code == 2
    assert named in done.stderr
    assert dump(broken.database) == before


def test_the_operator_is_the_login_name_unless_named(broken: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    broken.run("held", "release", "--all", "--reason", "x")
    assert [action[0] for action in actions(broken)] == ["somebody"]


@ON_SQLITE
@pytest.mark.parametrize("args", [("list",), ("show", "c1"), ("release", "--all", *WHY)])
def test_a_database_that_is_away_ends_with_4(broken: Shop, args: tuple[str, ...]) -> None:
    done = broken.run("held", *args, DATABASE_URL="postgresql://postgres:x@127.0.0.1:1/shop")
    assert done.exit_code == 4


@ON_SQLITE
@pytest.mark.parametrize("args", [(), ("list",), ("show",), ("release",), ("skip",)])
def test_help_explains_with_an_example(broken: Shop, args: tuple[str, ...]) -> None:
    done = broken.run("held", *args, "--help")
    assert (done.exit_code, "Example: customer-actors held" in done.stdout) == (0, True)
