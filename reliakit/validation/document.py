"""The schema as its author wrote it: which drafts it names, and which nodes an error passed through.

The engine reports where an error comes from as a path of keywords. Two things need the nodes themselves: the author's
own `errorMessage`, and the property names that a typing mistake may have meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import unquote, urldefrag, urljoin

from reliakit.core.errors import ConfigurationError

__all__ = ["Document", "Json", "Step", "check_drafts", "node_at"]

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | float | None
Step: TypeAlias = tuple[Mapping[str, Json], list[str]]

_DRAFTS = frozenset(
    {
        "https://json-schema.org/draft/2020-12/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-04/schema",
    }
)
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_CHOICES = frozenset({"anyOf", "oneOf"})
# Keywords whose schemas apply to any number of members.
_OF_MANY = frozenset(
    """
    $dynamicRef $recursiveRef additionalItems additionalProperties contains items patternProperties propertyNames
    unevaluatedItems unevaluatedProperties
    """.split()  # noqa: SIM905 - ten lines otherwise
)
# Keywords that hold schemas by name.
_NAMES = frozenset({"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"})
# Keywords that hold values of the author, not schemas.
_VALUES = frozenset({"const", "default", "enum", "examples"})


class Document:
    """A schema and the resources that it may refer to.

    Args:
        root: The schema.
        resources: Other documents by their URI.
    """

    def __init__(self, root: Json, resources: Mapping[str, Json]) -> None:
        self._root = root
        self._by_uri = dict(resources)
        for base, document in ((_id_of(root), root), *resources.items()):
            self._index(base, document)
        # A schema has few paths, however many values it refuses; following one costs as much as everything else.
        self._known = lru_cache(maxsize=512)(self._walk)

    def steps(self, path: tuple[str | int, ...]) -> list[Step]:
        """Return the nodes on an evaluation path, outermost first, each with what is left of the path there.

        Follows references. Ends early if the path cannot be followed, which happens below a property named "".
        """
        return self._known(path)

    def options(self) -> Iterator[Json]:
        """Yield the values that each `enum` and `const` allows."""
        for document in (self._root, *self._by_uri.values()):
            for node in _nodes(document):
                yield from (node[keyword] for keyword in ("const", "enum") if keyword in node)

    def has_wide_choice(self) -> bool:
        """Return whether a branch of an `anyOf` or `oneOf` may apply to any number of members."""
        seen: set[tuple[int, bool]] = set()
        todo = [(self._root, self._root, _id_of(self._root), False)]
        while todo:
            node, resource, base, in_choice = todo.pop()
            if isinstance(node, list):
                todo.extend((child, resource, base, in_choice) for child in node)
            if not isinstance(node, dict) or (id(node), in_choice) in seen:
                continue
            seen.add((id(node), in_choice))
            if in_choice and any(isinstance(node.get(keyword), dict | list | str) for keyword in _OF_MANY):
                return True
            if node is not resource and _id_of(node):
                resource, base = node, urljoin(base, _id_of(node))
            for key, child in node.items():
                if key in _REFERENCES and isinstance(child, str):
                    todo.append((*self._follow(child, resource, base), in_choice))
                elif key in _NAMES and isinstance(child, dict):
                    todo.extend((schema, resource, base, in_choice) for schema in child.values())
                elif key not in _VALUES:
                    todo.append((child, resource, base, in_choice or key in _CHOICES))
        return False

    def _index(self, base: str, document: Json) -> None:
        # Stores the nodes with an `$id` of their own, which references refer to.
        todo = [(base, document)]
        while todo:
            here, node = todo.pop()
            if isinstance(node, dict):
                own = _id_of(node)
                if own:
                    here = urldefrag(urljoin(here, own)).url
                    self._by_uri.setdefault(here, node)
                todo.extend((here, child) for key, child in node.items() if key not in _VALUES)
            elif isinstance(node, list):
                todo.extend((here, child) for child in node)

    def _walk(self, path: tuple[str | int, ...]) -> list[Step]:
        node: Json = self._root
        resource: Json = self._root
        base = _id_of(resource)
        found: list[Step] = []
        in_names = False  # the keys of this mapping are names, not keywords
        for place, segment in enumerate(path):
            if isinstance(node, list) and isinstance(segment, int):
                node = node[segment] if segment < len(node) else None
                continue
            if not isinstance(node, dict):
                break
            mapping: dict[str, Json] = node
            node = mapping.get(str(segment))
            if in_names:
                in_names = False
                continue
            if mapping is not resource and _id_of(mapping):
                resource, base = mapping, urljoin(base, _id_of(mapping))
            found.append((mapping, _without_references(path[place:])))
            in_names = segment in _NAMES
            if segment in _REFERENCES and isinstance(node, str):
                node, resource, base = self._follow(node, resource, base)
        return found

    def _follow(self, reference: str, resource: Json, base: str) -> tuple[Json, Json, str]:
        uri, fragment = urldefrag(reference)
        if uri:
            base = urljoin(base, uri)
            resource = self._by_uri.get(base)
        return node_at(resource, unquote(fragment)), resource, base


def _without_references(rest: tuple[str | int, ...]) -> list[str]:
    start = next((place for place, segment in enumerate(rest) if segment not in _REFERENCES), 0)
    return [str(segment) for segment in rest[start:]]


def _id_of(node: Json) -> str:
    found = node.get("$id") if isinstance(node, dict) else None
    return found if isinstance(found, str) else ""


def node_at(document: Any, pointer: str) -> Json:
    """Return the node that a JSON Pointer refers to, or None."""
    node: Json = document
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(key)
        elif isinstance(node, list | tuple) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node if not pointer or pointer.startswith("/") else None


def check_drafts(root: Json, resources: Mapping[str, Json]) -> None:
    """Refuse a `$schema` that names no published draft and no document of `resources`.

    Raises:
        ConfigurationError: A dialect is unknown, so the meaning of its keywords is, too.
    """
    known = {*_DRAFTS, *(urldefrag(uri).url for uri in resources)}
    for document in (root, *resources.values()):
        for node in _resources_in(document):
            named = node.get("$schema")
            if named is not None and not (isinstance(named, str) and urldefrag(named).url in known):
                raise ConfigurationError(
                    f"$schema {named!r} is unknown: leave it out for draft 2020-12, or name one of "
                    f"{', '.join(sorted(_DRAFTS))}"
                )


def _resources_in(document: Json) -> Iterator[Mapping[str, Json]]:
    for node in _nodes(document):
        if node is document or _id_of(node):
            yield node


def _nodes(document: Json) -> Iterator[dict[str, Json]]:
    todo = [document]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo.extend(child for key, child in node.items() if key not in _VALUES)
        elif isinstance(node, list):
            todo.extend(node)
