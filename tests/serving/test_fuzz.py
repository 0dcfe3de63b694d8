"""Good requests gone bad in thousands of ways: scored or refused, never a failure of the service.

Bits flip, stretches are lost, doubled, swapped with those of another request, or overwritten with
what parsers stumble over. What is drawn is the same in every run.
"""

import base64
import json
import struct
from collections import Counter

import numpy as np
import pytest

from serving.protocols.open_inference import HEADER_LENGTH
from tests.support.image_uploads import (
    BOUNDARY,
    FORM,
    dicom_file,
    form,
    nifti_file,
    part,
    tiff_file,
)
from tests.support.scans import blobs
from tests.support.scoring_ways import ways

REFUSALS = {400, 404, 405, 413, 415, 422}
STUMBLES = [
    b"\0", b"\xff\xff\xff\xff", b"NaN", b"Infinity", b"1e999", b"-0", b'"', b"\\ud800", b"{", b"]",
    b"9" * 400, b"null", b"[" * 2000, b"\r\n--" + BOUNDARY, b"--", b",,", b"\x7f\xff\xff\xff",
]  # fmt: skip
COUNTS = [150, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]


def mutated(content, others, random):
    """A copy with one to four things wrong."""
    bad = bytearray(content)
    for _ in range(random.integers(1, 5)):
        start, end = sorted(random.integers(0, len(bad) + 1, 2))
        end = min(end, start + 64)
        match random.integers(0, 6):
            case 0 if start < len(bad):
                bad[start] ^= 1 << int(random.integers(0, 8))
            case 1:
                del bad[start:end]
            case 2:
                bad[start:start] = bad[start:end]
            case 3:
                bad[start : start + 4] = STUMBLES[random.integers(0, len(STUMBLES))]
            case 4:
                other = others[random.integers(0, len(others))]
                bad[start:end] = other[start:end]
            case 5:
                del bad[end:]
    return bytes(bad)


def run(client, requests, count):
    """Post `count` mutants, in turn of each request; returns how often each status was answered."""
    random, seen = np.random.default_rng(0), Counter()
    contents = [content for _, _, content in requests]
    for number in range(count):
        path, headers, content = requests[number % len(requests)]
        bad = mutated(content, contents, random)
        response = client.post(path, content=bad, headers=headers)
        seen[response.status_code] += 1
        assert response.status_code in {200, *REFUSALS}, (path, headers, bad)
        if response.status_code != 200:
            problem = response.json()
            assert problem["status"] == response.status_code
            assert problem["detail"]
    assert client.get("/health/ready").status_code == 200
    return seen


def encoded(way, headers):
    return way.path, headers, json.dumps(way.body).encode()


def with_bytes():
    """A request of binary tensors."""
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"online", b"chip"))
    inputs = [
        {"name": "TX_AMOUNT", "shape": [2], "datatype": "FP64"},
        {"name": "TX_CHANNEL", "shape": [2, 1], "datatype": "BYTES"},
    ]
    for one, content in zip(inputs, (b"\0" * 16, texts), strict=True):
        one["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    return "/v2/models/fraud/infer", headers, head + np.array([1.5, np.nan]).tobytes() + texts


@pytest.mark.parametrize("count", COUNTS)
def test_bodies(client, records, count):
    record = {name: value for name, value in records[0].items() if name.startswith("TX")}
    media = {"Content-Type": "application/json"}
    requests = [encoded(way, media) for way in ways(1.5, None, 99.0).values()]
    whole = {"records": [record] * 3, "explain": 2}
    split = {"columns": list(record), "data": [list(record.values())] * 2}
    requests += [
        ("/score", media, json.dumps(whole).encode()),
        ("/invocations", media, json.dumps({"dataframe_split": split}).encode()),
        ("/invocations", media, json.dumps({"inputs": {"TX_AMOUNT": [1, 2]}}).encode()),
        ("/invocations", {"Content-Type": "text/csv"}, b'TX_AMOUNT,TX_CHANNEL\n1.5,"a"\n,chip\n'),
        with_bytes(),
    ]
    seen = run(client, requests, count)
    assert seen[200] > count // 50, "some are still good"
    assert seen[400] + seen[422] > count // 4


@pytest.mark.parametrize("count", COUNTS)
def test_images(scan_client, pngs, count):
    pictures = blobs(2, seed=3, size=40)
    files = [pngs[0], tiff_file(pictures), dicom_file(pictures), nifti_file(pictures)]
    octets = {"Content-Type": "application/octet-stream"}
    requests = [("/score?explain=1", octets, content) for content in files]
    requests.append(("/score?heatmap=png", FORM, form(*map(part, files))))
    text = base64.b64encode(pngs[0]).decode()
    media = {"Content-Type": "application/json"}
    one = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    requests += [
        ("/v2/models/scans/infer", media, json.dumps({"inputs": [one]}).encode()),
        ("/invocations", media, json.dumps({"instances": [{"image": text}]}).encode()),
    ]
    seen = run(scan_client, requests, count)
    assert seen[422] > count // 4
    assert seen[200]
