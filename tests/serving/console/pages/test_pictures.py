"""Pictures of kept scans."""

import pytest

from serving.console.pages.pictures import Pictures
from serving.problems import ProblemError
from tests.support.review_cases import case_of


@pytest.fixture
def kept(tmp_path):
    (tmp_path / "scans" / "image-1").mkdir(parents=True)
    (tmp_path / "scans" / "image-1" / "heatmap.png").write_bytes(b"picture")
    (tmp_path / "heatmap.png").write_bytes(b"secret")
    (tmp_path / "scans" / "away").symlink_to(tmp_path)
    return tmp_path / "scans"


def test_a_kept_scan_is_shown(service_of, served, kept):
    service = service_of(served, cases_images=kept)
    service.cases.add([case_of(9, image="image-1")])
    alice = service.visitor("alice")
    assert "/console/cases/4/picture" in alice.text("/cases/4")
    assert "/picture" not in alice.text("/cases/1")
    answer = alice.get("/cases/4/picture")
    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")
    assert alice.get("/cases/1/picture").status_code == 404


@pytest.mark.parametrize("image", [None, "", "..", "away", "/", "image-1/..", "x\0y", "no"])
def test_nothing_outside_the_folder_is_shown(kept, image):
    case = case_of(1, image=image)
    assert not Pictures(kept).is_kept(case)
    with pytest.raises(ProblemError, match="not kept"):
        Pictures(kept).read(case)


def test_without_a_folder_no_scan_is_kept(kept):
    assert not Pictures(None).is_kept(case_of(1, image="image-1"))


def test_the_alternative_text_names_what_is_there(service_of, served, kept):
    service = service_of(served, cases_images=kept)
    service.cases.add([case_of(9, image="image-1")])
    alice = service.visitor("alice")
    assert 'alt="The scan and its heatmap"' in alice.text("/cases/4")
    (kept / "image-1" / "expected.png").write_bytes(b"expected")
    assert 'alt="The scan, what the model expected, and its heatmap"' in alice.text("/cases/4")
