"""The hooks for Sentry, in its own library: nothing secret may enter what it would send."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import sentry_sdk
from masker_cases import PASSWORD
from sentry_sdk.integrations.logging import EventHandler
from sentry_sdk.transport import Transport

from reliakit.core.errors import ConfigurationError
from reliakit.integrations import sentry as ours
from reliakit.integrations.sentry import before_breadcrumb, before_send
from reliakit.logs import Masker

NAMED = f"password={PASSWORD}"
SIGNED = "https://bob:" + PASSWORD + "@host/x?token=" + PASSWORD


class Outbox(Transport):
    """Keeps what would be sent."""

    def __init__(self, options=None):
        super().__init__(options)
        self.sent = []

    def capture_envelope(self, envelope):
        self.sent.append(b"".join(item.get_bytes() for item in envelope.items).decode())


@pytest.fixture
def outbox():
    box = Outbox()
    with sentry_sdk.new_scope():
        client = sentry_sdk.Client(
            dsn="https://public@example.invalid/1",
            transport=box,
            default_integrations=False,
            before_send=before_send(),
            before_send_transaction=before_send(),
            before_breadcrumb=before_breadcrumb(),
            traces_sample_rate=1.0,
            auto_session_tracking=False,
        )
        with sentry_sdk.isolation_scope() as scope:
            scope.set_client(client)
            yield box
        client.close()
    for sent in box.sent:
        assert PASSWORD not in sent
        assert "bob@example.com" not in sent


def fail_with(credential, account):
    raise ValueError(f"no {account} with {NAMED}")


def test_exceptions_with_the_variables_of_their_frames(outbox):
    try:
        fail_with(credential=PASSWORD, account={"name": "carol", "api_key": PASSWORD})
    except ValueError as error:
        error.add_note(NAMED)
        sentry_sdk.capture_exception(error)
    [sent] = map(json.loads, outbox.sent)
    [value] = sent["exception"]["values"]
    assert value["type"] == "ValueError"
    assert "password=***" in value["value"]
    frame = value["stacktrace"]["frames"][-1]
    assert frame["function"] == "fail_with"
    assert frame["vars"]["credential"] == "***"
    assert "carol" in json.dumps(frame["vars"]["account"])
    assert sent["event_id"]


def test_user_request_tags_extra_contexts_and_breadcrumbs(outbox):
    sentry_sdk.set_user({"id": "7", "email": "bob@example.com"})
    sentry_sdk.set_tag("session_token", PASSWORD)
    sentry_sdk.set_extra("note", NAMED)
    sentry_sdk.set_context("payment", {"card_number": "4111111111111111", "amount": 3})
    sentry_sdk.add_breadcrumb(category="http", message=f"GET {SIGNED}", data={"url": SIGNED, "password": PASSWORD})
    sentry_sdk.capture_event(
        {
            "message": NAMED,
            "request": {
                "url": SIGNED,
                "query_string": f"token={PASSWORD}&page=2",
                "headers": {"Authorization": f"Bearer {PASSWORD}", "Accept": "text/html"},
                "cookies": {"sid": PASSWORD},
                "data": {"password": PASSWORD, "page": 3},
            },
        }
    )
    [sent] = map(json.loads, outbox.sent)
    assert sent["user"] == {"id": "7", "email": "***"}
    assert sent["request"]["query_string"] == "token=***&page=2"
    assert sent["request"]["headers"]["Accept"] == "text/html"
    assert sent["contexts"]["payment"]["amount"] == 3
    assert sent["breadcrumbs"]["values"][0]["data"]["password"] == "***"


def test_log_messages_with_their_parameters(outbox):
    logger = logging.getLogger("sentry-test")
    handler = EventHandler()
    logger.addHandler(handler)
    try:
        logger.error("password %s for %s", PASSWORD, "bob@example.com", extra={"token": PASSWORD})
    finally:
        logger.removeHandler(handler)
    [sent] = map(json.loads, outbox.sent)
    assert sent["logentry"]["params"] == ["***", "***"]


def test_transactions_and_their_spans(outbox):
    with (
        sentry_sdk.start_transaction(name=f"GET {SIGNED}", op="task") as transaction,
        transaction.start_child(op="http", name=f"GET {SIGNED}") as span,
    ):
        span.set_data("api_key", PASSWORD)
    [sent] = map(json.loads, outbox.sent)
    assert sent["spans"][0]["data"]["api_key"] == "***"


def test_a_long_stack_is_masked_to_its_last_frame():
    frames = [{"function": f"f{n}", "context_line": "x " * 600, "vars": {"password": PASSWORD}} for n in range(80)]
    event = {"exception": {"values": [{"type": "E", "value": NAMED, "stacktrace": {"frames": frames}}]}}
    masked = before_send()(event, {})
    last = masked["exception"]["values"][0]["stacktrace"]["frames"][-1]
    assert last == {"function": "f79", "context_line": "x " * 600, "vars": {"password": "***"}}


def test_the_event_that_the_hook_is_given_is_not_changed():
    event = {
        "event_id": "e",
        "user": {"email": "bob@example.com"},
        "logentry": {"message": "token %s", "params": ["x"]},
    }
    before = copy.deepcopy(event)
    assert before_send()(event, {})["user"] == {"email": "***"}
    assert event == before


def test_of_an_event_that_cannot_be_masked_only_the_envelope_is_sent(monkeypatch):
    def fail(*args):
        raise RuntimeError(NAMED)

    monkeypatch.setattr(ours, "_part", fail)
    assert before_send()({"event_id": "e", "level": "error", "extra": {"x": NAMED}}, {}) == {
        "event_id": "e",
        "level": "error",
        "message": "[masking failed]",
    }
    assert before_send()("no event", {}) is None


def test_a_breadcrumb_that_cannot_be_masked_is_dropped():
    def fail(text):
        raise RuntimeError(text)

    assert before_breadcrumb()({"message": NAMED}, {}) == {"message": "password=***"}
    assert before_breadcrumb()("no breadcrumb", {}) is None
    assert NAMED not in str(before_breadcrumb(Masker(detectors=[fail]))({"message": NAMED}, {}))


def test_another_thing_than_a_masker_is_refused():
    with pytest.raises(ConfigurationError, match="masker"):
        before_send("x")
    with pytest.raises(ConfigurationError, match="masker"):
        before_breadcrumb("x")
