"""Which field names mean a secret: by whole words, never by substring.

```
X-Api-Key            -> x · api · key                 "api key" is sensitive
userPassword         -> user · password               "password" is sensitive
password_reset_count -> password · reset · count      ... but here it only describes a count
author, tokenize     -> no sensitive word at all
```

A name is split at separators and at changes of case, accents and digits are dropped, and the words are looked up.
A sensitive word followed by a companion (count, at, type, expires, ...) or preceded by one (max, prompt, is, ...)
only describes something about a secret.
"""

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KeyRules", "Verdict", "word_set", "words_of"]


class Verdict(IntEnum):
    """What a field name says about its value."""

    SAFE = 0
    SECRET = 1
    TALLY = 2
    """A secret, unless the value is a plain number: `tokens`, `api_key_id`, `pass`."""
    WEAK = 3
    """A secret, unless the value is a short plain word or a small number: `auth`, `session`, `email`."""
    RANDOM = 4
    """A secret if the value looks random: `sig`, `salt`."""
    FOLDER = 5
    """A secret, unless the value is a path: `pwd`."""


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text, in lower case and without accents."""
    return frozenset(_plain(text).split())


def _plain(text: str) -> str:
    """Return text in lower case without accents; scripts without case stay as they are."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.translate(_LETTERS).casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


_LETTERS = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "ı": "i", "đ": "d", "æ": "ae"})  # do not decompose

_SECRETS = word_set(
    """
    password passwords passwd passwds passphrase passphrases passcode passkey passkeys pw psw pswd psk pwhash
    secret secrets token tokens jwt jwts jws jwe bearer apikey apikeys apitoken apisecret appkey appsecret
    secretkey accesskey privatekey signingkey encryptionkey masterkey authkey sshkey sessionkey accountkey
    credential credentials creds authorization authorisation cookie cookies
    sessionid sessid phpsessid jsessionid aspsessionid csrf xsrf csrfmiddlewaretoken
    otp totp hotp cvv cvv2 cvc cvc2 csc ssn pin pincode mfacode otpcode
    cardnumber cardno creditcard debitcard ccnumber ccnum
    mysqlpwd pgpassword pgpass htpasswd userpwd dbpwd
    passwort passworter kennwort kennworter geheimnis zugangscode losungswort
    contrasena contrasenas contrasenya contrasinal
    motdepasse mdp motsdepasse
    senha senhas palavrapasse
    wachtwoord wachtwoorden
    haslo heslo jelszo salasana losenord passord adgangskode kodeord parool slaptazodis parole lozinka zaporka geslo
    parola sifre katasandi sandi matkhau tunnussana
    пароль пароли секрет токен паролата парола лозинка
    κωδικος συνθηματικο
    パスワード 暗証番号 秘密鍵
    密码 密碼 口令 密钥 密鑰 令牌
    비밀번호 암호 패스워드
    كلمةالمرور كلمةالسر سيسمה סיסמה סיסמא
    पासवर्ड รหัสผ่าน گذرواژه پاسورد
    """
)

_COMPOUNDS = frozenset(
    tuple(_plain(line).split())
    for line in """
    api key
    api keys
    access key
    access keys
    secret key
    private key
    private keys
    signing key
    encryption key
    decryption key
    master key
    account key
    shared key
    session key
    session id
    session ids
    sess id
    session cookie
    service key
    deploy key
    license key
    ssh key
    ssl key
    tls key
    pgp key
    gpg key
    hmac key
    aes key
    rsa key
    auth key
    app key
    storage key
    subscription key
    function key
    webhook key
    wep key
    wpa key
    sas key
    shared access signature
    auth code
    authorization code
    verification code
    confirmation code
    security code
    security answer
    security answers
    recovery code
    recovery codes
    backup code
    backup codes
    one time code
    mfa code
    sms code
    login code
    access code
    pass word
    pass phrase
    pass code
    pass key
    pass wd
    basic auth
    http auth
    proxy auth
    auth header
    saml response
    saml assertion
    card number
    card no
    card num
    card pan
    card cvv
    credit card
    debit card
    cc number
    cc num
    account number
    routing number
    bank account
    social security
    national id
    national insurance
    tax id
    passport number
    passport no
    drivers license
    driver license
    seed phrase
    recovery phrase
    mnemonic phrase
    private seed
    kata sandi
    mot de passe
    mots de passe
    code secret
    cle api
    cle secrete
    cle privee
    clave secreta
    clave privada
    clave api
    clave acceso
    palavra passe
    chave secreta
    chave privada
    chave api
    parola ordine
    chiave segreta
    chiave privata
    geheimer schlussel
    privater schlussel
    mat khau
    κωδικος προσβασης
    секретный ключ
    كلمة المرور
    كلمة السر
    """.strip().splitlines()
)
_LONGEST_COMPOUND = max(map(len, _COMPOUNDS))

# At the end of a name only: what comes after decides what the name is about.
_TAILS: dict[str, Verdict] = {
    **dict.fromkeys(
        word_set("auth session sessions sid email emails mail phone telephone mobile msisdn iban clave"), Verdict.WEAK
    ),
    **dict.fromkeys(word_set("sig signature salt seed nonce ticket assertion mnemonic pepper"), Verdict.RANDOM),
    **dict.fromkeys(word_set("pwd oldpwd"), Verdict.FOLDER),
    "pass": Verdict.TALLY,
}
_TAIL_PAIRS: dict[tuple[str, str], Verdict] = {
    ("email", "address"): Verdict.WEAK,
    ("mail", "address"): Verdict.WEAK,
    ("phone", "number"): Verdict.WEAK,
    ("mobile", "number"): Verdict.WEAK,
    ("telephone", "number"): Verdict.WEAK,
}

_PLURALS = word_set("tokens cookies secrets passwords credentials jwts keys sessions emails passkeys")

# After a sensitive word: it only describes something about the secret.
_AFTER = word_set(
    """
    count counts counter total num type types kind length len size bits bytes chars width
    at on until since expires expiry expired expire expiration exp ttl lifetime timeout age duration seconds minutes
    hours days date time timestamp interval period max min minimum maximum limit limits quota budget usage used use
    remaining left consumed cost price rate per prompt policy policies rule rules strength score complexity entropy
    enabled disabled required optional allowed valid invalid validity verified validated present missing exists
    set unset changed updated created issued rotated revoked deleted rotation generation attempts attempt tries
    retries failures failed failure success succeeded ok error errors status state result reason method methods mode
    scheme format version algorithm alg algo name names label title description field fields column columns param
    parameter url uri endpoint path file filename dir directory folder location host port provider issuer
    iss audience aud scope scopes role class model family group category store manager bucket ring index position
    offset level match matches matched mismatch consent banner domain samesite httponly secure same site
    supported support page link form input placeholder
    """
)
# Before a sensitive word, directly.
_BEFORE = word_set(
    """
    max min num n nb total count avg mean prompt completion is has had needs need requires require use uses using
    forgot forgotten per remaining used supports support allow allows show
    """
)
# Before the plural "tokens" only: language models count these.
_BEFORE_TOKENS = word_set(
    "input output reasoning cached audio accepted rejected generated context new num thinking text image"
)

# Names written in one word: a known head and a known tail, so that `dbpassword` is found and `betoken` is not.
_HEADS = word_set(
    """
    db database user username admin root my new old current confirm auth oauth access refresh id api app client csrf
    xsrf bot login session device push service server account master bearer web site app smtp ftp ssh sftp mail email
    mysql postgres pg redis mongo rabbitmq ldap wifi proxy http https github gitlab slack stripe aws gcp azure
    security signing webhook reset verification activation registration deploy personal x private
    """
)
_TAIL_WORDS = (
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "token",
    "secret",
    "apikey",
    "secretkey",
    "passwort",
    "kennwort",
    "pwd",
)

_LONGEST_NAME = 256
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_A-Za-z]+")
_SEPARATORS = re.compile(r"[\W_\d]++")


def words_of(name: str) -> list[str]:
    """Return the words of a field name in lower case and without accents: `X-Api-Key2` gives x, api, key."""
    if not name.isascii():
        # Case must survive until the split, accents must not.
        decomposed = unicodedata.normalize("NFKD", name.translate(_LETTERS))
        name = "".join(char for char in decomposed if not unicodedata.combining(char))
    return [word.casefold() for word in _WORD.findall(name)]


class KeyRules:
    """Decide by a field's name whether its value is a secret. Answers are remembered, so asking again is one lookup.

    Args:
        keys: Further sensitive names, matched by their words: "salary" finds `baseSalary`. With `*` or `?` they
            are patterns for the whole name, in lower case with `_` between the words: "emp_*_no".
        allow_keys: Names, written in any style, and patterns that are never sensitive; they win over everything.
    """

    __slots__ = ("_allowed", "_allowed_globs", "_exact", "_extra", "_globs", "_known")

    _REMEMBERED = 4096
    _LONGEST_REMEMBERED = 64

    def __init__(self, keys: Iterable[str] = (), allow_keys: Iterable[str] = ()) -> None:
        names, self._globs = _sorted_out("keys", keys)
        allowed, self._allowed_globs = _sorted_out("allow_keys", allow_keys)
        self._extra = frozenset(names)
        self._exact = frozenset("_".join(name) for name in names)
        self._allowed = frozenset("_".join(name) for name in allowed)
        self._known: dict[str, Verdict] = {}

    def verdict(self, name: str) -> Verdict:
        """Return what this name says about its value. Never raises. One lookup when the name has been seen."""
        found = self._known.get(name)
        if found is None:
            # The end of a name says what it is the name of.
            found = self._judge(name[-_LONGEST_NAME:])
            if len(name) <= self._LONGEST_REMEMBERED:
                if len(self._known) >= self._REMEMBERED:
                    self._known.clear()
                self._known[name] = found
        return found

    def _judge(self, name: str) -> Verdict:
        words = words_of(name)
        joined = "_".join(words)
        if joined in self._allowed or any(fnmatchcase(joined, glob) for glob in self._allowed_globs):
            return Verdict.SAFE
        if joined in self._exact or any(fnmatchcase(joined, glob) for glob in self._globs):
            return Verdict.SECRET
        best = self._judge_words(words)
        if best is Verdict.SECRET:
            return best
        # `APIkey` and `PASSword` change case in the middle of a word.
        whole = [_plain(part) for part in _SEPARATORS.split(name) if part]
        return best if whole == words else max(best, self._judge_words(whole), key=_severity)

    def _judge_words(self, words: list[str]) -> Verdict:
        best, at = Verdict.SAFE, 0
        while at < len(words):
            end = self._sensitive_until(words, at)
            if end and not _only_described(words, at, end):
                plural_or_id = words[end - 1] in _PLURALS or words[-1] in ("id", "ids")
                is_session = words[end - 1] in ("id", "ids")
                verdict = Verdict.TALLY if plural_or_id and not is_session else Verdict.SECRET
                best = max(best, verdict, key=_severity)
            at = end or at + 1
        if best is Verdict.SAFE and words:
            best = _TAIL_PAIRS.get((words[-2], words[-1]), best) if len(words) > 1 else best
            best = _TAILS.get(words[-1], best)
            if best is not Verdict.SAFE and len(words) > 1 and words[-2] in _BEFORE:
                best = Verdict.SAFE
        return best

    def _sensitive_until(self, words: list[str], at: int) -> int:
        """Return where the sensitive expression that begins at `at` ends, or 0."""
        for end in range(min(len(words), at + _LONGEST_COMPOUND), at, -1):
            expression = tuple(words[at:end])
            if expression in _COMPOUNDS or expression in self._extra:
                return end
        word = words[at]
        return at + 1 if word in _SECRETS or (word not in _TAILS and _is_joined(word)) else 0

    def __repr__(self) -> str:
        return f"KeyRules(keys={sorted(self._exact)}, allow_keys={sorted(self._allowed)})"


_ORDER = (Verdict.SAFE, Verdict.RANDOM, Verdict.FOLDER, Verdict.WEAK, Verdict.TALLY, Verdict.SECRET)
_severity = _ORDER.index


def _only_described(words: list[str], start: int, end: int) -> bool:
    if any(word in _AFTER for word in words[end:]):
        return True
    before = words[start - 1] if start else ""
    return before in _BEFORE or (before in _BEFORE_TOKENS and words[start] == "tokens")


def _is_joined(word: str) -> bool:
    return any(word.endswith(tail) and word[: -len(tail)] in _HEADS for tail in _TAIL_WORDS)


def _sorted_out(argument: str, names: Iterable[str]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return the names as tuples of words, and the patterns."""
    if isinstance(names, str | bytes):
        raise ConfigurationError(f"{argument} must be several names, got one text {names!r}: write [{names!r}]")
    plain: list[tuple[str, ...]] = []
    globs: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"{argument} must hold names of fields, got {name!r}")
        if "*" in name or "?" in name:
            globs.append(name.casefold().replace("-", "_"))
            continue
        words = tuple(words_of(name))
        if not words:
            raise ConfigurationError(f"{argument} must hold names with letters, got {name!r}")
        plain.append(words)
    return plain, tuple(globs)
