"""What operators set: `ANOMALY_VAE_*` environment variables, read once, validated, documented."""

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

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from anomaly_vae.errors import ConfigError

PREFIX = "ANOMALY_VAE_"
SCOPES = frozenset({"score", "metrics", "admin"})
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may do what: a client's name, its scopes and the SHA-256 (hexadecimal) of its key."""

    name: str
    scopes: frozenset[str]
    digest: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> ApiKey:
        """Read ``name:scopes:sha256hex``; scopes are joined by ``+``.

        Raises:
            ValueError: which part is wrong, never quoting the digest.
        """
        parts = text.strip().split(":")
        if len(parts) != 3 or not parts[0]:
            raise ValueError("each key must read name:scopes:sha256hex")
        name, scopes, digest = parts[0], frozenset(parts[1].split("+")), parts[2].lower()
        if scopes - SCOPES:
            raise ValueError(f"key '{name}': scopes are {', '.join(sorted(SCOPES))}, joined by +")
        if len(digest) != 64 or set(digest) - HEX:
            raise ValueError(f"key '{name}': expected 64 hexadecimal digits of SHA-256")
        return cls(name, scopes, digest)


def find_key(keys: Iterable[ApiKey], secret: bytes) -> ApiKey | None:
    """The entry of a key as it was sent; the time taken does not depend on how close it comes."""
    digest = hashlib.sha256(secret).hexdigest()
    matches = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return matches[0] if matches else None


def is_loopback(host: str) -> bool:
    """Whether a host, by address or by name, is this machine and no other can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse_keys(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(ApiKey.parse(part) for part in value.split(",") if part.strip())


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "anomaly-vae"


Keys = Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_parse_keys)]
Level = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """Limits, keys and times of the service."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    api_keys: Keys = Field(
        (), description="Who may call: `name:scopes:sha256hex`, comma-separated; scopes are "
        "`score`, `metrics` and `admin`, joined by `+`. Without keys the service listens on "
        "loopback only."
    )  # fmt: skip
    oidc_issuer: str = Field(
        "", description="The issuer whose bearer tokens are taken beside API keys, as tokens name "
        "it (`iss`); needs the extra `oidc`."
    )  # fmt: skip
    oidc_audience: str = Field("", description="What tokens must be meant for (`aud`).")
    oidc_jwks_url: str = Field("", description="Where the issuer's public keys are (JWKS).")
    oidc_scope_claim: str = Field(
        "scope", description="The claim that lists a token's scopes, as text or as a list."
    )
    oidc_scope_prefix: str = Field(
        "", description="What stands before `score`, `metrics` and `admin` in that claim."
    )
    oidc_refresh_seconds: float = Field(
        300.0, gt=0, description="Seconds after which the issuer's keys are fetched anew."
    )
    max_records: int = Field(
        10_000, ge=1, description="Records, files or images in one request; more are a 413."
    )
    max_contributions: int = Field(
        500_000, ge=1, description="Contributions worked out for one answer, explained records "
        "times features, or images times pixels; more are a 413."
    )  # fmt: skip
    max_heatmaps: int = Field(64, ge=1, description="Images drawn for one answer; more are a 413.")
    image_seconds: float = Field(
        60.0, gt=0, description="Seconds that the images of one request may take, checked between "
        "them; then it is a 413."
    )  # fmt: skip
    max_body_bytes: int = Field(
        16 * 1024**2, ge=1024, description="Bytes in one request's body; more are a 413."
    )
    max_concurrency: int = Field(
        128, ge=1, description="Scoring requests held at once in each worker process, being read, "
        "waiting or scored; more are a 429."
    )  # fmt: skip
    threads: int = Field(
        2, ge=1, description="Threads in each worker process that score images and large requests."
    )
    body_seconds: float = Field(
        30.0, gt=0, description="Seconds that a client may take to send a body; then it is a 408."
    )
    retry_after_seconds: int = Field(
        1, ge=1, description="What `Retry-After` says in a 429 or 503, in seconds."
    )
    drain_seconds: float = Field(
        1.0, ge=0, description="Seconds after SIGTERM in which readiness is 503 and requests are "
        "still taken; longer than a load balancer's probe interval."
    )  # fmt: skip
    grace_seconds: int = Field(
        30, ge=0, description="Seconds that requests under way get to finish, after those."
    )
    keep_alive_seconds: int = Field(
        75, ge=1, description="Seconds that an idle connection stays open."
    )
    cache_dir: Path = Field(
        default_factory=_cache_folder, description="Folder for models fetched from the registry."
    )
    fetch_seconds: float = Field(
        300.0, gt=0, description="Seconds that fetching a model from the registry may take."
    )
    max_queued: int = Field(
        32, ge=1, description="Requests that may wait for one of these threads in each worker "
        "process; more are a 429."
    )  # fmt: skip
    max_pending_bytes: int = Field(
        256 * 1024**2, ge=1024, description="Bytes of bodies held at once in each worker process, "
        "as declared or else as large as allowed; more are a 429."
    )  # fmt: skip
    max_connections: int = Field(
        2048, ge=1, description="Open connections in each worker process; another hears a 429 and "
        "is closed."
    )  # fmt: skip
    max_head_bytes: int = Field(
        32 * 1024, ge=1024, description="Bytes of a request's line and headers; more are a 431."
    )
    head_seconds: float = Field(
        10.0, gt=0, description="Seconds that a client may take to send the head of a request; "
        "then it is a 408 and the connection is closed."
    )  # fmt: skip
    rate_per_second: float = Field(
        0.0, ge=0, description="Requests a second that each API key may send, to all worker "
        "processes together; more are a 429. 0 is no limit."
    )  # fmt: skip
    rate_burst: int = Field(
        20, ge=1, description="Requests that an API key may send at once above that rate."
    )
    admin_port: int = Field(
        0, ge=0, le=65535, description="A second port, for `/metrics`, `/docs`, `/openapi.json` "
        "and `/-/…`, which the first then has no more. 0 is none."
    )  # fmt: skip
    reload_seconds: float = Field(
        60.0, ge=0, description="Seconds between looks at the registry for aliases that moved, "
        "give or take a fifth; 0 looks only when asked to."
    )  # fmt: skip
    webhook_secret: str | None = Field(
        None, min_length=16, repr=False, description="The secret that MLflow signs webhooks with; "
        "`POST /-/webhook` takes them where it is set."
    )  # fmt: skip
    shadow_bytes: int = Field(
        8 * 1024**2, ge=0, description="Bytes of request bodies that may wait for shadow models "
        "in each worker process; beyond them, shadows miss requests."
    )  # fmt: skip
    log_level: Level = Field(
        "info", description="Least level logged: `debug`, `info`, `warning` or `error`."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """An issuer needs an audience, and keys that nobody on the way can change."""
        if self.oidc_issuer and not (self.oidc_audience and self.oidc_jwks_url):
            raise ValueError("it needs ANOMALY_VAE_OIDC_AUDIENCE and ANOMALY_VAE_OIDC_JWKS_URL too")
        place = urlsplit(self.oidc_jwks_url)
        if self.oidc_jwks_url and place.scheme != "https" and not is_loopback(place.hostname or ""):
            raise ValueError("ANOMALY_VAE_OIDC_JWKS_URL must be an https address")
        return self

    @property
    def guarded(self) -> bool:
        """Whether a request must say who it is from."""
        return bool(self.api_keys or self.oidc_issuer)

    @property
    def retry(self) -> dict[str, str]:
        """The header that says when to come back."""
        return {"Retry-After": str(self.retry_after_seconds)}


def read_settings() -> Settings:
    """The settings of this process's environment.

    Raises:
        ConfigError: a variable that cannot be used, by its name.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        variable = PREFIX + str((first["loc"] or ("oidc_issuer",))[0]).upper()
        raise ConfigError(f"{variable}: {first['msg']}", key=variable) from None


class Documented(NamedTuple):
    """One variable for the documentation."""

    name: str
    default: str
    description: str


def documented() -> Iterator[Documented]:
    """Every variable with its default and what it does."""
    for name, info in Settings.model_fields.items():
        default = "~/.cache/anomaly-vae" if info.default_factory else info.default
        shown = "" if default in ((), None) else str(default)
        yield Documented(PREFIX + name.upper(), shown, info.description or "")
