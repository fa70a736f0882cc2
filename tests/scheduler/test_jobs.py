"""When jobs are due, what a slot is called, and that daylight saving changes make no slot double or missing."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from customer_actors.errors import UsageError
from customer_actors.settings import Settings, load_settings
from customer_actors.storage.job_runs import Run
from scheduler.jobs import JOBS, due_run, job_named, next_due, run_by_hand, trigger_of
from scheduler.words import in_words

SEGMENTS, CREDIT = JOBS
CHANGES = {
    "Europe/Berlin": ("2026-03-29", "2026-10-25"),
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "America/Sao_Paulo": ("2018-02-18", "2018-11-04"),  # at midnight, like Beirut and Cairo
    "Asia/Beirut": ("2026-03-29", "2026-10-25"),
    "Australia/Lord_Howe": ("2026-10-04", "2026-04-05"),  # by half an hour
}
BOTH_CHANGES = [(zone, day) for zone, days in CHANGES.items() for day in days]
CRONS = [
    "0 0 * * *",
    "15 0 * * *",
    "15 3 * * *",
    "30 2 * * *",
    "0 2 * * *",
    "30 1 * * *",
    "0 3 * * *",
    "*/30 * * * *",
    "59 23 * * *",
]


def settings(zone: str = "UTC", cron: str = "15 3 * * *", **more: str) -> Settings:
    env = {"CUSTOMER_ACTORS_TIMEZONE": zone, "CUSTOMER_ACTORS_NIGHTLY_SEGMENTS_CRON": cron, **more}
    return load_settings(env)


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def test_the_jobs_are_the_two_nights_and_each_is_a_message() -> None:
    assert [(job.name, job.cron, job.message) for job in JOBS] == [
        ("segments", "nightly_segments_cron", "nightly"),
        ("credit", "nightly_credit_cron", "nightly"),
    ]
    with pytest.raises(UsageError, match="the jobs are segments, credit"):
        job_named("nonsense")


def test_a_job_is_due_by_its_setting_in_the_business_time_zone() -> None:
    berlin = settings("Europe/Berlin", "30 4 * * mon")
    winter, summer = (next_due(SEGMENTS, berlin, datetime(2025, month, 1, tzinfo=UTC)) for month in (1, 7))
    assert str(winter) == "2025-01-06 04:30:00+01:00"
    assert str(summer) == "2025-07-07 04:30:00+02:00"


def test_a_slot_is_the_local_wall_time_and_its_date_the_business_date() -> None:
    found = due_run(SEGMENTS, settings("America/New_York"), at("2026-11-24T03:15", "America/New_York"))
    assert found is not None
    assert found[0] == Run("segments", "2026-11-24T03:15", date(2026, 11, 24))


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-11-24T03:14:59", None),
        ("2026-11-24T03:15:00", "2026-11-24T03:15"),
        ("2026-11-24T09:15:00", "2026-11-24T03:15"),
        ("2026-11-24T09:15:01", None),
    ],
)
def test_a_slot_counts_as_long_as_the_catch_up_window(now: str, due: str | None) -> None:
    found = due_run(SEGMENTS, settings(CUSTOMER_ACTORS_CATCH_UP="360"), at(now))
    assert (found[0].slot if found else None) == due


@pytest.mark.parametrize("minutes", ["1", "9", "360"])
def test_of_several_missed_slots_the_newest_counts(minutes: str) -> None:
    found = due_run(SEGMENTS, settings(cron="* * * * *", CUSTOMER_ACTORS_CATCH_UP=minutes), at("2026-11-24T12:00:30"))
    assert found is not None
    assert found[0].slot == "2026-11-24T12:00"


@pytest.mark.parametrize("cron", CRONS)
@pytest.mark.parametrize(("zone", "day"), BOTH_CHANGES)
def test_around_a_daylight_saving_change_every_slot_is_due_under_one_name(zone: str, day: str, cron: str) -> None:
    """A clock that looks every five minutes, from evening to the morning after, and claims like the database does."""
    chosen, claims = settings(zone, cron, CUSTOMER_ACTORS_CATCH_UP="6"), Counter[str]()
    began = at(f"{day}T00:00", zone).astimezone(UTC) - timedelta(hours=1)
    for minute in range(0, 28 * 60, 5):
        due = due_run(SEGMENTS, chosen, began + timedelta(minutes=minute))
        if due is not None and due[0].slot not in claims:
            claims[due[0].slot] += 1
            assert due[0].as_of == date.fromisoformat(due[0].slot[:10])
    assert set(claims.values()) == {1}
    names = sorted(claims)
    if not cron.startswith("*/"):  # exactly one a day, on the day of the change too
        days = [str(date.fromisoformat(day) + timedelta(days=shift)) for shift in (-1, 0, 1)]
        assert [name for name in names if name.startswith(day)] == [f"{day}T{_time_of(cron)}"]
        assert {name[:10] for name in names} <= set(days)


def _time_of(cron: str) -> str:
    minute, hour = cron.split()[:2]
    return f"{int(hour):02}:{int(minute):02}"


@pytest.mark.parametrize(("zone", "day"), [("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-11-01")])
def test_the_hour_that_comes_twice_fires_twice_under_one_name(zone: str, day: str) -> None:
    """Why a slot has no offset: APScheduler itself fires at both."""
    hour = 2 if zone == "Europe/Berlin" else 1
    chosen = settings(zone, f"30 {hour} * * *")
    trigger, first = trigger_of(SEGMENTS, chosen), at(f"{day}T00:00", zone)
    one = trigger.get_next_fire_time(None, first)
    two = trigger.get_next_fire_time(one, one)
    assert two.astimezone(UTC) - one.astimezone(UTC) == timedelta(hours=1)
    runs = [due_run(SEGMENTS, chosen, moment) for moment in (one, two)]
    assert [run and run[0].slot for run in runs] == [f"{day}T0{hour}:30"] * 2


@pytest.mark.parametrize(("zone", "day"), [("Europe/Berlin", "2026-03-29"), ("America/New_York", "2026-03-08")])
def test_a_time_that_spring_leaves_out_is_due_once_an_hour_later_by_the_wall(zone: str, day: str) -> None:
    chosen = settings(zone, "30 2 * * *")
    before, after = at(f"{day}T03:29", zone), at(f"{day}T03:30", zone)
    assert (due := due_run(SEGMENTS, chosen, after)) is not None
    assert due[0].slot == f"{day}T02:30"
    earlier = due_run(SEGMENTS, settings(zone, "30 2 * * *", CUSTOMER_ACTORS_CATCH_UP="60"), before)
    assert earlier is None
    assert next_due(SEGMENTS, chosen, at(f"{day}T00:30", zone)) == after


def test_a_midnight_that_spring_leaves_out_is_due_all_the_same() -> None:
    """APScheduler alone would go on to the day after."""
    beirut, day = settings("Asia/Beirut", "15 0 * * *"), "2026-03-29"
    first = at(f"{day}T01:15", "Asia/Beirut")
    assert trigger_of(SEGMENTS, beirut).get_next_fire_time(None, at("2026-03-28T12:00", "Asia/Beirut")) > first
    assert next_due(SEGMENTS, beirut, at("2026-03-28T12:00", "Asia/Beirut")) == first
    assert (due := due_run(SEGMENTS, beirut, first)) is not None
    assert due[0] == Run("segments", f"{day}T00:15", date(2026, 3, 29))


NOW = at("2026-11-24T05:00")


def test_a_run_by_hand_is_the_slot_that_is_due_else_today_else_the_date_given() -> None:
    chosen = settings()
    assert run_by_hand(SEGMENTS, chosen, NOW, None, False).slot == "2026-11-24T03:15"
    late = run_by_hand(SEGMENTS, chosen, at("2026-11-24T12:00"), None, False)
    assert late == Run("segments", "2026-11-24", date(2026, 11, 24))
    named = run_by_hand(SEGMENTS, chosen, NOW, date(2026, 11, 20), False)
    assert named == Run("segments", "2026-11-20", date(2026, 11, 20))


def test_today_is_a_day_of_the_business_time_zone() -> None:
    chosen = settings("Pacific/Auckland", CUSTOMER_ACTORS_CATCH_UP="1")
    assert run_by_hand(SEGMENTS, chosen, at("2026-11-24T12:00"), None, False).slot == "2026-11-25"


def test_a_dry_run_takes_no_slot_away() -> None:
    dry = run_by_hand(CREDIT, settings(), NOW, None, True)
    assert (dry.dry_run, dry.as_of, dry.slot) == (True, date(2026, 11, 24), "dry run 2026-11-24T05:00:00.000000")


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("15 3 * * *", "every day at 03:15"),
        ("0 22 * * mon", "every Monday at 22:00"),
        ("5 4 * * mon-fri", "every day from Monday to Friday at 04:05"),
        ("5 4 * * SAT,sun", "every Saturday and Sunday at 04:05"),
        ("0 1 15 * *", "on day 15 of every month at 01:00"),
        ("* * * * *", "every day, every minute"),
        ("7 * * * *", "every day, every hour at minute 7"),
        ("*/20 * * * *", "every day, every 20 minutes"),
        ("*/7 * * * *", "*/7 * * * *"),
        ("0 0 1 1 *", "0 0 1 1 *"),
        ("0 0 13 * fri", "0 0 13 * fri"),
        ("0 1-5 * * *", "0 1-5 * * *"),
        ("0 1 last * *", "0 1 last * *"),
        ("0 1 * * xyz", "0 1 * * xyz"),
        ("0 1 * * abc-xyz", "0 1 * * abc-xyz"),
    ],
)
def test_common_crons_are_told_in_words_and_others_as_they_are(cron: str, words: str) -> None:
    assert in_words(cron) == words
