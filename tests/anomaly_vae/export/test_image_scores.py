"""What an image is scored by: parts that add up, the model's own terms, standardised shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly_vae.config.model import ImageModelConfig
from anomaly_vae.config.scoring import ImageScoreConfig
from anomaly_vae.export.image_scores import (
    LEVEL_QUANTILE,
    MIN_SCALE_SHARE,
    REACH,
    RELATIVE,
    ImageScore,
)
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.builder import build
from anomaly_vae.models.localization_head import LocalizationHead
from anomaly_vae.models.vae import Terms, frozen_noise

LAYOUT = ImageLayout(1, 16)
MODEL: dict[str, Any] = {
    "network": "convolutional",
    "width": 4,
    "hidden_dim": 16,
    "latent_dim": 3,
    "likelihood": "gaussian",
}


def images(n: int, layout: ImageLayout = LAYOUT, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((n, layout.channels, 4, 4), generator=generator)
    return torch.nn.functional.interpolate(coarse, (layout.size,) * 2, mode="bilinear").flatten(1)


def score(
    layout: ImageLayout = LAYOUT, model: dict[str, Any] | None = None, **of: Any
) -> ImageScore:
    built = build(ImageModelConfig.model_validate(MODEL | (model or {})), layout).eval()
    config = ImageScoreConfig.model_validate({"standardise": False, **of})
    return ImageScore(built, layout, config).eval()


@torch.no_grad()
def parts(found: ImageScore, x: Tensor) -> dict[str, Tensor]:
    return dict(zip(("score", "nats", "kl", "expected", "latent"), found(x), strict=True))


VARIANTS: dict[str, dict[str, Any]] = {
    "at the mean": {},
    "draws": {"draws": 4},
    "importance weighted": {"type": "importance_weighted", "draws": 5},
    "reconstruction": {"type": "reconstruction"},
    "structural": {"type": "structural"},
}


@pytest.mark.parametrize("of", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("standardise", [False, True])
def test_the_parts_add_up_and_have_their_shapes(of: dict[str, Any], standardise: bool) -> None:
    layout = ImageLayout(3, 16)
    found, x = score(layout, standardise=standardise, **of), images(6, layout)
    found.fit_statistics(x)
    got = parts(found, x)
    assert got["score"].dtype == got["kl"].dtype == torch.float64
    assert got["nats"].dtype == torch.float32
    assert got["nats"].shape == got["expected"].shape == x.shape
    assert got["latent"].shape == (6, 3)
    torch.testing.assert_close(got["score"], got["nats"].double().sum(-1) + got["kl"])


def test_each_score_is_what_the_model_calls_it() -> None:
    x, noise = images(6), frozen_noise(4, 3, 7)
    truth = {
        "reconstruction": lambda m: m.reconstruction(x),
        "importance_weighted": lambda m: m.importance_weighted(x, noise),
        "neg_elbo": lambda m: m.elbo(x, noise),
    }
    for name, terms_of in truth.items():
        found = score(type=name, draws=4, seed=7)
        with torch.no_grad():
            terms: Terms = terms_of(found.model)
        got = parts(found, x)
        torch.testing.assert_close(got["nats"], -terms.log_prob)
        torch.testing.assert_close(got["kl"], terms.kl.double().sum(-1))


@torch.no_grad()
def test_one_draw_is_the_posterior_mean() -> None:
    found, x = score(), images(6)
    mean, log_var = found.model.posterior(x)
    got = parts(found, x)
    truth = -found.model.decode(mean).log_prob(x)
    torch.testing.assert_close(got["nats"], truth)
    torch.testing.assert_close(got["kl"], found.model.prior.kl(mean, log_var).sum(-1).double())
    torch.testing.assert_close(got["latent"], mean)
    torch.testing.assert_close(got["expected"], found.model.decode(mean).mean)


def test_an_autoencoder_has_no_rate() -> None:
    found = score(model={"type": "autoencoder"}, standardise=True)
    found.fit_statistics(images(20))
    assert not parts(found, images(4, seed=1))["kl"].any()


# ---------------------------------------------------------------- standardised


def test_standardised_shares_of_the_images_it_learned_from_are_centred_and_of_unit_scale() -> None:
    found, x = score(standardise=True), images(200)
    raw = parts(score(), x)["nats"]
    found.fit_statistics(x)
    got = parts(found, x)
    assert got["nats"].mean().abs() < 0.05
    assert got["nats"].mean(0).abs().mean() < 0.3
    assert 0.6 < got["nats"].std(0).mean() < 1.0
    assert got["kl"].mean().abs() < 1e-6
    assert 0.1 < got["kl"].std(correction=0) <= 1  # the floor of the scale takes a part
    before, after = raw.std(0), got["nats"].std(0)
    assert after.std() / after.mean() < 0.8 * before.std() / before.mean()


def test_every_scale_is_at_least_a_share_of_the_common_deviation() -> None:
    found, x = score(standardise=True), images(50)
    deviation = parts(score(), x)["nats"].std(correction=0)
    found.fit_statistics(x)
    assert found.scale.min() >= MIN_SCALE_SHARE * deviation
    assert not torch.equal(found.center, torch.zeros_like(found.center))


def test_without_it_nothing_is_learned_and_the_unit_says_which() -> None:
    plain, standardised = score(), score(standardise=True)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    plain.fit_statistics(images(20))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert plain.unit == "nats per pixel"
    assert standardised.unit == "sd per pixel"


def test_a_model_whose_shares_never_vary_still_gives_finite_scores() -> None:
    found, x = score(standardise=True), images(1).expand(9, -1)
    found.fit_statistics(x)
    assert torch.isfinite(parts(found, images(4, seed=3))["score"]).all()


def test_the_order_of_what_it_learned_from_does_not_matter() -> None:
    x = images(130)
    found = [score(standardise=True) for _ in range(2)]
    for one, rows in zip(found, (x, x.flip(0)), strict=True):
        one.fit_statistics(rows)
    torch.testing.assert_close(found[0].center, found[1].center)
    torch.testing.assert_close(found[0].scale, found[1].scale)


def test_a_frozen_draw_follows_its_seed() -> None:
    noises = [score(draws=4, seed=seed).noise for seed in (0, 0, 1)]
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])


REACHED = round(32 * REACH)
HEAD: dict[str, Any] = {"model": {"localization_head": True}, "type": "contamination"}


@torch.no_grad()
def test_a_mirrored_image_has_the_mirrored_map_of_the_localization_head() -> None:
    layout = ImageLayout(3, 16)
    found, x = score(layout, **HEAD), images(4, layout)
    found.fit_statistics(x)
    mirrored = x.unflatten(1, layout.shape).flip(-1).flatten(1)
    maps, of_mirrored = (
        parts(found, of)["nats"].unflatten(1, layout.shape) for of in (x, mirrored)
    )
    torch.testing.assert_close(of_mirrored, maps.flip(-1))


@torch.no_grad()
def test_a_place_has_to_stand_out_more_where_the_whole_image_looks_odd() -> None:
    found, x = score(**HEAD), images(4)
    before = found._log_odds(x)
    head = found.model.contamination
    assert isinstance(head, LocalizationHead)
    assert head.out.bias is not None
    head.out.bias += 2.0
    torch.testing.assert_close(found._log_odds(x), before + (1 - RELATIVE) * 2)


@torch.no_grad()
def test_few_pixels_of_held_out_images_exceed_the_level() -> None:
    found, x = score(**HEAD), images(40)
    found.fit_statistics(x)
    share = (found._log_odds(x) > found.level).float().mean().item()
    assert share == pytest.approx(1 - LEVEL_QUANTILE, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("moved", "symmetry", "less"),
    [(0, True, True), (REACHED, True, True), (8, True, False), (0, False, False)],
)
def test_a_symmetric_head_counts_less_what_looks_odd_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, moved: int, symmetry: bool, less: bool
) -> None:
    layout = ImageLayout(1, 32)
    one = torch.full((1, 1, 32, 32), -4.0)
    one[..., 8:12, 4:8] = 2.0
    both = torch.maximum(one, one.flip(-1).roll(moved, -2))
    model = {"localization_head": True, "symmetry": symmetry}
    found = score(layout, model, type="contamination")
    monkeypatch.setattr(found, "_head", lambda images: images)
    alone, twice = (found._log_odds(maps.flatten(1)).max().item() for maps in (one, both))
    assert (twice < alone - 1) is less
