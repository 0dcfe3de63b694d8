"""Check that a bundle scores inside a Ray task as it does here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_vae.artifacts import Bundle, load_bundle
from anomaly_vae.data.splitting import TEST
from pipelines.datasets.dataset import Dataset
from tests.support.paths import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local Ray with two workers, which import this checkout."""
    module = pytest.importorskip("ray", reason="needs the extra 'ray': run make test-ray")
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    module.init(num_cpus=2, include_dashboard=False, runtime_env=environment)
    yield module
    module.shutdown()


def score_of(folder: str, records: list[dict[str, Any]]) -> Any:
    detector = load_bundle(folder).detector
    return detector.detect(detector.scorer.schema.from_records(records)).score


def test_a_task_scores_as_this_process_does(
    ray: Any, calibrated: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    folder = str(calibrated.save(tmp_path / "bundle"))
    records = dataset.test_table.select(["TX_AMOUNT", "TX_CHANNEL"]).to_pylist()[:100]
    task = ray.remote(score_of)
    parts = [task.remote(folder, records[:50]), task.remote(folder, records[50:])]
    scores = np.concatenate(ray.get(parts))
    np.testing.assert_array_equal(scores, score_of(folder, records))
    assert len(dataset.assignment.rows(TEST)) >= len(scores) == 100
