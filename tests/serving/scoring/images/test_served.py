"""What `POST /score` answers to images."""

import base64
import dataclasses
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.heatmaps import png
from anomaly_vae.scoring.localization import localizations
from serving.scoring.images import served as images
from serving.scoring.images import uploads
from tests.support import image_uploads
from tests.support.scans import SIZE, blobs, coloured


def post(client, contents, query=""):
    response = client.post("/score" + query, files=image_uploads.uploads(contents))
    assert response.status_code == 200, response.text
    return response.json()


def score(client, contents, query=""):
    return post(client, contents, query)["results"]


def batch_of(served, contents):
    """What the library makes of the same bytes."""
    schema = served.detector.scorer.schema
    return schema.from_images(p for c in contents for p in read_bytes(c, schema.options))


def without(results, *keys):
    return [{k: v for k, v in result.items() if k not in keys} for result in results]


def test_the_answer_names_the_model_and_its_threshold(scan_client, scanner, pngs):
    answer = post(scan_client, pngs[:2])
    assert answer["model"] == {"name": "scans", "version": None, "alias": None}
    assert answer["alpha"] == scanner.detector.calibration.alpha
    assert answer["threshold"] == scanner.detector.calibration.threshold
    keys = {"score", "p_value", "is_anomaly", "unusual_input", "file", "frame"}
    assert [set(result) for result in answer["results"]] == [keys] * 2


def test_answers_are_what_the_detector_says(scan_client, scanner, pngs):
    results = score(scan_client, pngs)
    found = scanner.detector.detect(batch_of(scanner, pngs))
    assert [r["score"] for r in results] == found.score.tolist()
    assert [r["p_value"] for r in results] == found.p_value.tolist()
    assert [r["is_anomaly"] for r in results] == found.is_anomaly.tolist()
    assert 0 < found.is_anomaly.sum() < len(pngs)


IMAGES = blobs(3, seed=5, size=40)
FORMATS = {
    "png": image_uploads.image_file(IMAGES[0]),
    "deep png": image_uploads.image_file(IMAGES[0].astype(np.uint16) * 257),
    "colour": image_uploads.image_file(coloured(IMAGES)[0]),
    "jpeg": image_uploads.image_file(IMAGES[0], "JPEG"),
    "tiff": image_uploads.tiff_file(IMAGES),
    "dicom": image_uploads.dicom_file(IMAGES),
    "nifti": image_uploads.nifti_file(IMAGES),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_as_the_library_reads_it(scan_client, scanner, kind):
    """As a body of any type there is and as an upload: the content alone tells what it is."""
    content = FORMATS[kind]
    uploaded = score(scan_client, [content])
    assert [r["score"] for r in uploaded] == scanner.detector.detect(
        batch_of(scanner, [content])
    ).score.tolist()
    assert [(r["file"], r["frame"]) for r in uploaded] == [(0, f) for f in range(len(uploaded))]
    for media in uploads.RAW:
        headers = {"Content-Type": media}
        raw = scan_client.post("/score", content=content, headers=headers).json()
        assert raw["results"] == uploaded


def test_results_are_in_the_order_of_files_and_frames(scan_client, pngs):
    contents = [pngs[0], FORMATS["tiff"], FORMATS["nifti"], pngs[1], FORMATS["dicom"]]
    together = score(scan_client, contents)
    places = [(r["file"], r["frame"]) for r in together]
    several = {1: 3, 2: 3, 4: 3}
    assert places == [(n, f) for n in range(5) for f in range(several.get(n, 1))]
    alone = [result for content in contents for result in score(scan_client, [content])]
    assert without(together, "file") == without(alone, "file")


def test_frames_are_the_images_they_hold(scan_client):
    """A page of a TIFF and a frame of a DICOM file score as the same pixels do in a PNG."""
    alone = score(scan_client, map(image_uploads.image_file, IMAGES))
    for kind in ("tiff", "dicom"):
        scores = [r["score"] for r in score(scan_client, [FORMATS[kind]])]
        np.testing.assert_allclose(scores, [r["score"] for r in alone], rtol=1e-3)


@pytest.mark.parametrize("query", ["", "?explain=2&heatmap=png"])
def test_alone_or_among_others(scan_client, pngs, query):
    """Images are scored one at a time, so equal to the last bit."""
    together = score(scan_client, pngs[-5:], query)
    alone = [score(scan_client, [content], query)[0] for content in pngs[-5:]]
    assert without(together, "file") == without(alone, "file")


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_chunks_changes_nothing(scan_client, pngs, monkeypatch, chunk):
    contents = [*pngs[:7], FORMATS["tiff"]]
    before = post(scan_client, contents, "?explain=1")
    monkeypatch.setattr(images, "CHUNK", chunk)
    assert post(scan_client, contents, "?explain=1") == before


@pytest.mark.parametrize("explain", ["1", "5", "all", "0005", "9" * 18])
def test_regions_sum_to_the_score(keen, pngs, explain):
    for result in score(keen, pngs[:3], f"?explain={explain}"):
        assert "contributions" not in result
        parts = [region["nats"] for region in result["regions"]]
        assert parts
        total = sum(parts) + result["rest"] + result["kl"]
        assert total == pytest.approx(result["score"], rel=1e-5, abs=1e-3)


def test_explain_lists_so_many_regions(keen, pngs):
    def listed(query):
        (result,) = score(keen, pngs[:1], query)
        return result.get("regions", [])

    every = listed("?explain=all")
    assert every
    assert [listed(f"?explain={k}") for k in (0, 1, 2)] == [[], every[:1], every[:2]]
    assert listed("?explain=2&heatmap=png") == every[:2]
    assert listed("?heatmap=png") == every[:10]


def test_an_image_without_regions_says_so(scan_client, scanner, client_of, pngs):
    scale = dataclasses.replace(scanner.heat_scale, region=1e9)
    (result,) = score(
        client_of(dataclasses.replace(scanner, heat_scale=scale)), pngs[:1], "?explain=1"
    )
    assert result["regions"] == []
    assert result["rest"] + result["kl"] == pytest.approx(result["score"], rel=1e-5, abs=1e-3)


def test_what_else_is_asked_for_changes_no_decision(scan_client, pngs):
    pngs = pngs[-6:]
    plain = score(scan_client, pngs)
    extra = ("contributions", "rest", "kl", "heatmap", "regions")
    for query in ("?explain=3", "?heatmap=png", "?explain=all&heatmap=png"):
        more = score(scan_client, pngs, query)
        assert without(more, *extra, "score") == without(plain, "score")
        np.testing.assert_allclose(
            [r["score"] for r in more], [r["score"] for r in plain], rtol=1e-6
        )


def test_heatmaps_are_the_librarys_and_the_same_each_time(scan_client, scanner, pngs):
    contents = pngs[-3:]
    results = score(scan_client, contents, "?heatmap=png")
    assert score(scan_client, contents, "?heatmap=png") == results
    explained = scanner.detector.scorer.explain(batch_of(scanner, contents))
    drawn = localizations(scanner.detector.scorer.encoding, scanner.heat_scale, explained, range(3))
    for result, finding in zip(results, drawn, strict=True):
        content = base64.b64decode(result["heatmap"], validate=True)
        assert content == png(finding.draw())
        fields = ("x", "y", "width", "height", "area")
        shown = [tuple(region[name] for name in fields) for region in result["regions"]]
        assert shown == [dataclasses.astuple(region)[:5] for region in finding.regions]
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            assert image.width > image.height > SIZE


def test_regions_lie_in_the_image_of_the_model(keen, pngs):
    (result,) = score(keen, pngs[:1], "?heatmap=png")
    assert result["regions"]
    for region in result["regions"]:
        assert set(region) == {
            "x", "y", "width", "height", "area", "peak", "total", "box", "nats", "share"
        }  # fmt: skip
        right, bottom = region["x"] + region["width"], region["y"] + region["height"]
        assert region["box"] == [region["x"], region["y"], right, bottom]
        assert region["nats"] == region["total"]
        assert 0 <= region["share"] <= 1
        assert 0 <= region["x"] < region["x"] + region["width"] <= SIZE
        assert 0 <= region["y"] < region["y"] + region["height"] <= SIZE
        assert 0 < region["area"] <= region["width"] * region["height"]


def test_no_heatmap_unless_asked_for(scan_client, pngs):
    (result,) = score(scan_client, pngs[:1], "?explain=1")
    assert "heatmap" not in result
    (result,) = score(scan_client, pngs[:1])
    assert not {"heatmap", "regions"} & set(result)


# ---------------------------------------------------------------- threads


@pytest.fixture
def gate(monkeypatch):
    """Holds up whoever reads a picture until it is opened; knows how many wait there at most."""

    class Gate:
        def __init__(self):
            self.open, self.lock = threading.Event(), threading.Lock()
            self.inside = self.most = 0
            self.names = set()

        def read(self, content, reading):
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.names.add(threading.current_thread().name)
            assert self.open.wait(10)
            pictures = list(read_bytes(content, reading))
            with self.lock:
                self.inside -= 1
            return iter(pictures)

    gate = Gate()
    monkeypatch.setattr(images, "read_bytes", gate.read)
    yield gate
    gate.open.set()


def test_the_event_loop_is_free_while_an_image_is_read(scan_client, pngs, gate):
    with scan_client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(score, scan_client, pngs[:1])
        assert scan_client.get("/health/live").status_code == 200
        assert not answer.done()
        gate.open.set()
        assert len(answer.result()) == 1
    assert all(name.startswith("score_") for name in gate.names)


def test_no_more_images_are_read_at_once_than_there_are_threads(client_of, scanner, pngs, gate):
    client = client_of(scanner, threads=2)
    with client, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(score, client, pngs[:2]) for _ in range(6)]
        while gate.most < 2:
            time.sleep(0.01)
        gate.open.set()
        assert {len(answer.result()) for answer in answers} == {2}
    assert gate.most == 2


def test_many_clients_at_once(scan_client, pngs):
    """Each gets the answer to its own question."""
    whole = score(scan_client, pngs)
    spans = [(0, 1), (3, 9), (39, 40), (5, 6), (0, 30), (20, 23)] * 3
    with scan_client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda span: score(scan_client, pngs[slice(*span)]), spans))
    for (start, stop), results in zip(spans, answers, strict=True):
        assert without(results, "file") == without(whole[start:stop], "file")


# ---------------------------------------------------------------- beside tables


def test_tables_and_images_side_by_side(both, records, pngs):
    table = both.post("/models/fraud/score", json={"records": records[:2]})
    assert [set(r) for r in table.json()["results"]] == [
        {"score", "p_value", "is_anomaly", "unusual_input", "id"}
    ] * 2
    scans = both.post("/models/scans/score", files=image_uploads.uploads(pngs[:2]))
    assert [r["file"] for r in scans.json()["results"]] == [0, 1]


def test_the_example_is_an_image_that_works(scan_client, scanner):
    assert set(scanner.example) == {"image"}
    (result,) = score(scan_client, [scanner.example["image"]])
    assert np.isfinite(result["score"])
