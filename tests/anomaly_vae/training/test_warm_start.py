"""Starting from an earlier model's weights: where they mean the same, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config, ImageConfig
from anomaly_vae.data.encoding import Categorical, TabularEncoding
from anomaly_vae.models.builder import build
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.training.fit import Fitted, Prepared, fit_bundle
from anomaly_vae.training.kinds import Tables
from anomaly_vae.training.warm_start import incompatibility, start_from
from tests.support.merchants import merchant_bundle
from tests.support.registries import changed


def planned(config: Config, prepared: Prepared) -> Config:
    return config.resolve(prepared.encoding.layout.n_columns, len(prepared.train))


def with_columns(encoding: Any, **updates: Any) -> TabularEncoding:
    """The encoding whose categorical columns are changed so."""
    assert isinstance(encoding, TabularEncoding)
    columns = [
        column.model_copy(update={k: v(column) for k, v in updates.items()})
        if isinstance(column, Categorical)
        else column
        for column in encoding.columns
    ]
    return replace(encoding, columns=tuple(columns))


def test_a_model_of_the_same_columns_and_networks_fits(
    config: Config, prepared: Prepared, bundle: Bundle
) -> None:
    assert incompatibility(bundle, planned(config, prepared), prepared.encoding) is None
    other_prior = changed(config, model__prior="standard", model__components=8)
    assert incompatibility(bundle, planned(other_prior, prepared), prepared.encoding) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model__hidden_dim": 8}, "model.hidden_dim"),
        ({"model__members": 1}, "its model.members is 3, this one's 1"),
        ({"model__likelihood": "student_t"}, "model.likelihood"),
    ],
)
def test_another_network_is_named(
    config: Config, prepared: Prepared, bundle: Bundle, change: dict[str, Any], said: str
) -> None:
    found = incompatibility(bundle, planned(changed(config, **change), prepared), prepared.encoding)
    assert found is not None
    assert said in found


def test_another_level_is_named(config: Config, prepared: Prepared, bundle: Bundle) -> None:
    grown = with_columns(prepared.encoding, levels=lambda column: (*column.levels, "new"))
    found = incompatibility(bundle, planned(config, prepared), grown)
    assert found is not None
    assert "has other levels" in found


def test_other_columns_and_kinds_are_named(
    config: Config, image_config: ImageConfig, prepared: Prepared, bundle: Bundle,
    image_prepared: Prepared, image_bundle: Bundle,
) -> None:  # fmt: skip
    assert isinstance(prepared.encoding, TabularEncoding)
    fewer = replace(prepared.encoding, columns=prepared.encoding.columns[1:])
    assert "its columns are" in str(incompatibility(bundle, planned(config, prepared), fewer))
    ready = planned(image_config, image_prepared), image_prepared.encoding
    assert incompatibility(image_bundle, *ready) is None
    assert incompatibility(bundle, *ready) == "it is a model of kind tabular"


def test_another_backbone_is_named(
    image_config: ImageConfig, image_prepared: Prepared, image_bundle: Bundle
) -> None:
    """The manifest of a model without one does not mention it."""
    score = {"score__type": "neg_elbo", "score__draws": 1, "score__standardise": False}
    other = changed(image_config, model__backbone="efficientnet_lite0", **score)
    model = {key: value for key, value in image_config.model if key != "backbone"}
    other = changed(other, **{f"model__{key}": value for key, value in model.items()})
    found = incompatibility(image_bundle, planned(other, image_prepared), image_prepared.encoding)
    assert found == "its model.backbone is none, this one's efficientnet_lite0"


def test_the_order_of_levels_is_the_earlier_ones_where_they_are_the_same(
    prepared: Prepared,
) -> None:
    """It says which was frequent, and nothing else."""
    turned = with_columns(prepared.encoding, levels=lambda column: column.levels[::-1])
    assert turned != prepared.encoding
    assert Tables().align(turned, prepared.encoding).to_json() == prepared.encoding.to_json()
    grown = with_columns(turned, levels=lambda column: (*column.levels, "new"))
    assert Tables().align(grown, prepared.encoding).to_json() == grown.to_json()


def test_the_model_starts_where_the_other_ended(fitted: Fitted) -> None:
    from anomaly_vae.generation.latent_space import load_ensemble

    model = load_ensemble(fitted.bundle)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    start_from(model, fitted.bundle)
    wanted = fitted.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name])


def test_what_was_settled_after_the_other_fit_is_settled_anew(
    config: Config, prepared: Prepared, fitted: Fitted
) -> None:
    """A fit learns variances as they are, without the factor of an earlier one."""
    assert isinstance(prepared.encoding, TabularEncoding)
    model = build(planned(config, prepared).model, prepared.encoding.layout)
    start_from(model, fitted.bundle)
    assert isinstance(model.likelihood, TabularLikelihood)
    assert torch.all(model.likelihood.variance_factor == 1)
    assert torch.all(model.likelihood.variance_limit == torch.inf)
    assert isinstance(fitted.model.likelihood, TabularLikelihood)
    assert not torch.all(fitted.model.likelihood.variance_factor == 1)
    for weight, wanted in zip(model.parameters(), fitted.model.parameters(), strict=True):
        assert torch.equal(weight, wanted)


def test_a_warm_fit_is_better_from_its_first_epoch_and_is_reproducible(
    config: Config, prepared: Prepared, fitted: Fitted
) -> None:
    one = changed(config, training__epochs=1)
    cold = fit_bundle(one, prepared, {})
    warm, again = (fit_bundle(one, prepared, {}, start=fitted.bundle) for _ in range(2))
    assert warm.history.best.validation_elbo > cold.history.best.validation_elbo
    assert warm.bundle.digest == again.bundle.digest
    assert warm.bundle.manifest["training"]["warm_start"] == fitted.bundle.digest
    assert "warm_start" not in cold.bundle.manifest["training"]


def test_a_column_with_other_bands_does_not_fit_and_other_counts_do() -> None:
    encoding = merchant_bundle().scorer.encoding
    assert isinstance(encoding, TabularEncoding)
    stored = encoding.to_json()

    def with_values(*values: int) -> TabularEncoding:
        def bands(column: Any) -> Any:
            return column.bands.model_copy(update={"values": values})

        return with_columns(encoding, bands=bands)

    assert Tables().difference(stored, encoding) is None
    assert Tables().difference(stored, with_values(9, 8, 7)) is None
    said = Tables().difference(stored, with_values(9, 8))
    assert said == "its column 'merchant' has other levels or another scale"
