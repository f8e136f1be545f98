"""What masking must hide, and what it must leave alone.

Each positive case is a value, the secrets in it, and what must survive around them. Each negative case is a value
that must come back as it is. Secrets are put together at run time, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from urllib.parse import quote
from uuid import UUID

from masker_texts import (
    CODES,
    COMMANDS,
    HARMLESS,
    MARKUP,
    SECRET,
    SENTENCES,
    STATEMENTS,
    TOKEN,
    WITH_TOKENS,
)

from reliakit.logs.vendors import VendorToken, table

PASSWORD = "hunter2" + "-Zx9"
OPAQUE = hashlib.sha256(b"one").hexdigest()[:32]
ALPHABETS = {
    "hex": "0123456789abcdef",
    "uuid": "0123456789abcdef",
    "b36": "k3j9x2m7q4z8w5v1",
    "b62": "aB3dE6gH9jK2mN5p",
    "cap": "A2C4E6G7J5L3N2Q4",
    "url": "aB3dE6gH9jK2mN5p",
    "dot": "aB3dE6gH9jK2mN5p",
    "b64": "aB3dE6gH9jK2mN5p",
    "any": "aB3dE6gH9jK2mN5p",
}
JWT = ".".join(
    base64.urlsafe_b64encode(part).rstrip(b"=").decode()
    for part in (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890"}', b"\x01\x02signature-bytes-of-32-characters")
)
PEM_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" * 2
PEM = f"-----BEGIN {'PRIVATE'} KEY-----\n{PEM_BODY}\n{PEM_BODY}\n-----END {'PRIVATE'} KEY-----"
CARD = "4111" + "1111" * 3
AMEX = "3782" + "82246310005"
IBAN = "DE89" + "370400440532013000"
BASIC = base64.b64encode(f"bob:{PASSWORD}".encode()).decode()


@dataclass
class Case:
    """One value, the secrets in it, and what must survive."""

    value: object
    secrets: list[str]
    keep: list[str] = field(default_factory=list)


def sample(token: VendorToken) -> str:
    """Return a token of the form that a line of the table describes."""
    alphabet = ALPHABETS[token.alphabet]
    return token.prefix + (alphabet * (token.least // len(alphabet) + 1))[: token.least]


@dataclass
class Account:
    name: str
    password: str
    attempts: int = 0


@dataclass
class Hidden:
    name: str
    seed_bytes: str = field(repr=False, default="")


Login = namedtuple("Login", "user token")  # noqa: PYI024


class Slotted:
    __slots__ = ("password",)

    def __init__(self, password: str) -> None:
        self.password = password

    def __repr__(self) -> str:
        return f"Slotted(password={self.password!r})"


def _by_key(*names: str) -> list[Case]:
    return [Case({"event": "login", "data": {name: PASSWORD, "n": 3}}, [PASSWORD], ["login", "3"]) for name in names]


def _in_text(*texts: str, secret: str = PASSWORD) -> list[Case]:
    cases = []
    for text in texts:
        shown, _, keep = text.partition(" ##")
        cases.append(Case(shown.replace("{}", secret), [secret], keep.split("|") if keep else []))
    return cases


KEYS = _by_key(
    *("password", "Password", "PASSWORD", "passwd", "passphrase", "userPassword", "user_password", "user-password"),
    *("DB_PASSWORD", "db.password", "dbpassword", "newPasswordConfirm", "password2", "old password", "HTTPPassword"),
    *("secret", "client_secret", "clientSecret", "SECRET_KEY", "secretKey", "apiSecret", "webhook_secret"),
    *("token", "access_token", "accessToken", "refresh-token", "idToken", "X-CSRF-Token", "csrfmiddlewaretoken"),
    *(
        "api_key",
        "apiKey",
        "apikey",
        "APIKey",
        "X-Api-Key",
        "APIkey",
        "x_api_key",
        "access_key",
        "aws_secret_access_key",
    ),
    *("private_key", "privateKey", "signing_key", "encryption-key", "AccountKey", "ssh_key", "master_key"),
    *("authorization", "Authorization", "Proxy-Authorization", "cookie", "Set-Cookie", "session_id", "sessionId"),
    *(
        "PHPSESSID",
        "credentials",
        "user.credentials.passwd",
        "otp",
        "totp",
        "cvv",
        "card_number",
        "cardNumber",
        "ssn",
    ),
    *(
        "pin",
        "verification_code",
        "recovery_codes",
        "seed_phrase",
        "jwt",
        "bearer",
        "password_hash",
        "reset_password_token",
        "securityAnswer",
    ),
    *("contraseña", "Contrasena", "clave_secreta", "Passwort", "Kennwort", "motdepasse", "mot_de_passe", "senha"),
    *("wachtwoord", "hasło", "lösenord", "salasana", "heslo", "jelszó", "adgangskode", "passord", "şifre", "parola"),
    *("пароль", "密码", "密碼", "パスワード", "비밀번호", "סיסמה", "kata_sandi", "mật_khẩu"),
)

TEXTS = [
    *_in_text(
        "login user=bob password={} ip=10.0.0.1 ##user=bob|ip=10.0.0.1",
        "login password: {}, retries: 3 ##retries: 3",
        "password={}&user=bob ##user=bob",
        "?a=1&client_secret={}&b=2 ##a=1|b=2",
        'body={"user": "bob", "password": "{}", "keep": true} ##"user": "bob"|"keep": true',
        "{'user': 'bob', 'password': '{}', 'age': 41} ##'age': 41",
        "Account(name='bob', password='{}', active=True) ##active=True|name='bob'",
        "Account(name='bob', password=b'{}', active=True) ##active=True",
        '{"a": {"password" : "{}"}} ##"a"',
        "tool --user bob --password {} --verbose ##--user bob|--verbose",
        "tool --password={} db ##tool| db",
        "tool --api-key {} db ##tool| db",
        "ALTER ROLE x WITH PASSWORD '{}' VALID UNTIL 'infinity' ##ALTER ROLE x|VALID UNTIL",
        "CREATE USER 'x' IDENTIFIED BY '{}' ##CREATE USER",
        "<login><password>{}</password><user>bob</user></login> ##<user>bob</user>",
        '<login><ns:password type="text">{}</ns:password></login> ##</ns:password>',
        "<password><![CDATA[{}]]></password> ##</password>",
        '<add user="bob" password="{}" /> ##user="bob"',
        "user: bob\npassword: {}\nport: 1 ##user: bob|port: 1",
        "password: |\n  {}\nport: 1 ##port: 1",
        "secrets:\n  - {}\nport: 1 ##port: 1",
        "DB_PASSWORD={} DB_HOST=h ##DB_HOST=h",
        "export DB_PASSWORD='{} with blanks' X=1 ##X=1",
        "host=db port=5432 user=svc password={} sslmode=require ##host=db|sslmode=require",
        "postgresql://svc:{}@db:5432/app?sslmode=require ##svc|db:5432/app?sslmode=require",
        "postgresql://svc:{}/x@db:5432/app ##db:5432/app",
        "redis://:{}@cache:6379/0 gone ##cache:6379/0 gone",
        "https://deploy:{}@git.example.com/r.git ##git.example.com/r.git",
        "jdbc:mysql://h/db?user=u&password={}&x=1 ##user=u|x=1",
        "Server=db;User Id=u;Password={};Database=d ##Database=d",
        "amqp://guest:{}@mq.internal ##mq.internal",
        "POST /x%3Fpassword%3D{}%26a%3D1 ##POST",
        "body=%7B%22password%22%3A%22{}%22%2C%22n%22%3A1%7D ##%22n%22%3A1",
        "the password is {}, sorry ##sorry",
        "rejected password {} twice ##rejected|twice",
        "password => {} ##=>",
        "config password := {} ##config",
        '--form\r\nContent-Disposition: form-data; name="password"\r\n\r\n{}\r\n--form ##form-data',
        '[{"name": "DB_PASSWORD", "value": "{}"}] ##DB_PASSWORD',
        'rejected token "password": "{}" ##rejected token',
        "rejected secret: password: {} ##rejected secret",
        'rejected token: "password": "{}", "n": 1 ##"n": 1',
        "GET /login?password={}%26%22%2C%0A{}&page=2 200 ##page=2 200",
        "KeyError: 'password={}&{}' ##KeyError: '",
        "KeyError: ('password', '{}') ##KeyError: ('password', '",
        "headers [(b'host', b'h'), (b'x-api-key', b'{}'), (b'accept', b'a/b')] ##b'host', b'h'|b'a/b'",
        'sent ["authorization", "Token {}"] away ##"authorization"|away',
        "running ['tool', '--password', '{}', '--user', 'bob'] ##'--user', 'bob'",
    ),
    Case(json.dumps({"body": json.dumps({"user": "bob", "password": PASSWORD})}), [PASSWORD], ["user"]),
    Case(json.dumps({"a": json.dumps({"b": json.dumps({"password": PASSWORD})})}), [PASSWORD], ["a"]),
    Case('{"password": "quo\\"te ' + PASSWORD + '"}', [PASSWORD], []),
    Case('{"password": ["' + PASSWORD + '", {"x": "' + PASSWORD + '"}], "n": 1}', [PASSWORD], ['"n": 1']),
    Case('{"password": "cut off ' + PASSWORD, [PASSWORD], []),
    Case(f"Authorization: Bearer {OPAQUE}; Accept: */*", [OPAQUE], ["Accept: */*"]),
    Case(f"Authorization: Basic {BASIC}\nHost: h", [BASIC], ["Host: h"]),
    Case(f'Authorization: Digest username="bob", response="{OPAQUE}"\nHost: h', [OPAQUE], ["Host: h"]),
    Case(f"sent bearer {OPAQUE} along", [OPAQUE], ["along"]),
    Case(f"sent Basic {BASIC} along", [BASIC], ["along"]),
    Case(f"X-API-Key: {OPAQUE}\nAccept: text/html", [OPAQUE], ["Accept: text/html"]),
    Case(f"Cookie: theme=dark; sid={OPAQUE}", [OPAQUE], ["Cookie"]),
    Case(f"Set-Cookie: session={OPAQUE}; Path=/; HttpOnly", [OPAQUE], ["HttpOnly"]),
    Case(f"GET /cb?state=abc&access_token={OPAQUE}&page=2 302", [OPAQUE], ["page=2", "302"]),
    Case(f"GET /cb?key={OPAQUE}&page=2", [OPAQUE], ["page=2"]),
    Case(f"https://s3/k?X-Amz-Expires=900&X-Amz-Signature={OPAQUE}&x=1", [OPAQUE], ["X-Amz-Expires=900", "x=1"]),
    Case(f"https://acct/c?sv=2022&sig={quote(OPAQUE)}%3D", [OPAQUE], ["sv=2022"]),
    Case(f"https://x-access-token:{OPAQUE}@github.com/a/b", [OPAQUE], ["github.com/a/b"]),
    Case(f"https://{OPAQUE}@github.com/a/b", [OPAQUE], ["github.com/a/b"]),
    Case(f"token {JWT} seen", [JWT], ["seen"]),
    Case(f"seen {JWT}", [JWT], ["seen"]),
    Case(f"key {PEM} loaded", [PEM_BODY], ["loaded"]),
    Case(json.dumps({"file": PEM, "n": 1}), [PEM_BODY], ["file", '"n": 1']),
    Case("cut " + PEM[:90], [PEM[40:80]], ["cut"]),
    Case("hash $2b$12$" + "aB3dE6gH9jK2mN5p" * 3 + "abcde ok", ["aB3dE6gH9jK2mN5p"], ["hash", "ok"]),
    Case("hash $argon2id$v=19$m=65536,t=3,p=4$" + "aB3dE6gH9jK2" + "$" + "mN5p" * 8, ["mN5pmN5p"], ["hash"]),
    Case("hash pbkdf2_sha256$600000$" + "aB3dE6gH9jK2" + "$" + "mN5p" * 8, ["mN5pmN5p"], ["hash"]),
    Case(f"paid with {CARD} today", [CARD], ["paid with", "today"]),
    Case("paid with 4111 1111 1111 1111 today", ["1111 1111"], ["today"]),
    Case("paid with 4111-1111-1111-1111, 12 EUR", ["1111-1111"], ["12 EUR"]),
    Case(f"paid with {AMEX}.", [AMEX], ["paid"]),
    Case("order 12 4111 1111 1111 1111 7", ["4111 1111"], ["order 12"]),
    Case({"amount": 10, "reference": int(CARD)}, [CARD], ["10"]),
    Case(f"iban {IBAN} used", [IBAN], ["used"]),
    Case("iban DE89 3704 0044 0532 0130 00 EUR", ["0044 0532"], ["EUR"]),
    Case("ssn 123-45-6789 given", ["123-45-6789"], ["given"]),
    Case("mail bob.smith+x@mail.example.org now", ["bob.smith"], ["now"]),
    Case("mail=bob%40example.com&x=1", ["bob%40example"], ["x=1"]),
    Case("mail <bob@example.com>", ["bob@example"], ["mail"]),
    Case("call +49 30 901820 or (212) 555-0123 now", ["901820", "555-0123"], ["call", "now"]),
    Case("call 212-555-0123", ["555-0123"], ["call"]),
    Case({"phone": "030 901820"}, ["901820"], ["phone"]),
    Case("Key (email)=(someone odd) already exists.", ["someone odd"], ["Key (email)", "already exists"]),
    Case("Failing row contains (7, odd value, x).", ["odd value"], ["Failing row"]),
    Case("[SQL: SELECT 1]\n[parameters: ('odd value',)]\nend", ["odd value"], ["SELECT 1", "end"]),
]

WEB_KEY = {"kty": "EC", "crv": "P-256", "x": "public" * 7, "d": OPAQUE + "abcdefghijk", "kid": "a1"}
FORM = (
    '--f\r\nContent-Disposition: form-data; name="password"; filename="x"\r\nA: b\r\n\r\n{}\r\n--f\r\n\r\nkept\r\n--f'
)
TEXTS += [
    Case(WEB_KEY, [OPAQUE], ["public", "a1"]),
    Case(json.dumps(WEB_KEY), [OPAQUE], ["public", "a1"]),
    Case(json.dumps({"body": json.dumps(WEB_KEY)}), [OPAQUE], ["public", "a1"]),
    Case({"kty": "oct", "k": OPAQUE}, [OPAQUE], ["oct"]),
    Case(json.dumps(FORM.replace("{}", PASSWORD)), [PASSWORD], ["form-data", "kept"]),
    Case(repr(FORM.replace("{}", PASSWORD).encode()), [PASSWORD], ["form-data", "kept"]),
    Case(json.dumps({"body": json.dumps(FORM.replace("{}", PASSWORD))}), [PASSWORD], ["form-data", "kept"]),
    Case("rejected PESEL 44051401359, sorry", ["44051401359"], ["PESEL", "sorry"]),
    Case("social security number is 123 45 6789 today", ["45 6789"], ["today"]),
    Case("Fødselsnummer 01017012345, İstanbul T.C. KİMLİK No 10000000146", ["0101701", "1000000"], ["stanbul"]),
    Case("NHS number: 943 476 5919", ["943 476"], ["NHS number"]),
    Case("T.C. Kimlik No 10000000146 ok", ["10000000146"], ["ok"]),
    Case(f"asana 1/{'1200' * 4}:{OPAQUE} ok", [OPAQUE], ["asana", "ok"]),
    *_in_text(*COMMANDS, *STATEMENTS, *MARKUP, *SENTENCES, secret=SECRET),
    *_in_text(*WITH_TOKENS, secret=TOKEN),
    *(Case(text.partition(" ##")[0], ["482913", "482 913"], [text.partition(" ##")[2]]) for text in CODES),
]

SHAPES = [
    Case(Account("bob", PASSWORD), [PASSWORD], ["bob"]),
    Case({"account": Account("bob", PASSWORD)}, [PASSWORD], ["bob"]),
    Case(Hidden("bob", PASSWORD), [PASSWORD], ["bob"]),
    Case(Login("bob", PASSWORD), [PASSWORD], ["bob"]),
    Case(Slotted(PASSWORD), [PASSWORD], []),
    Case([("authorization", "Token " + PASSWORD), ("accept", "text/html")], [PASSWORD], ["text/html"]),
    Case(
        {"headers": [(b"authorization", b"Token " + PASSWORD.encode()), (b"accept", b"text/html")]},
        [PASSWORD],
        ["text"],
    ),
    Case({"body": b'{"password": "' + PASSWORD.encode() + b'"}'}, [PASSWORD], ["body"]),
    Case({"body": bytearray(b"password=" + PASSWORD.encode())}, [PASSWORD], ["body"]),
    Case(
        {"env": [{"name": "DB_PASSWORD", "value": PASSWORD}, {"name": "HOME", "value": "/root"}]},
        [PASSWORD],
        ["/root"],
    ),
    Case({"argv": ["tool", "--password", PASSWORD, "--user", "bob"]}, [PASSWORD], ["bob"]),
    Case({"secret": {"a": PASSWORD, "b": [PASSWORD]}}, [PASSWORD], ["secret"]),
    Case({"tokens": [PASSWORD, PASSWORD]}, [PASSWORD], ["tokens"]),
    Case({f"password={PASSWORD}": 1}, [PASSWORD], []),
    Case({("password", PASSWORD): 1}, [PASSWORD], []),
    Case({b"password": PASSWORD.encode()}, [PASSWORD], []),
    Case({f"password={PASSWORD}", "x"}, [PASSWORD], ["x"]),
    Case(frozenset({f"password={PASSWORD}"}), [PASSWORD], []),
    Case((f"password={PASSWORD}", 1), [PASSWORD], []),
    Case(ValueError(f"password={PASSWORD}"), [PASSWORD], []),
    Case({"pin": 48151}, ["48151"], ["pin"]),
    Case({"otp": 481516}, ["481516"], ["otp"]),
]

VENDORS = [Case(f"seen {sample(token)} here", [sample(token)], ["seen ", " here"]) for token in table()]

HARMLESS_FIELDS: dict[str, object] = {
    "password_reset_count": 3,
    "password_changed_at": "2024-01-01",
    "password_length": 12,
    "password_policy": "strict",
    "password_set": True,
    "password": None,
    "author": "jane",
    "authority": "eu-1",
    "tokenize": "bpe",
    "tokenizer": "bpe",
    "tokens_used": 512,
    "tokens": 512,
    "max_tokens": 4096,
    "prompt_tokens": 17,
    "completion_tokens": 20,
    "total_tokens": 37,
    "token_type": "Bearer",
    "token_count": 3,
    "token_expires_at": 1700000000,
    "secret_name": "db/main",
    "secret_version": 3,
    "api_key_id": 17,
    "session_timeout": 30,
    "session_count": 4,
    "cookie_consent": True,
    "cookies_enabled": True,
    "auth_method": "oidc",
    "auth": "enabled",
    "key": "user:1",
    "cache_key": "user:1",
    "primary_key": "id",
    "public_key": "ssh",
    "keyboard": "qwerty",
    "monkey": "george",
    "passenger_count": 3,
    "compass": "N",
    "bypass": True,
    "passed": 12,
    "pass": 12,
    "secretary": "jane",
    "spinner": "on",
    "shipping": "dhl",
    "opinion": "good",
    "signature": "def f(x)",
    "email_sent": True,
    "email": "sent",
    "pwd": "/home/bob",
    "credential_type": "oauth",
    "status_code": 200,
    "country_code": "DE",
    "order_id": "1234567890123456",
    "request_id": "550e8400-e29b-41d4-a716-446655440000",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
}

HARMLESS_TEXTS = [
    "order 550e8400-e29b-41d4-a716-446655440000 created",
    "deployed commit 2fd4e1c67a2d28fced849ee1bb76e7391b93eb12 to prod",
    "layer sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 pulled",
    'ETag: "d41d8cd98f00b204e9800998ecf8427e"',
    "finished at 2024-10-12T12:10:31.123456Z ok",
    "ts=1700000000123 lag=3",
    "time_unix_nano=1700000000123456789",
    "order 1234567890123456 shipped",
    "running v1.20.3",
    "node ip-10-1-2-3.eu-west-1.compute.internal ready",
    "peer 10.0.0.1:443 closed",
    "peer [2001:db8::1]:443",
    "pod orders-api-7d9f8b6c5d-x2x4z evicted",
    '  File "/usr/lib/python3.11/site-packages/auth/token_utils.py", line 9, in refresh_token',
    "tokenize took 3ms; tokenizer=bpe",
    "llm call tokens_used=512 max_tokens=4096",
    "author=jane authority=eu authored_by=system",
    "role=secretary assigned",
    "cookie_consent=true cookies enabled",
    "cache miss key=user:7 ttl=60",
    "primary_key=id foreign_key=user_id sort_key=created_at",
    "tests passed=7 failed=0 bypass=true compass=N",
    "token_type=Bearer expires_in=3600 token_expires_at=1700000000",
    "user created password=None password_set=False",
    "password=*** token=[REDACTED]",
    "the bearer of bad news retried",
    "Basic authentication is enabled for realm",
    "Bearer authentication required",
    "SyntaxError: invalid token at line 7",
    "missing password for user bob",
    "invalid password: must contain a digit",
    "the token is expired",
    "passwords must match",
    "SELECT id FROM sessions WHERE token IS NULL AND password_changed_at < now()",
    "UPDATE users SET password = %s WHERE id = %s",
    "resolved @types/node@18.2.1 and logo@2x.png",
    "@property def user(self): return a @ b",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "event 01HZXJ5T8W9Q3R2M4N6P7S8V0B queued",
    "book 9783161484100 indexed",
    "at 52.520008,13.404954",
    "total 1,234,567.89 EUR",
    "loss=0.123456789012345",
    "GET https://api.example.com/v1/users/42?page=2&sort=asc 200 12ms",
    "POST /api/v1/tokens/refresh 201",
    "amqp://mq.internal:5672/%2F connected @ 12:30:01",
    "clone git@github.com:org/repo.git",
    "order 123-1234567-1234567 delivered",
    "ref TX1234567890 settled",
    "shape 1234 5678 rows",
    "KeyError: 'password'",
    "fields ['password', 'email'] are required",
    'if name in ("password", "secret_key"):',
    "argv ['tool', '--password-file', '/run/secret', '--token', '--verbose']",
    "missing 1 required positional argument: 'token'",
    "def login(name: str, password: str) -> None:",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "env PWD=/home/bob OLDPWD=/root",
    "Decimal('1.50') and {'a': [1, 2, 3]}",
    "user said: it's fine, isn't it?",
]

HARMLESS_TEXTS += HARMLESS

HARMLESS_VALUES: list[object] = [
    *(None, True, False, 0, 1, -1, 2**70, 1.5, "", "x", b"", b"raw", [], {}, (), set()),
    *(Decimal("1.5"), UUID(int=5), {"a": [1, {"b": (2, 3)}]}, {1: 2, None: 3, False: 4}, {"x": {1, 2}}),
]
