"""Whatever is sent to a model of images, the answer is a problem that names what is wrong."""

import gzip
import itertools
import json
import logging
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from anomaly_vae.images.pixels import DecodeFailure
from serving.app import create_app
from serving.models.store import Store
from serving.problems import ProblemError
from serving.scoring.images import served as images
from serving.scoring.images.uploads import (
    MULTIPART,
    RAW,
    ImageOptions,
    boundary_of,
    image_options,
    split_files,
)
from serving.settings import Settings
from tests.support import image_uploads
from tests.support.http_requests import refused
from tests.support.image_uploads import FORM, form, part
from tests.support.scans import blobs

PNG = {"Content-Type": "image/png"}
GOOD = image_uploads.image_file(blobs(1)[0])
FLAT = image_uploads.image_file(np.full((9, 9), 7, np.uint8))


def post(client, body, headers=FORM, query=""):
    return client.post("/score" + query, content=body, headers=headers)


def upload(client, *contents, query=""):
    return client.post("/score" + query, files=image_uploads.uploads(contents))


def outcome(function, *args):
    """What it gives, or the status of its refusal."""
    try:
        return function(*args)
    except ProblemError as problem:
        return problem.kind.status


# ---------------------------------------------------------------- forms


def test_files_come_out_as_they_went_in(scan_client):
    contents = [
        b"",
        b"\r\n",
        b"--B",
        b"\r\n--",
        b"\r\n--A\r\n",
        b"\r" * 99,
        bytes(range(256)) * 300,
    ]
    assert split_files(form(*map(part, contents)), b"B", 99) == contents


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.binary(max_size=9))
def test_any_content_comes_out_as_it_went_in(contents, more):
    boundary = b"a boundary that is in no content"
    body = b"".join(
        b'--%b\r\nContent-Disposition: form-data; name="files"; filename="%d"\r\n\r\n%b\r\n'
        % (boundary, number, content)
        for number, content in enumerate(contents)
    )
    body += b"--%b--%b" % (boundary, more)  # what follows the last boundary means nothing
    assert split_files(body, boundary, len(contents)) == contents


def test_a_body_that_is_no_form_is_one_file():
    assert split_files(b"anything", None, 1) == [b"anything"]


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="files"; filename="a.png"',
        b'form-data; name="files"',
        b"form-data; name=files",
        b'form-data; filename=""; name="files"',
        b'form-data; name="files"; filename="' + b"x" * 2000 + b'"',
    ],
    ids=lambda disposition: disposition[:50].decode(),
)
def test_the_name_of_the_field_counts_and_no_other(scan_client, disposition):
    response = post(scan_client, form(part(GOOD, disposition)))
    assert len(response.json()["results"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "slug", "said"),
    [
        (b"", 400, "malformed", "before its last boundary"),
        (b"nonsense", 400, "malformed", "boundary"),
        (b"--C\r\n\r\n", 400, "malformed", "boundary"),
        (part(GOOD), 400, "malformed", "before its last boundary"),
        (form(part(GOOD))[:-5], 400, "malformed", "before its last boundary"),
        (form(b"--B\r\nno colon\r\n\r\nx\r\n"), 400, "malformed", "header"),
        (form(b"--B\r\n: empty\r\n\r\nx\r\n"), 400, "malformed", "header"),
        (form(part(GOOD, b"x" * 5000)), 400, "malformed", "header"),
        (form(b"--B\r\n" + b"A: b\r\n" * 99 + b"\r\nx\r\n"), 400, "malformed", "header"),
        (form(), 422, "invalid-request", "send at least one image"),
        (form(b"--B\r\n\r\nx\r\n"), 422, "invalid-request", "part 0"),
        (form(part(GOOD), part(b"3", b'form-data; name="explain"')), 422, "invalid-request",
         "part 1"),
        (form(part(GOOD, b'form-data; name="file"')), 422, "invalid-request", "called 'files'"),
        (form(part(GOOD, b'form-data; filename="files"')), 422, "invalid-request", "part 0"),
        (form(part(GOOD, b"")), 422, "invalid-request", "part 0"),
    ],
)  # fmt: skip
def test_forms_that_cannot_be_read(scan_client, body, status, slug, said):
    assert said in refused(post(scan_client, body), status, slug)["detail"]


@pytest.mark.parametrize(
    "media",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; border=B",
    ],
)
def test_a_form_without_a_boundary(scan_client, media):
    response = post(scan_client, form(part(GOOD)), {"Content-Type": media})
    assert "boundary" in refused(response, 400, "malformed")["detail"]


@pytest.mark.parametrize(
    "media",
    ["Multipart/Form-Data; Boundary=B", 'multipart/form-data; charset=utf-8; boundary="B"'],
)
def test_forms_however_they_are_spelled(scan_client, media):
    response = post(scan_client, form(part(GOOD)), {"Content-Type": media})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("media", ["IMAGE/PNG", "image/png; charset=x", " image/png "])
def test_types_however_they_are_spelled(scan_client, media):
    assert post(scan_client, GOOD, {"Content-Type": media}).status_code == 200


# ---------------------------------------------------------------- other types


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/mixed; boundary=B"},
        {"Content-Type": "image/svg+xml"},
        {"Content-Type": b"\xff\xfe"},
    ],
)
def test_what_is_no_image_hears_what_to_send(scan_client, headers):
    response = post(scan_client, b'{"records": [{}]}', headers)
    detail = refused(response, 415, "unsupported-media-type")["detail"]
    assert "as 'files' in multipart/form-data" in detail
    assert response.headers["accept"] == ", ".join([MULTIPART, *RAW])


def test_a_body_that_is_compressed_as_a_whole(scan_client):
    response = post(scan_client, gzip.compress(GOOD), {**PNG, "Content-Encoding": "gzip"})
    refused(response, 415, "unsupported-media-type")


@pytest.mark.parametrize("headers", [FORM, PNG])
def test_images_to_a_model_of_tables_hear_what_to_send(client, headers):
    response = post(client, form(part(GOOD)), headers)
    detail = refused(response, 415, "unsupported-media-type")["detail"]
    assert "scores records: send 'Content-Type: application/json'" in detail
    assert response.headers["accept"] == "application/json"


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        (b"", ImageOptions()),
        (b"explain=0", ImageOptions()),
        (b"explain=7", ImageOptions(7)),
        (b"explain=7.0", ImageOptions(7)),
        (b"explain=all&heatmap=png", ImageOptions(None, True)),
        (b"heatmap=%70ng", ImageOptions(0, True)),
        (b"&&explain=2&", ImageOptions(2)),
        (b"group=patient", ImageOptions(group="patient")),
    ],
)
def test_options(query, asked):
    assert image_options(query) == asked


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("explain=-1", "whole number"),
        ("explain=1.5", "whole number"),
        ("explain=1e3", "whole number"),
        ("explain=", "whole number"),
        ("explain", "whole number"),
        ("explain=ALL", "whole number"),
        ("explain=" + "9" * 5000, "whole number"),
        ("explain=%D9%A3", "whole number"),
        ("explain=1%0A", "whole number"),
        ("explain=1&explain=2", "once"),
        ("heatmap=jpeg", "'png'"),
        ("heatmap=", "'png'"),
        ("heatmap=png&fast=1", "no parameter 'fast'"),
        ("%FF%FE=1", "no parameter"),
        ("x" * 3000, "no parameter"),
    ],
)
def test_options_that_there_are_not(scan_client, query, said):
    problem = refused(upload(scan_client, GOOD, query=f"?{query}"), 422, "invalid-request")
    assert said in problem["detail"]
    assert len(problem["detail"]) < 300


@given(st.binary(max_size=60))
def test_any_query_is_read_or_refused(query):
    asked = outcome(image_options, query)
    assert isinstance(asked, ImageOptions) or asked == 422


# ---------------------------------------------------------------- images


TIFF = image_uploads.tiff_file([blobs(1)[0], np.full((9, 9), 7, np.uint8), blobs(1)[0]])
NIFTI = image_uploads.nifti_file(blobs(3))
BOMB = gzip.compress(gzip.decompress(NIFTI)[:352] + bytes(1 << 25), 9)
BAD = {
    "nothing": (b"", "empty"),
    "text": (b"this is no image", "it is text and no image"),
    "pdf": (b"%PDF-1.7" + bytes(50), "it is a PDF document and no image"),
    "constant": (FLAT, "shows nothing"),
    "cut short": (GOOD[: len(GOOD) // 2], ""),
    "huge header": (image_uploads.png_of(60_000, 60_000, bytes(99)), "pixels"),
    "huge side": (image_uploads.png_of(2**31 - 1, 1, b""), "pixels"),
    "no pixels": (image_uploads.png_of(0, 0, b""), ""),
    "too little data": (image_uploads.png_of(50, 50, bytes(99)), ""),
    "too much data": (image_uploads.png_of(2, 2, bytes(1 << 24)), ""),
    "gzip of text": (gzip.compress(b"nothing of use"), ""),
    "cut gzip": (NIFTI[:-20], ""),
    "dicom of nothing": (bytes(128) + b"DICM", ""),
    "cut dicom": (image_uploads.dicom_file(blobs(2))[:-99], ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_image_that_cannot_be_used(scan_client, kind):
    content, said = BAD[kind]
    good, *bad = upload(scan_client, GOOD, content).json()["results"]
    assert [good] == upload(scan_client, GOOD).json()["results"]
    assert {result["file"] for result in bad} == {1}
    (alone,) = [one for one in upload(scan_client, content).json()["results"] if "error" in one]
    assert alone["error"]["field"] == "image"
    assert said in alone["error"]["detail"]
    assert "score" not in alone
    raw = post(scan_client, content, {"Content-Type": "application/octet-stream"})
    problem = refused(raw, 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (0, "image")
    assert said in problem["detail"]


def test_what_unpacks_to_more_than_its_header_says(scan_client):
    """32 MB of zeros in 32 kB: refused or read for the little that it claims to be, in bounds."""
    assert len(BOMB) < 100_000
    assert upload(scan_client, BOMB).status_code in {200, 422}


def test_a_bad_frame_has_an_error_in_its_place(scan_client):
    results = upload(scan_client, GOOD, TIFF).json()["results"]
    assert [(one["file"], one["frame"]) for one in results] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert ["error" in one for one in results] == [False, False, True, False]
    assert results[2]["error"]["detail"].startswith("all pixels are alike")
    raw = post(scan_client, TIFF, {"Content-Type": "image/tiff"})
    problem = refused(raw, 422, "invalid-record")
    assert problem["detail"].startswith("record 0, field 'image': frame 1: all pixels are alike")


@pytest.mark.parametrize("query", ["", "?explain=1&heatmap=png"])
def test_every_file_is_answered_in_order(scan_client, monkeypatch, query):
    monkeypatch.setattr(images, "CHUNK", 2)
    results = upload(scan_client, b"x", GOOD, TIFF, GOOD, FLAT, query=query).json()["results"]
    bad = [(one["file"], one.get("frame")) for one in results if "error" in one]
    assert bad == [(0, None), (2, 1), (4, 0)]
    alone = upload(scan_client, GOOD, query=query).json()["results"][0]
    assert [one for one in results if one["file"] == 3] == [{**alone, "file": 3}]


def test_files_of_one_name_are_told_apart_by_their_number(scan_client):
    names = [b"a.png", b"a.png", b"../../etc/passwd", b"\x07\x1b[2J", b""]
    files = [b'form-data; name="files"; filename="%b"' % name for name in names]
    answer = post(scan_client, form(*(part(GOOD, one) for one in files), part(b"", files[0])))
    results = answer.json()["results"]
    assert [result["file"] for result in results] == list(range(6))
    assert ["error" in result for result in results] == [False] * 5 + [True]
    assert "passwd" not in answer.text


def test_files_of_which_none_can_be_read_have_errors_only(scan_client):
    results = upload(scan_client, *[b"x"] * 500).json()["results"]
    assert ["error" in result for result in results] == [True] * 500
    text = scan_client.get("/metrics").text
    assert 'rejected_records_total{model="scans",version=""} 500.0' in text
    assert 'scored_records_total{model="scans",version=""} 0.0' in text


def test_nothing_of_a_patient_is_said_or_kept(scan_client, caplog):
    """A DICOM file that names one, whole and cut short, under a file name that does too."""
    whole = image_uploads.dicom_file(blobs(2))
    with caplog.at_level(logging.DEBUG):
        answers = [
            scan_client.post("/score", files=[("files", ("mallory.dcm", content))])
            for content in (whole, whole[:-99], whole[:200], whole[:-99] + b"MALLORY")
        ]
    assert [a.status_code for a in answers] == [200] * 4
    assert ["error" in a.text for a in answers] == [False, True, True, True]
    said = [a.text for a in answers] + [scan_client.get("/metrics").text]
    said += [json.dumps(getattr(r, "facts", {})) + r.getMessage() for r in caplog.records]
    assert not [text for text in said if "mallory" in text.lower()]


# ---------------------------------------------------------------- limits


def test_too_many_files(client_of, scanner):
    client = client_of(scanner, max_records=3)
    assert upload(client, *[GOOD] * 3).status_code == 200
    problem = refused(upload(client, *[b"x"] * 4), 413, "too-many-records")
    assert "more than 3 files" in problem["detail"]


def test_too_many_tiny_parts(scan_client):
    refused(post(scan_client, part(b"") * 200_000), 413, "too-many-records")


def test_too_many_images(client_of, scanner):
    client = client_of(scanner, max_records=5)
    assert upload(client, NIFTI, GOOD, GOOD).status_code == 200
    problem = refused(upload(client, NIFTI, NIFTI), 413, "too-many-records")
    assert "more than 5 images" in problem["detail"]


@pytest.mark.parametrize("query", ["?explain=1", "?explain=all&heatmap=png"])
def test_too_much_to_explain_at_once(client_of, scanner, query):
    pixels = len(scanner.detector.scorer.encoding.labels)
    client = client_of(scanner, max_contributions=3 * pixels)
    assert upload(client, NIFTI, query=query).status_code == 200
    assert upload(client, NIFTI, GOOD, query="?explain=0").status_code == 200
    problem = refused(upload(client, NIFTI, GOOD, query=query), 413, "too-much-explained")
    assert f"{4 * pixels} contributions" in problem["detail"]


def test_too_much_to_draw_at_once(client_of, scanner):
    client = client_of(scanner, max_heatmaps=3)
    assert upload(client, NIFTI, query="?heatmap=png").status_code == 200
    problem = refused(upload(client, NIFTI, GOOD, query="?heatmap=png"), 413, "too-much-explained")
    assert "4 images to draw; at most 3 images are drawn" in problem["detail"]
    assert 'scored_records_total{model="scans",version=""} 3.0' in client.get("/metrics").text
    assert upload(client, NIFTI, GOOD).status_code == 200


def test_images_that_take_too_long(client_of, scanner, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(images, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    client = client_of(scanner, image_seconds=3)
    problem = refused(upload(client, *[GOOD] * 9), 413, "too-slow")
    assert "3 images were scored within 3 seconds" in problem["detail"]
    assert upload(client, *[GOOD] * 3).status_code == 200


def test_too_many_bytes(client_of, scanner):
    client = client_of(scanner, max_body_bytes=1024)
    refused(post(client, form(part(bytes(2000)))), 413, "too-large")
    refused(post(client, bytes(1025), PNG), 413, "too-large")


def test_memory_does_not_grow_with_the_images_asked_for(scanner, monkeypatch):
    """However many there are, a chunk of them is held at once."""
    held, most = [], []

    def pictures(content, reading):
        for number in range(1000):
            held.append(number)
            most.append(len(held))
            yield DecodeFailure("none", number)

    prepared = type(scanner.detector.scorer.schema).from_images

    def from_images(schema, stream):
        held.clear()
        return prepared(schema, stream)

    monkeypatch.setattr(images, "read_bytes", pictures)
    monkeypatch.setattr(type(scanner.detector.scorer.schema), "from_images", from_images)
    scored = images.score(scanner, [b""], ImageOptions(), Settings())
    assert len(scored.results) == 1000
    assert scored.detections is None
    assert max(most) == images.CHUNK


# ---------------------------------------------------------------- anything at all


@pytest.fixture(scope="module")
def fuzzed(scanner):
    """A client for every example of a property."""
    with TestClient(
        create_app(Store([scanner]), Settings()), raise_server_exceptions=False
    ) as client:
        yield client


def damaged(content):
    """Copies of a file with bytes changed, left out or put in."""

    def damage(changes, cut):
        altered = bytearray(content)
        for at, value in changes:
            altered[at] = value
        return bytes(altered[: len(content) - cut])

    change = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    return st.builds(damage, st.lists(change, max_size=8), st.integers(0, len(content)))


WHOLE = form(part(GOOD, b'form-data; name="files"; filename="a.png"'), part(FLAT), part(NIFTI))
HARMLESS = {200, 400, 413, 422}
FUZZ = settings(max_examples=40, suppress_health_check=list(HealthCheck))


@FUZZ
@given(damaged(WHOLE) | st.binary(max_size=200))
@example(b"\r\n" * 5000)
@example(b"--B" * 5000)
@example(part(b"\r\n--Bx" * 5000))
@example(form(part(GOOD)) * 3)
def test_any_form_is_answered(fuzzed, body):
    assert post(fuzzed, body).status_code in HARMLESS


@FUZZ
@given(st.sampled_from([GOOD, TIFF, NIFTI, image_uploads.dicom_file(blobs(2))]).flatmap(damaged))
@example(b"\x1f\x8b")
@example(b"\x89PNG\r\n\x1a\n")
@example(b"II*\0" + struct.pack("<I", 4))
def test_any_image_is_answered(fuzzed, content):
    response = post(fuzzed, content, {"Content-Type": "application/octet-stream"})
    assert response.status_code in {200, 422}
    if response.status_code == 200:
        assert all(np.isfinite(result["score"]) for result in response.json()["results"])


@given(st.binary(max_size=80))
def test_any_media_type_is_known_or_refused(media):
    boundary = outcome(boundary_of, {b"content-type": media})
    assert boundary in {None, 400, 415} or (isinstance(boundary, bytes) and boundary)


@pytest.mark.slow
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.sampled_from([GOOD, TIFF, NIFTI, image_uploads.dicom_file(blobs(2))]).flatmap(damaged))
def test_ten_thousand_damaged_images(fuzzed, content):
    response = post(fuzzed, content, {"Content-Type": "application/octet-stream"})
    assert response.status_code in {200, 422}
