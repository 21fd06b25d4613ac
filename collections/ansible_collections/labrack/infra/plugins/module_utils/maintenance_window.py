# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Weekly windows in local time, in which changes that disturb people may be made: ``Sat 02:00-06:00``.

Pure, no Ansible import. All arithmetic is in minutes of the week, so a window may span midnight or the week's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY = 24 * 60
WEEK = 7 * DAY
EXAMPLE = "Sat 02:00-06:00, Mon-Fri 22:00-04:00 or daily 03:00-05:00"
_FORM = re.compile(r"(?:(?P<days>[A-Za-z,-]+) +)?(?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)")


class WindowError(ValueError):
    """A text that is no window; the message says what is wrong and how one is written."""


@dataclass(frozen=True)
class Window:
    """A window that opens on ``days`` (0 is Monday) at minute ``start`` of the day, for ``length`` minutes."""

    text: str
    days: tuple[int, ...]
    start: int
    length: int

    @classmethod
    def read(cls, text: str) -> Window:
        """Return the window of a text; :class:`WindowError` for one that is none."""
        found = _FORM.fullmatch(text.strip())
        if not found:
            raise WindowError(f"{text!r} is no window. Mend: write it as {EXAMPLE}")
        start, end = _minute(text, found["start"]), _minute(text, found["end"])
        if start in (end, DAY):
            raise WindowError(f"{text!r} has no length. Mend: 00:00-24:00 is a whole day")
        return cls(text.strip(), _days(text, found["days"] or "daily"), start, (end - start) % DAY or DAY)

    def left(self, now: datetime) -> int:
        """Return for how many minutes the window is open from now on, 0 where it is closed."""
        minute = _of_week(now)
        opened = ((minute - day * DAY - self.start) % WEEK for day in self.days)
        return max((self.length - since for since in opened if since < self.length), default=0)

    def opens(self, now: datetime) -> datetime:
        """Return when it opens next; ``now``, to the minute, where it is open."""
        moment = now.replace(second=0, microsecond=0)
        if self.left(now):
            return moment
        minute = _of_week(now)
        return moment + timedelta(minutes=min((day * DAY + self.start - minute) % WEEK for day in self.days))


def is_open(windows: Iterable[Window], now: datetime) -> bool:
    """Return whether any window is open."""
    return any(window.left(now) for window in windows)


def opens(windows: Iterable[Window], now: datetime) -> datetime | None:
    """Return when the next window opens, None where there is none."""
    return min((window.opens(now) for window in windows), default=None)


def _of_week(moment: datetime) -> int:
    return moment.weekday() * DAY + moment.hour * 60 + moment.minute


def _minute(text: str, clock: str) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    if hours > 24 or minutes > 59 or hours * 60 + minutes > DAY:
        raise WindowError(f"{text!r}: {clock} is no time of a day. Mend: write it as {EXAMPLE}")
    return hours * 60 + minutes


def _days(text: str, words: str) -> tuple[int, ...]:
    if words.lower() == "daily":
        return tuple(range(7))
    found: list[int] = []
    for part in words.split(","):
        names = [name.capitalize() for name in part.split("-")]
        if not 1 <= len(names) <= 2 or any(name not in DAYS for name in names):
            raise WindowError(f"{text!r}: {part!r} is none of {', '.join(DAYS)}, or daily. Mend: write it as {EXAMPLE}")
        first, last = DAYS.index(names[0]), DAYS.index(names[-1])
        found += [(first + step) % 7 for step in range((last - first) % 7 + 1)]
    return tuple(sorted(set(found)))
