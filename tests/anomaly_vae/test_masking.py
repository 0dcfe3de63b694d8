"""Passwords and tokens never leave the process, whatever quotes them."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest

from anomaly_vae import masking
from anomaly_vae.errors import RegistryError
from anomaly_vae.masking import masked, remember_address

PASSWORDS = (
    "s3cretPw",
    "p@ss:w/rd",
    "a%40b%2Fc",
    "sla/sh",
    "col:on",
    "it's\"quoted",
    "two words",
    "ünïcode",
)
SCHEMES = ("http", "https", "postgresql", "postgresql+psycopg2", "mysql", "foo", "s3", "sqlite+x")
HOSTS = ("127.0.0.1:5998", "db.example", "[::1]:5000")


@pytest.fixture(autouse=True)
def no_known_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_addresses", set())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("host", HOSTS)
def test_an_address_loses_its_user_and_keeps_its_host(scheme: str, host: str) -> None:
    for user in ("bob:s3cretPw", "s3cretPw", "bob:p@s3cretPw:x"):
        text = f"cannot reach '{scheme}://{user}@{host}/api/x?name=a@b' (try again)"
        assert masked(text) == f"cannot reach '{scheme}://{host}/api/x?name=a@b' (try again)"
    text = f"cannot reach '{scheme}://bob:s3cret/#?Pw@{host}/api' (try again)"
    assert masked(text) == f"cannot reach '{scheme}://{host}/api' (try again)"


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("known", ["environment", "configuration"])
def test_the_password_in_use_is_hidden_however_it_is_quoted(
    password: str, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://bob:{password}@db.example:5000/x"
    if known == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    else:
        remember_address(address)
    spellings = [password, quote(password), quote(password, safe=""), quote_plus(password)]
    for text in (address, repr(address), quote(address, safe=""), *spellings, f"port '{password}'"):
        shown = masked(f"invalid {text} here")
        assert not any(spelling in shown for spelling in spellings), shown
        assert shown.startswith("invalid ")
    assert "db.example:5000" in masked(f"at {address}")


def test_a_part_that_a_parser_takes_for_a_port_is_hidden() -> None:
    remember_address("http://bob:s3cret/Pw@host:5000")
    assert masked("Port could not be cast to integer value as 's3cret'") == (
        "Port could not be cast to integer value as '***'"
    )


def test_a_word_that_the_address_holds_in_public_too_is_no_secret() -> None:
    remember_address("postgresql+psycopg2://mlflow:mlflow@postgres/mlflow")
    assert masked("pip install mlflow") == "pip install mlflow"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/x?access_token=abc&b=1", "https://h/x?access_token=***&b=1"),
        ("https://b.s3/x?X-Amz-Signature=ab&X-Amz-Credential=cd",
         "https://b.s3/x?X-Amz-Signature=***&X-Amz-Credential=***"),
        ("https://a.blob/x?sv=1&sig=ab%3D&se=2", "https://a.blob/x?sv=1&sig=***&se=2"),
        ("host=h user=bob password=abc dbname=x", "host=h user=bob password=*** dbname=x"),
        ("{'Authorization': 'Basic Ym9iOng='}", "{'Authorization': 'Basic ***'}"),
        ("http%3A%2F%2Fbob%3As3cret%40h%2Fx%40y", "http%3A%2F%2Fh%2Fx%40y"),
        ("http%253A%252F%252Fbob%253As3%2540h", "http%253A%252F%252Fh"),
        ("a https://u:p@h:1, https://v:q@i:2 b", "a https://h:1, https://i:2 b"),
    ],
)  # fmt: skip
def test_tokens_are_hidden(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "models:/fraud@champion", "http://host:5000/api?name=fraud@champion",
        "s3://bucket/day@1/f.csv", "http://[::1]:5000/a@b", "column 'a@b': expected a number",
        "set MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN", "sigma=1, design=2, keys=3",
        "runs:/0123/bundle", "", "//server/share/a@b",
    ],
)  # fmt: skip
def test_other_text_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_secret_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0k3n-of-bob")
    monkeypatch.setenv("HTTPS_PROXY", "http://bob:pr0xyPw@proxy:3128")
    assert masked("sent t0k3n-of-bob by pr0xyPw") == "sent *** by ***"


def test_an_error_of_the_registry_is_masked_where_it_is_made() -> None:
    assert str(RegistryError("no http://bob:s3cret@h/x")) == "no http://h/x"


@pytest.mark.parametrize("unit", ["//a:b/", "pwd", "sig=", "%2F", "//", "authorization:", "a@"])
def test_long_text_is_masked_in_linear_time(unit: str) -> None:
    """A quadratic pattern would take minutes here and run into the timeout."""
    assert masked(unit * 50_000)
