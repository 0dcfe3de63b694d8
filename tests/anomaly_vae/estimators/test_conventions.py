"""scikit-learn's conventions: its own checks, its pipelines, its searches, its data frames."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import BaseEstimator, clone, is_outlier_detector
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr, get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

import anomaly_vae
from anomaly_vae.estimators.image import ImageVAEDetector
from anomaly_vae.estimators.tabular import TabularVAEDetector
from tests.support.estimators import tiny
from tests.support.paths import ROOT
from tests.support.scans import blobs, patched

DOCUMENT = (ROOT / "docs/scikit-learn.md").read_text(encoding="utf-8")

FEW_ROWS = "fits on fewer than 104 rows, the fewest for `alpha=0.01`"
NONE_FLAGGED = (
    "expects that one of 300 training rows is flagged, which `alpha=0.01` does not promise"
)

FAILING_BY_DEFAULT = {
    "check_classifier_data_not_an_array": FEW_ROWS,
    "check_dict_unchanged": FEW_ROWS,
    "check_dont_overwrite_parameters": FEW_ROWS,
    "check_dtype_object": FEW_ROWS,
    "check_estimators_dtypes": FEW_ROWS,
    "check_estimators_fit_returns_self": FEW_ROWS,
    "check_estimators_overwrite_params": FEW_ROWS,
    "check_estimators_pickle": FEW_ROWS,
    "check_f_contiguous_array_estimator": FEW_ROWS,
    "check_fit2d_1feature": FEW_ROWS,
    "check_fit2d_predict1d": FEW_ROWS,
    "check_fit_check_is_fitted": FEW_ROWS,
    "check_fit_idempotent": FEW_ROWS,
    "check_fit_score_takes_y": FEW_ROWS,
    "check_methods_sample_order_invariance": FEW_ROWS,
    "check_methods_subset_invariance": FEW_ROWS,
    "check_n_features_in": FEW_ROWS,
    "check_n_features_in_after_fitting": FEW_ROWS,
    "check_pipeline_consistency": FEW_ROWS,
    "check_readonly_memmap_input": FEW_ROWS,
    "check_transformer_data_not_an_array": FEW_ROWS,
    "check_transformer_general": FEW_ROWS,
    "check_transformer_preserve_dtypes": FEW_ROWS,
    "check_outliers_fit_predict": NONE_FLAGGED,
    "check_outliers_train": NONE_FLAGGED,
}
"""Checks that fail at the default alpha of 0.01, and why; all of them pass at 0.4."""


def expected(detector: TabularVAEDetector) -> dict[str, str]:
    """Return the checks that fail, and why; the document has the same table."""
    return FAILING_BY_DEFAULT if detector.alpha == 0.01 else {}


@pytest.fixture(scope="module", name="X")
def numbers() -> np.ndarray:
    """150 normal rows and 30 anomalies, (180, 3)."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(150, 3)), rng.normal(6, 1, (30, 3))])


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    """1 and −1, as `predict` has them."""
    return np.repeat([1, -1], [150, 30])


@pytest.fixture(scope="module")
def frame(X: np.ndarray) -> pd.DataFrame:
    """The same with a column of text, (180, 4)."""
    kinds = np.random.default_rng(1).choice(["in", "out"], len(X))
    return pd.DataFrame(X, columns=["a", "b", "c"]).assign(kind=kinds)


# ---------------------------------------------------------------- its checks


@parametrize_with_checks([tiny(alpha=0.4), tiny(alpha=0.01)], expected_failed_checks=expected)
def test_it_keeps_the_conventions(
    estimator: TabularVAEDetector, check: Callable[..., None]
) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [TabularVAEDetector(alpha=0.4), TabularVAEDetector()], expected_failed_checks=expected
)
def test_it_keeps_them_without_arguments_too(
    estimator: TabularVAEDetector, check: Callable[..., None]
) -> None:
    check(estimator)


def test_the_document_says_which_checks_fail_and_why() -> None:
    rows = re.findall(r"^\| `(check_\w+)` \| (.+) \|$", DOCUMENT, re.MULTILINE)
    assert dict(rows) == expected(TabularVAEDetector())


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_there_are_no_checks_of_images_but_these() -> None:
    for estimator, check in estimator_checks_generator(ImageVAEDetector()):
        check(estimator)


def test_scores_of_its_own_are_no_method_called_score() -> None:
    """Outlier detectors of scikit-learn have no method ``score``."""
    assert not hasattr(TabularVAEDetector(), "score")
    assert not hasattr(ImageVAEDetector(), "score")


# ---------------------------------------------------------------- what it says of itself


def test_it_is_an_outlier_detector_that_the_package_exports() -> None:
    assert is_outlier_detector(TabularVAEDetector())
    assert anomaly_vae.TabularVAEDetector is TabularVAEDetector


def test_its_tags_say_what_it_takes() -> None:
    tags = get_tags(TabularVAEDetector()).input_tags
    assert (tags.allow_nan, tags.categorical, tags.two_d_array) == (True, True, True)
    assert (tags.string, tags.sparse) == (False, False)  # text comes in data frames


def test_clone_and_set_params_carry_every_argument() -> None:
    detector = tiny().set_params(beta=0.5, features=["x0"])
    assert clone(detector).get_params() == detector.get_params()
    assert TabularVAEDetector(**detector.get_params()).get_params() == detector.get_params()


@pytest.mark.parametrize("kind", [TabularVAEDetector, ImageVAEDetector])
def test_its_docstring_lists_its_arguments_in_no_other_words(kind: type[BaseEstimator]) -> None:
    arguments = str(kind.__doc__).partition("Args:")[2].partition("Attributes:")[0]
    listed = re.findall(r"^ {8}(\w+):", arguments, re.MULTILINE)
    assert sorted(listed) == sorted(kind().get_params())


def test_a_subclass_may_have_a_constructor_of_its_own(X: np.ndarray) -> None:
    class Mine(TabularVAEDetector):
        """My detector."""

        def __init__(self, shift: float = 0.0, alpha: float = 0.2) -> None:
            super().__init__(alpha=alpha, epochs=1, preset="fast")
            self.shift = shift

    assert Mine.__doc__ == "My detector."
    assert clone(Mine(shift=1.0)).get_params() == {"shift": 1.0, "alpha": 0.2}
    assert set(Mine(alpha=0.1).fit(X).predict(X)) == {-1, 1}


def test_a_notebook_shows_it(X: np.ndarray) -> None:
    for detector in (tiny(), tiny().fit(X), make_pipeline(StandardScaler(), tiny())):
        shown = estimator_html_repr(detector)
        assert "TabularVAEDetector" in shown
        assert "latent_dim" in shown


# ---------------------------------------------------------------- pipelines


def test_it_works_at_the_end_of_a_pipeline(X: np.ndarray) -> None:
    pipeline = make_pipeline(StandardScaler(), tiny()).fit(X)
    assert set(pipeline.predict(X)) == {-1, 1}
    assert pipeline.transform(X).shape == (180, 2)
    assert list(pipeline.get_feature_names_out()) == ["latent0", "latent1"]


@pytest.mark.parametrize(("library", "of"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_a_column_transformer_before_it_keeps_names_and_types(
    frame: pd.DataFrame, library: str, of: type
) -> None:
    data = frame if library == "pandas" else pl.from_pandas(frame)
    scaled = make_column_transformer((StandardScaler(), ["a", "b"]), remainder="passthrough")
    pipeline = make_pipeline(scaled.set_output(transform=library), tiny()).fit(data)
    names = ["standardscaler__a", "standardscaler__b", "remainder__c", "remainder__kind"]
    assert list(pipeline[-1].feature_names_in_) == names
    assert [str(c.type) for c in pipeline[-1].bundle_.scorer.schema.columns][3] == "categorical"
    assert isinstance(pipeline[-1].sample(2), of)
    assert (pipeline.predict(data)[-30:] == -1).all()


def test_its_latents_are_features_beside_others(X: np.ndarray) -> None:
    union = FeatureUnion([("pca", PCA(1)), ("vae", tiny())]).fit(X)
    assert list(union.get_feature_names_out()) == ["pca__pca0", "vae__latent0", "vae__latent1"]
    np.testing.assert_array_equal(union.transform(X)[:, 1:], tiny().fit_transform(X))


# ---------------------------------------------------------------- searches


def test_it_is_validated_in_folds_by_its_decisions(X: np.ndarray, y: np.ndarray) -> None:
    """y tells the folds and the metric what is anomalous; `fit` ignores it."""
    scores = cross_val_score(tiny(), X, y, scoring="roc_auc", cv=StratifiedKFold(3))
    assert (scores > 0.9).all()


@pytest.mark.slow
def test_a_search_over_its_arguments_runs_in_other_processes(X: np.ndarray, y: np.ndarray) -> None:
    pipeline = make_pipeline(StandardScaler(), tiny())
    grid = {"tabularvaedetector__epochs": [1, 20]}
    folds = StratifiedKFold(2)
    search = GridSearchCV(pipeline, grid, scoring="roc_auc", n_jobs=2, cv=folds).fit(X, y)
    alone = GridSearchCV(pipeline, grid, scoring="roc_auc", cv=folds).fit(X, y)
    found, truth = (s.cv_results_["mean_test_score"] for s in (search, alone))
    np.testing.assert_allclose(found, truth, rtol=1e-12)
    np.testing.assert_array_equal(search.predict(X), search.best_estimator_.predict(X))


@pytest.mark.slow
def test_images_are_validated_in_folds_too() -> None:
    images = np.concatenate([blobs(40, size=16), patched(blobs(20, seed=1, size=16))])
    y = np.repeat([1, -1], [40, 20])
    detector = ImageVAEDetector(
        size=16, width=4, hidden_dim=8, latent_dim=2, epochs=2, network="dense", alpha=0.3
    )
    scores = cross_val_score(
        detector, list(images), y, scoring="roc_auc", cv=StratifiedKFold(2), error_score="raise"
    )
    assert np.isfinite(scores).all()


def test_the_example_of_the_document_runs(frame: pd.DataFrame, y: np.ndarray) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"rows": pl.from_pandas(frame.rename(columns={"a": "amount"}))}
    exec(example, names | {"labels": y}, names)
    assert names["search"].best_score_ > 0.9


# ---------------------------------------------------------------- what comes out of `transform`


@pytest.mark.parametrize(("library", "of"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_latents_come_in_the_data_frame_that_was_asked_for(
    X: np.ndarray, library: str, of: type
) -> None:
    detector = tiny().set_output(transform=library).fit(X)
    latents = detector.transform(X)
    assert isinstance(latents, of)
    assert list(latents.columns) == ["latent0", "latent1"]
    np.testing.assert_array_equal(
        latents.to_numpy(), detector.set_output(transform="default").transform(X)
    )
    assert detector.inverse_transform(latents).shape == X.shape


def test_latents_keep_the_index_of_their_rows(frame: pd.DataFrame) -> None:
    rows = frame.iloc[::-1]
    latents = tiny().set_output(transform="pandas").fit(frame).transform(rows)
    pd.testing.assert_index_equal(latents.index, rows.index)


def test_names_of_latents_ask_for_a_fit_and_for_the_names_of_that_fit(frame: pd.DataFrame) -> None:
    with pytest.raises(NotFittedError):
        tiny().get_feature_names_out()
    detector = tiny().fit(frame)
    assert list(detector.get_feature_names_out(frame.columns)) == ["latent0", "latent1"]
    with pytest.raises(ValueError, match="input_features is not equal to feature_names_in_"):
        detector.get_feature_names_out(["a", "b", "c", "sort"])
