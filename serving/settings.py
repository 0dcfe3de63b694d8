"""Read the settings of the service from `ANOMALY_VAE_*` environment variables."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from anomaly_vae.errors import ConfigError
from anomaly_vae.features.store.opening import StoreOptions, open_backend, required_time
from anomaly_vae.review.case_maker import MIN_SALT

PREFIX = "ANOMALY_VAE_"
SCOPES = frozenset({"score", "metrics", "feedback", "review", "admin"})
DEFAULT_FOLDERS = {
    "cache_dir": "~/.cache/anomaly-vae",
    "cases_spool": "~/.local/state/anomaly-vae/cases",
}
"""Folders that depend on the user, as the documentation shows them."""
HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A client: its name, its scopes and the SHA-256 of its key, in hexadecimal."""

    name: str
    scopes: frozenset[str]
    digest: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> ApiKey:
        """Parse ``name:scopes:sha256hex``; scopes are joined by ``+``.

        Raises:
            ValueError: a part is wrong; the message names it and never quotes the digest.
        """
        parts = text.strip().split(":")
        if len(parts) != 3 or not parts[0]:
            raise ValueError("each key must read name:scopes:sha256hex")
        name, scopes, digest = parts[0], frozenset(parts[1].split("+")), parts[2].lower()
        if scopes - SCOPES:
            raise ValueError(f"key '{name}': scopes are {', '.join(sorted(SCOPES))}, joined by +")
        if len(digest) != 64 or set(digest) - HEX_DIGITS:
            raise ValueError(f"key '{name}': expected 64 hexadecimal digits of SHA-256")
        return cls(name, scopes, digest)


def find_key(keys: Iterable[ApiKey], secret: bytes) -> ApiKey | None:
    """Return the `ApiKey` of the secret that a client sent, comparing digests in constant time."""
    digest = hashlib.sha256(secret).hexdigest()
    matches = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return matches[0] if matches else None


def is_loopback(host: str) -> bool:
    """Return whether a host, by address or by name, is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse_keys(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(ApiKey.parse(part) for part in value.split(",") if part.strip())


def _parse_names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(name for part in value.split(",") if (name := part.strip()))


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _spool_folder() -> Path:
    root = os.environ.get("XDG_STATE_HOME")
    folder = Path(root) if root else Path.home() / ".local" / "state"
    return folder / "anomaly-vae" / "cases"


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "anomaly-vae"


Keys = Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_parse_keys)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_names)]
Level = Literal["debug", "info", "warning", "error"]
UnknownKeys = Literal["ignore", "refuse"]
WindowsDown = Literal["refuse", "missing"]
Count = Annotated[int, Field(ge=1)]
KibibyteOrMore = Annotated[int, Field(ge=1024)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _SettingError(ValueError):
    """Settings that contradict each other; ``setting`` is the one that a message names."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(reason)
        self.setting = setting


class Settings(BaseSettings):
    """The settings of the service; the text below each is its description in the documentation."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    api_keys: Keys = ()
    """API keys, comma-separated, each as `name:scopes:sha256hex`. Scopes are `score`, `metrics`,
    `feedback`, `review` and `admin`, joined by `+`. Without keys the service listens on loopback
    only."""
    oidc_issuer: str = ""
    """OpenID Connect issuer whose bearer tokens are accepted in addition to API keys, as in the
    claim `iss`. Needs the extra `oidc`."""
    oidc_audience: str = ""
    """Audience that tokens must name in the claim `aud`."""
    oidc_jwks_url: str = ""
    """URL of the issuer's public keys (JWKS)."""
    oidc_scope_claim: str = "scope"
    """Claim that lists the scopes of a token, as a text separated by spaces or as a list."""
    oidc_scope_prefix: str = ""
    """Prefix of `score`, `metrics`, `feedback`, `review` and `admin` in that claim."""
    oidc_client_id: str = ""
    """Client id of the console at the issuer, for sign-in there instead of by a key. Needs
    `ANOMALY_VAE_CONSOLE_URL`."""
    oidc_client_secret: str | None = Field(None, repr=False)
    """Secret of that client; empty for a public client."""
    oidc_refresh_seconds: PositiveFloat = 300.0
    """Seconds between two fetches of the issuer's keys."""
    max_records: Count = 10_000
    """Maximum number of records, files or images per request; more are refused with a 413."""
    unknown_keys: UnknownKeys = "ignore"
    """What happens to keys of records and requests, and to columns, that the model does not know:
    `ignore` names them in the answer, `refuse` refuses them with a 422."""
    max_contributions: Count = 500_000
    """Maximum number of contributions computed for a response (explained records times features, or
    images times pixels); more are refused with a 413."""
    max_heatmaps: Count = 64
    """Maximum number of heatmaps per response; more are refused with a 413."""
    image_seconds: PositiveFloat = 60.0
    """Maximum time for all images of a request in seconds, checked between images; a request that
    takes longer is refused with a 413."""
    max_body_bytes: KibibyteOrMore = 16 * 1024**2
    """Maximum size of a request body in bytes; a larger one is refused with a 413."""
    max_concurrency: Count = 128
    """Maximum number of scoring requests in progress per worker process; more are refused with a
    429."""
    threads: Count = 2
    """Number of threads per worker process that score images and large requests."""
    body_seconds: PositiveFloat = 30.0
    """Maximum time for a client to send a request body, in seconds; then it is refused with a
    408."""
    retry_after_seconds: Count = 1
    """Value of the header `Retry-After` in responses with status 429 and 503, in seconds."""
    drain_seconds: NonNegativeFloat = 1.0
    """Seconds after SIGTERM during which readiness fails but requests are still accepted. Should be
    longer than the interval of the load balancer's readiness probe."""
    grace_seconds: NonNegativeInt = 30
    """Seconds that requests in progress have to finish once the service stops accepting new
    ones."""
    keep_alive_seconds: Count = 75
    """Seconds after which an idle connection is closed."""
    cache_dir: Path = Field(default_factory=_cache_folder)
    """Folder of the models fetched from the registry."""
    fetch_seconds: PositiveFloat = 300.0
    """Maximum time to fetch a model from the registry, in seconds."""
    max_queued: Count = 32
    """Maximum number of requests per worker process that wait for one of `ANOMALY_VAE_THREADS`
    threads; more are refused with a 429."""
    max_pending_bytes: KibibyteOrMore = 256 * 1024**2
    """Maximum size of all request bodies in progress per worker process, in bytes; more are refused
    with a 429. A body of undeclared size counts as one of the maximum size."""
    max_connections: Count = 2048
    """Maximum number of open connections per worker process; further ones are refused with a 429
    and closed."""
    max_head_bytes: KibibyteOrMore = 32 * 1024
    """Maximum size of the request line and headers in bytes; larger ones are refused with a
    431."""
    head_seconds: PositiveFloat = 10.0
    """Maximum time for a client to send the request line and headers, in seconds; then the request
    is refused with a 408 and the connection closed."""
    rate_per_second: NonNegativeFloat = 0.0
    """Maximum number of requests per second of each API key, over all worker processes; more are
    refused with a 429. 0 disables the limit."""
    rate_burst: Count = 20
    """Number of requests that an API key may send at once in excess of
    `ANOMALY_VAE_RATE_PER_SECOND`."""
    admin_port: Port = 0
    """Second port for `/metrics`, `/docs`, `/openapi.json` and `/-/…`, which are then not available
    on the first port. 0 disables it."""
    reload_seconds: NonNegativeFloat = 60.0
    """Seconds between two checks of the registry for moved aliases, varied randomly by a fifth. 0
    disables periodic checks."""
    webhook: str = Field("", repr=False)
    """URL that is told of each new case ([Webhook](review.md#webhook)); https, or a loopback
    address. Needs `ANOMALY_VAE_CASES` and `ANOMALY_VAE_WEBHOOK_SECRET`."""
    webhook_insecure: bool = False
    """Whether `ANOMALY_VAE_WEBHOOK` may be an http address of another machine."""
    webhook_secret: str | None = Field(None, min_length=16, repr=False)
    """Secret that signs webhooks: those that `ANOMALY_VAE_WEBHOOK` receives, and those of MLflow;
    enables `POST /-/webhook`."""
    shadow_bytes: NonNegativeInt = 8 * 1024**2
    """Maximum size of all request bodies that wait for shadow models per worker process, in bytes;
    shadow models skip requests beyond that."""
    windows: str = Field("", repr=False)
    """URL of the store of past events for models with entity windows: `sqlite:///FILE`, shared by
    the worker processes of one machine, or `redis://HOST:PORT/0`, shared by several; empty: the
    file `anomaly-vae/windows.db` in `$XDG_STATE_HOME` or `~/.local/state`."""
    windows_salt: str | None = Field(None, min_length=16, repr=False)
    """Secret that is hashed with every entity, id and value in that store. A store that was written
    with another one is refused."""
    windows_filled_to: str = ""
    """Time, such as `2024-01-31T00:00`, or age, such as `2h`, up to which that store must have
    events before the service is ready; empty: it may be empty."""
    windows_down: WindowsDown = "refuse"
    """What happens while that store cannot be used: `refuse` answers scoring requests with a 503,
    `missing` scores without windows and says so in `warnings`."""
    windows_max_events: Count = 10_000
    """Maximum number of events kept of one entity; the oldest are dropped and counted."""
    windows_seconds: PositiveFloat = 0.5
    """Maximum time to wait for that store, in seconds."""
    labels: str = Field("", repr=False)
    """URL of the label store that `POST /feedback` writes to: `sqlite:///labels.db` or
    `postgresql://USER:PASSWORD@HOST/DATABASE`; empty: that of `ANOMALY_VAE_CASES`. Needs the extra
    `review`. Without either, `/feedback` answers 404."""
    cases: str = Field("", repr=False)
    """URL of the case store, to which flagged rows are written for review: `sqlite:///cases.db` or
    `postgresql://USER:PASSWORD@HOST/DATABASE`. Needs the extra `review`. Empty: no cases."""
    cases_days: NonNegativeFloat = 90.0
    """Age in days after which cases are deleted; their labels are kept. 0 keeps them."""
    cases_fields: Names = ()
    """Columns whose values cases keep, comma-separated; empty: those that the model reads."""
    cases_mask: Names = ()
    """Columns whose values cases keep as a digest only, comma-separated. Needs
    `ANOMALY_VAE_CASES_SALT`."""
    cases_salt: str = Field("", repr=False)
    """Secret that is hashed with every masked value, at least 16 characters."""
    cases_sample: Share = 0.0
    """Share of the rows that are not flagged of which cases are made too, at random, from 0 to
    1."""
    cases_entity: str = ""
    """Column with the entity of a row, such as a card; empty: `data.group` of the model, or the
    first entity with windows."""
    cases_amount: str = ""
    """Column by which the queue can be ordered; empty: `calibration.cost.amount` of the model, or
    the first column that windows sum up."""
    cases_images: Annotated[Path | None, BeforeValidator(_none_if_empty)] = None
    """Folder in which the scans of cases are kept, as PNG; empty: they are not."""
    cases_spool: Path = Field(default_factory=_spool_folder)
    """Folder in which cases wait while the store is down."""
    cases_spool_bytes: KibibyteOrMore = 64 * 1024**2
    """Maximum size of all cases that wait there, in bytes; further ones are dropped and counted."""
    console_url: str = ""
    """Address of the console in browsers, such as `https://scores.example/console`. Its cookies are
    sent over https only if it begins so."""
    console_hours: PositiveFloat = 10.0
    """Hours after which a reviewer signs in to the console again."""
    console_secret: str | None = Field(None, min_length=32, repr=False)
    """Secret that signs the sessions of the console; every machine that serves it needs the same.
    Empty: a random one in the file `anomaly-vae/console.key` in `$XDG_STATE_HOME` or
    `~/.local/state`."""
    console_results: str = ""
    """Folder below which the console opens results of batch runs; empty: it opens none."""
    log_level: Level = "info"
    """Lowest level that is logged: `debug`, `info`, `warning` or `error`."""

    @model_validator(mode="after")
    def _check_issuer(self) -> Self:
        """Require an audience, and keys that are fetched over https or from this machine."""
        if self.oidc_issuer and not (self.oidc_audience and self.oidc_jwks_url):
            raise ValueError("it needs ANOMALY_VAE_OIDC_AUDIENCE and ANOMALY_VAE_OIDC_JWKS_URL too")
        url = urlsplit(self.oidc_jwks_url)
        if self.oidc_jwks_url and url.scheme != "https" and not is_loopback(url.hostname or ""):
            raise ValueError("ANOMALY_VAE_OIDC_JWKS_URL must be an https address")
        return self

    @model_validator(mode="after")
    def _check_cases(self) -> Self:
        """Require a salt for masks, and a store, a secret and a safe address for the webhook."""
        if self.cases_mask and len(self.cases_salt) < MIN_SALT:
            raise _SettingError(
                "cases_mask", f"it needs {PREFIX}CASES_SALT, of {MIN_SALT}+ characters"
            )
        if self.webhook and not (self.cases and self.webhook_secret):
            raise _SettingError("webhook", f"it needs {PREFIX}CASES and {PREFIX}WEBHOOK_SECRET too")
        url = urlsplit(self.webhook)
        is_safe = url.scheme == "https" or self.webhook_insecure or is_loopback(url.hostname or "")
        if self.webhook and not (url.hostname and url.scheme in {"http", "https"} and is_safe):
            reason = f"expected an https address, or {PREFIX}WEBHOOK_INSECURE=true for http"
            raise _SettingError("webhook", reason)
        return self

    @field_validator("windows")
    @classmethod
    def _check_windows(cls, value: str) -> str:
        """Refuse a URL of another form, and one whose library is not installed, at the start."""
        open_backend(StoreOptions(value))
        return value

    @field_validator("windows_filled_to")
    @classmethod
    def _check_filled_to(cls, value: str) -> str:
        try:
            required_time(value or "1d", 0)
        except ValueError:
            reason = "expected a time such as 2024-01-31T00:00, or an age such as 2h"
            raise ValueError(reason) from None
        return value

    @property
    def label_store(self) -> str:
        """URL of the label store; that of the cases if no other is set."""
        return self.labels or self.cases

    @property
    def requires_auth(self) -> bool:
        """Whether requests need an API key or a token."""
        return bool(self.api_keys or self.oidc_issuer)

    @property
    def retry_headers(self) -> dict[str, str]:
        """The header `Retry-After` of responses that ask a client to come back later."""
        return {"Retry-After": str(self.retry_after_seconds)}


def read_settings() -> Settings:
    """Read the settings from the environment of this process.

    Raises:
        ConfigError: a variable is invalid; the message names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        setting = cause.setting if isinstance(cause, _SettingError) else "oidc_issuer"
        variable = PREFIX + str((first["loc"] or (setting,))[0]).upper()
        raise ConfigError(f"{variable}: {first['msg']}", key=variable) from None


class SettingDescription(NamedTuple):
    """The name, default and description of an environment variable, for the documentation."""

    name: str
    default: str
    description: str


def describe_settings() -> Iterator[SettingDescription]:
    """Describe every environment variable of the service."""
    for name, info in Settings.model_fields.items():
        default = DEFAULT_FOLDERS.get(name, info.default)
        shown = "" if default in ((), None) else str(default)
        text = " ".join((info.description or "").split())
        yield SettingDescription(PREFIX + name.upper(), shown, text)
