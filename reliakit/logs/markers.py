"""What replaces a secret: nothing of it, its end, or a pseudonym, by field and by detector."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, cast

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.logs.spelling import words_of
from reliakit.logs.words import named_in, names_in

__all__ = ["MARKER", "Hide", "Markers", "Mode"]

MARKER = "***"
Mode = Literal["full", "last4", "hmac"]

_MODES: tuple[Mode, ...] = ("full", "last4", "hmac")
_SHORTEST_HMAC_KEY = 16
# Of a shorter secret, the end would give away too much.
_SHORTEST_LAST4 = 12
_REMEMBERED = 4096


class Hide(Protocol):
    """Takes a secret, and the name of its field if it has one; returns what replaces the secret."""

    def __call__(self, secret: str, name: str = "", /) -> str:
        """Return what replaces it."""
        ...


class Markers:
    """Make markers. No marker shows anything of a secret that its mode does not allow.

    Args:
        mode: The mode of everything that `modes` does not name.
        modes: Modes by the name of a detector or by the words of a field's name; a field's mode beats a detector's.
        hmac_key: The key of the pseudonyms; required for the mode "hmac", and only allowed with it.
        detectors: The names of the detectors.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    __slots__ = ("_by_name", "_key", "_known", "by_detector", "mode", "new_names")

    def __init__(
        self, mode: Mode, modes: Mapping[str, Mode] | None, hmac_key: bytes | str | None, detectors: Iterable[str]
    ) -> None:
        self.mode: Mode = checks.choice("mode", mode, _MODES)
        chosen = _chosen(modes)
        self._key = _key(hmac_key, {self.mode, *chosen.values()})
        known = set(detectors)
        self.by_detector: dict[str, Mode] = {name: chosen[name] for name in chosen if name in known}
        # A name that no detector has is taken as a field's, which is then hidden.
        self.new_names: tuple[str, ...] = tuple(name for name in chosen if name not in known)
        expressions: list[tuple[tuple[str, ...], Mode]] = [
            (tuple(words_of(name)), picked) for name, picked in chosen.items()
        ]
        self._by_name: list[tuple[tuple[str, ...], Mode]] = sorted(expressions, key=lambda entry: -len(entry[0]))
        self._known: dict[str, Mode | None] = {}

    def marker(self, secret: str, name: str = "", detected: Mode | None = None) -> str:
        """Return what replaces this secret, found under this field's name or by a detector."""
        mode = (self._of_field(name) if name and self._by_name else None) or detected or self.mode
        if mode == "full":
            return MARKER
        if mode == "last4":
            return MARKER + secret[-4:] if len(secret) >= _SHORTEST_LAST4 else MARKER
        digest = hmac.new(self._key, secret.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return f"hmac:{digest.hexdigest()[:8]}"

    def _of_field(self, name: str) -> Mode | None:
        if name in self._known:
            return self._known[name]
        words = words_of(name)
        found: Mode | None = next((mode for expression, mode in self._by_name if named_in(words, expression)), None)
        if len(self._known) < _REMEMBERED:
            self._known[name] = found
        return found

    def __repr__(self) -> str:
        by_name = "".join(f", {' '.join(words)}: {mode}" for words, mode in self._by_name)
        return f"{self.mode}{by_name}"


def _chosen(modes: object) -> dict[str, Mode]:
    if modes is None:
        return {}
    if not isinstance(modes, Mapping):
        raise ConfigurationError(f'modes must be a mapping such as {{"email": "hmac"}}, got {modes!r}')
    chosen = cast("Mapping[str, Mode]", modes)
    for name in names_in("modes", list(chosen)):
        if "*" in name or "?" in name:
            raise ConfigurationError(f"modes must name fields or detectors without wildcards, got {name!r}")
        checks.choice("modes", chosen[name], _MODES)
    return dict(chosen)


def _key(key: bytes | str | None, used: set[Mode]) -> bytes:
    if "hmac" not in used:
        if key is not None:
            raise ConfigurationError(f'hmac_key is used by the mode "hmac" only, and the modes are {sorted(used)}')
        return b""
    raw = key.encode() if isinstance(key, str) else key
    if not isinstance(raw, bytes) or len(raw) < _SHORTEST_HMAC_KEY:
        raise ConfigurationError(f'hmac_key must have at least {_SHORTEST_HMAC_KEY} bytes for the mode "hmac"')
    return raw
