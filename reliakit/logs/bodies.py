"""Sensitive fields inside text: `key=value`, JSON (also escaped in JSON), YAML, forms, XML, headers, flags, prose.

The names are found by one linear pattern, judged by the same rules as the fields of a record, and only then is the
extent of the value looked for. What is not terminated reaches to the end of the text: cut text is still masked.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from reliakit.logs.spelling import MARKS, word_set
from reliakit.logs.words import KeyRules, Verdict

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide

__all__ = ["is_spared", "mask_fields"]

_NAMED = re.compile(
    rf"(?<![\w.\-])([\w.\-{MARKS}]++)"
    r"(?:\\*+[\"'`]|%2[27])?\]?[ \t]{0,8}+"
    r"(=>|:=|={1,3}|[:：＝]|%3[AaDd]|(?<=[ \t])(?=[\"']))"
    r"[ \t]{0,8}+"
)
_SPOKEN = re.compile(
    rf"(?<![\w.\-])(-{{0,2}}[^\W\d_][\w.\-{MARKS}]*+)[ \t]++(?:(is|was|to|by|BY|of)[ \t]++)?(?=[^\s=:\-])"
)
_STEMS = re.compile(r"[Pp]ass|PASS|[Ss]ecret|SECRET|[Tt]oken|TOKEN|[Kk]ey|KEY|[Pp]in|PIN|[Oo]tp|OTP|[Cc]red|IDENT|--")
_TAG = re.compile(rf"<((?:[\w\-]++:)?[\w.\-{MARKS}]++)(?:[ \t\r\n][^<>]*+)?(?<!/)>")
_MULTIPART = re.compile(
    r"form-data;[ \t]*+name=\"([^\"\r\n]{1,200})\"[^\r\n]{0,200}+(?:\r?\n[^\r\n]++){0,8}\r?\n\r?\n([^\r\n]*+)"
)
_PAIR = re.compile(
    r"(\\{0,8}[\"'])(?:name|Name|key|Key|header)\1[ ]{0,4}:[ ]{0,4}\1([\w.\-]{1,200})\1"
    r"[ ]{0,4},[ ]{0,4}\1(?:value|Value)\1[ ]{0,4}:[ ]{0,4}"
)
# What Python shows of a pair, `('x-api-key', '...')`, and of a command's arguments, `['--password', '...']`.
_COUPLE = re.compile(r"([(\[]|,[ ]{0,4})[bu]?(\\{0,8}[\"'])([\w.\-]{1,64})\2(?=[ ]{0,4},[ ]{0,4}[bu]?(\\{0,8}[\"']))")
_COUPLE_END = re.compile(r"\\{0,8}[\"'][ ]{0,4}[)\]]")
_IDENTIFIER = re.compile(r"[A-Za-z_]{1,64}")


def mask_fields(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide the values of sensitive fields in a text of any of the usual notations."""
    if "<" in text and "</" in text:
        text = _hide_tags(text, hide, rules)
    if "form-data" in text:
        text = _MULTIPART.sub(lambda found: _part(found, hide, rules), text)
    if "alue" in text and _PAIR.search(text):
        text = _hide_from(text, _PAIR, 2, hide, rules)
    if "(" in text or "[" in text:
        text = _hide_couples(text, hide, rules)
    if "=" in text or ":" in text or "'" in text or '"' in text or "%3" in text or "：" in text:
        text = _hide_from(text, _NAMED, 1, hide, rules)
    return _hide_spoken(text, hide, rules) if " " in text and _STEMS.search(text) else text


def _hide_from(text: str, pattern: re.Pattern[str], group: int, hide: Hide, rules: KeyRules) -> str:
    parts: list[str] = []
    at = 0
    found = pattern.search(text)
    while found is not None:
        name, end = _found_name(text, found, group), found.end()
        verdict = rules.verdict(name)
        if verdict is Verdict.SAFE and _in_query(text, found.start(group), name):
            verdict = Verdict.RANDOM
        if verdict is not Verdict.SAFE:
            begin, stop = _extent(text, found, name)
            value = text[begin:stop]
            is_value = not _is_prose(text, found, value, stop) and not _is_name(text, value, stop, rules)
            if is_value and _is_hidden(verdict, value):
                parts += (text[at:begin], hide(value, name))
                at = end = stop
        found = pattern.search(text, max(end, found.end()))
    return "".join((*parts, text[at:])) if parts else text


def _hide_couples(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide the second of a pair whose first is a sensitive name; a mere list of names is left."""
    parts: list[str] = []
    at = 0
    for found in _COUPLE.finditer(text):
        verdict = rules.verdict(found[3])
        if found.start() < at or verdict is Verdict.SAFE:
            continue
        begin = found.end(4)
        stop = _quoted_end(text, begin, found[4])
        value = text[begin:stop]
        if found[3].startswith("-"):
            is_value = not value.startswith("-")
        else:
            is_pair = found[1] in ("(", "[") and (stop >= len(text) or _COUPLE_END.match(text, stop) is not None)
            is_value = is_pair and _IDENTIFIER.fullmatch(value) is None
        if is_value and _is_hidden(verdict, value):
            parts += (text[at:begin], hide(value, found[3]))
            at = stop
    return "".join((*parts, text[at:])) if parts else text


def _found_name(text: str, found: re.Match[str], group: int) -> str:
    """Return the name without what is left of an escape before it; the user of a URL is no name."""
    start = found.start(group)
    name = found[group]
    if text[start - 1 : start] == "%":
        return name[2:]
    return "" if text[max(0, start - 3) : start] == "://" else name


_NAME = re.compile(r"[\w.\-]{1,64}")
_SEPARATOR_FOLLOWS = re.compile(r"\\{0,8}[\"'`]?[ \t]{0,4}[:=]")


def _is_name(text: str, value: str, stop: int, rules: KeyRules) -> bool:
    """Return whether the "value" is a sensitive name with a value of its own: `bad token "password": "..."`."""
    name = value.rstrip(":=")
    if name == value and not _SEPARATOR_FOLLOWS.match(text, stop):
        return False
    return _NAME.fullmatch(name) is not None and rules.verdict(name) is not Verdict.SAFE


# No value that is spared is longer: looking into it once more costs little.
_LONGEST_SPARED = 256


def _is_hidden(verdict: Verdict, value: str) -> bool:
    return len(value) > _LONGEST_SPARED or not _is_spared_in_text(verdict, value)


_QUERY_SECRETS = frozenset({"key", "code", "auth", "hash", "k", "t", "apikey", "samlresponse"})


def _in_query(text: str, start: int, name: str) -> bool:
    return name.lower() in _QUERY_SECRETS and text[start - 1 : start] in ("?", "&") if start else False


_NOTHING = word_set(
    "none null nil undefined true false yes no n/a na unset empty set missing hidden redacted masked filtered removed"
)
# Annotations in source lines of tracebacks: `def login(name: str, password: str)`.
_TYPES = frozenset(
    {"str", "int", "bytes", "bool", "float", "Any", "object", "string", "String", "SecretStr", "Optional[str]"}
)
_MASKED = re.compile(
    r"\*{3}[\w.+/=\-]{0,4}|\*++|hmac:[0-9a-f]{8}|[\[<(]?(?:redacted|REDACTED|masked|MASKED|[Ff]iltered|FILTERED|hidden|removed)[\]>)]?"
    r"|%s|%\(\w{1,40}\)s|\$\d{1,2}|\?|\{\}|\$\{[A-Z_]{1,40}\}?|\[masking failed\]"
)
_MARKER = "***"
_PLAIN_WORD = re.compile(r"[A-Za-z][a-z]{0,11}")
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?")


def _is_spared_in_text(verdict: Verdict, value: str) -> bool:
    """Return the same for a value in text, where a name is also followed by other things than values."""
    return (
        value.lower() in _NOTHING
        or value in _TYPES
        or _MASKED.fullmatch(value) is not None
        or is_spared(verdict, value)
    )


def is_spared(verdict: Verdict, value: str) -> bool:
    """Return whether a value that is a field of its own needs no hiding although the field's name is sensitive."""
    if not value or value == _MARKER:
        return True
    if verdict is Verdict.SECRET:
        return False
    if verdict is Verdict.TALLY:
        return _NUMBER.fullmatch(value) is not None
    if verdict is Verdict.WEAK:
        return _PLAIN_WORD.fullmatch(value) is not None or (len(value) <= 4 and value.isdigit())
    if verdict is Verdict.FOLDER:
        return value.startswith(("/", "~", "./")) or value[1:3] in (":\\", ":/")
    return len(value) < 16 or not any(map(str.isdigit, value)) or any(map(str.isspace, value))


_OPENING = re.compile(r"(?:[bruBRUf]{1,2}(?=[\"']))?((?:\\*+[\"'`])|%22)")
_BARE = re.compile(
    r"(?:[^\s,;&\"'<>(){}\[\]|\\%]++"
    r"|[\"')}\]>|(\[{](?=\w)|<(?=\w)|\\(?![\"'])|%(?!26|22|2[Cc]|0[AaDd])"
    r"|[,;&](?=[^\s,;&=:\"'<>(){}\[\]]++(?:[\s,;&\"']|$)))*"
)
_INSIDE = {
    '"': re.compile(r"(?:[^\"\\]++|\\.)*", re.DOTALL),
    "'": re.compile(r"(?:[^'\\]++|\\.)*", re.DOTALL),
    "`": re.compile(r"[^`]*+"),
}
_BRACKETS = re.compile(r"[\"'()\[\]{}]")
_OPEN, _CLOSE = "([{", ")]}"
_TO_LINE_END = re.compile(r"[^\r\n\"']*+")
_TO_SEMICOLON = re.compile(r"[^;\r\n\"']*+")
_AUTHORIZATION = re.compile(r"(?:[A-Za-z][\w\-]{0,30}[ \t]++)?[^\s,;\"'<>\\]*+")
_MANY_PARTS = re.compile(r"(?:Digest|AWS4-HMAC-SHA256|OAuth|Signature|Hawk|digest|oauth)\b[^\r\n]*+")
_LINE = re.compile(r"(?:[^ \t\r\n]++|[ \t]++(?![\w.\-]{1,64}[=:]|#))*")
_BLOCK_MARK = re.compile(r"[|>][+\-]?[ \t]*+\r?\n|\r?\n")


@lru_cache(maxsize=16)
def _escaped_closing(opening: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\\)" + re.escape(opening))


def _extent(text: str, found: re.Match[str], name: str) -> tuple[int, int]:  # noqa: PLR0911 - one return a notation
    """Return where the value behind a name begins and ends, quotes left outside."""
    start = found.end()
    opening = _OPENING.match(text, start)
    if opening is not None:
        return opening.end(), _quoted_end(text, opening.end(), opening[1])
    if text[start : start + 1] in ("{", "[", "("):
        return start, _balanced_end(text, start)
    lowered = name.lower()
    if "cookie" in lowered:
        return start, _end(_TO_SEMICOLON if "set" in lowered else _TO_LINE_END, text, start)
    if "authori" in lowered:
        many = _MANY_PARTS.match(text, start)
        return start, many.end() if many else _end(_AUTHORIZATION, text, start)
    if _begins_line(text, found) and ":" in found[0]:
        block = _BLOCK_MARK.match(text, start)
        if block is not None:
            return block.end(), _block_end(text, found, block.end())
        end = _end(_LINE, text, start)
        return start, start + len(text[start:end].rstrip(" \t,;"))
    end = _end(_BARE, text, start)
    while not found[0].rstrip().lower().endswith(("%3d", "%3a")) and text.startswith("%", end):
        end = _end(_BARE, text, end + 1)  # the separator is not encoded, so what is encoded belongs to the value
    if text[end : end + 1] == "(":
        end = _balanced_end(text, end)
    return start, end


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    matched = pattern.match(text, start)
    return matched.end() if matched else start


def _quoted_end(text: str, start: int, opening: str) -> int:
    if opening in _INSIDE:
        return _end(_INSIDE[opening], text, start)
    if opening == "%22":
        end = text.find("%22", start)
        return end if end >= 0 else len(text)
    closing = _escaped_closing(opening).search(text, start)
    return closing.start() if closing else len(text)


def _balanced_end(text: str, start: int) -> int:
    depth, at = 0, start
    while (bracket := _BRACKETS.search(text, at)) is not None:
        at = bracket.end()
        if bracket[0] in _OPEN:
            depth += 1
        elif bracket[0] in _CLOSE:
            depth -= 1
            if depth <= 0:
                return at
        elif text[at - 2 : at - 1] != "\\":
            at = _end(_INSIDE[bracket[0]], text, at) + 1
    return len(text)


def _begins_line(text: str, found: re.Match[str]) -> bool:
    """Return whether only blanks and a list dash stand before the name."""
    begin = found.start()
    line = max(text.rfind("\n", max(0, begin - 64), begin) + 1, begin - 64, 0)
    return text[line:begin].strip(" \t-") == "" and (line == 0 or text[line - 1] == "\n")


def _block_end(text: str, found: re.Match[str], start: int) -> int:
    """Return where the lines end that are indented more than the name's own."""
    line = text.rfind("\n", 0, found.start()) + 1
    indent = found.start() - line
    at = start
    while at < len(text):
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop + 1
        content = text[at:stop]
        if (
            content.strip()
            and len(content) - len(content.lstrip(" \t")) <= indent
            and not content.lstrip().startswith("- ")
        ):
            break
        at = stop
    return start + len(text[start:at].rstrip())


_PROSE = word_set(
    """
    must is was are not no should unexpected expired invalid missing required the a an has have had cannot can't can
    could too length mismatch does doesn't did didn't for in of on or and failed wrong incorrect empty unknown at from
    malformed with without may might be been field value please enter expected already only your you this that it its
    """
)
_NEXT_WORD = re.compile(r"[ \t]++[a-z]")


def _is_prose(text: str, found: re.Match[str], value: str, end: int) -> bool:
    """Return whether the "value" begins a sentence: `invalid password: must contain a digit`."""
    first = value.split(None, 1)[0] if value.strip() else ""
    is_quoted = not text.startswith(value, found.end())
    if first not in _PROSE or is_quoted:
        return False
    return first != value or _NEXT_WORD.match(text, end) is not None


def _hide_tags(text: str, hide: Hide, rules: KeyRules) -> str:
    parts: list[str] = []
    at = 0
    tag = _TAG.search(text)
    while tag is not None:
        resume = tag.end()
        verdict = rules.verdict(tag[1].rpartition(":")[2])
        if verdict is not Verdict.SAFE:
            closing = text.find(f"</{tag[1]}", tag.end())
            stop = closing if closing >= 0 else len(text)
            value = text[tag.end() : stop]
            if _is_hidden(verdict, value.strip()):
                parts += (text[at : tag.end()], hide(value, tag[1]))
                at = resume = stop
        tag = _TAG.search(text, resume)
    return "".join((*parts, text[at:])) if parts else text


def _part(found: re.Match[str], hide: Hide, rules: KeyRules) -> str:
    """Hide one part of a multipart form."""
    verdict = rules.verdict(found[1])
    if verdict is Verdict.SAFE or _is_spared_in_text(verdict, found[2]):
        return found[0]
    return found[0][: found.start(2) - found.start()] + hide(found[2], found[1])


_TECHNICAL = word_set(
    "sha1 sha256 sha512 md5 base64 oauth2 utf8 argon2 argon2id pbkdf2 hs256 rs256 es256 http2 x509 aes256"
)
_ENDS = ".,;:!?)]}'\""
_SPOKEN_TOKEN = re.compile(r"\S++")


def _hide_spoken(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide values that follow a name without a separator: `--password x`, `token is x`, `the password x1y2`."""
    parts: list[str] = []
    at = 0
    for found in _SPOKEN.finditer(text):
        name = found[1]
        if found.end() < at or (
            rules.verdict(name) is not Verdict.SECRET and not (name == "IDENTIFIED" and found[2] == "BY")
        ):
            continue
        quoted = _OPENING.match(text, found.end())
        if quoted is not None:
            begin, end = quoted.end(), _quoted_end(text, quoted.end(), quoted[1])
        else:
            begin, end = found.end(), _end(_BARE, text, found.end())
            if not name.startswith("-") and not _looks_secret(text[begin:end]):
                continue
            end -= len(text[begin:end]) - len(text[begin:end].rstrip(_ENDS))
        if begin < end and not _is_spared_in_text(Verdict.SECRET, text[begin:end]):
            parts += (text[at:begin], hide(text[begin:end], name))
            at = end
    return "".join((*parts, text[at:])) if parts else text


def _looks_secret(token: str) -> bool:
    token = token.rstrip(_ENDS)
    if len(token) < 6 or token.lower() in _TECHNICAL or "/" in token[:1] or "=" in token[:-2]:
        return False
    letters = any(map(str.isalpha, token))
    return letters and (any(map(str.isdigit, token)) or any(char in "!@#$%^&*" for char in token))
