"""Secrets on command lines: the short options with which well-known tools take a password.

Long options such as `--password` are names and are known as such; `-p` means something else to every tool.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide
    from reliakit.logs.words import KeyRules

__all__ = ["mask_commands"]

_START = r"(?<![^\s\"'\[,(;|&])"
_VALUE = r"[\"']?[^\s\"',;|&)\]]++"
# Each has the secret as its last group.
_PAIR = re.compile(rf"({_START}(?:-[uUa][ ]?|--user[= ]|--proxy-user[= ])[\"']?[^\s:\"'/]{{1,120}}:)({_VALUE})")
_JOINED = re.compile(rf"({_START}-p)(?![\d.:]{{1,20}}(?:\s|$))({_VALUE})")
_APART = {
    letter: re.compile(rf"({_START}-{letter}(?:[ =]|[\"'],[ ]?[\"'])[ ]{{0,3}})({_VALUE})") for letter in "paAwPX"
}
_AFTER_PERCENT = re.compile(rf"({_START}-U[ ]?[\"']?[^\s%\"']{{1,120}}%)({_VALUE})")
_PASS = re.compile(rf"((?:-pass(?:in|out)?|-k)[ ](?:pass:)?)({_VALUE})")
_THIRD = re.compile(rf"({_START}-[a-zA-Z]{{0,8}}b[a-zA-Z]{{0,8}}[ ][^\s]{{1,200}}[ ][^\s]{{1,200}}[ ])({_VALUE})")

_TOOLS: dict[str, tuple[re.Pattern[str], ...]] = {
    **dict.fromkeys(("curl", "http", "https", "wget", "xh"), (_PAIR,)),
    **dict.fromkeys(("mysql", "mysqldump", "mysqladmin", "mysqlimport", "mariadb", "mongo", "mongosh"), (_JOINED,)),
    **dict.fromkeys(("mongo", "mongosh", "mongodump", "mongorestore"), (_APART["p"],)),
    "sshpass": (_APART["p"], _JOINED),
    "7z": (_JOINED,),
    **dict.fromkeys(("docker", "podman", "helm", "nerdctl", "oras", "skopeo"), (_APART["p"],)),
    "redis-cli": (_APART["a"],),
    **dict.fromkeys(("ldapsearch", "ldapadd", "ldapmodify", "ldappasswd", "ldapdelete"), (_APART["w"],)),
    **dict.fromkeys(("zip", "unzip", "sqlcmd", "isql", "bcp", "ipmitool"), (_APART["P"],)),
    **dict.fromkeys(("snmpget", "snmpwalk", "snmpset"), (_APART["A"], _APART["X"])),
    **dict.fromkeys(("smbclient", "rpcclient", "net", "winexe"), (_AFTER_PERCENT,)),
    "htpasswd": (_THIRD,),
    "openssl": (_PASS,),
}
_TOOL = re.compile(r"(?<![\w.\-])(?:" + "|".join(sorted(_TOOLS, key=len, reverse=True)) + r")(?![\w.\-:])")
# These take ports with the same letter, unless they log in.
_ONLY_TO_LOG_IN = frozenset({"docker", "podman", "helm", "nerdctl", "oras", "skopeo"})


def mask_commands(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide the passwords that known tools are called with."""
    if "-" not in text:
        return text
    for tool in sorted(set(_TOOL.findall(text))):
        if tool in _ONLY_TO_LOG_IN and "login" not in text:
            continue
        for pattern in _TOOLS[tool]:
            text = pattern.sub(lambda found: _hidden(found, hide), text)
    return text


def _hidden(found: re.Match[str], hide: Hide) -> str:
    before, value = found[1], found[2]
    quote = value[0] if value[0] in "\"'" else ""
    secret = value[len(quote) :]
    # A host behind `-u` or a variable is no secret.
    return (
        found[0] if not secret or secret.startswith(("/", "$", "***", "hmac:")) else f"{before}{quote}{hide(secret)}"
    )
