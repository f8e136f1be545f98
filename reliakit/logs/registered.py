"""Secrets without a shape of their own, registered by value, and every form in which they occur."""

from __future__ import annotations

import base64
import html
import json
import re
import threading
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from reliakit.core.errors import ConfigurationError

__all__ = ["RegisteredSecrets", "forms_of"]

_SHORTEST = 6
# A core of base64 shorter than this would be found in innocent text.
_SHORTEST_CORE = 8


class RegisteredSecrets:
    """The values to hide wherever they occur. One pattern is kept for all of them; reading it takes no lock."""

    __slots__ = ("_forms", "_lock", "longest", "pattern")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: set[str] = set()
        self.pattern: re.Pattern[str] | None = None
        self.longest: int = 0

    def add(self, value: str | bytes) -> None:
        """Add one secret in all its forms.

        Raises:
            ConfigurationError: It is not text or bytes, or so short that hiding it would garble innocent text.
        """
        if isinstance(value, bytes | bytearray):
            value = bytes(value).decode("utf-8", "surrogateescape")
        if not isinstance(value, str):
            raise ConfigurationError(f"value must be a text or bytes, got {type(value).__name__}")
        if len(value.strip()) < _SHORTEST:
            raise ConfigurationError(
                f"value is too short to be masked safely: it needs {_SHORTEST} characters besides blanks at its ends"
            )
        with self._lock:
            self._forms.update(forms_of(value))
            # The longest first, so that a shorter form does not leave the rest of a longer one behind.
            ordered = sorted(self._forms, key=lambda form: (-len(form), form))
            self.longest = len(ordered[0])
            self.pattern = re.compile("|".join(map(re.escape, ordered)))

    def __len__(self) -> int:
        return len(self._forms)


def forms_of(value: str) -> set[str]:
    """Return a secret as it appears in plain text, URLs, JSON, HTML, `repr`, hexadecimal and base64."""
    raw = value.encode("utf-8", "surrogateescape")
    escaped = [json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]]
    forms = {
        value,
        value.strip(),
        quote(raw, safe=""),
        quote(raw),
        quote(raw, safe="~()*!.'"),
        quote_plus(raw),
        html.escape(value),
        html.escape(value, quote=False),
        repr(value)[1:-1],
        ascii(value)[1:-1],
        repr(raw)[2:-1],
        raw.hex(),
        raw.hex().upper(),
        *escaped,
        *(json.dumps(form)[1:-1] for form in escaped),
        *(form.replace("/", "\\/") for form in escaped),
        *_base64_cores(raw),
    }
    forms |= {re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), form) for form in forms}
    return {form for form in forms if len(form.strip()) >= _SHORTEST}


def _base64_cores(raw: bytes) -> Iterator[str]:
    """Yield what base64 makes of the secret at each of the three places it can take in a longer text."""
    for offset in range(3):
        padded = b"\0" * offset + raw
        usable = len(padded) - len(padded) % 3
        # Characters that also depend on what stands before or follows are left out.
        core = slice((offset * 8 + 5) // 6, usable // 3 * 4)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(padded).decode()
            if len(whole[core]) >= _SHORTEST_CORE:
                yield whole[core]
    for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.b32encode):
        whole = encode(raw).decode()
        yield from (whole, whole.rstrip("="))
