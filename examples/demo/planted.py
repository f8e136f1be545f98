"""Secrets on purpose: everything here goes into the services, and none of it may come out in a log."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_WORDS = ("amber", "birch", "cobalt", "dune", "ember", "fjord", "glade", "harbor", "indigo", "juniper")


@dataclass(slots=True)
class Planted:
    """Makes secrets and remembers each one, with the kind that it is of.

    Attributes:
        secrets: Each secret and its kind.
        markers: Harmless words that travel the same ways; they must be found, or the logs were not looked at.
    """

    random: random.Random
    secrets: dict[str, str] = field(default_factory=dict)
    markers: set[str] = field(default_factory=set)

    def keep(self, kind: str, secret: str) -> str:
        self.secrets[secret] = kind
        return secret

    def password(self) -> str:
        words = "-".join(self.random.sample(_WORDS, 3))
        return self.keep("password", f'{words}"{self.random.randrange(10**6):06}&é')

    def email(self) -> str:
        return self.keep("e-mail", f"{self.random.choice(_WORDS)}.{self.random.randrange(10**9):09}@staff.example")

    def iban(self) -> str:
        """An account number with a check sum that fits."""
        account = "".join(self.random.choices("0123456789", k=18))
        check = 98 - int(account + "131400") % 97
        return self.keep("IBAN", f"DE{check:02}{account}")

    def card(self) -> str:
        """A card number with a check digit that fits."""
        digits = [4, *(self.random.randrange(10) for _ in range(14))]
        doubled = [sum(divmod(2 * digit, 10)) if place % 2 == 0 else digit for place, digit in enumerate(digits)]
        return self.keep("card", "".join(map(str, digits)) + str(-sum(doubled) % 10))

    def forged_token(self) -> str:
        parts = (self.random.randbytes(24), self.random.randbytes(60), self.random.randbytes(32))
        head = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
        rest = (base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts[1:])
        return self.keep("token", ".".join((head, *rest)))

    def marker(self) -> str:
        word = f"marker{self.random.randrange(10**9):09}"
        self.markers.add(word)
        return word


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in the logs.

    Attributes:
        lines: Lines looked at.
        found: Kind of each secret found, with the file that it was in.
        markers: How many harmless words were found.
    """

    lines: int
    found: list[tuple[str, str]]
    markers: int


def scan(planted: Planted, folder: Path) -> Scan:
    """Look for every planted secret, in plain and in the forms that programs write it in, in all that was written."""
    lines, found, seen = 0, [], set()
    for file in sorted(folder.iterdir()):
        text = file.read_text(errors="replace")
        lines += text.count("\n")
        found += [(kind, file.name) for secret, kind in planted.secrets.items() if _is_in(secret, text)]
        seen |= {word for word in planted.markers if word in text}
    return Scan(lines, found, len(seen))


def _is_in(secret: str, text: str) -> bool:
    return any(form in text for form in forms(secret))


def forms(secret: str) -> Iterator[str]:
    yield secret
    for form in (
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        quote(secret),
        quote(secret, safe=""),
        base64.b64encode(secret.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
    ):
        if form != secret:
            yield form
