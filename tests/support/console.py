"""Visit the console as reviewers do, with and without a browser."""

from __future__ import annotations

import hashlib
import html
import re
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient

from serving.app import create_app
from serving.models.store import ServedModel, Store
from serving.settings import ApiKey, Settings
from tests.support.scoring_service import close_stores

SECRETS = {"alice": "alice-key", "bob": "bob-key", "shop": "shop-key"}
"""Keys of two reviewers, and of a client that only scores."""
TOKEN = re.compile(r'name="form_token" value="([0-9a-f]+)"')


def key_of(name: str, *scopes: str) -> ApiKey:
    """Return the key of a reviewer."""
    digest = hashlib.sha256(SECRETS[name].encode()).hexdigest()
    return ApiKey(name, frozenset(scopes or ("review",)), digest)


KEYS = (key_of("alice"), key_of("bob", "review", "admin"), key_of("shop", "score"))
"""Keys of a reviewer, of an administrator who reviews, and of a client."""


class Visitor:
    """A browser without scripts, which keeps cookies and sends the tokens of forms."""

    def __init__(self, app: Starlette, name: str = "", origin: str = "http://localhost") -> None:
        self.client = TestClient(
            app, base_url=origin, client=("127.0.0.1", 50_000), follow_redirects=False,
            raise_server_exceptions=False,
        )  # fmt: skip
        if name:
            answer = self.post("/sign-in", key=SECRETS[name])
            assert answer.status_code == 303, answer.text

    def get(self, path: str = "", **options: Any) -> Any:
        """Open a page of the console."""
        return self.client.get(f"/console{path}", **options)

    def text(self, path: str = "") -> str:
        """Return a page, without entities."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return html.unescape(answer.text)

    @property
    def token(self) -> str:
        """The token of the forms of the session."""
        found = TOKEN.search(self.get("/sign-in").text)
        assert found
        return found[1]

    def post(self, path: str, *, fragment: bool = False, files: Any = None, **fields: Any) -> Any:
        """Send a form."""
        headers = {"X-Fragment": "1"} if fragment else {}
        data = {"form_token": self.token, **fields}
        return self.client.post(f"/console{path}", data=data, headers=headers, files=files)

    def decide(self, number: int, verdict: str, **fields: Any) -> Any:
        """Send a verdict on a case."""
        return self.post(f"/cases/{number}/verdict", verdict=verdict, **fields)


class Service:
    """An application with a case store, and its visitors."""

    def __init__(self, models: list[ServedModel], folder: Any, **settings: Any) -> None:
        options = {"cases": f"sqlite:///{folder}/cases.db", "console_secret": "s" * 32}
        self.app = create_app(Store(models), Settings(**(options | settings)))
        self.cases = self.app.state.console.cases
        self.visitors: list[Visitor] = []

    def visitor(self, name: str = "", origin: str = "http://localhost") -> Visitor:
        """Return a visitor, who is signed in if a name is given."""
        self.visitors.append(Visitor(self.app, name, origin))
        return self.visitors[-1]

    def close(self) -> None:
        """Close the visitors and the stores."""
        for visitor in self.visitors:
            visitor.client.close()
        close_stores(self.app)
