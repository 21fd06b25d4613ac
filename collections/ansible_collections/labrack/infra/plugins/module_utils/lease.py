# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab's lease: who changes it now, kept on its head, so that two controllers do not meet. Standard library only.

It ends by itself: who is cut off holds it no longer than they said. Times are those of the head's clock alone. A
restart of the head ends it too, as it lies in /run.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

PATH = "/run/labrack/lease.json"


@dataclass(frozen=True)
class Lease:
    """Who (``owner`` is unique to a controller, ``who`` is for people) does ``what``; Unix times."""

    owner: str
    who: str
    what: str
    since: float
    until: float

    @classmethod
    def read(cls, text: str | None) -> Lease | None:
        """Return the lease in a file's text; None for none, or for what no labrack wrote."""
        try:
            found: Any = json.loads(text or "")
            return cls(
                str(found["owner"]),
                str(found["who"]),
                str(found["what"]),
                float(found["since"]),
                float(found["until"]),
            )
        except (ValueError, TypeError, KeyError):
            return None

    def text(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self)) + "\n"

    def words(self, now: float, path: str = PATH) -> str:
        """Return who holds it, for the one who has to wait."""
        minutes = max(1, round((self.until - now) / 60))
        began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.since))
        return (
            f"{self.who} holds the lease of this lab since {began}, for {self.what}. Mend: wait for them; the lease "
            f"ends by itself in {minutes} min at most. If nothing runs there any more, remove {path} on the head"
        )


def holder(found: Lease | None, owner: str, now: float) -> Lease | None:
    """Return the lease that keeps ``owner`` out, None where they may take it; their own never does."""
    return found if found is not None and found.owner != owner and found.until > now else None
