"""Sensitive fields inside text: `key=value`, JSON (also escaped in JSON), YAML, forms, XML, headers, flags, prose.

One linear pattern finds the names, the rules for the fields of a record judge them, and only then is the extent of
the value looked for. A value that is not terminated reaches to the end of the text, so cut text is still masked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reliakit.logs.extents import BARE, OPENING, balanced_end, end_of, quoted_end
from reliakit.logs.markup import mask_markup
from reliakit.logs.prose import is_prose, longer_name, mask_prose
from reliakit.logs.spared import is_hidden, is_spared_in_text
from reliakit.logs.spelling import MARKS
from reliakit.logs.vocabulary import KEY_MEMBERS, LAST_WORDS
from reliakit.logs.words import KeyRules, Verdict

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide

__all__ = ["mask_fields"]

_NAMED = re.compile(
    rf"(?<![\w.\-{MARKS}])([\w.\-{MARKS}]++)"
    r"(?:\\*+[\"'`]|%2[27]|&(?:quot|#34|#39|apos);)?(?:\[\])?\]?[ \t]{0,8}+"
    r"(=>|:=|={1,3}|[:：＝]|->(?=[ \t])|%3[AaDd]|(?<=[ \t])(?=[\"']))"
    r"[ \t]{0,8}+"
)
_MULTIPART = re.compile(
    r"form-data;[ \t]*+name=\"([^\"\r\n]{1,200})\"[^\r\n]{0,200}+(?:\r?\n[^\r\n]{1,300}+){0,8}\r?\n\r?\n([^\r\n]*+)"
)
# The same inside a quoted text: line breaks and quotes are escaped.
_BREAK = r"(?:\\{1,4}r)?\\{1,4}n"
_ESCAPED_MULTIPART = re.compile(
    rf"form-data;[ \t]*+name=\\{{0,4}}\"([^\"\\\r\n]{{1,200}})"
    rf"(?:[^\\\r\n]|\\{{1,4}}\"){{0,200}}(?:{_BREAK}[^\\\r\n]{{1,300}}){{0,8}}{_BREAK}{_BREAK}"
    rf"((?:(?!{_BREAK})[^\r\n])*)"
)
# A JSON Web Key.
_WEB_KEY = re.compile(r"\\{0,8}[\"']kty\\{0,8}[\"'][ ]{0,4}:")
_KEY_MEMBER = re.compile(
    rf"(\\{{0,8}}[\"'])(?:{'|'.join(KEY_MEMBERS)})\1[ ]{{0,4}}:[ ]{{0,4}}\\{{0,8}}[\"']([A-Za-z0-9_\-=]{{16,}})"
)
_TITLE = re.compile(r"(\\{0,8}[\"'])(?:name|Name|key|Key|header|field|path)\1[ ]{0,4}:[ ]{0,4}\1([\w.\-/]{1,200})\1")
# The same in YAML, as the environment of containers is written.
_ITEM = re.compile(r"(?<!\w)(?:name|key):[ ]{1,4}[\"']?([\w.\-]{1,200})[\"']?[ ]{0,4}\r?\n[ ]{1,40}value:[ ]{1,4}")
_MEMBER = re.compile(r"\\{0,8}[\"'](?:value|Value|val)\\{0,8}[\"'][ ]{0,4}:[ ]{0,4}")
# The same for what a validation refused: `{"loc": ["body", "password"], "msg": "...", "input": "..."}`.
_PLACE = re.compile(
    r"(\\{0,8}[\"'])loc\1[ ]{0,4}:[ ]{0,4}[\[(](?:[^\[\](){}\r\n]{0,200}[, ])?\1([\w.\-]{1,200})\1,?[\])]"
)
_INPUT = re.compile(r"\\{0,8}[\"']input\\{0,8}[\"'][ ]{0,4}:[ ]{0,4}")
# And in the text of pydantic's exception: the field on a line of its own, its fault and its value on the next.
_REJECTED = re.compile(r"^([\w.\-]{1,200})\r?\n[ ]{2}[^\r\n]*+$", re.MULTILINE)
# Members of one object are not further apart.
_FAR = 1000
# What Python shows of a pair, `('x-api-key', '...')`, and of a command's arguments, `['--password', '...']`.
_COUPLE = re.compile(r"([(\[]|,[ ]{0,4})[bu]?(\\{0,8}[\"'])([\w.\-]{1,64})\2(?=[ ]{0,4},[ ]{0,4}[bu]?(\\{0,8}[\"']))")
_COUPLE_END = re.compile(r"\\{0,8}[\"'][ ]{0,4}[)\]]")
_IDENTIFIER = re.compile(r"[A-Za-z_]{1,64}")


def mask_fields(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide the values of sensitive fields in a text of any of the usual notations."""
    if "<" in text or "&lt;" in text:
        text = mask_markup(text, hide, rules)
    if "form-data" in text:
        for form in (_MULTIPART, _ESCAPED_MULTIPART):
            text = form.sub(lambda found: _part(found, hide, rules), text)
    if "kty" in text and _WEB_KEY.search(text):
        text = _KEY_MEMBER.sub(lambda found: found[0][: -len(found[2])] + hide(found[2], "jwk"), text)
    if "alue" in text or "val" in text:
        text = _hide_pairs(text, hide, rules, _TITLE, _MEMBER)
        text = _hide_items(text, hide, rules)
    if "input" in text:
        text = _hide_pairs(text, hide, rules, _PLACE, _INPUT)
        text = _REJECTED.sub(lambda found: _rejected(found, hide, rules), text)
    if "(" in text or "[" in text:
        text = _hide_couples(text, hide, rules)
    if "=" in text or ":" in text or "'" in text or '"' in text or "%3" in text or "：" in text:
        text = _hide_named(text, hide, rules)
    return mask_prose(text, hide, rules)


def _hide_named(text: str, hide: Hide, rules: KeyRules) -> str:
    parts: list[str] = []
    at = 0
    found = _NAMED.search(text)
    while found is not None:
        name, end = _found_name(text, found), found.end()
        verdict = rules.verdict(name)
        if verdict is Verdict.SAFE and text[found.start(1) - 1 : found.start(1)] == "\\":
            name = _escaped_name(text, found.start(1), found[1])
            verdict = rules.verdict(name)
        if verdict is Verdict.SAFE and _in_query(text, found.start(1), name):
            verdict = Verdict.RANDOM
        if verdict is Verdict.SAFE and name.lower() in LAST_WORDS:
            # Names in prose have blanks in them: `API key: ...`.
            name = longer_name(text, found.start(1), name)
            verdict = rules.verdict(name)
        if verdict is not Verdict.SAFE:
            begin, stop = _extent(text, found, name)
            value = text[begin:stop]
            is_value = not is_prose(text, found, value, stop) and not _is_name(text, value, stop, rules)
            if found[2][:2] == "==" and _IDENTIFIER.fullmatch(value):
                is_value = False  # a comparison in a line of code
            if is_value and is_hidden(verdict, value):
                parts += (text[at:begin], hide(value, name))
                at = end = stop
        found = _NAMED.search(text, max(end, found.end()))
    return "".join((*parts, text[at:])) if parts else text


def _hide_pairs(text: str, hide: Hide, rules: KeyRules, title: re.Pattern[str], wanted: re.Pattern[str]) -> str:
    """Hide the value of `{"name": "api_token", "type": "s", "value": "..."}`, in whatever order the members stand."""
    parts: list[str] = []
    at = 0
    for found in title.finditer(text):
        verdict = rules.verdict(found[2].rpartition("/")[2])
        if verdict is Verdict.SAFE:
            continue
        opening = max(text.rfind("{", max(0, found.start() - _FAR), found.start()), at)
        closing = text.find("}", found.end(), found.end() + _FAR)
        stop = closing if closing >= 0 else min(len(text), found.end() + _FAR)
        member = wanted.search(text, found.end(), stop) or wanted.search(text, opening, found.start())
        if member is None or member.end() < at:
            continue
        value = OPENING.match(text, member.end())
        begin = value.end() if value else member.end()
        end = quoted_end(text, begin, value[1]) if value else end_of(BARE, text, begin)
        if is_hidden(verdict, text[begin:end]):
            parts += (text[at:begin], hide(text[begin:end], found[2]))
            at = end
    return "".join((*parts, text[at:])) if parts else text


def _hide_items(text: str, hide: Hide, rules: KeyRules) -> str:
    parts: list[str] = []
    at = 0
    for found in _ITEM.finditer(text):
        verdict = rules.verdict(found[1])
        if verdict is Verdict.SAFE:
            continue
        opening = OPENING.match(text, found.end())
        begin = opening.end() if opening else found.end()
        end = quoted_end(text, begin, opening[1]) if opening else end_of(_TO_LINE_END, text, begin)
        if is_hidden(verdict, text[begin:end]):
            parts += (text[at:begin], hide(text[begin:end], found[1]))
            at = end
    return "".join((*parts, text[at:])) if parts else text


def _rejected(found: re.Match[str], hide: Hide, rules: KeyRules) -> str:
    head, sign, rest = found[0].partition(", input_value=")
    value, end, kind = rest.rpartition(", input_type=")
    if not sign or not value or rules.verdict(found[1]) is Verdict.SAFE:
        return found[0]
    return f"{head}{sign}{hide(value, found[1])}{end}{kind}"


def _hide_couples(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide the second of a pair whose first is a sensitive name; a mere list of names is left."""
    parts: list[str] = []
    at = 0
    for found in _COUPLE.finditer(text):
        verdict = rules.verdict(found[3])
        if found.start() < at or verdict is Verdict.SAFE:
            continue
        begin = found.end(4)
        stop = quoted_end(text, begin, found[4])
        value = text[begin:stop]
        if found[3].startswith("-"):
            is_value = not value.startswith("-")
        else:
            is_pair = found[1] in ("(", "[") and (stop >= len(text) or _COUPLE_END.match(text, stop) is not None)
            is_value = is_pair and _IDENTIFIER.fullmatch(value) is None
        if is_value and is_hidden(verdict, value):
            parts += (text[at:begin], hide(value, found[3]))
            at = stop
    return "".join((*parts, text[at:])) if parts else text


def _found_name(text: str, found: re.Match[str]) -> str:
    """Return the name without what is left of an escape or an option before it; a URL's user is not a name."""
    start = found.start(1)
    name = found[1]
    if text[start - 1 : start] == "%":
        return name[2:]
    if name.startswith("-D"):
        return name[2:]
    return "" if text[max(0, start - 3) : start] == "://" else name


# Names of other languages in JSON and in Python's bytes: `contrase\u00f1a`, `contrase\xc3\xb1a`.
_ESCAPED_RUN = re.compile(r"[\w.\-\\]++")
_ESCAPED_UNITS = re.compile(r"\\{1,8}u([0-9a-fA-F]{4})")
_ESCAPED_BYTES = re.compile(r"(?:\\{1,8}x[0-9a-f]{2}){1,64}")


def _escaped_name(text: str, start: int, name: str) -> str:
    """Return a name behind a backslash with its escapes read, or without the letter of a line break before it."""
    if name[0] not in "ux":
        return name[1:] if name[0] in "nrt" else name
    whole = _ESCAPED_RUN.findall(text, max(0, start - 200), start + len(name))[-1]
    read = _ESCAPED_UNITS.sub(lambda unit: chr(int(unit[1], 16)), whole)
    return _ESCAPED_BYTES.sub(lambda run: _decoded(run[0]), read).rsplit("\\", 1)[-1]


def _decoded(escaped: str) -> str:
    return bytes.fromhex(escaped.replace("\\", "").replace("x", "")).decode("utf-8", "replace")


_NAME = re.compile(r"[\w.\-]{1,64}")
_SEPARATOR_FOLLOWS = re.compile(r"\\{0,8}[\"'`]?[ \t]{0,4}[:=]")


def _is_name(text: str, value: str, stop: int, rules: KeyRules) -> bool:
    """Return whether the "value" is a sensitive name with a value of its own: `bad token "password": "..."`."""
    name = value.rstrip(":=")
    if name == value and not _SEPARATOR_FOLLOWS.match(text, stop):
        return False
    return _NAME.fullmatch(name) is not None and rules.verdict(name) is not Verdict.SAFE


_QUERY_SECRETS = frozenset({"key", "code", "auth", "hash", "k", "t", "apikey", "samlresponse"})


def _in_query(text: str, start: int, name: str) -> bool:
    return name.lower() in _QUERY_SECRETS and text[start - 1 : start] in ("?", "&") if start else False


# The names of values that consist of words.
_SENTENCES = ("phrase", "mnemonic")
_TO_LINE_END = re.compile(r"[^\r\n\"']*+")
_TO_SEMICOLON = re.compile(r"[^;\r\n\"']*+")
_AUTHORIZATION = re.compile(r"(?:[A-Za-z][\w\-]{0,30}[ \t]++)?[^\s,;\"'<>\\]*+")
_MANY_PARTS = re.compile(r"(?:Digest|AWS4-HMAC-SHA256|OAuth|Signature|Hawk|digest|oauth)\b[^\r\n]*+")
_LINE = re.compile(r"(?:[^ \t\r\n]++|[ \t]++(?![\w.\-]{1,64}[=:]|#))*")
_BLOCK_MARK = re.compile(r"(?:![\w!:/.\-]{0,60}[ \t]{1,8})?[|>][+\-0-9]{0,2}[ \t]*+\r?\n|\r?\n")


def _extent(text: str, found: re.Match[str], name: str) -> tuple[int, int]:  # noqa: PLR0911 - one return a notation
    """Return where the value behind a name begins and ends, quotes left outside."""
    start = found.end()
    opening = OPENING.match(text, start)
    if opening is not None:
        return opening.end(), quoted_end(text, opening.end(), opening[1])
    if text[start : start + 1] in ("{", "[", "("):
        return start, balanced_end(text, start)
    lowered = name.lower()
    if lowered.endswith(_SENTENCES):
        return start, end_of(_TO_LINE_END, text, start)
    if "cookie" in lowered:
        return start, end_of(_TO_SEMICOLON if "set" in lowered else _TO_LINE_END, text, start)
    if "authori" in lowered:
        many = _MANY_PARTS.match(text, start)
        return start, many.end() if many else end_of(_AUTHORIZATION, text, start)
    if _begins_line(text, found) and ":" in found[0]:
        block = _BLOCK_MARK.match(text, start)
        if block is not None:
            return block.end(), _block_end(text, found, block.end())
        end = end_of(_LINE, text, start)
        return start, start + len(text[start:end].rstrip(" \t,;"))
    end = end_of(BARE, text, start)
    while not found[0].rstrip().lower().endswith(("%3d", "%3a")) and text.startswith("%", end):
        end = end_of(BARE, text, end + 1)  # the separator is not encoded, so what is encoded belongs to the value
    if text[end : end + 1] == "(":
        end = balanced_end(text, end)
    return start, end


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


def _part(found: re.Match[str], hide: Hide, rules: KeyRules) -> str:
    """Hide one part of a multipart form."""
    verdict = rules.verdict(found[1])
    if verdict is Verdict.SAFE or is_spared_in_text(verdict, found[2]):
        return found[0]
    return found[0][: found.start(2) - found.start()] + hide(found[2], found[1])
