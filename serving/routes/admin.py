"""Check the registry at the request of an administrator or an MLflow webhook."""

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
"""Maximum size of an event, in bytes."""
MAX_CLOCK_DIFFERENCE_SECONDS = 300
"""Maximum difference between the time of a signature and now, in seconds, in either direction."""
SIGNATURE_HEADERS = ("x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id")
"""Headers with the signature of an event, its time, and the id of its delivery."""
ALIAS_ENTITY = "model_version_alias"
"""Entity of the events about aliases."""


class Event(msgspec.Struct, frozen=True):
    """An event of MLflow; ``data`` holds the name of the model and the alias."""

    entity: str = ""
    data: dict[str, object] = {}


def routes(follower: Follower, settings: Settings) -> list[DocumentedRoute]:
    """Create the routes; the webhook exists only if a secret is configured."""
    created = [_reload_route(follower, settings)]
    if settings.webhook_secret:
        created.append(_webhook_route(follower, settings, settings.webhook_secret.encode()))
    return created


def _reload_route(follower: Follower, settings: Settings) -> DocumentedRoute:
    async def reload_models(request: Request) -> Response:
        _check_local(request, settings)
        reloaded = await follower.reload()
        if failed := [model for model in reloaded if model.outcome == "failed"]:
            raise ProblemError(RELOAD_FAILED, "; ".join(map(_describe_failure, failed)))
        return responses.response(Reloads(reloaded))

    errors = FORBIDDEN, RELOAD_FAILED
    return json_route("POST", RELOAD, reload_models, "Check the registry now.", Reloads, *errors)


def _webhook_route(follower: Follower, settings: Settings, secret: bytes) -> DocumentedRoute:
    deadlines = Deadlines(settings.body_seconds)

    async def receive_event(request: Request) -> Response:
        requests.declared_size(request.scope[HEADERS], WEBHOOK_BYTES)
        body = await deadlines.enforce(requests.read_body(request.receive, WEBHOOK_BYTES))
        check_signature(secret, request.headers, body, time.time())
        if moves_followed_alias(body, follower):
            follower.schedule_check()
        return Response(status_code=202)

    errors = MALFORMED, UNSIGNED, TIMEOUT, TOO_LARGE
    return webhook_route(
        WEBHOOK, receive_event, "Receive an event of MLflow.", SIGNATURE_HEADERS, *errors
    )


def _check_local(request: Request, settings: Settings) -> None:
    """Refuse requests from other machines if there are no API keys."""
    client = request.client.host if request.client else "::1"
    if not settings.requires_auth and not is_loopback(client):
        detail = "without API keys, only this machine may do this; set ANOMALY_VAE_API_KEYS"
        raise ProblemError(FORBIDDEN, detail)


def _describe_failure(model: Reloaded) -> str:
    role = "shadow" if model.shadow else "model"
    loaded = f"version {model.version} keeps serving" if model.version else "no version is loaded"
    return f"{role} '{model.name}': {model.detail}; {loaded}"


def check_signature(secret: bytes, headers: Mapping[str, str], body: bytes, now: float) -> None:
    """Check that MLflow signed a body recently.

    Raises:
        ProblemError: the signature is missing, wrong or too far from the present time.
    """
    signature, timestamp, delivery_id = (headers.get(name, "") for name in SIGNATURE_HEADERS)
    signed = b".".join([delivery_id.encode(), timestamp.encode(), body])
    digest = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    if not hmac.compare_digest(signature.encode(), f"v1,{digest}".encode()):
        raise ProblemError(UNSIGNED, "the signature is missing or wrong")
    if not timestamp.isdecimal() or abs(now - int(timestamp)) > MAX_CLOCK_DIFFERENCE_SECONDS:
        raise ProblemError(UNSIGNED, "the signature is too old or too new; check the clocks")


def moves_followed_alias(body: bytes, follower: Follower) -> bool:
    """Return whether an event moves an alias that the service follows."""
    try:
        event = msgspec.json.decode(body, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(MALFORMED, f"not an event of MLflow: {error}") from None
    moved = event.data.get("name"), event.data.get("alias")
    matches = (ALIAS_URI.fullmatch(model.uri) for model in follower.followed)
    return event.entity == ALIAS_ENTITY and any(m and m.groups() == moved for m in matches)
