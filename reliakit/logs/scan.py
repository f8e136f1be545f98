"""One pass over texts: what it may still spend, what it has found, and what replaces a text it cannot search."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from reliakit.logs.escapes import veil
from reliakit.logs.personal import is_email

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.logs.detectors import Find
    from reliakit.logs.markers import Hide, Mode
    from reliakit.logs.masker import Masker, Step

__all__ = ["FAILED", "REMEMBERED", "TOO_LONG", "TOO_SLOW", "Scan", "remembers"]

FAILED = "[masking failed]"
TOO_LONG = "[too long to scan]"
TOO_SLOW = "[too slow to scan]"

# A text without any of these signs holds nothing that the default detectors look for.
_WORTH = re.compile(
    r"[=@$<:：＝'\"%]|[A-Za-z0-9_.+/~\-]{16}|[0-9][0-9 ().\-/]{7}|[A-Z]{0,6}[0-9]{6}|--|\+[0-9]"
    r"|earer|EARER|asic |ASIC |[Pp]ass|PASS|[Ss]ecret|SECRET|[Tt]oken|TOKEN|[Pp]in |[Kk]ey |KEY "
    r"|Failing|ENTIF|entified |AUTH |PAN |OTP|[Oo]tp |[Cc]ode |[Ii][dD] [0-9a-f]| -[apPuwUXA]"
)
REMEMBERED = 4096
_LONGEST_REMEMBERED = 80
# The end of a text that was cut at the budget is dropped, so that no half of a secret is left there.
_CUT_MARGIN = 1024
# Hexadecimal identifiers: ids of requests and traces, UUIDs. No detector finds anything in them.
_ID = re.compile(r"[0-9a-f]{20,}+|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_is_id, _is_worth = _ID.fullmatch, _WORTH.search


def remembers(text: str) -> bool:
    """Return whether a text is short enough to be cached."""
    return len(text) <= _LONGEST_REMEMBERED


class Scan:
    """Mask the texts of one value or one record; the budgets are shared by all of them.

    Args:
        masker: The masker whose rules and budgets apply.
    """

    __slots__ = ("_chars", "_clean", "_masker", "_registered", "_slow", "failed", "found")

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._clean = masker.clean
        self._registered = masker.registered.pattern
        self._chars = masker.scan_budget
        self._slow = 0.0
        self.found: int = 0
        self.failed: bool = False

    def hide(self, secret: str, name: str = "", /) -> str:
        """Count one secret and return what replaces it."""
        self.found += 1
        return self._masker.marker(secret, name)

    def hide_as(self, mode: Mode | None, secret: str, name: str = "", /) -> str:
        """Do the same for a secret that a detector with a mode of its own has found."""
        self.found += 1
        return self._masker.marker(secret, name, mode)

    def text(self, text: str) -> str:
        """Return a text without its secrets, or a placeholder if the budget is used up."""
        if text in self._clean:
            return text
        if type(text) is not str:
            text = str.__str__(text)
        size = len(text)
        if size > self._chars:
            return self._head(text)
        self._chars -= size
        masker = self._masker
        worth = True
        if masker.gated and self._registered is None:
            if 20 <= size <= 64 and _is_id(text):
                return text
            worth = _is_worth(text) is not None
        # The commonest thing to hide, a field that is one address, is spared a dozen detectors.
        if masker.hides_emails and "@" in text and is_email(text):
            return self.hide_as(masker.email_mode, text)
        if worth:
            masked = self._scan(text)
            if masked != text:
                return masked
        if size <= _LONGEST_REMEMBERED and masker.repeats:
            if len(self._clean) >= REMEMBERED:
                self._clean.clear()
            self._clean.add(text)
        return text

    def _head(self, text: str) -> str:
        """Return the masked beginning of a text that is longer than what is left of the budget."""
        left, self._chars = self._chars, 0
        margin = max(_CUT_MARGIN, self._masker.registered.longest)
        if left < 4 * margin:
            return TOO_LONG
        return self._scan(text[:left])[:-margin] + TOO_LONG

    def _scan(self, text: str) -> str:
        masker = self._masker
        try:
            if self._registered is not None:
                text = self._registered.sub(lambda found: self.hide(found[0]), text)
            for by_words, steps in masker.steps:
                veiled = veil(text) if by_words else None
                masked = self._stepped(steps, text if veiled is None else veiled.text)
                if masked is TOO_SLOW:
                    return TOO_SLOW
                text = masked if veiled is None else veiled.lifted(masked)
        except Exception:  # noqa: BLE001 - a detector's fault must not let the text through
            self.failed = True
            return FAILED
        return text

    def _stepped(self, steps: Iterable[Step], text: str) -> str:
        """Return the text without what these detectors find."""
        rules = self._masker.rules
        for find, mode, is_custom in steps:
            hide: Hide = self.hide if mode is None else partial(self.hide_as, mode)
            text = self._custom(find, text, hide) if is_custom else find(text, hide, rules)
            if text is TOO_SLOW:
                break
        return text

    def _custom(self, find: Find, text: str, hide: Hide) -> str:
        """Ask a detector of the user's, unless the user's detectors have taken too long for this record already."""
        masker, before = self._masker, self.found
        if self._slow < masker.timeout:
            start = masker.clock.monotonic()
            masked = find(text, hide, masker.rules)
            self._slow += masker.clock.monotonic() - start
            if not isinstance(masked, str):
                raise TypeError("a detector returns text")
            if masked != text and self.found == before:
                self.found += 1
            text = masked
        if self._slow >= masker.timeout:
            self.failed = True
            return TOO_SLOW
        return text
