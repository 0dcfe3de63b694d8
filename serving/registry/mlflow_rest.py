"""Ask an MLflow server which version an alias points to, without importing MLflow.

One GET request suffices. Credentials and certificates come from the environment variables that
MLflow itself reads. Other registries, such as a database or a server that needs signed requests,
are left to a child process with MLflow.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlencode, urlsplit

import msgspec

from anomaly_vae.artifacts.registry_names import DEFAULT_URI, DIGEST_TAG
from anomaly_vae.errors import RegistryError
from anomaly_vae.masking import remember_address

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPResponse

ENDPOINT = "/api/2.0/mlflow/registered-models/alias"
"""Path of the MLflow API that resolves an alias."""
SIGNING_VARIABLES = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
"""Environment variables for signed requests, which only MLflow can make."""
NOT_FOUND = re.compile("RESOURCE_DOES_NOT_EXIST|alias .* not found", re.DOTALL)
"""Pattern of the error responses to an unknown model or alias."""
MAX_RESPONSE_BYTES = 1024 * 1024
"""Maximum size of a response in bytes."""
TRUE_VALUES = {"true", "1"}


class Tag(msgspec.Struct, frozen=True):
    """A tag of a model version."""

    key: str
    value: str = ""


class ModelVersion(msgspec.Struct, frozen=True):
    """A version of a registered model."""

    version: str
    tags: list[Tag] = []
    creation_timestamp: int | None = None

    @property
    def registered_at(self) -> float | None:
        """Time of registration, in seconds since 1970."""
        return self.creation_timestamp and self.creation_timestamp / 1000

    @property
    def digest(self) -> str | None:
        """Digest of the version's bundle; None if the version has no such tag."""
        return next((tag.value for tag in self.tags if tag.key == DIGEST_TAG), None)


class AliasResponse(msgspec.Struct, frozen=True):
    """The response of `ENDPOINT`."""

    model_version: ModelVersion


def uri() -> str:
    """Return the tracking URI of MLflow."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def is_server() -> bool:
    """Return whether the registry is a server that this module can query."""
    flags = (os.environ.get(name, "").lower() for name in SIGNING_VARIABLES)
    is_signed = any(flag not in {"", "false"} for flag in flags)
    return uri().startswith(("http://", "https://")) and not is_signed


def resolve_alias(name: str, alias: str, seconds: float) -> ModelVersion:
    """Return the version that an alias points to.

    Raises:
        RegistryError: the server cannot be reached in time, or has no such alias.
    """
    remember_address(uri())
    host = _host()
    try:
        status, content = _get(name, alias, seconds)
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise RegistryError(f"the registry at {host} cannot be reached: {reason}") from None
    except ValueError as error:
        raise _unusable_address(error) from None
    if status != 200:
        raise _response_error(f"models:/{name}@{alias}", host, status, content)
    try:
        return msgspec.json.decode(content, type=AliasResponse).model_version
    except msgspec.DecodeError:
        raise RegistryError(f"the server at {host} is not an MLflow server") from None


def _host() -> str:
    """Return the host and port of the server.

    Raises:
        RegistryError: the tracking URI has none.
    """
    try:
        url = urlsplit(uri())
        return f"{url.hostname}:{url.port}" if url.port else str(url.hostname)
    except ValueError as error:
        raise _unusable_address(error) from None


def _unusable_address(error: ValueError) -> RegistryError:
    advice = "in a user name or password, write / as %2F, : as %3A and @ as %40"
    return RegistryError(f"MLFLOW_TRACKING_URI cannot be used: {error}; {advice}")


def _response_error(model: str, host: str, status: int, content: bytes) -> RegistryError:
    if NOT_FOUND.search(content.decode(errors="replace")):
        return RegistryError(f"the registry at {host} has no '{model}'", missing=True)
    remedy = {
        401: "; set MLFLOW_TRACKING_USERNAME and …_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        403: "; these credentials may not read it",
    }.get(status, "")
    return RegistryError(f"the registry at {host} answered {status} to '{model}'{remedy}")


def _get(name: str, alias: str, seconds: float) -> tuple[int, bytes]:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

    class NoRedirects(HTTPRedirectHandler):
        """A handler that follows no redirects, as the credentials are for this server only."""

        def redirect_request(self, *_: object, **__: object) -> None:
            return None

    query = urlencode({"name": name, "alias": alias})
    request = Request(f"{_without_user()}{ENDPOINT}?{query}", headers=dict(_headers()))  # noqa: S310  # http or https, see is_server
    opener = build_opener(NoRedirects, HTTPSHandler(context=_certificates()))
    try:
        with opener.open(request, timeout=seconds) as response:
            return response.status, _read(response, seconds)
    except HTTPError as error:
        with error:
            return error.code, error.read(MAX_RESPONSE_BYTES)
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None


def _read(response: HTTPResponse, seconds: float) -> bytes:
    content, deadline = bytearray(), time.monotonic() + seconds
    while part := response.read1(65536):
        content += part
        if len(content) > MAX_RESPONSE_BYTES or time.monotonic() > deadline:
            raise OSError("its response is too long or too slow")
    return bytes(content)


def _without_user() -> str:
    url = urlsplit(uri())
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _headers() -> Mapping[str, str]:
    headers = {"Accept": "application/json"}
    if workspace := os.environ.get("MLFLOW_WORKSPACE"):
        headers["X-MLFLOW-WORKSPACE"] = workspace
    url, (user, password) = urlsplit(uri()), _credentials()
    if url.username:
        user, password = unquote(url.username), unquote(url.password or "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {basic}"
    elif token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _credentials() -> tuple[str, str]:
    """Return user and password from the environment, or else from MLflow's credentials file."""
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    file = Path.home() / ".mlflow" / "credentials"
    stored: Mapping[str, str] = {}
    if not all(os.environ.get(name) for name in names) and file.is_file():
        from configparser import ConfigParser

        parser = ConfigParser(interpolation=None)
        parser.read(file)
        stored = dict(parser["mlflow"]) if parser.has_section("mlflow") else {}
    user, password = (os.environ.get(name) or stored.get(name.lower()) or "" for name in names)
    return user, password


def _certificates() -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(
        cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None
    )
    if client := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(client)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in TRUE_VALUES:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
