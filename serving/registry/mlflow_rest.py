"""Which version an alias points to, asked over MLflow's REST interface with nothing of MLflow.

One GET. Credentials and certificates come from the variables that MLflow reads itself. What needs
more than these, such as signed requests or a database, is left to a process with MLflow in it.
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

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPResponse

ENDPOINT = "/api/2.0/mlflow/registered-models/alias"
ELSEWHERE = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
"""Ways to sign requests that only MLflow knows."""
MISSING = re.compile("RESOURCE_DOES_NOT_EXIST|alias .* not found", re.DOTALL)
MOST_BYTES = 1024 * 1024
TRUE = {"true", "1"}


class Tag(msgspec.Struct, frozen=True):
    """A tag of a version."""

    key: str
    value: str = ""


class ModelVersion(msgspec.Struct, frozen=True):
    """What the answer says of a version."""

    version: str
    tags: list[Tag] = []
    creation_timestamp: int | None = None

    @property
    def registered_at(self) -> float | None:
        """When it was registered, in seconds since 1970."""
        return self.creation_timestamp and self.creation_timestamp / 1000

    @property
    def digest(self) -> str | None:
        """Of its bundle, if it has one."""
        return next((tag.value for tag in self.tags if tag.key == DIGEST_TAG), None)


class Answer(msgspec.Struct, frozen=True):
    """The answer to `ENDPOINT`."""

    model_version: ModelVersion


def uri() -> str:
    """Where MLflow is."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def is_server() -> bool:
    """Whether it is a server that this module can ask."""
    elsewhere = any(os.environ.get(name, "").lower() not in {"", "false"} for name in ELSEWHERE)
    return uri().startswith(("http://", "https://")) and not elsewhere


def ask(name: str, alias: str, seconds: float) -> ModelVersion:
    """The version that an alias points to.

    Raises:
        RegistryError: the server cannot be reached in time or answers something else.
    """
    place = urlsplit(uri())
    shown = f"{place.hostname}:{place.port}" if place.port else str(place.hostname)
    try:
        status, content = _get(name, alias, seconds)
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise RegistryError(f"the registry at {shown} cannot be reached: {reason}") from None
    except ValueError as error:
        raise RegistryError(f"MLFLOW_TRACKING_URI cannot be used: {error}") from None
    if status != 200:
        raise _refused(f"models:/{name}@{alias}", shown, status, content)
    try:
        return msgspec.json.decode(content, type=Answer).model_version
    except msgspec.DecodeError:
        raise RegistryError(f"what answers at {shown} is no MLflow server") from None


def _refused(model: str, shown: str, status: int, content: bytes) -> RegistryError:
    if MISSING.search(content.decode(errors="replace")):
        return RegistryError(f"the registry at {shown} has no '{model}'", missing=True)
    remedy = {
        401: "; set MLFLOW_TRACKING_USERNAME and …_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        403: "; these credentials may not read it",
    }.get(status, "")
    return RegistryError(f"the registry at {shown} answered {status} to '{model}'{remedy}")


def _get(name: str, alias: str, seconds: float) -> tuple[int, bytes]:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

    class Stay(HTTPRedirectHandler):
        """Follow nothing: the credentials are for this server."""

        def redirect_request(self, *_: object, **__: object) -> None:
            return None

    query = urlencode({"name": name, "alias": alias})
    request = Request(f"{_without_user()}{ENDPOINT}?{query}", headers=dict(_headers()))  # noqa: S310  # http or https, see is_server
    opener = build_opener(Stay, HTTPSHandler(context=_certificates()))
    try:
        with opener.open(request, timeout=seconds) as answer:
            return answer.status, _read(answer, seconds)
    except HTTPError as error:
        with error:
            return error.code, error.read(MOST_BYTES)
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None


def _read(answer: HTTPResponse, seconds: float) -> bytes:
    content, deadline = bytearray(), time.monotonic() + seconds
    while part := answer.read1(65536):
        content += part
        if len(content) > MOST_BYTES or time.monotonic() > deadline:
            raise OSError("its answer is too long or too slow")
    return bytes(content)


def _without_user() -> str:
    place = urlsplit(uri())
    return place._replace(netloc=place.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _headers() -> Mapping[str, str]:
    headers = {"Accept": "application/json"}
    if workspace := os.environ.get("MLFLOW_WORKSPACE"):
        headers["X-MLFLOW-WORKSPACE"] = workspace
    place, (user, password) = urlsplit(uri()), _credentials()
    if place.username:
        user, password = unquote(place.username), unquote(place.password or "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {basic}"
    elif token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _credentials() -> tuple[str, str]:
    """The environment's, else those of MLflow's own file."""
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    file = Path.home() / ".mlflow" / "credentials"
    kept: Mapping[str, str] = {}
    if not all(os.environ.get(name) for name in names) and file.is_file():
        from configparser import ConfigParser

        parser = ConfigParser(interpolation=None)
        parser.read(file)
        kept = dict(parser["mlflow"]) if parser.has_section("mlflow") else {}
    user, password = (os.environ.get(name) or kept.get(name.lower()) or "" for name in names)
    return user, password


def _certificates() -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(
        cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None
    )
    if client := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(client)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in TRUE:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
