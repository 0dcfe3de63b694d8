"""What `POST /score` decides on groups of images."""

import dataclasses
import io

import numpy as np
import pytest
from pydicom import dcmread

from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.client import Client, GroupResult
from anomaly_vae.client.client import SPLIT_GROUPS
from tests.support.image_uploads import dicom_file, image_file, tiff_file, uploads
from tests.support.scans import blobs

SERIES = ("1.2.3", "1.2.4")


def slice_of(image, series):
    dataset = dcmread(io.BytesIO(dicom_file(image[None])))
    dataset.SeriesInstanceUID = series
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture
def grouped(scanner):
    """A model with thresholds for groups, some of which are exceeded."""
    scores = scanner.detector.scorer.score(scanner.schema.from_records(
        [{"image": image_file(one)} for one in blobs(20, seed=4)]))  # fmt: skip
    kinds = {"series": 0.5, "volume": 0.2, "patient": 0.1}
    groups = {kind: calibrate(scores, alpha) for kind, alpha in kinds.items()}
    return dataclasses.replace(scanner, image_groups=groups)


def answer(client, contents, query=""):
    response = client.post("/score" + query, files=uploads(contents))
    assert response.status_code == 200, response.text
    return response.json()


def test_a_group_has_the_score_of_its_highest_image(client_of, grouped):
    images = blobs(5, seed=5)
    contents = [slice_of(image, SERIES[i % 2]) for i, image in enumerate(images[:4])]
    contents.append(image_file(images[4]))
    found = answer(client_of(grouped), contents, "?group=patient")
    scores = np.array([one["score"] for one in found["results"]])
    expected = [("series", (0, 2)), ("series", (1, 3)), *(("volume", (i,)) for i in range(5)),
                ("patient", (0, 1, 2, 3, 4))]  # fmt: skip
    assert [(one["group_by"], tuple(one["files"])) for one in found["groups"]] == expected
    for one, (kind, files) in zip(found["groups"], expected, strict=True):
        calibration, highest = grouped.image_groups[kind], scores[list(files)].max()
        assert one["score"] == highest
        assert one["file"] == files[scores[list(files)].argmax()]
        assert one["images"] == len(files)
        assert one["p_value"] == calibration.p_values([highest])[0]
        assert one["is_anomaly"] == (highest > calibration.threshold)
        assert one["threshold"] == calibration.threshold
    assert not any(uid in str(found) for uid in SERIES)


def test_frames_of_a_file_are_a_volume_and_bad_images_are_in_no_group(client_of, grouped):
    pages = blobs(3, seed=6)
    pages[1] = 7  # shows nothing
    found = answer(client_of(grouped), [tiff_file(pages), b"no image"])
    (volume,) = found["groups"]
    assert (volume["group_by"], volume["images"], volume["files"]) == ("volume", 2, [0])
    assert volume["frame"] in {0, 2}


def test_models_without_thresholds_for_groups_answer_as_before(scan_client, client_of, grouped):
    content = [image_file(blobs(1)[0])]
    assert "groups" not in answer(scan_client, content)
    assert answer(client_of(grouped), content)["groups"][0]["group_by"] == "volume"


@pytest.mark.parametrize("kind", ["ward", "", "x" * 999, "%FF"])
def test_an_unknown_kind_is_refused(kind, client_of, grouped, scan_client):
    body = uploads([image_file(blobs(1)[0])])
    refused = client_of(grouped).post(f"/score?group={kind}", files=body)
    assert refused.status_code == 422
    assert "it has thresholds by 'series', 'volume', 'patient'" in refused.json()["detail"]
    assert scan_client.post(f"/score?group={kind}", files=body).status_code == 422


def test_the_client_returns_groups_of_one_request(address_of, grouped):
    contents = [image_file(image) for image in blobs(3, seed=7)]
    with Client(address_of(grouped)) as client:
        whole = client.score_images(contents, group="patient")
        assert isinstance(whole.groups[-1], GroupResult)
        assert whole.groups[-1].score == max(one.score for one in whole)
    with Client(address_of(grouped), max_records=2) as client:
        split = client.score_images(contents, group="patient")
    assert split.groups == ()
    assert split.warnings == (SPLIT_GROUPS,)
    assert [one.score for one in split] == [one.score for one in whole]


def test_the_kinds_of_groups_are_documented(client_of, grouped, scan_client):
    def kinds(client):
        operation = client.get("/openapi.json").json()["paths"]["/score"]["post"]
        (found,) = [one["schema"]["enum"] for one in operation["parameters"]
                    if one["name"] == "group"] or [None]  # fmt: skip
        return found

    assert kinds(client_of(grouped)) == ["patient", "series", "volume"]
    assert kinds(scan_client) is None
