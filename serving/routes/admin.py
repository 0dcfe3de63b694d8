"""Check the registry on request: from an administrator, or from a webhook of MLflow."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from anomaly_vae.artifacts.registry_names import ALIAS_URI
from serving.http.admission import Deadlines
from serving.openapi import DocumentedRoute, json_route, webhook_route
from serving.paths import HEADERS
from serving.problems import (
    FORBIDDEN,
    MALFORMED,
    RELOAD_FAILED,
    TIMEOUT,
    TOO_LARGE,
    UNSIGNED,
    ProblemError,
)
from serving.registry.follower import Follower, Reloaded, Reloads
from serving.scoring import requests, responses
from serving.settings import Settings, is_loopback

RELOAD, WEBHOOK = "/-/reload", "/-/webhook"
WEBHOOK_BYTES = 256 * 1024
"""Maximum size of an event."""
FRESH_SECONDS = 300
"""Maximum age of a signature, in seconds; a later one may be as far in the future."""
SIGNATURE = ("x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id")
ENTITY = "model_version_alias"


class Event(msgspec.Struct, frozen=True):
    """An event of MLflow; ``data`` holds the name of the model and the alias."""

    entity: str = ""
    data: dict[str, object] = {}


def routes(follower: Follower, settings: Settings) -> list[DocumentedRoute]:
    """Create the routes; the webhook needs a secret that it is signed with."""
    created = [_reload_route(follower, settings)]
    if settings.webhook_secret:
        created.append(_webhook_route(follower, settings, settings.webhook_secret.encode()))
    return created


def _reload_route(follower: Follower, settings: Settings) -> DocumentedRoute:
    async def reload(request: Request) -> Response:
        _check_local(request, settings)
        reloaded = await follower.reload()
        if failed := [one for one in reloaded if one.outcome == "failed"]:
            raise ProblemError(RELOAD_FAILED, "; ".join(map(_describe_failure, failed)))
        return responses.response(Reloads(reloaded))

    errors = FORBIDDEN, RELOAD_FAILED
    return json_route("POST", RELOAD, reload, "Check the registry now.", Reloads, *errors)


def _webhook_route(follower: Follower, settings: Settings, secret: bytes) -> DocumentedRoute:
    deadlines = Deadlines(settings.body_seconds)

    async def webhook(request: Request) -> Response:
        requests.declared_size(request.scope[HEADERS], WEBHOOK_BYTES)
        body = await deadlines.keep(requests.read_body(request.receive, WEBHOOK_BYTES))
        check_signature(secret, request.headers, body, time.time())
        if concerns(body, follower):
            follower.schedule_check()
        return Response(status_code=202)

    errors = MALFORMED, UNSIGNED, TIMEOUT, TOO_LARGE
    return webhook_route(WEBHOOK, webhook, "Receive an event of MLflow.", SIGNATURE, *errors)


def _check_local(request: Request, settings: Settings) -> None:
    """Refuse other machines where there are no API keys."""
    client = request.client.host if request.client else "::1"
    if not settings.guarded and not is_loopback(client):
        detail = "without API keys, only this machine may; set ANOMALY_VAE_API_KEYS"
        raise ProblemError(FORBIDDEN, detail)


def _describe_failure(one: Reloaded) -> str:
    role = "shadow" if one.shadow else "model"
    keeps = f"version {one.version} keeps serving" if one.version else "nothing is in its place"
    return f"{role} '{one.name}': {one.detail}; {keeps}"


def check_signature(secret: bytes, headers: Mapping[str, str], body: bytes, now: float) -> None:
    """Check that MLflow signed a body, and did so just now.

    Raises:
        ProblemError: the signature is missing, wrong or too old.
    """
    given, stamp, delivery = (headers.get(name, "") for name in SIGNATURE)
    signed = b".".join([delivery.encode(), stamp.encode(), body])
    digest = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    if not hmac.compare_digest(given.encode(), f"v1,{digest}".encode()):
        raise ProblemError(UNSIGNED, "the signature is missing or wrong")
    if not stamp.isdecimal() or abs(now - int(stamp)) > FRESH_SECONDS:
        raise ProblemError(UNSIGNED, "the signature is of another time; check the clocks")


def concerns(body: bytes, follower: Follower) -> bool:
    """Return whether an event moves an alias that is followed."""
    try:
        event = msgspec.json.decode(body, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(MALFORMED, f"not an event of MLflow: {error}") from None
    moved = event.data.get("name"), event.data.get("alias")
    matches = (ALIAS_URI.fullmatch(one.uri) for one in follower.followed)
    return event.entity == ENTITY and any(m and m.groups() == moved for m in matches)
