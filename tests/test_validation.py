"""JSON Schema validation: what is refused, what is said of it, and what is never said."""

from __future__ import annotations

import builtins
import datetime as dt
import http.server
import json
import math
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit import ConfigurationError, Problem, ValidationError, request_context, subscribe
from reliakit.core.events import ValidationFailed
from reliakit.testing import RecordingListener
from reliakit.validation import Schema, validated

EMPLOYEE = Schema(
    {
        "title": "employee",
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 80},
            "age": {"type": "integer", "minimum": 16},
            "projects": {"type": "array", "items": {"type": "object", "required": ["id"]}},
        },
    }
)


def places(schema: Schema, value: object) -> list[tuple[str, str]]:
    return [(problem.pointer, problem.code) for problem in schema.problems(value)]


# The three questions


def test_a_value_that_fits_is_given_back_as_it_is() -> None:
    value = {"name": "Ada", "age": 36, "projects": [{"id": 1}]}
    assert EMPLOYEE.validate(value) is value
    assert EMPLOYEE.problems(value) == []
    assert EMPLOYEE.is_valid(value)


def test_a_value_that_does_not_fit_is_refused_with_every_problem() -> None:
    value = {"age": 7, "projects": [{"id": 1}, {}]}
    with pytest.raises(ValidationError) as raised:
        EMPLOYEE.validate(value)
    assert {(one.pointer, one.code) for one in raised.value.problems} == {
        ("/name", "required"),
        ("/age", "minimum"),
        ("/projects/1/id", "required"),
    }
    assert raised.value.problems == EMPLOYEE.problems(value)
    assert not EMPLOYEE.is_valid(value)
    assert isinstance(raised.value, ValueError)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_the_error_says_the_first_problems_and_how_many_more() -> None:
    with pytest.raises(ValidationError, match=r"^/name is required$"):
        EMPLOYEE.validate({})
    with pytest.raises(ValidationError, match=r"^the value must be an object$"):
        EMPLOYEE.validate([])
    with pytest.raises(ValidationError, match=r"; and 7 more$"):
        Schema({"items": {"type": "string"}}).validate([1] * 10)


def test_a_problem_has_all_that_a_form_needs() -> None:
    assert EMPLOYEE.problems({"name": "Ada", "age": 7}, location="query") == [
        Problem("/age", "minimum", "minimum", "must be at least 16", {"limit": 16}, "query")
    ]


def test_a_refusal_is_told_to_listeners() -> None:
    heard = RecordingListener()
    with subscribe(heard):
        EMPLOYEE.validate({"name": "Ada"})
        EMPLOYEE.problems({})
        EMPLOYEE.is_valid({})
        with pytest.raises(ValidationError):
            EMPLOYEE.validate({"age": "x", "projects": [{}, {}]})
    (event,) = heard.of(ValidationFailed)
    assert event.name == "employee"
    assert sorted(event.keywords) == ["required", "type"]


@pytest.mark.parametrize("document", [True, {}])
def test_an_empty_schema_takes_everything(document: Any) -> None:
    assert Schema(document).validate(None) is None
    assert Schema(document).is_valid([{"a": 1.5}])


def test_the_schema_false_takes_nothing() -> None:
    assert places(Schema(False), 1) == [("", "falseSchema")]


def test_a_schema_shows_what_it_is() -> None:
    schema = Schema({"title": "employee"}, max_depth=5)
    schema.check("")(lambda _: None)
    assert repr(schema) == "<Schema 'employee' with 1 checks, max_depth=5, max_errors=50>"


def test_a_schema_shows_every_setting_that_differs() -> None:
    schema = Schema(
        {},
        resources={"https://example.com/a": {}},
        formats={"even": str.isdigit},
        check_formats=True,
        keywords={"isEven": lambda _, __: None},
    )
    assert repr(schema).endswith(
        ", resources=['https://example.com/a'], formats=['even'], check_formats=True, keywords=['isEven']>"
    )


def test_a_schema_tells_its_own_listeners_too() -> None:
    heard = RecordingListener()
    with pytest.raises(ValidationError):
        Schema({"title": "age", "type": "integer"}, listeners=[heard]).validate("x")
    assert [(event.name, event.keywords) for event in heard.of(ValidationFailed)] == [("age", ("type",))]
    with pytest.raises(ConfigurationError, match="listeners"):
        Schema({}, listeners=heard)


def test_changing_the_document_afterwards_changes_nothing() -> None:
    document = {"type": "string"}
    schema = Schema(document)
    document["type"] = "integer"
    assert schema.is_valid("x")


def test_one_schema_serves_many_threads() -> None:
    wrong: list[object] = []

    def work(age: int) -> None:
        for _ in range(200):
            if places(EMPLOYEE, {"name": "Ada", "age": age}) != ([("/age", "minimum")] if age < 16 else []):
                wrong.append(age)

    threads = [threading.Thread(target=work, args=(age,)) for age in (7, 36, 8, 37)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Where it is wrong


def test_missing_and_unexpected_properties_are_pointed_at_themselves() -> None:
    schema = Schema(
        {
            "properties": {
                "a": {"required": ["b"], "additionalProperties": False, "properties": {"b": {}}},
                "c": {"dependentRequired": {"d": ["e"]}},
                "f": {"unevaluatedProperties": False},
            }
        }
    )
    value = {"a": {"x": 1, "y/z": 2}, "c": {"d": 1}, "f": {"g~": 1}}
    assert sorted(places(schema, value)) == [
        ("/a/b", "required"),
        ("/a/x", "additionalProperties"),
        ("/a/y~1z", "additionalProperties"),
        ("/c/e", "dependentRequired"),
        ("/f/g~0", "unevaluatedProperties"),
    ]


def test_keys_that_look_like_other_things_are_pointed_at_rightly() -> None:
    schema = Schema({"additionalProperties": {"additionalProperties": {"type": "string"}}})
    value = {"0": {"1": 2}, "a/b": {"c~d": 3}, " ": {"ä": 4}}
    assert sorted(place for place, _ in places(schema, value)) == ["/ /ä", "/0/1", "/a~1b/c~0d"]


def test_empty_keys_are_part_of_the_path() -> None:
    schema = Schema({"additionalProperties": {"additionalProperties": {"type": "string"}}})
    value = {"": {"": 1, "b": 2}, "a": {"": 3}, "c": {"d": 4}}
    assert sorted(place for place, _ in places(schema, value)) == ["//", "//b", "/a/", "/c/d"]


def test_problems_of_the_object_under_an_empty_key_are_told_there() -> None:
    form = {"required": ["p", "q"], "anyOf": [{"minProperties": 5}, {"type": "null"}, {"type": "array"}]}
    schema = Schema({"properties": {"": form, "r": form}})
    assert sorted(places(schema, {"": {}, "r": {"p": 1, "q": 2}})) == [
        ("/", "minProperties"),
        ("//p", "required"),
        ("//q", "required"),
        ("/r", "minProperties"),
    ]


def _leaves(value: object, pointer: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, pointer + "/" + key.replace("~", "~0").replace("/", "~1"))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _leaves(child, f"{pointer}/{index}")
    elif value is None:
        yield pointer


NO_NULL = Schema(
    {
        "not": {"type": "null"},
        "additionalProperties": {"$ref": "#"},
        "items": {"$ref": "#"},
    },
    max_errors=10_000,
)
keys = st.sampled_from(["", "a", "0", "~", "/", "a/b", "~1", " ", "%"])
trees = st.recursive(
    st.sampled_from([None, 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(trees)
def test_every_wrong_place_is_pointed_at_exactly(value: object) -> None:
    told = [problem.pointer for problem in NO_NULL.problems(value)]
    assert sorted(told) == sorted(_leaves(value))


# Which rule: every keyword has words and a code


@pytest.mark.parametrize(
    ("document", "value", "keyword", "message"),
    [
        ({"type": "string"}, 1, "type", "must be a string"),
        ({"type": ["integer", "null"]}, "x", "type", "must be null or a whole number"),
        ({"enum": ["a", 1, None]}, "b", "enum", 'must be one of "a", 1, null'),
        ({"enum": list(range(30))}, "b", "enum", "must be one of the 30 allowed values"),
        ({"const": {"a": [1]}}, 1, "const", 'must be {"a": [1]}'),
        ({"minimum": 5}, 4, "minimum", "must be at least 5"),
        ({"maximum": 5.5}, 6, "maximum", "must be at most 5.5"),
        ({"exclusiveMinimum": 5}, 5, "exclusiveMinimum", "must be more than 5"),
        ({"exclusiveMaximum": 5}, 5, "exclusiveMaximum", "must be less than 5"),
        ({"multipleOf": 0.01}, 0.001, "multipleOf", "must be a multiple of 0.01"),
        ({"minLength": 2}, "x", "minLength", "must be at least 2 characters long"),
        ({"maxLength": 2}, "xyz", "maxLength", "must be at most 2 characters long"),
        ({"pattern": "^a+$"}, "b", "pattern", "must match the pattern ^a+$"),
        ({"minItems": 1}, [], "minItems", "must have at least 1 items"),
        ({"maxItems": 1}, [1, 2], "maxItems", "must have at most 1 items"),
        ({"uniqueItems": True}, [1, 1.0], "uniqueItems", "must not hold the same item twice"),
        ({"contains": {"type": "string"}}, [1], "contains", "must contain at least one item of the required form"),
        ({"contains": {}, "minContains": 2}, [1], "minContains", "contains too few items of the required form"),
        ({"contains": {}, "maxContains": 1}, [1, 2], "maxContains", "contains too many items of the limited form"),
        (
            {"prefixItems": [{}], "unevaluatedItems": False},
            [1, 2],
            "unevaluatedItems",
            "has more items than are allowed",
        ),
        ({"minProperties": 1}, {}, "minProperties", "must have at least 1 properties"),
        ({"maxProperties": 0}, {"a": 1}, "maxProperties", "must have at most 0 properties"),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, "propertyNames", "has a property whose name is not allowed"),
        ({"not": {"const": 1}}, 1, "not", "must not be of the excluded form"),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, 1, "anyOf", "fits none of the allowed forms"),
        ({"oneOf": [{"minimum": 1}, {"type": "integer"}]}, 3, "oneOf", "must fit exactly one of the allowed forms"),
        ({"required": ["a"]}, {}, "required", "is required"),
        ({"properties": {"a": False}}, {"a": 1}, "falseSchema", "is not allowed here"),
        ({"additionalProperties": False}, {"a": 1}, "additionalProperties", "is not allowed here"),
    ],
)
def test_every_keyword_has_its_words(document: dict[str, Any], value: object, keyword: str, message: str) -> None:
    (problem,) = Schema(document).problems(value)
    assert (problem.keyword, problem.code, problem.message) == (keyword, keyword, message)
    json.dumps(problem.params)  # may be sent as it is


def test_draft_7_dependencies_are_dependent_requirements() -> None:
    draft7 = {"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"a": ["b"]}}
    assert places(Schema(draft7), {"a": 1}) == [("/b", "dependentRequired")]


def test_a_mistyped_property_is_answered_with_the_one_that_was_meant() -> None:
    (problem, _) = EMPLOYEE.problems({"nmae": "Ada"})
    assert problem.message == 'is not allowed here; did you mean "name"?'
    assert problem.params == {"suggestion": "name"}


def test_the_form_that_was_meant_is_told_by_its_tag() -> None:
    circle = {"properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}}, "required": ["radius"]}
    square = {"properties": {"kind": {"enum": ["square"]}, "side": {"type": "number"}}, "required": ["side"]}
    for keyword in ("oneOf", "anyOf"):
        schema = Schema({"$defs": {"circle": circle}, "items": {keyword: [{"$ref": "#/$defs/circle"}, square]}})
        value = [{"kind": "circle"}, {"kind": "square", "side": "x"}, {"kind": "star"}]
        assert places(schema, value) == [("/0/radius", "required"), ("/1/side", "type"), ("/2", keyword)]


def test_the_form_that_was_meant_is_told_by_its_type() -> None:
    schema = Schema({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "string"}}]})
    assert places(schema, ["a", 1]) == [("/1", "type")]


def test_the_same_problem_is_told_once() -> None:
    schema = Schema({"allOf": [{"type": "string"}, {"type": "string"}], "propertyNames": {"maxLength": 1}})
    assert sorted(places(schema, {"ab": 1, "cd": 2})) == [("", "propertyNames"), ("", "type")]


# What is never said: the value


SECRET = "s3cr3t-Hunter2"

EVERYTHING = {
    "type": "object",
    "properties": {
        "type": {"type": "integer"},
        "const": {"const": "x"},
        "enum": {"enum": ["x", "y"]},
        "pattern": {"pattern": "^x$"},
        "maxLength": {"maxLength": 1},
        "minLength": {"minLength": 1000},
        "format": {"format": "date"},
        "own_format": {"format": "own"},
        "not": {"not": {"type": "string"}},
        "not_const": {"not": {"const": SECRET}},
        "false": False,
        "items": {"items": False},
        "unevaluatedItems": {"unevaluatedItems": False},
        "uniqueItems": {"uniqueItems": True},
        "contains": {"contains": {"type": "integer"}},
        "any": {"anyOf": [{"type": "integer"}, {"const": "x"}]},
        "one": {"oneOf": [{"type": "string"}, {"minLength": 1}]},
        "tagged": {"oneOf": [{"properties": {"k": {"const": 1}, "v": {"type": "integer"}}}, {"type": "null"}]},
        "own_keyword": {"own": True},
        "if": {"if": True, "then": {"type": "integer"}},
        "deep": {"$ref": "#/properties/items"},
    },
}
TALKATIVE = Schema(
    EVERYTHING,
    formats={"own": lambda _: False},
    check_formats=True,
    keywords={"own": lambda _, instance: "is not as it should be"},
    max_errors=1000,
)


def _told(schema: Schema, value: object) -> str:
    with pytest.raises(ValidationError) as raised:
        schema.validate(value)
    error = raised.value
    said = [
        str(error),
        repr(error),
        repr(error.args),
        *map(repr, error.problems),
        json.dumps(vars(error), default=repr),
    ]
    return "\n".join(said)


@pytest.mark.parametrize("name", EVERYTHING["properties"])
@pytest.mark.parametrize("shape", [SECRET, [SECRET, SECRET], {"k": 1, "v": SECRET}, {"": SECRET}])
def test_no_rule_repeats_the_value(name: str, shape: object) -> None:
    value = {name: shape}
    if not TALKATIVE.is_valid(value):
        assert SECRET not in _told(TALKATIVE, value)


def test_an_unexpected_name_is_in_no_message_and_no_parameter() -> None:
    for document in ({"additionalProperties": False}, {"unevaluatedProperties": False}, {"propertyNames": False}):
        for problem in Schema(document).problems({SECRET: 1}):
            assert SECRET not in problem.message
            assert SECRET not in repr(problem.params)


secrets = st.text("0123456789abcdef", min_size=12, max_size=20)
shapes = st.recursive(
    st.just("SECRET"),
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(keys, inner, min_size=1, max_size=3),
    max_leaves=6,
)


@given(secrets, st.dictionaries(st.sampled_from(sorted(EVERYTHING["properties"])), shapes, min_size=1))
def test_a_planted_secret_never_comes_out(secret: str, shape: dict[str, object]) -> None:
    value = json.loads(json.dumps(shape).replace("SECRET", secret))
    heard = RecordingListener()
    with subscribe(heard):
        if not TALKATIVE.is_valid(value):
            assert secret not in _told(TALKATIVE, value)
    assert all(secret not in repr(event) for event in heard)


# Nothing is fetched


class _Counting(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.hits.append(self.path)  # type: ignore[attr-defined]  # the test's own attribute
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"type": "string"}')

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Counting) as server:
        server.hits = []  # type: ignore[attr-defined]  # the test's own attribute
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "document",
    [
        {"$ref": "URL/a"},
        {"$ref": "URL/a#/$defs/x"},
        {"properties": {"a": {"$dynamicRef": "URL/b"}}},
        {"$schema": "URL/meta"},
        {"$id": "URL/c/", "$ref": "relative"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "relative"},
        {"$ref": "#/nowhere"},
    ],
)
def test_a_reference_that_leads_elsewhere_is_refused_and_not_fetched(
    document: object, elsewhere: http.server.ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{elsewhere.server_port}"
    given_document = json.loads(json.dumps(document).replace("URL", url))
    with pytest.raises(ConfigurationError):
        Schema(given_document)
    with pytest.raises(ConfigurationError):
        Schema({"$ref": "https://known.example/x"}, resources={"https://known.example/x": given_document})
    assert elsewhere.hits == []  # type: ignore[attr-defined]  # the test's own attribute


def test_references_among_the_resources_are_followed() -> None:
    resources = {
        "https://known.example/address": {"properties": {"zip": {"$ref": "zip#/$defs/code"}}},
        "https://known.example/zip": {"$defs": {"code": {"type": "string"}}},
        "urn:example:name": {"$anchor": "short", "maxLength": 2},
    }
    schema = Schema(
        {"properties": {"home": {"$ref": "https://known.example/address"}, "name": {"$ref": "urn:example:name"}}},
        resources=resources,
    )
    assert sorted(places(schema, {"home": {"zip": 1}, "name": "abc"})) == [
        ("/home/zip", "type"),
        ("/name", "maxLength"),
    ]


# What could hurt


def test_deep_values_are_refused_before_the_engine_sees_them() -> None:
    recursive = Schema({"items": {"$ref": "#"}, "additionalProperties": {"$ref": "#"}})
    for wrap in (lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)):
        value: Any = 1
        for _ in range(100_000):
            value = wrap(value)
        assert places(recursive, value) == [("", "maxDepth")]
        assert not recursive.is_valid(value)
        while isinstance(value, list | dict | tuple):  # so that not even freeing it recurses
            value = next(iter(value.values() if isinstance(value, dict) else value))


@pytest.mark.parametrize("deepest", [1, 2, 64, 1000])
def test_the_depth_is_counted_in_lists_and_objects(deepest: int) -> None:
    schema = Schema({"items": {"$ref": "#"}}, max_depth=deepest)
    value: Any = 1
    for _ in range(deepest):
        value = [value]
    assert schema.is_valid(value)
    assert schema.problems(value) == []
    (problem,) = schema.problems([value])
    assert problem.params == {"limit": deepest}
    assert problem.message == f"is nested more than {deepest} levels deep"


def test_a_schema_that_holds_itself_is_refused_instead_of_being_walked_for_ever() -> None:
    document: dict[str, Any] = {"type": "object"}
    document["properties"] = {"child": document, "other": document}
    with pytest.raises(ConfigurationError, match=r"^document .* holds itself"):
        Schema(document)
    with pytest.raises(ConfigurationError, match=r"^resources.* holds itself"):
        Schema(True, resources={"https://example.com/tree": document})


def test_a_value_that_holds_itself_is_too_deep() -> None:
    value: list[object] = []
    value += [value, value]
    assert places(Schema({}), value) == [("", "maxDepth")]


def test_hostile_patterns_take_linear_time() -> None:
    assert places(Schema({"pattern": "^(a+)+$"}), "a" * 100_000 + "!") == [("", "pattern")]
    assert places(Schema({"patternProperties": {"^(a|a)*$": False}}), {"a" * 10_000 + "!": 1}) == []


@pytest.mark.parametrize("pattern", ["^(?=a)b", "(?<!a)b", r"(a)\1"])
def test_a_pattern_that_is_not_regular_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="linear engine"):
        Schema({"properties": {"a": {"pattern": pattern}}})
    with pytest.raises(ConfigurationError, match="linear engine"):
        Schema({"patternProperties": {pattern: {}}})


def test_no_more_problems_are_told_than_wanted() -> None:
    document = {"items": {"type": "string"}, "additionalProperties": False}
    assert len(Schema(document).problems([1] * 5000)) == 50
    assert len(Schema(document, max_errors=3).problems([1] * 5000)) == 3
    assert len(Schema(document, max_errors=3).problems({str(n): 1 for n in range(100)})) == 3


class CountsErrors:
    """The engine's validator, and how many errors it has built."""

    def __init__(self, validator: Any) -> None:
        self.validator = validator
        self.built = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.validator, name)

    def iter_errors(self, value: object) -> list[Any]:
        found = list(self.validator.iter_errors(value))
        self.built += sum(map(self.weight, found))
        return found

    def validate(self, value: object) -> None:
        try:
            self.validator.validate(value)
        except ValueError as error:
            self.built += self.weight(error)
            raise

    def weight(self, error: Any) -> int:
        details = error.kind.as_dict()
        branches = details.get("context", [])
        options = len(details.get("options", ())) // 40
        return 1 + options + sum(self.weight(inner) for branch in branches for inner in branch)


THING = {"type": "object", "required": [f"k{n}" for n in range(20)]}


@pytest.mark.parametrize(
    ("document", "value", "place"),
    [
        ({"items": {"enum": [f"option {n}" for n in range(500)]}}, ["x"] * 9_999, ("/0", "enum")),
        ({"items": {"enum": [list(range(500))]}}, ["x"] * 9_999, ("/0", "enum")),
        ({"items": {"oneOf": [{"type": "integer"}] * 20}}, ["x"] * 1_000, ("/0", "oneOf")),
        ({"items": THING}, [{}] * 9_999, ("/0/k0", "required")),
        ({"anyOf": [THING, {"type": "array", "items": THING}]}, [{}] * 1_000, ("", "tooLarge")),
        ({"anyOf": [THING, {"type": "array", "items": THING}]}, [{}] * 20_000, ("", "tooLarge")),
        ({"oneOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"items": THING}}}, [{}] * 1_000, ("", "tooLarge")),
        ({"anyOf": [{"additionalProperties": THING}]}, {str(n): {} for n in range(1_000)}, ("", "tooLarge")),
    ],
)
def test_no_value_makes_the_engine_build_errors_without_end(
    document: dict[str, Any], value: object, place: tuple[str, str]
) -> None:
    schema = Schema(document)
    counting = CountsErrors(schema._engine._validator)
    schema._engine._validator = counting  # type: ignore[assignment]
    assert places(schema, value)[0] == place
    assert counting.built <= 10_000


def test_a_long_list_inside_many_levels_is_not_copied_for_each_of_them() -> None:
    value: object = ["x"] * 2_000
    for _ in range(55):
        value = {"next": value}
    schema = Schema({"required": ["a", "b"], "properties": {"next": {"$ref": "#"}}})
    assert places(schema, value) == [("/a", "required")]


def test_a_large_value_with_few_problems_is_told_them_all() -> None:
    countries = {"enum": [f"country {n}" for n in range(250)]}
    one_of_five = {"oneOf": [{"properties": {"kind": {"const": n}}, "required": ["at"]} for n in range(5)]}
    schema = Schema({"items": {"properties": {"from": countries, "event": one_of_five}}})
    value = [{"from": "country 7", "event": {"kind": n % 5, "at": 1}} for n in range(1_500)]
    value[3]["from"] = value[1_400]["from"] = "nowhere"
    assert places(schema, value) == [("/3/from", "enum"), ("/1400/from", "enum")]


def test_a_choice_between_small_forms_does_not_hide_the_first_problem_of_a_large_value() -> None:
    rows = {"items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/order"}]}}
    schema = Schema({"items": rows, "$defs": {"order": THING}})
    assert places(schema, [[None] * 20_000 + [{}]])[0] == ("/0/20000/k0", "required")
    named_like_keywords = {"items": {"anyOf": [{"properties": {"items": {"type": "string"}, "contains": {}}}]}}
    assert places(Schema(named_like_keywords), [{}] * 20_000 + [{"items": 1}]) == [("/20000/items", "type")]


def test_a_very_large_value_is_told_its_first_problem_alone() -> None:
    assert places(Schema({"items": {"type": "string"}}), ["a"] * 5 + [1] * 20_000) == [("/5", "type")]
    assert Schema({"items": {"type": "string"}}).is_valid(["a"] * 20_000)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (b"x", ""),
        ({"a": [dt.date(2026, 1, 1)]}, "/a/0"),
        ({"a": {1, 2}}, "/a"),
        ({"a": {1: 2}}, "/a"),
        (["ok", "\ud800"], "/1"),
        ({"\ud800": 1}, ""),
        ([object()], "/0"),
        (EMPLOYEE, ""),
    ],
)
def test_what_is_no_json_is_a_problem_at_its_place(value: object, place: str) -> None:
    schema = Schema({"items": {"$ref": "#"}, "additionalProperties": {"$ref": "#"}, "pattern": ""})
    assert places(schema, value) == [(place, "json")]
    assert not schema.is_valid(value)


@pytest.mark.parametrize("value", [Decimal("1.5"), 10**400, (1, 2), -0.0, "\U0001f600"])
def test_what_python_has_for_json_is_taken(value: object) -> None:
    assert Schema({}).is_valid(value)


def test_not_a_number_is_no_number() -> None:
    for value in (math.nan, math.inf):
        assert not Schema({"type": "number"}).is_valid(value)


def test_truth_is_no_number() -> None:
    assert not Schema({"type": "integer"}).is_valid(True)
    assert not Schema({"const": 1}).is_valid(True)


# Formats


def test_built_in_formats_describe_unless_they_are_to_be_checked() -> None:
    for draft in ("https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"):
        document = {"$schema": draft, "properties": {"mail": {"format": "email"}, "own": {"format": "even"}}}
        wrong = {"mail": "x", "own": "odd"}
        own = {"even": lambda text: len(text) % 2 == 0}
        assert places(Schema(document), wrong) == []
        assert places(Schema(document, formats=own), wrong) == [("/own", "format")]
        checked = Schema(document, formats=own, check_formats=True)
        assert sorted(places(checked, wrong)) == [("/mail", "format"), ("/own", "format")]
        assert checked.is_valid({"mail": "a@example.com", "own": "even"})


def test_a_format_of_your_own_may_replace_a_built_in_one() -> None:
    schema = Schema({"format": "email"}, formats={"email": lambda text: text == "x"})
    assert schema.is_valid("x")
    assert not schema.is_valid("a@example.com")


def test_a_format_sees_texts_only() -> None:
    seen: list[str] = []

    def note(text: str) -> bool:
        seen.append(text)
        return True

    schema = Schema({"items": {"format": "own"}}, formats={"own": note})
    assert schema.is_valid([1, None, {}, "text"])
    assert seen == ["text"]


def test_an_unknown_format_is_refused_where_formats_are_checked() -> None:
    Schema({"format": "emial"})
    with pytest.raises(ConfigurationError, match="emial"):
        Schema({"format": "emial"}, check_formats=True)


# Keywords of your own


def _divisible(by: int, instance: object) -> str | None:
    return f"must be divisible by {by}" if isinstance(instance, int) and instance % by else None


def test_a_keyword_of_your_own_gives_its_message() -> None:
    schema = Schema({"items": {"divisibleBy": 3}}, keywords={"divisibleBy": _divisible})
    assert schema.problems([3, 4]) == [
        Problem("/1", "divisibleBy", "divisibleBy", "must be divisible by 3", {}, "body")
    ]
    assert schema.is_valid([3, "x"])
    assert not schema.is_valid([4])


class Mine(Exception):
    pass


@pytest.mark.parametrize("kind", [Mine, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "around", [lambda inner: inner, lambda inner: {"not": inner}, lambda inner: {"anyOf": [inner, {}]}]
)
def test_what_a_check_raises_passes_through(kind: type[BaseException], around: Any) -> None:
    mine = kind("mine")

    def raises(*_: object) -> Any:
        raise mine

    by_keyword = Schema(around({"own": 1}), keywords={"own": raises})
    by_format = Schema(around({"format": "own"}), formats={"own": raises})
    for schema in (by_keyword, by_format):
        for ask in (schema.is_valid, schema.problems, schema.validate):
            with pytest.raises(kind) as raised:
                ask("x")
            assert raised.value is mine


def test_a_keyword_that_answers_with_truth_is_a_mistake() -> None:
    schema = Schema({"own": 1}, keywords={"own": lambda _, __: False})  # type: ignore[dict-item, return-value]  # what the test is about
    with pytest.raises(ConfigurationError, match="'own' must return None or a message, not bool"):
        schema.is_valid(1)


# Checks across fields


def _period() -> Schema:
    schema = Schema({"required": ["start_date", "end_date"], "properties": {"start_date": {"type": "string"}}})

    @schema.check("/end_date")
    def ends_after_start(value: dict[str, str]) -> str | None:
        return "must not be before the start" if value["end_date"] < value["start_date"] else None

    return schema


def test_a_check_blames_its_field() -> None:
    schema = _period()
    backwards = {"start_date": "2026-02-01", "end_date": "2026-01-01"}
    assert schema.problems(backwards) == [
        Problem("/end_date", "check", "check", "must not be before the start", {}, "body")
    ]
    assert not schema.is_valid(backwards)
    with pytest.raises(ValidationError, match="/end_date must not be before the start"):
        schema.validate(backwards)
    assert schema.is_valid({"start_date": "2026-01-01", "end_date": "2026-02-01"})


def test_checks_run_only_when_the_schema_passed() -> None:
    assert places(_period(), {"end_date": 1}) == [("/start_date", "required")]


def test_every_check_runs_in_the_order_in_which_it_was_added() -> None:
    schema = Schema({}, max_errors=2)
    for pointer in ("/b", "/a", "/c"):
        schema.check(pointer, code=pointer[1:])(lambda _: "is wrong")
    assert places(schema, {}) == [("/b", "b"), ("/a", "a")]


def test_a_check_is_given_back_and_still_a_function() -> None:
    def fine(value: object) -> None:
        return None

    assert Schema({}).check("/a~1b/~0")(fine) is fine


def test_what_a_cross_field_check_raises_passes_through() -> None:
    schema = Schema({})
    mine = Mine()

    @schema.check("")
    def broken(value: object) -> None:
        raise mine

    for ask in (schema.is_valid, schema.problems, schema.validate):
        with pytest.raises(Mine) as raised:
            ask(1)
        assert raised.value is mine


def test_a_cross_field_check_that_answers_with_truth_is_a_mistake() -> None:
    schema = Schema({})
    schema.check("")(lambda _: True)  # type: ignore[arg-type, return-value]  # what the test is about
    with pytest.raises(ConfigurationError, match="must return None or a message, not bool"):
        schema.problems(1)


@pytest.mark.parametrize("pointer", ["end_date", "/a~", "/~2", "#/a", None, 7])
def test_a_check_needs_a_pointer(pointer: Any) -> None:
    with pytest.raises(ConfigurationError, match="pointer must be a JSON Pointer"):
        Schema({}).check(pointer)


async def _async_check(*_: object) -> None: ...


def _generator_check(*_: object) -> Iterator[None]:
    yield


@pytest.mark.parametrize("check", [_async_check, _generator_check, partial(_async_check, 1), None, 7, str])
def test_a_check_is_a_plain_function(check: Any) -> None:
    with pytest.raises(ConfigurationError):
        Schema({}).check("")(check)
    with pytest.raises(ConfigurationError):
        Schema({}, formats={"own": check})
    with pytest.raises(ConfigurationError):
        Schema({}, keywords={"own": check})


# Words


def test_messages_by_code_replace_ours() -> None:
    schema = Schema({"minimum": 5, "type": "integer"}, messages={"minimum": "unter {limit}"})
    assert [problem.message for problem in schema.problems(4)] == ["unter 5"]
    assert [problem.message for problem in schema.problems("x")] == ["must be a whole number"]


GERMAN = {"de": {"required": "fehlt"}, "de-AT": {"required": "fehlt leider"}, "fr": {"required": "manque"}}


@pytest.mark.parametrize(
    ("locale", "message"),
    [
        (None, "is required"),
        ("de", "fehlt"),
        ("de_AT", "fehlt leider"),
        ("DE-CH", "fehlt"),
        ("it", "is required"),
        ("it, fr;q=0.8, de;q=0.9", "fehlt"),
        ("fr-CA, en;q=0.9", "manque"),
        ("en-GB, de", "is required"),
        ("*;q=x,,;q=", "is required"),
        ("de;q=0, fr;q=0.1", "manque"),
    ],
)
def test_messages_by_locale_follow_what_is_asked_for(locale: str | None, message: str) -> None:
    schema = Schema({"required": ["a"]}, messages=GERMAN)
    assert [problem.message for problem in schema.problems({}, locale=locale)] == [message]
    with pytest.raises(ValidationError, match=f"^/a {message}$"):
        schema.validate({}, locale=locale)


def test_words_of_one_s_own_for_english_are_spoken_where_nothing_else_is_known() -> None:
    schema = Schema({"required": ["a"]}, messages={**GERMAN, "en": {"required": "please give it"}})
    spoken = [schema.problems({}, locale=locale)[0].message for locale in (None, "en", "it", "it, de;q=0.5")]
    assert spoken == ["please give it", "please give it", "please give it", "fehlt"]


def test_the_request_s_locale_is_the_default() -> None:
    schema = Schema({"required": ["a"]}, messages=GERMAN)
    with request_context(locale="fr"):
        assert schema.problems({})[0].message == "manque"
        assert schema.problems({}, locale="de")[0].message == "fehlt"


def test_a_template_may_be_a_function_of_the_parameters() -> None:
    def items(params: Any) -> str:
        return "one item" if params["limit"] == 1 else f"{params['limit']} items"

    schema = Schema({"properties": {"a": {"minItems": 1}, "b": {"minItems": 2}}}, messages={"minItems": items})
    assert {problem.message for problem in schema.problems({"a": [], "b": []})} == {"one item", "2 items"}


def test_checks_and_keywords_have_codes_that_messages_may_name() -> None:
    schema = Schema(
        {"own": 1},
        keywords={"own": lambda _, instance: "own words" if instance == 1 else None},
        messages={"own": "other words", "late": "zu spät {unknown}"},
    )
    schema.check("", code="late")(lambda _: "too late")
    assert [problem.message for problem in schema.problems(1)] == ["other words"]
    assert [problem.message for problem in schema.problems(2)] == ["zu spät {unknown}"]


@pytest.mark.parametrize(
    "messages",
    [
        {"minimum": 7},
        {"minimum": "at least {limt}"},
        {"minimum": "at least {limit.__class__}"},
        {"minimum": "at least {}"},
        {"minimum": "at least {limit"},
        {"de": {"minimum": "{limit"}},
        {"de": {"minimum": "ab {limit}"}, "minimum": "from {limit}"},
        {1: "x"},
        {"de": {1: "x"}},
        ["minimum"],
    ],
)
def test_messages_that_cannot_work_are_refused(messages: Any) -> None:
    with pytest.raises(ConfigurationError, match="messages"):
        Schema({}, messages=messages)


def test_the_schema_s_own_message_comes_first() -> None:
    schema = Schema(
        {
            "required": ["a", "b"],
            "errorMessage": {
                "required": {"a": "Tell us a."},
                "properties": {"nested": "Nested is wrong."},
                "_": "Something is wrong.",
            },
            "properties": {
                "text": {"type": "string", "errorMessage": "A text, please."},
                "number": {"$ref": "#/$defs/small", "errorMessage": {"maximum": "Too much."}},
                "nested": {"properties": {"x": {"type": "string"}}},
                "own": {
                    "properties": {"x": {"type": "string", "errorMessage": "Innermost."}},
                    "errorMessage": "Outer.",
                },
            },
            "$defs": {"small": {"type": "integer", "maximum": 3}},
        },
        messages={"type": "never seen here"},
    )
    value = {"text": 1, "number": 4, "nested": {"x": 1}, "own": {"x": 1}}
    assert {problem.pointer: problem.message for problem in schema.problems(value)} == {
        "/a": "Tell us a.",
        "/b": "Something is wrong.",
        "/text": "A text, please.",
        "/number": "Too much.",
        "/nested/x": "Nested is wrong.",
        "/own/x": "Innermost.",
    }


def test_an_own_message_is_found_behind_references_and_branches() -> None:
    schema = Schema(
        {
            "properties": {
                "far": {"$ref": "https://known.example/far#/$defs/x"},
                "embedded": {"$ref": "https://known.example/embedded"},
                "branch": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 1, "errorMessage": "Short!"}]},
                "chosen": {"if": True, "then": {"type": "string", "errorMessage": "Then!"}},
            },
            "$defs": {
                "e": {
                    "$id": "https://known.example/embedded",
                    "$ref": "#/$defs/y",
                    "$defs": {"y": {"type": "string", "errorMessage": "Embedded!"}},
                }
            },
        },
        resources={"https://known.example/far": {"$defs": {"x": {"type": "string", "errorMessage": "Far!"}}}},
    )
    value = {"far": 1, "embedded": 1, "branch": "long", "chosen": 1}
    assert {problem.pointer: problem.message for problem in schema.problems(value)} == {
        "/far": "Far!",
        "/embedded": "Embedded!",
        "/branch": "Short!",
        "/chosen": "Then!",
    }


def test_a_property_may_be_called_like_a_keyword() -> None:
    names = ("errorMessage", "properties", "$ref", "$id", "items")
    schema = Schema({"properties": {name: {"type": "string", "errorMessage": name + "!"} for name in names}})
    told = {problem.pointer: problem.message for problem in schema.problems(dict.fromkeys(names, 1))}
    assert told == {"/" + name: name + "!" for name in names}
    plain = Schema({"properties": {"errorMessage": {"type": "string"}, "x": {"type": "string"}}})
    assert plain.problems({"x": 1})[0].message == "must be a string"


def test_an_own_message_of_another_shape_is_left_alone() -> None:
    for given_message in (7, None, {"type": 7}, {"required": {"b": "x"}}, ["x"]):
        schema = Schema({"type": "string", "errorMessage": given_message})
        assert schema.problems(1)[0].message == "must be a string"


# Wrong settings


@pytest.mark.parametrize(
    ("document", "settings", "words"),
    [
        (None, {}, "document must be a mapping or a bool, got NoneType"),
        ('{"type": "string"}', {}, "document must be a mapping or a bool, got str"),
        ([], {}, "document must be"),
        ({"type": "strnig"}, {}, "the schema cannot be used: .*strnig.* at /type"),
        ({"properties": {"a": {"minLength": -1}}}, {}, "at /properties/a/minLength"),
        ({"$schema": "https://json-schema.org/draft/2030-01/schema"}, {}, r"\$schema .* is unknown"),
        ({"$schema": ""}, {}, r"\$schema '' is unknown"),
        ({"$schema": 7}, {}, r"\$schema 7 is unknown"),
        ({"$defs": {"a": {"$id": "urn:x", "$schema": "urn:meta"}}}, {}, r"\$schema 'urn:meta' is unknown"),
        ({}, {"resources": {"urn:x": {"$schema": "urn:meta"}}}, r"\$schema 'urn:meta' is unknown"),
        ({}, {"resources": {"urn:x": "text"}}, r"resources\['urn:x'\] must be a mapping"),
        ({}, {"resources": {"x": {}}}, "resources: 'x' must be an absolute URI"),
        ({}, {"resources": {"urn:x#part": {}}}, "without a fragment"),
        ({}, {"resources": ["urn:x"]}, "resources must be a mapping"),
        ({}, {"formats": {"": len}}, "formats must be a mapping by name"),
        ({}, {"formats": {7: len}}, "formats must be a mapping by name"),
        ({}, {"keywords": {"type": len}}, "keywords: 'type' is a keyword of JSON Schema"),
        ({}, {"max_depth": 0}, "max_depth"),
        ({}, {"max_depth": 1001}, "max_depth must be at most 1000"),
        ({}, {"max_depth": None}, "max_depth"),
        ({}, {"max_errors": 0}, "max_errors"),
        ({}, {"max_errors": 1.5}, "max_errors"),
    ],
)
def test_a_wrong_setting_is_refused_at_construction(document: Any, settings: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Schema(document, **settings)


@pytest.mark.parametrize(
    "draft",
    [
        "https://json-schema.org/draft/2020-12/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema#",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema#",
        "http://json-schema.org/draft-04/schema#",
    ],
)
def test_the_published_drafts_are_known(draft: str) -> None:
    assert not Schema({"$schema": draft, "type": "string"}).is_valid(1)


def test_a_property_may_be_called_schema() -> None:
    assert Schema({"properties": {"$schema": {"type": "string"}}, "enum": [{"$schema": "urn:x"}]}).is_valid(
        {"$schema": "urn:x"}
    )


def test_a_schema_nested_absurdly_deep_is_refused() -> None:
    document: dict[str, Any] = {}
    for _ in range(50_000):
        document = {"not": document}
    with pytest.raises(ConfigurationError):
        Schema(document)
    while document:
        document = document["not"]


def test_without_the_extra_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "jsonschema_rs":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "jsonschema_rs", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"pip install 'reliakit\[validation\]'"):
        Schema({})


# The decorator


ID = Schema({"type": "integer"})


@validated(body=EMPLOYEE)
def save(body: dict[str, Any], *, dry: bool = False) -> str:
    """Save one."""
    return f"{body['name']} {dry}"


def test_the_named_parameter_is_validated_however_it_is_passed() -> None:
    assert save({"name": "Ada"}) == "Ada False"
    assert save(body={"name": "Ada"}, dry=True) == "Ada True"
    for call in (lambda: save({}), lambda: save(body={}), lambda: save({}, dry=True)):
        with pytest.raises(ValidationError, match="/name is required"):
            call()
    assert (save.__name__, save.__doc__) == ("save", "Save one.")


@pytest.mark.anyio
async def test_an_async_function_is_validated_before_it_runs() -> None:
    ran: list[object] = []

    @validated(body=EMPLOYEE)
    async def asave(body: dict[str, Any]) -> str:
        ran.append(body)
        return str(body["name"])

    assert await asave({"name": "Ada"}) == "Ada"
    with pytest.raises(ValidationError):
        await asave({})
    assert len(ran) == 1


def test_several_parameters_and_where_they_came_from() -> None:
    @validated(body=EMPLOYEE, query=ID)
    def handler(request: object, query: int, body: object, *rest: int) -> object:
        return body

    assert handler("r", 1, {"name": "Ada"}, 7) == {"name": "Ada"}
    with pytest.raises(ValidationError) as raised:
        handler("r", query="x", body={"name": "Ada"})  # type: ignore[arg-type]  # what the test is about
    assert raised.value.problems[0].location == "query"
    with pytest.raises(ValidationError) as raised:
        handler("r", 1, body={})
    assert raised.value.problems[0].location == "body"


def test_without_such_a_parameter_the_first_one_is_the_body() -> None:
    @validated(body=ID)
    def direct(payload: int, other: str = "x") -> int:
        return payload

    class Service:
        @validated(body=ID)
        def method(self, payload: int) -> int:
            return payload

        @validated(body=ID)
        @classmethod
        def of_class(cls, payload: int) -> int:
            return payload

        @staticmethod
        @validated(body=ID)
        def static(payload: int) -> int:
            return payload

    for call in (direct, Service().method, Service.of_class, Service().static):
        assert call(1) == 1
        with pytest.raises(ValidationError):
            call("x")  # type: ignore[arg-type]  # what the test is about


def test_an_argument_that_is_left_out_is_not_validated() -> None:
    @validated(body=ID)
    def optional(body: int | None = None) -> int | None:
        return body

    assert optional() is None
    with pytest.raises(ValidationError):
        optional(None)


def test_a_missing_argument_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        save()  # type: ignore[call-arg]  # what the test is about


async def _rows(body: object) -> AsyncIterator[object]:
    yield body


@pytest.mark.parametrize(
    ("decorate", "words"),
    [
        (validated, "needs the schema of a parameter"),
        (lambda: validated(body={"type": "integer"}), r"validated\(body=\) must be a Schema"),
        (lambda: validated(body=ID)(lambda: None), "has no parameter 'body'"),
        (lambda: validated(body=ID, query=ID)(lambda body: None), "has no parameter 'query'"),
        (lambda: validated(body=ID)(_rows), "not a generator"),
        (lambda: validated(body=ID)(_generator_check), "not a generator"),
        (lambda: validated(body=ID)(Schema), "the class Schema"),
        (lambda: validated(body=ID)(7), "takes a function"),
    ],
)
def test_a_wrong_decoration_is_refused(decorate: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        decorate()
