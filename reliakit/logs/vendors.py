"""Tokens whose beginning shows who issued them, from the table in `vendor_tokens.txt`.

Every such token is a long word, so a text is first cut into its long words; only those are searched with the table's
one pattern, a tree of the beginnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide
    from reliakit.logs.words import KeyRules


__all__ = ["VendorToken", "mask_tokens", "table"]

_ALPHABETS = {
    "hex": "0-9a-fA-F",
    "uuid": r"0-9a-f\-",
    "b36": "a-z0-9",
    "b62": "A-Za-z0-9",
    "cap": "A-Z0-9",
    "url": r"A-Za-z0-9_\-",
    "b64": "A-Za-z0-9+/=",
    "dot": r"A-Za-z0-9_.\-",
    "any": r"A-Za-z0-9_.~+/=:\-",
}


@dataclass(frozen=True, slots=True)
class VendorToken:
    """One line of the table.

    Attributes:
        prefix: How the token begins.
        alphabet: The set of characters that follow, a key of the alphabets.
        least: The smallest number of them.
        what: What it is and who issues it.
        source: Where its form is described.
        noted: When it was noted, year and month.
    """

    prefix: str
    alphabet: str
    least: int
    what: str
    source: str
    noted: str

    @property
    def pattern(self) -> str:
        """The regular expression for the whole token."""
        return f"{re.escape(self.prefix)}[{_ALPHABETS[self.alphabet]}]{{{self.least},}}+"


def table() -> Iterator[VendorToken]:
    """Yield every line of the table."""
    text = resources.files("reliakit.logs").joinpath("vendor_tokens.txt").read_text("utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            prefix, alphabet, least, rest = line.split(None, 3)
            what, source, noted = (part.strip() for part in rest.split("|"))
            yield VendorToken(prefix, alphabet, int(least), what, source, noted)


def _tree(tokens: list[VendorToken]) -> str:
    """Return one pattern that branches on the first character, so that a miss costs one step."""
    branches: dict[str, list[str]] = {}
    for token in sorted(tokens, key=lambda token: len(token.prefix), reverse=True):
        branches.setdefault(token.prefix[0], []).append(token.pattern[len(re.escape(token.prefix[0])) :])
    return "|".join(f"{re.escape(first)}(?:{'|'.join(rests)})" for first, rests in branches.items())


_TOKEN = re.compile(rf"(?<![A-Za-z0-9])(?:{_tree(list(table()))})")
_LONG_WORD = re.compile(r"[A-Za-z0-9_.\-+/=:~$|@!]{16,}+")
_HARMLESS = re.compile(r"[0-9a-f\-]++|[0-9A-F\-]++|[a-z_.\-/]++")
# Tokens that are recognised by something other than their beginning.
_OTHERS = re.compile(
    r"(?<![0-9])[0-9]{5,16}:A[A-Za-z0-9_\-]{33,}+"  # Telegram bot
    r"|(?<![A-Za-z0-9])pat[A-Za-z0-9]{14}\.[0-9a-f]{40,}+"  # Airtable
    r"|(?<![A-Za-z0-9_~.])[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.\-]{30,}+"  # Microsoft Entra client secret
    r"|(?<![A-Za-z0-9])[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=\-]{40,}+"  # Terraform Cloud
    r"|(?<![A-Za-z0-9])[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk(?![A-Za-z0-9])"  # MaxMind
    r"|(?<![A-Za-z0-9])[0-9a-f]{32}-us[0-9]{1,2}(?![A-Za-z0-9])"  # Mailchimp
    r"|(?<![A-Za-z0-9])[MNO][A-Za-z0-9_\-]{23,27}\.[A-Za-z0-9_\-]{6}\.[A-Za-z0-9_\-]{27,}+"  # Discord bot
    r"|(?<![A-Za-z0-9])A3T[A-Z0-9]{17}(?![A-Za-z0-9])"  # AWS
    r"|(?<![A-Za-z0-9])(?:sc|ext|scauth|authress)_[a-z0-9]{5,30}\.[a-z0-9]{4,6}\.acc[_\-]"
    r"[a-z0-9\-]{10,32}\.[A-Za-z0-9+/_=\-]{30,}+"  # Authress
    r"|webhook\.office\.com/webhookb2/[^\s\"'<>]{60,}+"  # Microsoft Teams
    r"|(?<![A-Za-z0-9])(?:pat|sat)\.[A-Za-z0-9_\-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}(?![A-Za-z0-9])"  # Harness
    r"|(?<![A-Za-z0-9])[0-9a-f]{36}NRAL(?![A-Za-z0-9])"  # New Relic licence key
    r"|(?<![A-Za-z0-9_])re_[A-Za-z0-9]{8}_[A-Za-z0-9]{20,}+"  # Resend
    r"|(?<![A-Za-z0-9_])pk_[0-9]{8,9}_[A-Z0-9]{32}(?![A-Za-z0-9])"  # ClickUp
    r"|(?<![\w.])s\.(?=[A-Za-z]{0,23}[0-9])[A-Za-z0-9]{24}(?![A-Za-z0-9])"  # Vault, before 1.10
    r"|(?<![\w/])[0-9]/[0-9]{12,20}(?:/[0-9]{12,20})?:[0-9a-f]{32}(?![0-9a-f])"  # Asana
    r"|(?<![A-Za-z0-9_])access_token\$(?:production|sandbox)\$[a-z0-9]{8,32}\$[0-9a-f]{32}"  # Braintree
    r"|(?<![A-Za-z0-9])00D[A-Za-z0-9]{12}![A-Za-z0-9._]{80,}+"  # Salesforce session
    r"|(?<![\w\-])00(?=[^A-Z]{0,39}[A-Z])(?=[^a-z]{0,39}[a-z])[A-Za-z0-9_\-]{40}(?![\w\-])"  # Okta
    r"|(?<![\w.])t1\.[A-Za-z0-9_\-]{20,}+={0,2}\.[A-Za-z0-9_\-]{80,}+"  # Yandex access token
    r"|(?<![\w.\-])live_(?=[a-z_\-]{0,39}[A-Z0-9])[A-Za-z0-9_\-]{40}(?![\w\-])"  # GoCardless
    r"|(?<![\w.\-])pa-(?=[a-z0-9_\-]{0,42}[A-Z])[A-Za-z0-9_\-]{43}(?![\w\-])"  # Voyage AI
    r"|(?<![\w.\-])(?:live|test)_(?=[A-Za-z]{0,29}[0-9])[A-Za-z0-9]{30}(?![\w\-])"  # Mollie
    r"|(?<![A-Za-z0-9])[rs]k_(?:live|prod|test)_[A-Za-z0-9_\-]{24,}+"  # with letters that Stripe's keys have not
    r"|(?<![A-Za-z0-9+/_\-])[A-Za-z0-9+/_\-]{33,80}(?:A[zI](?:Fu|Se|Ca|oT)|ACDb|APIM|AZDO|\+A(?:Ba|MC|St|Sb|Eh|Rm)|ACR[A-D])"
    r"[A-Za-z0-9+/_\-]{4,12}(?![A-Za-z0-9+/_\-])={0,2}"  # Microsoft Azure keys that name their service
    r"|(?<![A-Za-z0-9_])2[A-Za-z0-9]{26}_[A-Za-z0-9]{20,21}(?![A-Za-z0-9_])"  # ngrok
    r"|(?<![A-Za-z0-9_])at_[A-Za-z0-9]{10}_[A-Za-z0-9]{60,}+"  # HashiCorp Boundary
    r"|(?<![\w.])v[1-4]\.(?:local|public)\.[A-Za-z0-9_\-]{40,}+(?:\.[A-Za-z0-9_\-]{1,200})?"  # PASETO
    r"|(?<![A-Za-z0-9])MDAx[A-Za-z0-9]{2}xvY2F0aW9u[A-Za-z0-9_\-]{30,}+"  # macaroon
    r"|(?<![A-Z0-9])S[AUOCNX][A-Z2-7]{56}(?![A-Z0-9])"  # NATS seed
    r"|(?<![A-Za-z0-9_])(?:pi|seti|cs|src|pst)_[A-Za-z0-9_]{10,80}_secret_[A-Za-z0-9]{10,}+"  # Stripe client secret
    r"|(?<![0-9])[0-9]{15,16}\|[A-Za-z0-9_\-]{27,40}(?![A-Za-z0-9])"  # Facebook app
)


def _first_and_longest(found: re.Match[str]) -> tuple[int, int]:
    return found.start(), -found.end()


def mask_tokens(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide every token of the table."""
    parts: list[str] = []
    at = 0
    for word in _LONG_WORD.finditer(text):
        if _HARMLESS.fullmatch(word[0]):
            continue
        first, last = word.span()
        several = [*_TOKEN.finditer(text, first, last), *_OTHERS.finditer(text, first, last)]
        for found in sorted(several, key=_first_and_longest) if several else ():
            if found.start() >= at:
                parts += (text[at : found.start()], hide(found[0]))
                at = found.end()
    return "".join((*parts, text[at:])) if parts else text
