"""A kind of data has its schema and encoding; image libraries are loaded only for images."""

from __future__ import annotations

import subprocess
import sys

import pytest

from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.errors import BundleError
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.modality import image_modality, modality


def test_each_kind_has_its_schema_and_encoding() -> None:
    assert modality("tabular") == (TabularSchema, TabularEncoding)
    assert modality("image") == (ImageSchema, ImageEncoding)


def test_a_kind_of_the_future_is_refused_by_name() -> None:
    with pytest.raises(BundleError, match="'audio' data, which this version does not know"):
        modality("audio")


def test_without_pillow_images_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anomaly_vae.images.schema", None)
    with pytest.raises(BundleError, match=r"pip install 'anomaly-vae\[images\]'"):
        modality("image")


def test_a_model_of_tables_loads_nothing_of_images() -> None:
    code = "import sys, anomaly_vae.artifacts.bundle; print('PIL' in sys.modules)"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == "False"


def test_only_a_model_of_images_has_an_image_schema_and_encoding(bundle, image_bundle):
    scorer = image_bundle.scorer
    assert image_modality(scorer.schema, scorer.encoding) == (scorer.schema, scorer.encoding)
    with pytest.raises(BundleError, match="the model is for tables"):
        image_modality(bundle.scorer.schema, bundle.scorer.encoding)
