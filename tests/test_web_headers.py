from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_driver import call, environ, scope, wcall

from reliakit import ConfigurationError
from reliakit.web import Cors, SecurityHeaders, asgi, wsgi

pytestmark = pytest.mark.anyio

HSTS = "strict-transport-security"


def app_with(*headers, status=200):
    async def app(scope, receive, send):
        lines = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": b"x"})

    return app


def wapp_with(*headers):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), *headers])
        return [b"x"]

    return app


async def test_the_api_preset_stands_on_every_response():
    answer = await call(SecurityHeaders.api().asgi(app_with()))
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert HSTS not in answer.headers
    assert wcall(SecurityHeaders.api().wsgi(wapp_with())).headers.keys() >= answer.headers.keys()


async def test_hsts_counts_over_https_only():
    headers = SecurityHeaders.api()
    assert HSTS in (await call(headers.asgi(app_with()), scheme="https")).headers
    assert HSTS in wcall(headers.wsgi(wapp_with()), scheme="https").headers
    assert HSTS not in wcall(headers.wsgi(wapp_with())).headers


async def test_the_word_of_a_trusted_proxy_about_https_is_believed_and_no_other():
    headers = SecurityHeaders.api().behind(["203.0.113.9"])
    for proto, there in (("https", True), ("http, https", True), ("https, http", False), ("http", False)):
        answer = await call(headers.asgi(app_with()), headers={"X-Forwarded-Proto": proto})
        assert (HSTS in answer.headers) is there
    other = await call(headers.asgi(app_with()), headers={"X-Forwarded-Proto": "https"}, client=("198.51.100.1", 1))
    assert HSTS not in other.headers


async def test_what_the_app_sets_itself_wins_in_any_letter_case():
    answer = await call(
        SecurityHeaders.api().asgi(app_with(("CACHE-control", "max-age=60"), ("x-frame-options", "A")))
    )
    assert answer.headers["cache-control"] == "max-age=60"
    assert answer.headers["x-frame-options"] == "A"
    answer = wcall(SecurityHeaders.api().wsgi(wapp_with(("CACHE-control", "max-age=60"))))
    assert answer.headers["cache-control"] == "max-age=60"


def test_deprecated_names_are_never_sent():
    for preset in (SecurityHeaders.api(), SecurityHeaders.web()):
        names = {name.lower() for name in preset.fields}
        assert not names & {"x-xss-protection", "expect-ct", "feature-policy", "public-key-pins", "pragma", "server"}


def test_replace_changes_one_header_and_none_leaves_it_out():
    changed = SecurityHeaders.web().replace({"x-frame-options": "SAMEORIGIN", "Referrer-Policy": None, "X-New": "1"})
    assert changed.fields["x-frame-options"] == "SAMEORIGIN"
    assert "X-Frame-Options" not in changed.fields
    assert "Referrer-Policy" not in changed.fields
    assert changed.fields["X-New"] == "1"


@given(st.text(max_size=20))
def test_a_header_value_is_one_line_of_printable_ascii_or_refused(value):
    good = (
        bool(value)
        and value.isascii()
        and all(c.isprintable() or c == "\t" for c in value)
        and value == value.strip()
    )
    try:
        made = SecurityHeaders({"X-A": value})
    except ConfigurationError:
        assert not good
    else:
        assert good
        assert made.chosen(scope()) == ((b"x-a", value.encode()),)


@pytest.mark.parametrize("name", ["", "a b", "a\r\nb", "ä", "a:"])
def test_a_name_that_no_header_can_have_is_refused(name):
    with pytest.raises(ConfigurationError, match="name"):
        SecurityHeaders({name: "x"})


def test_a_name_given_twice_is_refused():
    with pytest.raises(ConfigurationError, match="once"):
        SecurityHeaders({"X-A": "1", "x-a": "2"})


names = st.sampled_from(["cache-control", "X-Frame-Options", "vary", "Server", "x-content-type-options", "etag"])


@given(st.lists(names, max_size=6, unique_by=str.lower))
def test_no_header_is_sent_twice(theirs):
    from reliakit.web.asgi.messages import with_fields

    message = {"type": "http.response.start", "headers": [(name.encode(), b"1") for name in theirs]}
    sent = [name.lower() for name, _ in with_fields(message, SecurityHeaders.api().chosen(scope()))["headers"]]
    assert len(sent) == len(set(sent))


ORIGIN = "https://app.example.com"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}


@pytest.mark.parametrize("origins", [["*"], "*"])
def test_every_origin_with_credentials_is_refused(origins):
    with pytest.raises(ConfigurationError, match="credentials"):
        Cors(origins, credentials=True)


@pytest.mark.parametrize(
    "origin", ["null", "https://a.b/", "app.example.com", "HTTPS://a.b", "https://a.b\r\nX: y", "", "https://*.a.b"]
)
def test_an_origin_that_can_never_match_is_refused(origin):
    with pytest.raises(ConfigurationError, match="origins"):
        Cors([origin])


def test_other_wrong_settings_of_cors_are_refused():
    for settings in ({"max_age": -1}, {"methods": "GET"}, {"headers": ["a\r\nb"]}, {"expose": "X"}):
        with pytest.raises(ConfigurationError):
            Cors([ORIGIN], **settings)
    with pytest.raises(ConfigurationError, match="alone"):
        Cors(["*", ORIGIN])


async def test_a_known_origin_may_read_the_answer_and_an_unknown_one_may_not():
    app = Cors([ORIGIN], credentials=True).asgi(app_with())
    known = await call(app, headers={"Origin": ORIGIN})
    assert known.headers["access-control-allow-origin"] == ORIGIN
    assert known.headers["access-control-allow-credentials"] == "true"
    for origin in ("https://evil.example", "null", ORIGIN + ".evil.example", ORIGIN.upper(), "https://a\r\nX-Y: z"):
        unknown = await call(app, headers={"Origin": origin})
        assert "access-control-allow-origin" not in unknown.headers
        assert "access-control-allow-credentials" not in unknown.headers


async def test_responses_vary_by_origin_even_without_one():
    app = Cors([ORIGIN]).asgi(app_with(("Vary", "Accept")))
    answer = await call(app)
    assert [value for name, value in answer.lines if name == "vary"] == ["Accept", "Origin"]
    answer = await call(Cors([ORIGIN]).asgi(app_with(("Vary", "accept, ORIGIN"))))
    assert [value for name, value in answer.lines if name == "vary"] == ["accept, ORIGIN"]
    assert "vary" not in (await call(Cors("*").asgi(app_with()))).headers


async def test_every_origin_without_credentials_is_a_star():
    answer = await call(Cors("*").asgi(app_with()))
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_what_the_app_says_about_origins_wins():
    answer = await call(
        Cors([ORIGIN]).asgi(app_with(("Access-Control-Allow-Origin", "https://x.y"))), headers={"Origin": ORIGIN}
    )
    assert answer.headers["access-control-allow-origin"] == "https://x.y"


async def test_a_preflight_is_answered_without_the_app():
    async def app(scope, receive, send):
        raise AssertionError("the app was called")

    answer = await call(Cors([ORIGIN], max_age=5).asgi(app), method="OPTIONS", headers=PREFLIGHT)
    assert answer.status == 204
    assert answer.body == b""
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "PUT" in answer.headers["access-control-allow-methods"]
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-max-age"] == "5"
    assert answer.headers["vary"] == "Origin"
    assert wcall(Cors([ORIGIN]).wsgi(app), method="OPTIONS", headers=PREFLIGHT).status == 204


async def test_a_preflight_of_an_unknown_origin_is_refused_with_a_reason():
    app = Cors([ORIGIN]).asgi(app_with())
    answer = await call(app, method="OPTIONS", headers={**PREFLIGHT, "Origin": "https://evil.example"})
    assert answer.status == 403
    assert answer.json["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


async def test_plain_options_is_no_preflight():
    answer = await call(Cors([ORIGIN]).asgi(app_with()), method="OPTIONS", headers={"Origin": ORIGIN})
    assert answer.status == 200


async def test_a_callable_decides_about_origins_and_never_sees_hostile_text():
    seen = []

    def allowed(origin):
        seen.append(origin)
        return origin.endswith(".example.com")

    app = Cors(allowed, credentials=True).asgi(app_with())
    assert (await call(app, headers={"Origin": ORIGIN})).headers["access-control-allow-origin"] == ORIGIN
    await call(app, headers={"Origin": "null"})
    await call(app, headers={"Origin": "https://a\r\nb.example.com"})
    assert seen == [ORIGIN]


async def test_a_check_of_origins_that_fails_allows_nobody_and_the_request_is_served(caplog):
    def broken(origin):
        raise LookupError("no list of origins")

    async def unheard(origin):
        return True

    def unawaited(origin):
        return unheard(origin)

    for check, reason in ((broken, "no list of origins"), (unawaited, "awaitable")):
        cors = Cors(check, credentials=True)
        for answer in (
            await call(cors.asgi(app_with()), headers={"Origin": ORIGIN}),
            wcall(cors.wsgi(wapp_with()), headers={"Origin": ORIGIN}),
        ):
            assert (answer.status, answer.raised) == (200, None)
            assert "access-control-allow-origin" not in answer.headers
        assert reason in caplog.text


def test_an_async_check_of_origins_is_refused_because_what_it_returns_is_always_true():
    async def nobody(origin):
        return False

    class Nobody:
        async def __call__(self, origin):
            return False

    for origins in (nobody, Nobody()):
        with pytest.raises(ConfigurationError, match="origins"):
            Cors(origins)


def test_parts_show_their_settings():
    assert "frame" in repr(SecurityHeaders.api())
    assert ORIGIN in repr(Cors([ORIGIN]))


@pytest.mark.parametrize("shells", [asgi, wsgi])
def test_only_parts_and_apps_can_be_wrapped(shells):
    with pytest.raises(ConfigurationError, match="app"):
        shells.wrap(None, SecurityHeaders.api())
    with pytest.raises(ConfigurationError, match="part"):
        shells.wrap(lambda *args: None, object())
    with pytest.raises(ConfigurationError, match="headers"):
        shells.protect(lambda *args: None, service="s", headers={"X": "1"})
    with pytest.raises(ConfigurationError, match="service"):
        shells.protect(lambda *args: None, service="")
    with pytest.raises(ConfigurationError, match="metrics"):
        shells.protect(lambda *args: None, service="s", metrics=object())
    with pytest.raises(ConfigurationError, match="timeout"):
        shells.protect(lambda *args: None, service="s", timeout=0)
    with pytest.raises(ConfigurationError, match="max_body"):
        shells.protect(lambda *args: None, service="s", max_body=-1)
    with pytest.raises(ConfigurationError, match="limiter"):
        shells.protect(lambda *args: None, service="s", limiter=object())
    with pytest.raises(ConfigurationError, match="cors"):
        shells.protect(lambda *args: None, service="s", cors=["https://a.b"])
    with pytest.raises(ConfigurationError, match="trusted"):
        shells.protect(lambda *args: None, service="s", trusted="10.0.0.0/8")


def test_one_part_serves_both_worlds():
    assert SecurityHeaders.api().chosen(environ()) == SecurityHeaders.api().chosen(scope())
