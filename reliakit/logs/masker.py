"""Masking: copies of values in which no secret is left.

```
value ── by key ────── the whole value becomes a marker
      └─ by content ── registered secrets, then each detector, in every text
anything beyond depth, nodes or scan budget, and anything that fails ── a placeholder, never the value
```

One `Masker` serves every thread and task. It fails closed: a fault in it costs information, never a secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar, cast

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.logs.detectors import DEFAULT, EMAIL_ADDRESSES, MARKER, Detector
from reliakit.logs.registered import RegisteredSecrets
from reliakit.logs.walk import FAILED, Walk
from reliakit.logs.words import KeyRules, Verdict

__all__ = ["DetectorLike", "Masker"]

T = TypeVar("T")
DetectorLike = Detector | re.Pattern[str] | Callable[[str], str]
Mode = Literal["full", "last4", "hmac"]

_SHORTEST_HMAC_KEY = 16


class Masker:
    """Make copies of values in which secrets and personal data are replaced by a marker.

    Safe from any thread and task. A clean short text that has been seen before costs one lookup, fresh text about
    0.1 microseconds a byte.

    Args:
        keys: Further names of sensitive fields, matched by whole words; with `*` or `?` patterns of the whole name.
        allow_keys: Names of fields that are not sensitive; they win. Their values are still searched.
        detectors: What to look for in texts: `Detector`s, compiled patterns (what they match is masked), or plain
            callables that take a text and return it masked. One that raises gives a placeholder.
        mode: What stands in a secret's place. "full": `***`. "last4": `***` and the last four characters of
            secrets that have at least 12. "hmac": a pseudonym such as `hmac:9f86d081`, equal for equal secrets.
        hmac_key: The key of the pseudonyms, at least 16 bytes; kept secret, or they can be guessed.
        scan_budget: How many characters of text one call of `mask`, or one log record, has searched.
        max_depth: How deep containers may nest.
        max_nodes: How many values one call visits.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        allow_keys: Iterable[str] = (),
        *,
        detectors: Iterable[DetectorLike] = DEFAULT,
        mode: Mode = "full",
        hmac_key: bytes | str | None = None,
        scan_budget: int = 32_768,
        max_depth: int = 12,
        max_nodes: int = 5_000,
    ) -> None:
        self.rules: KeyRules = KeyRules(keys, allow_keys)
        self.detectors: tuple[DetectorLike, ...] = tuple(_checked(detector) for detector in detectors)
        self.mode = checks.choice("mode", mode, ("full", "last4", "hmac"))
        self.scan_budget: int = checks.count("scan_budget", scan_budget)
        self.max_depth: int = checks.count("max_depth", max_depth)
        self.max_nodes: int = checks.count("max_nodes", max_nodes)
        self._hmac_key = _hmac_key(self.mode, hmac_key)
        self.registered: RegisteredSecrets = RegisteredSecrets()
        # A callable of the user's sees every text; shapes of ours need one of a few signs.
        self.sees_all: bool = any(not isinstance(detector, Detector) for detector in self.detectors)
        self.hides_emails: bool = EMAIL_ADDRESSES in self.detectors and not self.sees_all
        # Texts and names of fields that held nothing, so that they need not be searched again. No secret is kept.
        self.clean: set[str] = set()
        self.clean_keys: dict[str, Verdict] = {}

    def mask(self, value: T) -> T:
        """Return a copy of the value without its secrets.

        Containers keep their type, dataclasses and other records become dicts of their fields, and any other
        object becomes its masked text. The input is never changed, and changing the copy does not change it. Never
        raises: what cannot be masked becomes a placeholder.

        Args:
            value: Anything.
        """
        try:
            return cast("T", Walk(self, plain=False).value(value, 0))
        except Exception:  # noqa: BLE001 - the value must not leave in any form
            return cast("T", FAILED)

    def mask_text(self, text: str) -> str:
        """Return the text without its secrets. Never raises.

        Args:
            text: Any text; another object is taken as its `str`.
        """
        try:
            return Walk(self, plain=False).text(text if isinstance(text, str) else str(text))
        except Exception:  # noqa: BLE001 - the text must not leave in any form
            return FAILED

    def register_secret(self, value: str | bytes) -> None:
        """Hide this value wherever it occurs from now on, also URL-encoded, in base64, JSON-escaped or in a `repr`.

        Raises:
            ConfigurationError: It is shorter than 6 characters, and hiding it would garble innocent text.
        """
        self.registered.add(value)
        self.clean.clear()
        self.clean_keys.clear()

    def marker(self, secret: str) -> str:
        """Return what stands in the place of this secret."""
        if self.mode == "full":
            return MARKER
        if self.mode == "last4":
            return MARKER + secret[-4:] if len(secret) >= 12 else MARKER
        digest = hmac.new(self._hmac_key, secret.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return f"hmac:{digest.hexdigest()[:8]}"

    def __repr__(self) -> str:
        return (
            f"Masker({self.rules!r}, detectors={len(self.detectors)}, mode={self.mode!r}, "
            f"registered={len(self.registered)} forms, scan_budget={self.scan_budget})"
        )


def _checked(detector: object) -> DetectorLike:
    if isinstance(detector, re.Pattern):
        pattern = cast("re.Pattern[str]", detector)
        if not isinstance(pattern.pattern, str):
            raise ConfigurationError(f"detectors must search text, got a pattern for bytes {pattern.pattern!r}")
        return pattern
    if not callable(detector):
        raise ConfigurationError(f"detectors must be callables or compiled patterns, got {detector!r}")
    return cast("Callable[[str], str]", detector)


def _hmac_key(mode: Mode, key: bytes | str | None) -> bytes:
    if mode != "hmac":
        if key is not None:
            raise ConfigurationError(f'hmac_key is used by mode="hmac" only, and the mode is {mode!r}')
        return b""
    raw = key.encode() if isinstance(key, str) else key
    if not isinstance(raw, bytes) or len(raw) < _SHORTEST_HMAC_KEY:
        raise ConfigurationError(f'hmac_key must have at least {_SHORTEST_HMAC_KEY} bytes for mode="hmac"')
    return raw
