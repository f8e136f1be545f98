"""Which field names mean a secret: by whole words, never by substring.

```
X-Api-Key            -> x · api · key                 "api key" is sensitive
userPassword         -> user · password               "password" is sensitive
awssecretaccesskey   -> aws · secret · access · key   one word, made of words that are known
password_reset_count -> password · reset · count      ... but here it only describes a count
author, tokenize     -> no sensitive word at all
```

A name is split at separators and at changes of case, accents and digits are dropped, and the words are looked up.
A sensitive word followed by a companion (count, at, type, expires, ...) or preceded by one (max, prompt, is, ...)
only describes something about a secret.
"""

from __future__ import annotations

import re
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError
from reliakit.logs.paths import Paths
from reliakit.logs.spelling import plain, words_of
from reliakit.logs.vocabulary import (
    AFTER,
    BEFORE,
    BEFORE_TOKENS,
    COMPOUNDS,
    DRAWN_TAILS,
    FOLDER_TAILS,
    LONGEST_COMPOUND,
    PARTS,
    PLURALS,
    SECRETS,
    WEAK_PAIRS,
    WEAK_TAILS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KeyRules", "Verdict", "named_in", "names_in"]


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


_TAILS: dict[str, Verdict] = {
    **dict.fromkeys(WEAK_TAILS, Verdict.WEAK),
    **dict.fromkeys(DRAWN_TAILS, Verdict.RANDOM),
    **dict.fromkeys(FOLDER_TAILS, Verdict.FOLDER),
    "pass": Verdict.TALLY,
}
_ALL_PARTS = SECRETS | PARTS | AFTER | BEFORE | WEAK_TAILS
_SHORTEST_JOINED, _LONGEST_JOINED = 6, 40
# Shorter words are found by chance in longer ones.
_SHORTEST_PART = 3
_SHORT_PARTS = frozenset({"id", "db", "pg", "my", "x", "pw"})
_LONGEST_PART = 16

_LONGEST_NAME = 256
_SEPARATORS = re.compile(r"[\W_\d]++")


class KeyRules:
    """Decide by a field's name whether its value is a secret. Answers are cached, so asking again is one lookup.

    Args:
        keys: Further sensitive names, matched by their words: "salary" finds `baseSalary`. With `*` or `?` they
            are patterns: without a dot for the whole name, in lower case with `_` between the words, "emp_*_no";
            with dots for the names from the outermost field inwards, "payment.*.number".
        allow_keys: Names, written in any style, and patterns that are never sensitive; they win over everything.
        more: Names that another setting makes sensitive, which has checked them.
    """

    __slots__ = ("_allowed", "_allowed_globs", "_exact", "_extra", "_globs", "_known", "_longest", "paths")

    _REMEMBERED = 4096
    _LONGEST_REMEMBERED = 64

    def __init__(self, keys: Iterable[str] = (), allow_keys: Iterable[str] = (), more: Iterable[str] = ()) -> None:
        names, self._globs, paths = _sorted_out("keys", keys)
        names += [tuple(words_of(name)) for name in more]
        allowed, self._allowed_globs, allowed_paths = _sorted_out("allow_keys", allow_keys)
        self._extra = frozenset(names)
        self._longest = max(LONGEST_COMPOUND, *map(len, names)) if names else LONGEST_COMPOUND
        self._exact = frozenset("_".join(name) for name in names)
        self._allowed = frozenset("_".join(name) for name in allowed)
        self._known: dict[str, Verdict] = {}
        self.paths: Paths | None = Paths(paths, allowed_paths) if paths or allowed_paths else None

    def verdict(self, name: str) -> Verdict:
        """Return what this name says about its value. Never raises. One lookup when the name has been seen."""
        found = self._known.get(name)
        if found is None:
            # The end of a name says what kind of thing it names.
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
        whole = [plain(part) for part in _SEPARATORS.split(name) if part]
        return best if whole == words else max(best, self._judge_words(whole), key=_severity)

    def _judge_words(self, words: list[str]) -> Verdict:
        words = [part for word in words for part in self._taken_apart(word)]
        best, at = Verdict.SAFE, 0
        while at < len(words):
            end = self._sensitive_until(words, at)
            if end and not _only_described(words, at, end):
                plural_or_id = words[end - 1] in PLURALS or words[-1] in ("id", "ids")
                is_session = words[end - 1] in ("id", "ids")
                verdict = Verdict.TALLY if plural_or_id and not is_session else Verdict.SECRET
                best = max(best, verdict, key=_severity)
            at = end or at + 1
        if best is Verdict.SAFE and words:
            best = Verdict.WEAK if tuple(words[-2:]) in WEAK_PAIRS else _TAILS.get(words[-1], best)
            if best is not Verdict.SAFE and len(words) > 1 and words[-2] in BEFORE:
                best = Verdict.SAFE
        return best

    def _sensitive_until(self, words: list[str], at: int) -> int:
        """Return where the sensitive expression that begins at `at` ends, or 0."""
        for end in range(min(len(words), at + self._longest), at, -1):
            expression = tuple(words[at:end])
            if expression in COMPOUNDS or expression in self._extra:
                return end
        return at + 1 if words[at] in SECRETS else 0

    def _taken_apart(self, word: str) -> list[str]:
        """Return the words that a name written in one word is made of, if all are known; else the word."""
        if word in SECRETS or word in _TAILS or (word,) in self._extra or not word.isascii():
            return [word]
        return _parts_of(word) if _SHORTEST_JOINED <= len(word) <= _LONGEST_JOINED else [word]

    def __repr__(self) -> str:
        return f"KeyRules(keys={sorted(self._exact)}, allow_keys={sorted(self._allowed)})"


_ORDER = (Verdict.SAFE, Verdict.RANDOM, Verdict.FOLDER, Verdict.WEAK, Verdict.TALLY, Verdict.SECRET)
_severity = _ORDER.index


def _only_described(words: list[str], start: int, end: int) -> bool:
    if any(word in AFTER for word in words[end:]):
        return True
    before = words[start - 1] if start else ""
    return before in BEFORE or (before in BEFORE_TOKENS and words[start] == "tokens")


def _parts_of(word: str) -> list[str]:
    """Return the fewest known words that a word consists of; the word itself if it is made of something else."""
    best: list[list[str] | None] = [[]]
    for end in range(1, len(word) + 1):
        found: list[str] | None = None
        for begin in range(max(0, end - _LONGEST_PART), end):
            before, part = best[begin], word[begin:end]
            is_part = part in _ALL_PARTS and (len(part) >= _SHORTEST_PART or part in _SHORT_PARTS)
            if before is not None and is_part and (found is None or len(before) + 1 < len(found)):
                found = [*before, part]
        best.append(found)
    return best[-1] or [word]


def named_in(words: list[str], expression: tuple[str, ...]) -> bool:
    """Return whether an expression stands among the words of a name."""
    size = len(expression)
    return any(tuple(words[at : at + size]) == expression for at in range(len(words) - size + 1))


def names_in(argument: str, names: Iterable[str]) -> list[str]:
    """Return names of fields as a list.

    Raises:
        ConfigurationError: They are a single text, or not texts with letters.
    """
    if isinstance(names, str | bytes):
        raise ConfigurationError(f"{argument} must be several names, got one text {names!r}: write [{names!r}]")
    try:
        found = list(names)
    except TypeError:
        raise ConfigurationError(f"{argument} must be several names, got {names!r}") from None
    for name in found:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"{argument} must hold names of fields, got {name!r}")
        if not any(map(str.isalpha, name)) and "*" not in name:
            raise ConfigurationError(f"{argument} must hold names with letters, got {name!r}")
    return found


def _sorted_out(
    argument: str, names: Iterable[str]
) -> tuple[list[tuple[str, ...]], tuple[str, ...], tuple[str, ...]]:
    """Return the names as tuples of words, the patterns for whole names, and the patterns for paths."""
    plain_names: list[tuple[str, ...]] = []
    globs: list[str] = []
    paths: list[str] = []
    for name in names_in(argument, names):
        if "*" not in name and "?" not in name:
            plain_names.append(tuple(words_of(name)))
        elif "." in name or "[" in name:
            paths.append(name)
        else:
            globs.append(name.casefold().replace("-", "_"))
    return plain_names, tuple(globs), tuple(paths)
