"""Sensitive fields in XML and HTML: tags, attributes, pairs of a name and a value, and markup that was escaped."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reliakit.logs.spared import is_hidden
from reliakit.logs.spelling import MARKS
from reliakit.logs.words import KeyRules, Verdict

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide

__all__ = ["mask_markup"]

_TAG = re.compile(rf"<((?:[\w\-]++:)?[\w.\-{MARKS}]++)(?:[ \t\r\n][^<>]*+)?(?<!/)>")
_ESCAPED_TAG = re.compile(rf"&lt;((?:[\w\-]++:)?[\w.\-{MARKS}]++)(?:[ ][^&\n]{{0,200}})?&gt;")
# `<add key="ApiKey" value="..."/>`, `<entry key="password">...</entry>`, `<input name="pw" value="...">`
_WITH_ATTRIBUTES = re.compile(r"<[\w:.\-]++[ \t\r\n][^<>]*+>")
_NAME = re.compile(r"[ \t\r\n](?:name|key|id|Name|Key|Id)[ ]{0,4}=[ ]{0,4}[\"']([\w.\-: ]{1,120})[\"']")
_VALUE = re.compile(r"[ \t\r\n](?:value|Value|content)[ ]{0,4}=[ ]{0,4}[\"']([^\"']*+)")
_PASSWORD_INPUT = re.compile(r"type[ ]{0,4}=[ ]{0,4}[\"']password[\"']")
# `<key>password</key><string>...</string>`
_PROPERTY = re.compile(r"<key>([^<>]{1,120})</key>[ \t\r\n]{0,40}<\w{1,20}>")


def mask_markup(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide the contents of sensitive tags and the values of sensitive attributes that are named by another one."""
    if "</" in text:
        text = _contents(text, _TAG, "</", hide, rules)
    if "&lt;/" in text:
        text = _contents(text, _ESCAPED_TAG, "&lt;/", hide, rules)
    if "<key>" in text:
        text = _contents(text, _PROPERTY, "<", hide, rules)
    return _attributes(text, hide, rules) if '="' in text or "='" in text or "= " in text else text


def _contents(text: str, pattern: re.Pattern[str], closing: str, hide: Hide, rules: KeyRules) -> str:
    """Hide what stands between a tag that names something sensitive and its end."""
    parts: list[str] = []
    at = 0
    tag = pattern.search(text)
    while tag is not None:
        resume = tag.end()
        name = tag[1].rpartition(":")[2]
        verdict = rules.verdict(name)
        if verdict is not Verdict.SAFE:
            end = text.find(closing if closing == "<" else f"{closing}{tag[1]}", resume)
            stop = end if end >= 0 else len(text)
            value = text[resume:stop]
            if is_hidden(verdict, value.strip()):
                parts += (text[at:resume], hide(value, name))
                at = resume = stop
        tag = pattern.search(text, resume)
    return "".join((*parts, text[at:])) if parts else text


def _attributes(text: str, hide: Hide, rules: KeyRules) -> str:
    parts: list[str] = []
    at = 0
    for tag in _WITH_ATTRIBUTES.finditer(text):
        if tag.start() < at:
            continue
        named = _NAME.search(tag[0])
        name = named[1] if named else ""
        verdict = Verdict.SECRET if _PASSWORD_INPUT.search(tag[0]) else rules.verdict(name) if name else Verdict.SAFE
        if verdict is Verdict.SAFE:
            continue
        value = _VALUE.search(tag[0])
        if value is not None:
            start, stop = tag.start() + value.start(1), tag.start() + value.end(1)
        elif tag[0].endswith("/>"):
            continue
        else:
            start = tag.end()
            end = text.find("<", start)
            stop = end if end >= 0 else len(text)
        if is_hidden(verdict, text[start:stop].strip()):
            parts += (text[at:start], hide(text[start:stop], name))
            at = stop
    return "".join((*parts, text[at:])) if parts else text
