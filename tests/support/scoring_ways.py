"""Request scores through every protocol."""

import json
from dataclasses import dataclass

from tests.support.http_requests import JSON


@dataclass(frozen=True)
class Way:
    """A scoring route and a request body for it."""

    path: str
    body: object

    def post(self, client, content=None, headers=JSON):
        content = json.dumps(self.body).encode() if content is None else content
        return client.post(self.path, content=content, headers=headers)


def tensor(values):
    return {"name": "TX_AMOUNT", "shape": [len(values)], "datatype": "FP64", "data": values}


def ways(*amounts):
    """Return requests for the same records by protocol."""
    records = [{"TX_AMOUNT": amount} for amount in amounts]
    return {
        "score": Way("/score", {"records": records}),
        "by name": Way("/models/fraud/score", {"records": records}),
        "infer": Way("/v2/models/fraud/infer", {"inputs": [tensor(list(amounts))]}),
        "invocations": Way("/invocations", {"dataframe_records": records}),
    }
