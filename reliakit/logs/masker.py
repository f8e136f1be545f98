"""Masking: copies of values in which no secret is left.

```
value ── by key ────── the whole value becomes a marker
      └─ by content ── registered secrets, then each detector, in every text
anything beyond depth, nodes, scan budget or time, and anything that fails ── a placeholder, never the value
```

One `Masker` serves every thread and task. It fails closed: a fault in it loses information, never a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import TypeVar, cast

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.logs.detectors import BUILT_IN, DEFAULT, WORDS, Detector, Find
from reliakit.logs.markers import Markers, Mode
from reliakit.logs.registered import RegisteredSecrets
from reliakit.logs.scan import FAILED
from reliakit.logs.walk import Walk
from reliakit.logs.words import KeyRules, Verdict

__all__ = ["DetectorLike", "Masker", "Step", "masker_or_default"]

T = TypeVar("T")
Step = tuple[Find, Mode | None, bool]
DetectorLike = Detector | re.Pattern[str] | Callable[[str], str]


class Masker:
    """Make copies of values in which secrets and personal data are replaced by a marker.

    Safe from any thread and task. A clean short text that has been seen before costs one lookup, other text about a
    quarter of a microsecond a character.

    Args:
        keys: Further names of sensitive fields, matched by whole words, and patterns: "emp_*_no" for the whole name,
            "payment.*.number" for the names from the outermost field inwards, `**` for any number of names.
        allow_keys: Names and patterns of fields that are not sensitive; they win. Their values are still searched.
        detectors: What to look for in texts: `Detector`s, compiled patterns (whose matches are masked), or plain
            callables that take a text and return it masked. If one raises, a placeholder is shown.
        mode: What replaces a secret. "full": `***`. "last4": `***` and the last four characters of secrets that have
            at least 12. "hmac": a pseudonym such as `hmac:9f86d081`, equal for equal secrets in every process with
            the same key.
        modes: Other modes for some of them, by the words of a field's name or by the name of a detector:
            `{"email": "hmac", "card": "last4"}`. A field that is named here, and that is not the name of a detector,
            is hidden, too.
        hmac_key: The key of the pseudonyms, at least 16 bytes; keep it secret, or they can be guessed.
        scan_budget: How many characters of text are searched in one call of `mask`, or in one log record.
        max_depth: How deeply containers may be nested.
        max_nodes: How many values one call visits.
        timeout: How many seconds detectors of your own may take for one call or record. Checked between them: one
            that never returns cannot be stopped.
        clock: Measures that time.

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
        modes: Mapping[str, Mode] | None = None,
        hmac_key: bytes | str | None = None,
        scan_budget: int = 32_768,
        max_depth: int = 12,
        max_nodes: int = 5_000,
        timeout: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.detectors: tuple[Detector, ...] = _as_detectors(detectors)
        names = {detector.name for detector in self.detectors} | {detector.name for detector in BUILT_IN}
        self.markers: Markers = Markers(mode, modes, hmac_key, names)
        self.rules: KeyRules = KeyRules(keys, allow_keys, self.markers.new_names)
        self.scan_budget: int = checks.count("scan_budget", scan_budget)
        self.max_depth: int = checks.count("max_depth", max_depth)
        self.max_nodes: int = checks.count("max_nodes", max_nodes)
        self.timeout: float = checks.seconds("timeout", timeout)
        self.clock: Clock = checks.clock("clock", clock)
        self.registered: RegisteredSecrets = RegisteredSecrets()
        # Texts and field names in which nothing was found, so that they are not searched again. No secret is kept.
        self.clean: set[str] = set()
        self.clean_keys: dict[str, Verdict] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Compute beforehand what every text would need."""
        mode_of = self.markers.by_detector
        self.steps: tuple[tuple[bool, tuple[Step, ...]], ...] = tuple(
            (by_words, tuple((each.find, mode_of.get(each.name), each not in BUILT_IN) for each in several))
            for by_words, several in groupby(self.detectors, lambda detector: detector in WORDS)
        )
        # All that the default detectors look for shows one of a few signs; a detector of the user's need not.
        self.gated: bool = all(detector in DEFAULT for detector in self.detectors)
        self.repeats: bool = all(detector in BUILT_IN for detector in self.detectors)
        used = {detector.name for detector in self.detectors if detector in DEFAULT}
        self.hides_emails: bool = self.gated and "email" in used
        self.hides_cards: bool = "card" in used
        self.email_mode: Mode | None = mode_of.get("email")
        self.card_mode: Mode | None = mode_of.get("card")

    def mask(self, value: T) -> T:
        """Return a copy of the value without its secrets.

        Containers keep their type, dataclasses and other records become dicts of their fields, and any other object
        becomes its masked text. The input is never changed, and changing the copy does not change it. Never raises:
        what cannot be masked becomes a placeholder.

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
            text: Any text; of another object its `str` is taken.
        """
        try:
            return Walk(self, plain=False).text(text if isinstance(text, str) else str(text))
        except Exception:  # noqa: BLE001 - the text must not leave in any form
            return FAILED

    def register_secret(self, value: str | bytes) -> None:
        """Hide this value wherever it occurs from now on, also URL-encoded, in base64, JSON-escaped or in a `repr`.

        Raises:
            ConfigurationError: The value is shorter than 6 characters, so hiding it would garble innocent text.
        """
        self.registered.add(value)
        self.clean.clear()
        self.clean_keys.clear()

    def marker(self, secret: str, name: str = "", detected: Mode | None = None) -> str:
        """Return what replaces this secret, found in a field of this name or by a detector."""
        return self.markers.marker(secret, name, detected)

    def __repr__(self) -> str:
        return (
            f"Masker({self.rules!r}, detectors={len(self.detectors)}, mode={self.markers!r}, "
            f"registered={len(self.registered)} forms, scan_budget={self.scan_budget})"
        )


def _as_detectors(given: Iterable[DetectorLike]) -> tuple[Detector, ...]:
    try:
        several = list(given)
    except TypeError:
        raise ConfigurationError(f"detectors must be several, got {given!r}: write [{given!r}]") from None
    return tuple(map(_as_detector, several))


def _as_detector(given: object) -> Detector:
    if isinstance(given, Detector):
        return given
    return Detector.of("custom", cast("Callable[[str], str]", given))


def masker_or_default(masker: Masker | None) -> Masker:
    """Return the masker, or the default one for None.

    Raises:
        ConfigurationError: It is anything else: masking cannot be switched off.
    """
    if masker is None:
        return Masker()
    if not isinstance(masker, Masker):
        raise ConfigurationError(f"masker must be a Masker, got {masker!r}: masking cannot be switched off")
    return masker
