"""Common cron expressions in words."""

import re
from typing import Final

_DAYS: Final = {
    "mon": "Monday",
    "tue": "Tuesday",
    "wed": "Wednesday",
    "thu": "Thursday",
    "fri": "Friday",
    "sat": "Saturday",
    "sun": "Sunday",
}


def in_words(cron: str) -> str:
    """What the expression says, in words where it has a common form; else the expression itself."""
    minute, hour, day, month, weekday = cron.lower().split()
    if month != "*":
        return cron
    when, at = _days(day, weekday), _times(minute, hour)
    return cron if when is None or at is None else at.format(when=when).strip()


def _days(day: str, weekday: str) -> str | None:
    if (day, weekday) == ("*", "*"):
        return "every day"
    if weekday == "*":
        return f"on day {day} of every month" if day.isdecimal() else None
    if day != "*":
        return None
    if span := re.fullmatch(r"(\w{3})-(\w{3})", weekday):
        first, last = (_DAYS.get(name) for name in span.groups())
        return f"every day from {first} to {last}" if first and last else None
    names = [_DAYS.get(name) for name in weekday.split(",")]
    return "every " + " and ".join(str(name) for name in names) if all(names) else None


def _times(minute: str, hour: str) -> str | None:
    """A text with {when} in it; what happens all day long names no day when that is every day."""
    if minute.isdecimal() and hour.isdecimal():
        return f"{{when}} at {int(hour):02}:{int(minute):02}"
    if hour != "*":
        return None
    if minute == "*":
        return "{when}, every minute"
    if minute.isdecimal():
        return f"{{when}}, every hour at minute {int(minute)}"
    step = re.fullmatch(r"\*/(\d+)", minute)
    return f"{{when}}, every {step[1]} minutes" if step and 60 % int(step[1]) == 0 else None
