"""Each kind of model has its own sections, defaults, presets and record."""

from typing import Any

import pytest

from anomaly_vae.config import ImageConfig, validate_config
from anomaly_vae.config.detector import KINDS, PRESETS, merged
from anomaly_vae.errors import ConfigError
from anomaly_vae.types import ColumnType
from tests.support.configurations import LEAST, SCANS, SPLITS, with_yaml


def test_everything_but_the_name_and_the_path_has_a_default() -> None:
    config = validate_config(LEAST)
    assert config.data.paths == ("rows.csv",)
    assert (config.kind, config.preset, config.calibration.alpha) == ("tabular", "default", 0.01)


# ---------------------------------------------------------------- presets, sizes, the record


@pytest.mark.parametrize(
    ("kind", "preset"), [(kind, preset) for kind in PRESETS for preset in PRESETS[kind]]
)
def test_a_preset_lies_under_what_the_user_writes(kind: str, preset: str) -> None:
    least = merged(LEAST, {"kind": kind, "preset": preset})
    plain = validate_config(least)
    for section, keys in PRESETS[kind][preset].items():
        for key, value in keys.items():
            assert getattr(getattr(plain, section), key) == value
            own = validate_config(merged(least, {section: {key: 7}}))
            assert getattr(getattr(own, section), key) == 7
            others = {k: getattr(getattr(own, section), k) for k in keys if k != key}
            assert others == {k: v for k, v in keys.items() if k != key}


@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_can_be_chosen(kind: str) -> None:
    annotation = KINDS[kind].model_fields["preset"].annotation
    assert {*PRESETS[kind], "default"} == set(annotation.__args__)  # type: ignore[union-attr]  # a Literal


def test_the_record_holds_no_place_device_or_server() -> None:
    config = with_yaml(
        "{data: {path: /secret/rows.csv}, training: {device: cpu, resume: false}, "
        "mlflow: {tracking_uri: 'http://secret:5000'}}"
    )
    record = config.recorded()
    assert "secret" not in str(record)
    assert "mlflow" not in record
    assert not {"device", "resume"} & record["training"].keys()
    moved = config.model_copy(update={"mlflow": validate_config(LEAST).mlflow})
    assert moved.recorded() == record


def test_the_record_keeps_what_the_model_depends_on() -> None:
    config = validate_config(
        {
            "name": "x",
            "data": {
                "path": "a.csv",
                "time": "t",
                "features": {"a": {"type": "numeric"}},
                "splits": {**SPLITS, "gap_days": 7},
            },
        }
    )
    record = config.recorded()
    again = validate_config(merged(record, {"data": {"path": "a.csv"}}))
    assert again == config
    assert record["data"]["features"]["a"]["type"] == ColumnType.NUMERIC.value


# ---------------------------------------------------------------- images


def test_images_have_their_own_defaults_and_sections() -> None:
    config = validate_config(SCANS)
    assert isinstance(config, ImageConfig)
    assert (config.data.size, config.data.channels, config.data.time) == (64, 1, None)
    assert config.calibration.alpha == 0.05
    assert config.recorded()["data"]["size"] == 64
    assert "path" not in config.recorded()["data"]
    assert validate_config(config.model_dump()) == config


def test_tiles_are_recorded_only_where_there_are_tiles() -> None:
    assert not {"tiles", "tile_overlap"} & set(validate_config(SCANS).recorded()["data"])
    tiled = validate_config(merged(SCANS, {"data": {"size": 1024, "tiles": 128}}))
    assert tiled.recorded()["data"]["tiles"] == 128
    assert tiled.recorded()["data"]["tile_overlap"] == 0.25


BACKBONE = {"backbone": "efficientnet_lite0"}


def test_a_backbone_changes_defaults_that_are_not_given() -> None:
    config = validate_config(merged(SCANS, {"model": BACKBONE, "score": "neg_elbo"}))
    assert isinstance(config, ImageConfig)
    assert (config.data.size, config.data.fit) == (224, "stretch")
    assert (config.score.unit, config.training.beta, config.training.keep) == ("nats", 0.3, "best")
    assert config.resolve(1, 1).model.latent_dim == 64
    changed = {"data": {"size": 32}, "training": {"beta": 1}}
    config = validate_config(merged(SCANS, {"model": BACKBONE, **changed}))
    assert isinstance(config, ImageConfig)
    assert (config.data.size, config.training.beta) == (32, 1)


@pytest.mark.parametrize(
    ("given", "beta"),
    [
        ({}, 0.03),
        ({"model": {"likelihood": "contrast"}}, 0.03),
        ({"model": {"likelihood": "gaussian"}}, 1.0),
        ({"model": {"likelihood": "structural"}, "training": {"beta": 0.5}}, 0.5),
        ({"model": {"likelihood": "laplace"}, "preset": "best"}, 1.0),
    ],
)
def test_the_kl_term_counts_in_full_only_beside_a_density(
    given: dict[str, Any], beta: float
) -> None:
    config = validate_config(merged(SCANS, given))
    assert config.training.beta == beta
    assert validate_config(config.model_dump()) == config


def test_the_manifest_names_a_backbone_only_where_there_is_one() -> None:
    plain, with_one = (validate_config(merged(SCANS, {"model": model})) for model in ({}, BACKBONE))
    assert "backbone" not in plain.recorded()["model"]
    assert with_one.recorded()["model"]["backbone"] == "efficientnet_lite0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "audio"}, "kind: expected 'tabular' or 'image', got 'audio'"),
        ({"data": {"time": "t"}}, "unknown key data.time"),
        ({"data": {"sise": 3}}, "unknown key data.sise, did you mean size"),
        ({"data": {"size": 8}}, "data.size: expected at least 16"),
        ({"data": {"size": 1024}}, "size 1024 is above 512; set tiles, such as tiles: 128"),
        ({"data": {"tiles": 64}}, "tiles 64 must be smaller than size 64"),
        ({"data": {"spacing": 0}}, "expected auto, ignore or a distance above 0 in mm, got 0"),
        ({"data": {"spacing": 1, "fit": "crop"}}, "set fit: pad or spacing: auto"),
        ({"data": {"channels": 2}}, "data.channels: expected 1 or 3"),
        ({"data": {"splits": {"gap_days": 3}}}, "images have no time column"),
        ({"data": {"splits": SPLITS}}, "images have no time column"),
        ({"model": {"depth": 2}}, "unknown key model.depth"),
        ({"training": {"batch_size": 1}}, "training.batch_size: expected at least 2"),
        ({"training": {"hide": 0.1}}, "unknown key training.hide"),
        ({"training": {"corruption": {"kind": "mask"}}}, "unknown key training.corruption.kind"),
        ({"score": "contamination"}, "score contamination needs model.localization_head: true"),
        ({"model": {"backbone": "resnet"}}, "model.backbone: expected 'none' or"),
        (
            {"model": BACKBONE | {"localization_head": True}},
            "localises by itself; leave model.localization_head out",
        ),
        ({"model": BACKBONE, "score": "reconstruction"}, "are scored by neg_elbo"),
        ({"model": BACKBONE, "score": {"standardise": True}}, "leave score.type, score.draws and"),
        ({"model": BACKBONE, "score": {"draws": 2}}, "at the posterior mean"),
        ({"model": BACKBONE, "data": {"tiles": 64}}, "leave data.tiles and data.mask out"),
        ({"model": BACKBONE, "data": {"mask": "foreground"}}, "leave data.tiles and data.mask out"),
    ],
)
def test_what_does_not_fit_images_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(merged(SCANS, changes))
