"""What the traffic saw: every answer, and what became of every write."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Fate = Literal["acknowledged", "refused", "unknown"]


@dataclass(slots=True)
class Tally:
    """Counts of one run.

    Attributes:
        answers: Requests by service and status; status 0 is one without an answer.
        problems: Answers of 500 and above and requests without an answer, by what they said.
        surprises: Answers that should not have been given, such as a 200 for a forged token.
        tried_again: Requests that the traffic sent again after an answer that allowed or demanded it.
        incomplete_pages: Project pages without names, shown because the employee service was in trouble.
        writes: Fate of each write, by kind and id.
        guesses_answered: Passwords of the attacked account that the service looked at.
        guesses_turned_away: Those that it refused to look at.
        wrong_passwords: Logins refused for their password, the attacker's included.
        forged_tokens: Requests refused for their token.
    """

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    surprises: Counter[str] = field(default_factory=Counter)
    tried_again: int = 0
    incomplete_pages: int = 0
    writes: dict[tuple[str, str], Fate] = field(default_factory=dict)
    guesses_answered: int = 0
    guesses_turned_away: int = 0
    wrong_passwords: int = 0
    forged_tokens: int = 0

    @property
    def requests(self) -> int:
        return self.answers.total()

    def of(self, service: str) -> int:
        return sum(count for (name, _), count in self.answers.items() if name == service)

    def failed(self, service: str) -> int:
        return sum(
            n for (name, status), n in self.answers.items() if name == service and (status == 0 or status >= 500)
        )

    def ids(self, kind: str, fate: Fate) -> list[str]:
        return [write_id for (known, write_id), its in self.writes.items() if known == kind and its == fate]
