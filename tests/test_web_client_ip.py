from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_driver import environ, scope

from reliakit import ConfigurationError
from reliakit.core.addresses import folded
from reliakit.web import client_ip

OURS = ["10.0.0.0/8", "fd00::/8"]


def by_xff(*lines, peer="10.0.0.1", **options):
    return client_ip(OURS, **options)(scope(headers=[("X-Forwarded-For", line) for line in lines], client=(peer, 1)))


def by_forwarded(*lines, peer="10.0.0.1"):
    headers = [("Forwarded", line) for line in lines]
    return client_ip(OURS, "forwarded")(scope(headers=headers, client=(peer, 1)))


def test_without_trusted_proxies_no_header_is_believed():
    assert client_ip()(scope(headers={"X-Forwarded-For": "1.1.1.1", "Forwarded": "for=2.2.2.2"})) == "203.0.113.9"


def test_a_bare_environ_or_scope_tells_the_client_as_a_server_s_does():
    key = client_ip(OURS)
    assert key({"REMOTE_ADDR": "203.0.113.9"}) == "203.0.113.9"
    assert key({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "1.1.1.1, 203.0.113.9"}) == "203.0.113.9"
    assert key({"REMOTE_ADDR": "10.0.0.1"}) == "10.0.0.1"
    assert key({"client": ("203.0.113.9", 1)}) == "203.0.113.9"
    assert key({"type": "http", "client": ("10.0.0.1", 1)}) == "10.0.0.1"
    assert key({"type": "http", "client": None}) == key({"headers": []}) == "unix"


def test_an_untrusted_peer_is_the_client_whatever_it_says():
    assert by_xff("1.1.1.1", peer="198.51.100.7") == "198.51.100.7"


def test_the_first_untrusted_hop_from_the_right_is_the_client():
    assert by_xff("1.1.1.1, 203.0.113.9, 10.0.0.7") == "203.0.113.9"


def test_all_lines_of_the_header_count_in_order():
    assert by_xff("1.1.1.1", "203.0.113.9", "10.0.0.7") == "203.0.113.9"


def test_when_every_hop_is_trusted_the_farthest_is_the_client():
    assert by_xff("10.9.9.9, 10.0.0.7") == "10.9.9.9"


@pytest.mark.parametrize("junk", ["unknown", "_hidden", "", "1.2.3.4.5", "1.1.1.1 2.2.2.2", "01.2.3.4", "²³.1.1.1"])
def test_an_element_that_is_no_address_ends_the_walk_at_the_last_good_hop(junk):
    request = scope(client=("10.0.0.1", 1))
    request["headers"] = [(b"x-forwarded-for", f"1.1.1.1, {junk}, 10.0.0.7".encode())]
    assert client_ip(OURS)(request) == "10.0.0.7"


@pytest.mark.parametrize(
    "hop", ["203.0.113.9:4711", " 203.0.113.9\t", "::ffff:203.0.113.9", "[::ffff:203.0.113.9]:80"]
)
def test_ports_spaces_and_mapped_addresses_are_normalised(hop):
    assert by_xff(hop) == "203.0.113.9"


@pytest.mark.parametrize("hop", ["2001:db8:1:2:3:4:5:6", "[2001:db8:1:2::7]:443", "2001:db8:1:2::1%eth0"])
def test_ipv6_is_its_64(hop):
    assert by_xff(hop) == "2001:db8:1:2::/64"


def test_a_peer_of_ipv6_is_its_64_and_a_mapped_peer_can_be_trusted():
    assert client_ip()(scope(client=("2001:db8::1", 1))) == "2001:db8::/64"
    assert by_xff("203.0.113.9", peer="::ffff:10.0.0.1") == "203.0.113.9"


def test_a_mapped_network_is_the_network_of_ipv4_that_it_means():
    for network in ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1"):
        for peer in ("10.0.0.1", "::ffff:10.0.0.1"):
            request = scope(headers={"X-Forwarded-For": "203.0.113.9"}, client=(peer, 1))
            assert client_ip([network])(request) == "203.0.113.9"
    assert client_ip(["::/0"])(scope(headers={"X-Forwarded-For": "1.1.1.1"}, client=("10.0.0.1", 1))) == "10.0.0.1"


@pytest.mark.parametrize("client", [None, ("", 0)])
def test_a_unix_socket_is_named_unix(client):
    assert client_ip()(scope(client=client)) == "unix"


@pytest.mark.parametrize(
    ("server", "known"),
    [(("127.0.0.1", 8000), "unknown"), (("::1", 8000), "unknown"), (("/run/app.sock", None), "unix")],
)
def test_a_client_that_was_gone_before_it_was_asked_for_its_address_is_not_taken_for_a_unix_socket(
    server, known, caplog
):
    request = scope(client=None, server=server, headers={"X-Forwarded-For": "203.0.113.9"})
    assert client_ip()(request) == known
    assert client_ip(["unix"])(request) == ("203.0.113.9" if known == "unix" else known)
    assert bool(caplog.records) == (known == "unix")


def test_a_unix_socket_is_a_proxy_only_when_named():
    request = scope(client=None, headers={"X-Forwarded-For": "203.0.113.9"})
    assert client_ip(OURS)(request) == "unix"
    assert client_ip([*OURS, "unix"])(request) == "203.0.113.9"


def test_wsgi_environs_are_read_alike():
    made = environ(client="10.0.0.1", headers={"X-Forwarded-For": "1.1.1.1, 203.0.113.9,10.0.0.7"})
    assert client_ip(OURS)(made) == "203.0.113.9"
    assert client_ip()(environ(client="")) == "unix"
    del made["REMOTE_ADDR"]
    assert client_ip()(made) == "unix"


@pytest.mark.parametrize("called", ["localhost", "<local>"])  # by waitress, by werkzeug
def test_a_unix_socket_is_named_unix_whatever_the_server_calls_it(called):
    made = environ(client=called, headers={"X-Forwarded-For": "203.0.113.9"})
    assert client_ip()(made) == "unix"
    assert client_ip(["unix"])(made) == "203.0.113.9"


def test_only_the_configured_header_is_read():
    request = scope(headers={"X-Forwarded-For": "1.1.1.1", "Forwarded": "for=2.2.2.2"}, client=("10.0.0.1", 1))
    assert client_ip(OURS)(request) == "1.1.1.1"
    assert client_ip(OURS, "forwarded")(request) == "2.2.2.2"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ('For="[2001:db8::1]:4711";proto=https, for=10.0.0.7', "2001:db8::/64"),
        ('for="203.0.113.9:80";by="a,b;c", for=10.0.0.7', "203.0.113.9"),
        ("for=1.1.1.1, for=unknown, for=10.0.0.7", "10.0.0.7"),
        ("for=1.1.1.1, for=_secret", "10.0.0.1"),
        ("for=1.1.1.1, proto=https", "10.0.0.1"),
        ("for=1.1.1.1;for=2.2.2.2", "10.0.0.1"),
        ('for="1.1.1.1', "10.0.0.1"),
        ("", "10.0.0.1"),
        (", for=203.0.113.9;proto=https", "203.0.113.9"),  # from a template, for a client that sent none
        ("for=203.0.113.9,, for=10.0.0.7 , ", "203.0.113.9"),
        ("for=1.1.1.1, ;for=203.0.113.9;;proto=http;", "203.0.113.9"),
        ("for=1.1.1.1, for=203.0.113.9 x", "10.0.0.1"),
        ("for=1.1.1.1, =", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_has_it(line, found):
    assert by_forwarded(line) == found


def test_a_quote_that_the_client_left_open_cannot_swallow_the_proxys_line():
    assert by_forwarded('for="1.1.1.1', "for=203.0.113.9") == "203.0.113.9"


def test_a_flood_of_hops_is_not_walked_to_its_end():
    assert by_xff(", ".join(["1.1.1.1"] + ["10.0.0.7"] * 40)) == "10.0.0.7"
    assert by_xff("1.1.1.1," + " " * 9000 + "10.0.0.7") == "10.0.0.1"


@pytest.mark.parametrize("bad", ["10.0.0.0/8", 5, [5], ["10.0.0.1/8"], ["example.com"], ["*"]])
def test_networks_that_are_none_are_refused(bad):
    with pytest.raises(ConfigurationError, match="trusted"):
        client_ip(bad)


def test_another_header_is_refused():
    with pytest.raises(ConfigurationError, match="header"):
        client_ip(OURS, "x-real-ip")


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
elements = st.one_of(addresses, st.sampled_from(["10.0.0.7", "fd00::1"]), st.text(max_size=12))


def naive(hops, peer):
    last = peer
    for hop in reversed(hops):
        try:
            address = ipaddress.ip_address(hop.strip(" \t").partition("%")[0])
        except ValueError:
            return last
        address = getattr(address, "ipv4_mapped", None) or address
        last = str(address)
        if address not in ipaddress.ip_network("10.0.0.0/8") and address not in ipaddress.ip_network("fd00::/8"):
            return last
    return last


@given(st.lists(addresses | st.sampled_from(["10.0.0.7", "fd00::1", "unknown"]), max_size=10))
def test_never_an_address_left_of_an_untrusted_hop(hops):
    expected = naive(hops, "10.0.0.1")
    if ":" in expected:
        expected = f"{ipaddress.ip_network((expected, 64), strict=False)}"
    assert by_xff(", ".join(hops)) == expected


@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_hostile_bytes_give_a_peer_or_an_address_and_never_an_error(lines, header):
    request = scope(client=("10.0.0.1", 1))
    request["headers"] = [(header.encode(), line) for line in lines]
    found = client_ip(OURS, header)(request)
    ipaddress.ip_network(found)
    tail = environ(client="10.0.0.1")
    tail[f"HTTP_{header.upper().replace('-', '_')}"] = ",".join(line.decode("latin-1") for line in lines)
    ipaddress.ip_network(client_ip(OURS, header)(tail))


@given(st.text(alphabet='for=",;[]: 1.\\x', max_size=40), st.ip_addresses(v=4).map(str))
def test_whatever_a_client_claims_the_line_of_the_proxy_decides(claimed, client):
    found = by_forwarded(claimed, f"for={client}")
    assert found == client or client.startswith("10.")


@pytest.mark.parametrize(
    ("hops", "lines", "found"),
    [
        (1, ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        (2, ["1.1.1.1, 203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        (2, ["1.1.1.1", "203.0.113.9", "10.0.0.7"], "203.0.113.9"),
        (3, ["203.0.113.9"], "203.0.113.9"),
        (3, ["1.1.1.1, unknown, 10.0.0.7"], "10.0.0.7"),
        (1, [], "192.0.2.1"),
        (40, ["1.1.1.1," + "10.0.0.7," * 40 + "10.0.0.8"], "10.0.0.7"),
    ],
)
def test_proxies_can_be_known_by_their_number(hops, lines, found):
    request = scope(headers=[("X-Forwarded-For", line) for line in lines], client=("192.0.2.1", 1))
    assert client_ip(hops=hops)(request) == found


@given(st.lists(addresses, min_size=1, max_size=6), st.lists(elements, max_size=6))
def test_whatever_a_client_claims_the_proxies_that_are_counted_decide(seen, claimed):
    # Each proxy has appended what it saw, the farthest first; what stands left of it is only claimed.
    client = seen[0]
    text = ", ".join([*[claim.replace(",", "") for claim in claimed], *seen])
    request = scope(client=("192.0.2.1", 1))
    request["headers"] = [(b"x-forwarded-for", text.encode("utf-8", "surrogatepass"))]
    assert client_ip(hops=len(seen))(request) == folded(client)


def test_proxies_are_known_by_number_or_by_address():
    with pytest.raises(ConfigurationError, match="hops"):
        client_ip(OURS, hops=1)
    with pytest.raises(ConfigurationError, match="hops"):
        client_ip(hops=0)
    counted = client_ip(hops=2)
    assert counted.behind(OURS) is counted
    assert repr(counted) == "client_ip(hops=2, header='x-forwarded-for')"


def test_clients_that_share_a_unix_socket_are_told_of_once(caplog):
    who = client_ip()
    for _ in range(3):
        assert who(scope(client=None)) == "unix"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert 'name "unix" in trusted' in caplog.text
    behind = client_ip(["unix"])
    assert behind(scope(client=None, headers={"X-Forwarded-For": "203.0.113.9"})) == "203.0.113.9"
    assert len(caplog.records) == 1
    assert behind(scope(client=None)) == "unix"
    assert len(caplog.records) == 2
