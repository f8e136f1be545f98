"""What secrets look like in text, whatever field they are in.

Each detector is a cheap question (can this text hold one at all?) and a substitution that runs in time linear in the
text: starts are anchored, repetitions are possessive or short, and no pattern ignores case.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.logs import bodies, commands, entropy, national, personal, statements, vendors
from reliakit.logs.escapes import VEILED
from reliakit.logs.markers import MARKER, Hide
from reliakit.logs.words import KeyRules

__all__ = ["BUILT_IN", "DEFAULT", "HIGH_ENTROPY", "IP_ADDRESSES", "WORDS", "Detector", "Find"]

Find = Callable[[str, Hide, KeyRules], str]


@dataclass(frozen=True, slots=True)
class Detector:
    """Finds one kind of secret by what it looks like. Calling it masks a text.

    Attributes:
        name: What it finds; `Masker(modes=...)` chooses its marker by this name.
        find: Takes the text, a function that returns a secret's marker, and the rules for field names; returns the
            text.
    """

    name: str
    find: Find

    @classmethod
    def of(cls, name: str, what: re.Pattern[str] | Callable[[str], str]) -> Detector:
        """Return a detector made from a compiled pattern or a function, under a name of its own.

        Args:
            name: What it finds.
            what: A compiled pattern, whose matches are hidden, or a function that takes a text and returns it masked.

        Raises:
            ConfigurationError: `what` is neither, or the pattern is for bytes.
        """
        if isinstance(what, re.Pattern):
            if not isinstance(what.pattern, str):
                raise ConfigurationError(f"detectors must search text, got a pattern for bytes {what.pattern!r}")
            return cls(checks.named("name", name), partial(_hide_matches, what))
        if not callable(what):
            raise ConfigurationError(f"detectors must be callables or compiled patterns, got {what!r}")
        return cls(checks.named("name", name), partial(_ask, what))

    def __call__(self, text: str) -> str:
        """Return the text with what this detector finds replaced by the marker."""
        return self.find(text, _marker, _DEFAULT_RULES)

    def __repr__(self) -> str:
        return f"<Detector {self.name!r}>"


def _hide_matches(pattern: re.Pattern[str], text: str, hide: Hide, _rules: KeyRules) -> str:
    return pattern.sub(lambda found: hide(found[0]) if found[0] else "", text)


def _ask(function: Callable[[str], str], text: str, _hide: Hide, _rules: KeyRules) -> str:
    return function(text)


def _marker(_secret: str, _name: str = "", /) -> str:
    return MARKER


_DEFAULT_RULES = KeyRules()

# What surrounds a private key: PEM, and the file format of PuTTY.
_FRAMES = (
    (
        "-----BEGIN ",
        re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"),
        re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"),
    ),
    (
        "Private-Lines:",
        re.compile(r"Private-Lines: [0-9]{1,3}(?=[\r\n\\])"),
        re.compile(r"Private-MAC: [0-9a-f]{0,64}"),
    ),
)


def _private_keys(text: str, hide: Hide, _rules: KeyRules) -> str:
    for sign, begin, end in _FRAMES:
        if sign in text:
            text = _framed(text, hide, begin, end)
    return text


def _framed(text: str, hide: Hide, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    parts: list[str] = []
    at = 0
    while (begin := opening.search(text, at)) is not None:
        end = closing.search(text, begin.end())
        # A key that was cut off in the middle is still a key.
        stop = end.start() if end else len(text)
        parts += (text[at : begin.end()], hide(text[begin.end() : stop]), end.group() if end else "")
        at = end.end() if end else len(text)
    return "".join((*parts, text[at:]))


_JWT = re.compile(r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}+(?:\.[A-Za-z0-9_\-]*+){1,4}")


def _jwt(text: str, hide: Hide, _rules: KeyRules) -> str:
    return _JWT.sub(lambda found: hide(found[0]), text) if "eyJ" in text else text


_SCHEME = re.compile(
    r"(?<![A-Za-z0-9])"
    r"([Bb]earer|BEARER|[Bb]asic|BASIC|[Nn]egotiate|NTLM|ApiKey|[Tt]oken|AUTH(?: PLAIN| LOGIN| default)?)"
    rf"([ \t:=,{VEILED}]{{1,3}}|%20|\+)([A-Za-z0-9._~+/\-]{{8,}}+=*+)"
)


_SCHEME_SIGNS = ("earer", "asic", "oken", "BE", "BA", "egoti", "NTLM", "ApiKey", "AUTH ")


def _scheme(text: str, hide: Hide, _rules: KeyRules) -> str:
    if (" " in text or ":" in text or "=" in text or "+" in text or "%20" in text or not text.isascii()) and any(
        sign in text for sign in _SCHEME_SIGNS
    ):
        return _SCHEME.sub(lambda found: _credentials(found, hide), text)
    return text


def _credentials(found: re.Match[str], hide: Hide) -> str:
    scheme, gap, value = found.groups()
    if scheme.lower() == "basic":
        secret = _decodes_to_pair(value) or _looks_drawn(value, 16)
    else:
        secret = _looks_drawn(value, 12 if scheme[0] in "Tt" else 8) or len(value) >= 24
    return f"{scheme}{gap}{hide(value)}" if secret else found[0]


def _decodes_to_pair(value: str) -> bool:
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


def _looks_drawn(value: str, least: int) -> bool:
    """Return whether a text looks random rather than written: letters and digits in one piece."""
    return len(value) >= least and any(map(str.isdigit, value)) and any(map(str.isalpha, value))


_HASH = re.compile(
    r"\$(?:2[abxy]|argon2(?:id|i|d)|scrypt|bcrypt-sha256|pbkdf2(?:-[a-z0-9]{1,8})?|[156y]|apr1|P)\$[A-Za-z0-9./+=,$\-]{16,}+"
    r"|(?<![A-Za-z0-9])(?:pbkdf2_sha(?:1|256|512)|scrypt|argon2|bcrypt_sha256|pbkdf2:sha256|scrypt:\d{1,8}:\d{1,4}:\d{1,4})"
    r"[:$][A-Za-z0-9./+=,$:\-]{16,}+"
    r"|(?<![A-Za-z0-9])SCRAM-SHA-(?:1|256|512)\$[0-9]{1,8}:[A-Za-z0-9./+=$:]{16,}+"
)


def _password_hash(text: str, hide: Hide, _rules: KeyRules) -> str:
    return _HASH.sub(lambda found: hide(found[0]), text) if "$" in text else text


# What follows `://` up to where a URL surely ends.
_AUTHORITY = re.compile(r"(?<=://)[^\s\"'<>`\\]++")


# `jdbc:oracle:thin:user/password@host`, and a line of PostgreSQL's password file: `host:port:database:user:password`.
_THIN = re.compile(r"(:thin:[^\s/@:]{1,128}/)([^\s@]{1,256}+)(?=@)")
_PASSWORD_FILE = re.compile(
    r"^([\w.\-*]{1,255}:(?:[0-9]{4,5}|\*):[\w.\-*]{1,63}:[\w.\-*]{1,63}:)(?![0-9a-fA-F:]*+$)(\S++)$", re.MULTILINE
)


def _userinfo(text: str, hide: Hide, _rules: KeyRules) -> str:
    if ":thin:" in text:
        text = _THIN.sub(lambda found: f"{found[1]}{hide(found[2])}", text)
    if text.count(":") >= 4:
        text = _PASSWORD_FILE.sub(lambda found: f"{found[1]}{hide(found[2])}", text)
    if "://" not in text or "@" not in text:
        return text
    parts: list[str] = []
    at = 0
    for found in _AUTHORITY.finditer(text):
        begin, end = _userinfo_extent(text, found)
        if end > begin:
            user, colon, password = text[begin:end].partition(":")
            # A long "user" is a token that was put in its place.
            shown = hide(user) if len(user) >= 20 or not password else user
            shown_user = shown if colon or _is_token_user(text, begin, user) else user
            parts += (text[at:begin], shown_user, colon, hide(password) if password else "")
            at = end
    return "".join((*parts, text[at:])) if parts else text


_HOST_END = re.compile(r"[/?#]")


def _userinfo_extent(text: str, found: re.Match[str]) -> tuple[int, int]:
    """Return where user and password stand, or an empty range."""
    begin, stop = found.span()
    cut = _HOST_END.search(text, begin, stop)
    authority_end = cut.start() if cut else stop
    first = text.rfind("@", begin, authority_end)
    if first >= 0 and not _is_no_host(text[first + 1 : authority_end]):
        return begin, first
    # A password with an unescaped slash: what follows the colon is no port, and an @ comes later.
    colon = text.find(":", begin, authority_end)
    if colon >= 0 and not text[colon + 1 : authority_end].isdigit():
        at = text.rfind("@", begin, stop)
        if at > colon:
            return begin, at
    return begin, max(begin, first)


def _is_no_host(host: str) -> bool:
    """Return whether the text in a host's place has letters for a port, so that the password goes on."""
    _, colon, port = host.rpartition(":")
    return bool(colon) and bool(port) and not port.isdigit() and not host.startswith("[")


def _is_token_user(text: str, begin: int, user: str) -> bool:
    """Return whether `https://user@host` names a token: web clients log in with it, git and ssh name a user."""
    return text[max(0, begin - 8) : begin].endswith(("http://", "https://")) and len(user) >= 16


_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.]\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")


def _ip_addresses(text: str, hide: Hide, _rules: KeyRules) -> str:
    text = _IPV4.sub(lambda found: hide(found[0]), text)
    return _IPV6.sub(lambda found: hide(found[0]) if sum(map(str.isalnum, found[0])) else found[0], text)


DEFAULT: tuple[Detector, ...] = (
    Detector("private_key", _private_keys),
    Detector("userinfo", _userinfo),
    Detector("field", bodies.mask_fields),
    Detector("authorization", _scheme),
    Detector("jwt", _jwt),
    Detector("token", vendors.mask_tokens),
    Detector("password_hash", _password_hash),
    Detector("command", commands.mask_commands),
    Detector("database", statements.mask_statements),
    Detector("email", personal.mask_emails),
    Detector("iban", personal.mask_ibans),
    Detector("card", personal.mask_cards),
    Detector("national_id", national.mask_national_ids),
    Detector("phone", personal.mask_phones),
)
"""What a `Masker` looks for unless told otherwise; leave some out or add your own."""

IP_ADDRESSES = Detector("ip", _ip_addresses)
"""Masks IP addresses; not among the defaults, because operators usually need them."""

HIGH_ENTROPY = Detector("entropy", entropy.mask_random_words)
"""Masks words that look random; not among the defaults, because many ids look random, too."""

BUILT_IN: tuple[Detector, ...] = (*DEFAULT, IP_ADDRESSES, HIGH_ENTROPY)
# They tell a secret by its shape, which is nothing without the place where it begins.
WORDS: tuple[Detector, ...] = tuple(
    detector for detector in BUILT_IN if detector.name not in ("private_key", "userinfo", "field")
)
