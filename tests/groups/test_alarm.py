"""Mass failure: who counts, when the alarm is raised, when it ends."""

from threading import Thread

from customer_actors.groups.alarm import LEAST_GROUPS, MOST_TRIES, WINDOW_S, MassFailure

NOW_S = 1_000_000.0


def alarm_of(tried: int, failed: int, actor: str = "loyalty") -> MassFailure:
    """After one round."""
    alarm = MassFailure()
    alarm.note(actor, range(tried), range(failed), NOW_S)
    return alarm


def test_over_half_of_at_least_twenty_groups_raise_the_alarm() -> None:
    assert (WINDOW_S, LEAST_GROUPS) == (60, 20)
    for tried, failed, raised in [(20, 11, True), (20, 10, False), (19, 19, False), (21, 11, True), (500, 250, False)]:
        assert alarm_of(tried, failed).raised(NOW_S) == raised, (tried, failed)


def test_one_group_tried_a_hundred_times_says_nothing_about_the_code() -> None:
    alarm = MassFailure()
    for second in range(100):
        alarm.note("loyalty", [1], [1], NOW_S + second / 10)
    assert not alarm.raised(NOW_S + 10)


def test_a_try_is_forgotten_after_a_minute() -> None:
    alarm = alarm_of(20, 20)
    assert alarm.raised(NOW_S + WINDOW_S - 0.001)
    assert not alarm.raised(NOW_S + WINDOW_S)


def test_the_newest_try_of_a_group_counts() -> None:
    alarm = alarm_of(20, 20)
    alarm.note("loyalty", range(10), [], NOW_S + 1)
    assert not alarm.raised(NOW_S + 1)
    alarm.note("loyalty", [], [3], NOW_S + 2)
    assert alarm.raised(NOW_S + 2)


def test_a_group_that_fails_for_one_actor_fails_whatever_the_others_do() -> None:
    alarm = alarm_of(20, 20)
    for other in ("stats", "credit", "segmentation"):
        alarm.note(other, range(20), [], NOW_S + 1)
    assert alarm.raised(NOW_S + 1)


def test_a_failed_group_counts_as_tried() -> None:
    alarm = MassFailure()
    alarm.note("loyalty", [], range(20), NOW_S)
    assert alarm.raised(NOW_S)


def test_the_turn_is_told_once_each_way() -> None:
    alarm = MassFailure()
    assert alarm.turned(NOW_S) is None
    alarm.note("loyalty", range(30), range(30), NOW_S)
    assert [alarm.turned(NOW_S) for _ in range(3)] == [True, None, None]
    alarm.note("loyalty", range(30), [], NOW_S + 1)
    assert [alarm.turned(NOW_S + 1) for _ in range(3)] == [False, None, None]


def test_the_turn_is_told_to_one_of_many_threads() -> None:
    alarm, told = alarm_of(30, 30), list[bool | None]()
    threads = [Thread(target=lambda: told.append(alarm.turned(NOW_S))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told, key=str) == [None] * 7 + [True]


def test_memory_is_bounded_by_the_newest_tries() -> None:
    alarm = MassFailure()
    for number in range(50):
        alarm.note("loyalty", range(number * 1_000, number * 1_000 + 1_000), [], NOW_S)
    assert len(alarm._tries) == MOST_TRIES
    alarm.note("loyalty", [], range(10**6, 10**6 + MOST_TRIES), NOW_S)
    assert alarm.raised(NOW_S)
