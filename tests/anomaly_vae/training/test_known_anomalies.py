"""Models that learn from known anomalies: when, what it gives, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import betabinom

from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.calibration.conformal import calibrate, ranks_within
from anomaly_vae.config import validate_config
from anomaly_vae.errors import ConfigError, DataError, ExportError
from anomaly_vae.training import known_anomalies
from anomaly_vae.training.fit import Prepared, fit_bundle
from anomaly_vae.training.known_anomalies import known_choice, with_known_head
from anomaly_vae.training.runtime import cpu_threads
from tests.support.known import known_config, prepared_rows, rows


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Return encoded rows with 60 known anomalies."""
    return prepared_rows(known_config())


@pytest.fixture(scope="module")
def off(prepared: Prepared) -> Bundle:
    """Return the model that learns from normal rows alone."""
    return fit_bundle(known_config("off"), prepared, data={}).bundle


@pytest.fixture(scope="module")
def on(prepared: Prepared) -> Bundle:
    """Return the model that learns from known anomalies, too."""
    return fit_bundle(known_config(), prepared, data={}).bundle


def test_a_model_learns_from_30_labels_on(prepared, off):
    few = replace(prepared, known=prepared.known[:29])
    assert fit_bundle(known_config(), few, data={}).bundle.files == off.files
    enough = replace(prepared, known=prepared.known[:30])
    bundle = fit_bundle(known_config(), enough, data={}).bundle
    assert bundle.manifest["training"]["known"] == {"labels": 30}
    assert bundle.manifest["unit"] == "surprise"
    assert bundle.manifest["config"]["model"]["known"] == "auto"


def test_without_labels_or_without_wish_nothing_changes(prepared, off):
    none = replace(prepared, known=None)
    assert fit_bundle(known_config(), none, data={}).bundle.files == off.files
    assert "known" not in off.manifest["config"]["model"]
    assert off.manifest["unit"] == "nats"


def test_the_same_rows_give_the_same_bundle(prepared, on, tmp_path):
    assert fit_bundle(known_config(), prepared, data={}).bundle.digest == on.digest
    loaded = load_bundle(on.save(tmp_path / "bundle"), on.digest)
    x = prepared.validation
    np.testing.assert_array_equal(loaded.scorer.score_encoded(x), on.scorer.score_encoded(x))


@pytest.mark.slow  # threads of OpenMP wait for each other on a busy machine
def test_the_number_of_threads_changes_no_tree(prepared, off):
    parts = prepared.train, prepared.validation, prepared.known
    graphs = []
    for count in (1, 2):
        with cpu_threads(count):
            graphs.append(with_known_head(off, *parts, seed=0).graph)
    assert graphs[0] == graphs[1]


def scored(bundle, n, seed):
    """Return the scores of rows that the model has not seen, anomalies first."""
    return bundle.scorer.score(bundle.scorer.schema.from_arrow(rows(n, seed)))


def test_known_anomalies_are_found_and_the_false_positive_rate_keeps_alpha(off, on):
    for bundle, least, most in ((off, 0.0, 0.4), (on, 0.8, 1.0)):
        calibration, test = scored(bundle, 3_060, 7)[60:], scored(bundle, 9_060, 8)
        for alpha in (0.05, 0.01):
            m, n = ranks_within(alpha, 3_000), 3_000
            low, high = betabinom(9_000, m, n + 1 - m).ppf([0.001, 0.999])
            flags = calibrate(calibration, alpha).flags(test)
            assert low <= flags[60:].sum() <= high
        recall = calibrate(calibration, 0.05).flags(test)[:60].mean()
        assert least <= recall <= most


def test_unusual_rows_are_still_found(on):
    batch = on.scorer.schema.from_records(
        [{"a": 0, "b": 0, "c": 0, "city": "Bern"}, {"a": 9, "b": 9, "c": 9, "city": "Bern"}]
    )
    usual, odd = on.scorer.explain(batch).unknown
    assert odd > usual + 5


def test_a_column_with_the_name_of_the_line_is_refused(prepared, off, monkeypatch):
    monkeypatch.setattr(known_anomalies, "KNOWN_ANOMALIES", "city")
    parts = prepared.train, prepared.validation, prepared.known
    with pytest.raises(DataError, match=r"rename it or add it to data\.ignore"):
        with_known_head(off, *parts, seed=0)


def test_a_graph_that_differs_from_the_trees_is_refused(prepared, off, monkeypatch):
    table = known_anomalies.tree_table

    def altered(model):
        return replace(table(model), baseline=0.5)

    monkeypatch.setattr(known_anomalies, "tree_table", altered)
    parts = prepared.train, prepared.validation, prepared.known
    with pytest.raises(ExportError, match=r"set model\.known: off"):
        with_known_head(off, *parts, seed=0)


@pytest.mark.parametrize(
    ("known", "labels", "on", "said"),
    [
        ("off", 99, False, "off (model.known: off)"),
        ("auto", 29, False, "off, 29 labelled anomalies of the training period are too few: 30"),
        ("auto", 1_234, True, "on, 1,234 labelled anomalies of the training period teach"),
    ],
)
def test_the_choice_says_why(known, labels, on, said):
    choice = known_choice(known_config(known), labels)
    assert choice.on == on
    assert said in str(choice)


def test_images_are_refused_with_a_remedy():
    images = {"kind": "image", "name": "scans", "data": {"path": "scans"}}
    with pytest.raises(ConfigError, match=r"set model\.known: off"):
        validate_config({**images, "model": {"known": "auto"}})
    assert validate_config({**images, "model": {"known": False}}).recorded()["model"]


@pytest.mark.parametrize("bare", [False, "off"])
def test_a_bare_off_is_read_as_yaml_gives_it(bare):
    assert known_config(bare).model.known == "off"


def test_few_validation_rows_are_enough(prepared, off):
    few = prepared.train, prepared.validation[:2], prepared.known
    scores = with_known_head(off, *few, seed=0).scorer.score_encoded(prepared.validation)
    assert np.isfinite(scores).all()
