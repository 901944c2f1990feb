"""Addresses in any spelling: which mean this machine, what may be shown, what goes by a proxy."""

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manybeam.addresses import (
    LOOPBACKS,
    is_loopback,
    place_of,
    spare_loopback,
    trust_authorities,
    unreached_hint,
    url_of,
    without_password,
)
from manybeam.errors import InvalidSetting
from manybeam.settings import settings

PROXIES = [f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    "host", ["LOCALHOST", "localhost.", "127.1.2.3", "[::1]", "::1", "::ffff:127.0.0.1"]
)
def test_a_name_of_this_machine_is_known_in_any_spelling(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "localhost.lab", "127.0.0.1.lab", "lab"])
def test_no_other_name_is_taken_for_this_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        pytest.param("HTTP://Lab.:80/x", ("lab", 80), id="case and dot"),
        pytest.param("[::1]:8100", ("::1", 8100), id="ipv6"),
        pytest.param("LOCALHOST", ("localhost", None), id="host alone"),
        pytest.param("http://[::1", None, id="open bracket"),
        pytest.param("http://::1:8100", None, id="no brackets"),
        pytest.param("lab:x", None, id="port of letters"),
        pytest.param("lab:99999", None, id="large port"),
        pytest.param("me@lab", None, id="a user"),
        pytest.param("lab/path", None, id="a path"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_host_and_port_are_read_or_there_are_none(
    text: str, place: tuple[str, int | None] | None
) -> None:
    assert place_of(text) == place


@given(st.text(max_size=60))
def test_no_text_breaks_the_reading_of_an_address(text: str) -> None:
    place_of(text)
    without_password(text)


@given(st.sampled_from(["127.0.0.1", "::1", "lab.example.org"]), st.integers(1, 65535))
def test_a_url_gives_back_its_host_and_port(host: str, port: int) -> None:
    assert place_of(url_of(host, port)) == (host, port)


@given(st.text(string.ascii_letters + string.digits + "%:/?#", min_size=4))
def test_no_password_is_shown(secret: str) -> None:
    shown = without_password(f"postgresql://mlflow:{secret}@db:5432/zoo?sslmode=require")
    assert shown == "postgresql://mlflow:***@db:5432/zoo?sslmode=require"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        pytest.param("{db}/zoo?password={secret}", "{db}/zoo?password=***", id="query"),
        pytest.param(
            "{db}/zoo?a=1&sslpassword={secret}&b=2", "{db}/zoo?a=1&sslpassword=***&b=2", id="key"
        ),
        pytest.param("me:{secret}@{db}?password={secret}", "me:***@{db}?password=***", id="both"),
        pytest.param("me:x@{secret}@{db}/zoo", "me:***@{db}/zoo", id="two signs"),
        pytest.param("me:?password={secret}@{db}/zoo", "me:***@?password=***", id="like a query"),
        pytest.param("{db}:5432/zoo", "{db}:5432/zoo", id="none"),
    ],
)
def test_a_password_is_found_where_a_database_reads_it(url: str, shown: str) -> None:
    url, shown = (f"postgresql+psycopg://{one}" for one in (url, shown))
    told = without_password(url.format(db="db.lab", secret="tr/us?t"))
    assert told == shown.format(db="db.lab")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:tr/us?t@proxy.lab:3128", "http://me:***@proxy.lab:3128"),
        ("http://me:1234@proxy.lab:3128/a@b", "http://me:***@proxy.lab:3128/a@b"),
        ("http://proxy.lab:3128/a@b", "http://proxy.lab:3128/a@b"),
        ("http://[::1]:8100/a@b", "http://[::1]:8100/a@b"),
    ],
)
def test_a_port_is_no_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_server_of_this_machine_is_not_asked_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.lab:3128")
    monkeypatch.setenv("NO_PROXY", "store.lab")
    spare_loopback()
    for name in ("no_proxy", "NO_PROXY"):
        assert set(os.environ[name].split(",")) == {"store.lab", *LOOPBACKS}


def test_without_a_proxy_the_environment_stays_as_it_is() -> None:
    spare_loopback()
    assert "no_proxy" not in os.environ


def test_the_proxy_of_an_address_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.lab:3128")
    said = unreached_hint("http://store.lab:8333", "refused", "start it")
    assert "http://me:***@proxy.lab:3128 of http_proxy" in said
    assert "no_proxy=store.lab" in said
    assert unreached_hint("http://127.0.0.1:8333", "refused", "start it") == "start it"


def test_a_certificate_that_is_not_trusted_has_its_own_remedy() -> None:
    said = unreached_hint("https://store.lab", "InvalidCertificate(UnknownIssuer)", "start it")
    assert "MANYBEAM_CA_BUNDLE" in said


def test_one_setting_names_the_authorities_for_every_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, "/etc/ssl/other.pem")
    trust_authorities("")
    assert os.environ["SSL_CERT_FILE"] == "/etc/ssl/other.pem"
    trust_authorities("/lab/ca.pem")
    assert os.environ["SSL_CERT_FILE"] == os.environ["AWS_CA_BUNDLE"] == "/lab/ca.pem"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        pytest.param("SERVICE_URL", "http://::1:8100", r"http://\[::1\]:8100", id="ipv6"),
        pytest.param("TRACKING_URI", "http://[::1", "no host and port", id="bracket"),
        pytest.param("S3_ENDPOINT", "https://lab:x", "no host and port", id="port"),
        pytest.param("CA_BUNDLE", "/no/such.pem", "no file", id="bundle"),
    ],
)
def test_an_address_that_cannot_be_asked_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"MANYBEAM_{name}", value)
    settings.cache_clear()
    with pytest.raises(InvalidSetting, match=told):
        settings()
    monkeypatch.delenv(f"MANYBEAM_{name}")
    settings.cache_clear()
