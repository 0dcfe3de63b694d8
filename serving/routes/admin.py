"""Routes for those who run the service: look at the registry now, and be told by it to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from anomaly_vae.artifacts.registry_names import ALIAS_URI
from serving import openapi
from serving.http.admission import Deadlines
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
FRESH_SECONDS = 300
"""A signature this much older or younger than now is refused."""
SIGNATURE = ("x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id")
ENTITY = "model_version_alias"


class Event(msgspec.Struct, frozen=True):
    """What a webhook of MLflow says; of the data, the name of the model and its alias."""

    entity: str = ""
    data: dict[str, object] = {}


def add_routes(app: FastAPI, follower: Follower, settings: Settings) -> None:
    """Add them; the webhook only where there is a secret to sign it with."""

    @app.post(
        RELOAD, **openapi.post("Look at the registry now.", Reloads, FORBIDDEN, RELOAD_FAILED)
    )
    async def reload(request: Request) -> Response:
        _check_near(request, settings)
        found = await follower.reload()
        if failed := [one for one in found if one.outcome == "failed"]:
            raise ProblemError(RELOAD_FAILED, "; ".join(map(_described, failed)))
        return responses.response(Reloads(found))

    if not settings.webhook_secret:
        return
    secret, deadlines = settings.webhook_secret.encode(), Deadlines(settings.body_seconds)
    refusals = MALFORMED, UNSIGNED, TIMEOUT, TOO_LARGE

    @app.post(WEBHOOK, **openapi.webhook("What MLflow calls.", SIGNATURE, *refusals))
    async def webhook(request: Request) -> Response:
        requests.declared_size(request.scope[HEADERS], WEBHOOK_BYTES)
        body = await deadlines.keep(requests.read_body(request.receive, WEBHOOK_BYTES))
        check_signature(secret, request.headers, body, time.time())
        if concerns(body, follower):
            follower.schedule_check()
        return Response(status_code=202)


def _check_near(request: Request, settings: Settings) -> None:
    """Without keys, only this machine may ask."""
    client = request.client.host if request.client else "::1"
    if not settings.guarded and not is_loopback(client):
        detail = "without API keys, only this machine may; set ANOMALY_VAE_API_KEYS"
        raise ProblemError(FORBIDDEN, detail)


def _described(one: Reloaded) -> str:
    role = "shadow" if one.shadow else "model"
    keeps = f"version {one.version} keeps serving" if one.version else "nothing is in its place"
    return f"{role} '{one.name}': {one.detail}; {keeps}"


def check_signature(secret: bytes, headers: Mapping[str, str], body: bytes, now: float) -> None:
    """Refuse what MLflow did not sign just now.

    Raises:
        ProblemError: no signature, a wrong one, or one of another time.
    """
    given, stamp, delivery = (headers.get(name, "") for name in SIGNATURE)
    signed = b".".join([delivery.encode(), stamp.encode(), body])
    digest = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    if not hmac.compare_digest(given.encode(), f"v1,{digest}".encode()):
        raise ProblemError(UNSIGNED, "the signature is missing or wrong")
    if not stamp.isdecimal() or abs(now - int(stamp)) > FRESH_SECONDS:
        raise ProblemError(UNSIGNED, "the signature is of another time; check the clocks")


def concerns(body: bytes, follower: Follower) -> bool:
    """Whether an event moves an alias that is followed."""
    try:
        event = msgspec.json.decode(body, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(MALFORMED, f"not an event of MLflow: {error}") from None
    moved = event.data.get("name"), event.data.get("alias")
    matches = (ALIAS_URI.fullmatch(one.uri) for one in follower.followed)
    return event.entity == ENTITY and any(m and m.groups() == moved for m in matches)
