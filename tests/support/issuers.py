"""An issuer of tokens whose public keys are served on loopback."""

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE, ISSUER = "anomaly-vae", "https://issuer.example"
MAKERS = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class Issuer:
    """Signs tokens, serves their public keys and signs people in; `seen` counts the fetches.

    `signed_in` are the claims of the person who signs in.
    """

    def __init__(self):
        self.keys = {name: make() for name, make in MAKERS.items()}
        self.seen, self.away = 0, False
        self.signed_in, self.challenges = {}, {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.seen += 1
                found = self.path.endswith("/.well-known/openid-configuration")
                self.answer(issuer.endpoints() if found else issuer.published())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = issuer.exchange(dict(parse_qsl(body.decode())))
                self.answer(answer or {"error": "invalid_grant"}, 200 if answer else 400)

            def answer(self, content, status=200):
                self.send_response(503 if issuer.away else status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.url = f"{self.base}/keys"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def published(self):
        """The public keys, and a shared secret that must never verify a token."""
        shared = {"kty": "oct", "kid": "shared", "alg": "HS256", "k": "c2VjcmV0" * 8}
        return {"keys": [shared, *(self.public(name) for name in self.keys)]}

    def public(self, name):
        algorithm = jwt.get_algorithm_by_name(name.partition(" ")[0])
        jwk = json.loads(algorithm.to_jwk(self.keys[name].public_key()))
        return {**jwk, "kid": name, "alg": name.partition(" ")[0]}

    def token(self, name="RS256", algorithm=None, key=None, kid=None, **claims):
        now = int(time.time())
        whole = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "scope": "score", "sub": "joe"}
        whole = {claim: value for claim, value in {**whole, **claims}.items() if value is not None}
        return jwt.encode(
            whole,
            key or self.keys[name],
            algorithm or name.partition(" ")[0],
            headers={"kid": kid or name},
        )

    def endpoints(self):
        return {
            "issuer": self.base,
            "authorization_endpoint": f"{self.base}/authorize?tenant=1",
            "token_endpoint": f"{self.base}/token",
        }

    def authorize(self, address):
        """What a browser does at the issuer: return a code for the challenge."""
        query = dict(parse_qsl(urlsplit(address).query))
        code = f"code-{len(self.challenges)}"
        self.challenges[code] = query
        return query, code

    def exchange(self, form):
        query = self.challenges.pop(form.get("code"), None)
        if not query:
            return None
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        same = ("client_id", "redirect_uri")
        if challenge != query["code_challenge"] or any(form[n] != query[n] for n in same):
            return None
        return {"access_token": self.token(**self.signed_in), "token_type": "Bearer"}
