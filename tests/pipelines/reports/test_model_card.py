"""Model cards: true to the manifest, whole in one file, and safe to open."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.types import Method
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.in_words import in_words
from pipelines.reports.model_card import PROMISES, Card, Section, Table, card_of
from pipelines.reports.model_card_html import page, render
from tests.support.flows import Command, World


def section(card: Card, title: str) -> Section:
    (found,) = [one for one in card.sections if one.title == title]
    return found


def cells(card: Card, title: str) -> dict[str, object]:
    table = section(card, title).table
    assert table
    return {row[0]: row[1] for row in table.rows}


def retold(bundle: Bundle, **manifest: object) -> LoadedModel:
    return LoadedModel(replace(bundle, manifest={**bundle.manifest, **manifest}))


def test_a_card_says_what_the_manifest_says(champion: World) -> None:
    bundle, card = champion.calibrated.bundle, card_of(champion.source)
    assert card.title == "Model card: fraud"
    assert cells(card, "Model")["bundle digest"] == bundle.digest
    assert cells(card, "Data")["all rows"] == bundle.manifest["data"]["rows"]
    assert cells(card, "Calibration")["threshold"] == bundle.detector.calibration.threshold
    figures = cells(card, "Figures")
    assert figures["AUROC"] == champion.calibrated.evaluation.auroc
    assert figures["false positive rate (alpha 0.05)"] == champion.calibrated.evaluation.fpr
    assert "probability at most 0.05" in section(card, "Calibration").text[0]
    json.dumps(card.to_json(), allow_nan=False)


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_has_its_promise_and_what_it_assumes(champion: World, method: str) -> None:
    summary = {"method": method, "alpha": 0.01, "threshold": 1.0, "n": 99, "figures": {}}
    card = card_of(retold(champion.calibrated.bundle, calibration=summary))
    text = section(card, "Calibration").text
    assert text[1] == f"It assumes that {PROMISES[method].assumes}."
    assert "{" not in text[0]


def test_what_was_certified_is_said_with_its_confidence(champion: World) -> None:
    summary = {"method": "certified", "alpha": 0.01, "threshold": 1.0, "n": 99,
               "figures": {"delta": 0.1}}  # fmt: skip
    card = card_of(retold(champion.calibrated.bundle, calibration=summary))
    assert section(card, "Calibration").text[0].startswith("With confidence 0.9,")


def test_a_description_of_its_own_is_the_intended_use(champion: World) -> None:
    config = {**champion.calibrated.bundle.manifest["config"], "description": "For Monday's team."}
    card = card_of(retold(champion.calibrated.bundle, config=config))
    assert section(card, "Intended use").text[0] == "For Monday's team."


def test_slices_above_their_limit_are_counted(champion: World) -> None:
    evaluation = dict(champion.calibrated.bundle.manifest["evaluation"])
    first = {**evaluation["slices"][0], "limit": -1.0}
    evaluation["slices"] = [first, *evaluation["slices"][1:]]
    card = card_of(retold(champion.calibrated.bundle, evaluation=evaluation))
    assert section(card, "Slices").text[0].startswith("1 of ")


def test_warnings_come_first(champion: World) -> None:
    evaluation = {**champion.calibrated.bundle.manifest["evaluation"], "warnings": ["Look here."]}
    card = card_of(retold(champion.calibrated.bundle, evaluation=evaluation))
    assert section(card, "What may flatter these figures").text[0] == "Look here."


def test_a_bundle_of_an_older_version_has_a_card(champion: World) -> None:
    known = ("rows", "anomalies", "alpha", "threshold", "auroc", "average_precision", "fpr",
             "fpr_interval", "fpr_limit", "recall", "precision", "flagged", "rejected",
             "unlabelled")  # fmt: skip
    evaluation = champion.calibrated.bundle.manifest["evaluation"]
    config = dict(champion.calibrated.bundle.manifest["config"])
    del config["evaluation"], config["description"]
    older = retold(
        champion.calibrated.bundle,
        evaluation={key: evaluation[key] for key in known},
        config=config,
    )
    assert "AUROC" in cells(card_of(older), "Figures")
    assert "p-values" not in {one.title for one in card_of(older).sections}
    assert page(older).count("data:image/png") == 1


def test_a_bundle_without_threshold_has_a_card(champion: World) -> None:
    source = LoadedModel(champion.trained.fitted.bundle)
    assert section(card_of(source), "Calibration").text == ("None yet: there is no threshold.",)
    assert "data:image" not in page(source)


def test_a_model_of_images_has_a_card(image_calibrated: Bundle) -> None:
    card = card_of(LoadedModel(image_calibrated))
    assert "Not a medical device" in section(card, "Intended use").text[1]
    assert cells(card, "Columns") == {"image": "image"}
    assert "data:image/png" in page(LoadedModel(image_calibrated))


# ---------------------------------------------------------------- the page


def test_the_page_needs_nothing_from_elsewhere(champion: World) -> None:
    content = page(champion.source)
    assert "<script" not in content
    assert not re.search(r"(src|href)=\"(?!data:)", content)
    assert "default-src 'none'" in content
    assert not re.search(r"url\(|@import|https?:", content)


def test_what_a_card_says_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    table = Table((evil, "n"), ((evil, 1), ("b", None)))
    card = Card(evil, (Section(evil, (evil,), table, ("plot",)),))
    content = render(card, {"plot": b"\x89PNG"})
    assert "<script" not in content
    assert content.count("&lt;script&gt;") == 7
    assert '<td class="number">1</td>' in content


def test_inspect_writes_the_page_of_a_registered_version_with_its_plots(
    champion: World, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "cards" / "fraud.html"
    answer = command("inspect", "models:/fraud@champion", "--html", path)
    assert answer.code == 0
    assert answer.json["card"] == str(path)
    content = path.read_text(encoding="utf-8")
    assert content.count("data:image/png") == 6
    assert "champion" in content
    assert 'alt="Figures: ranking"' in content


def test_a_bundle_folder_has_its_page_without_mlflow(
    champion: World, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("anomaly_vae.lifecycle.registry", "pipelines.reports.model_card_html"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    folder = champion.calibrated.bundle.save(tmp_path / "bundle")
    answer = command("inspect", folder, "--html", tmp_path / "card.html")
    assert answer.code == 0, answer.err
    assert (tmp_path / "card.html").read_text(encoding="utf-8").count("data:image/png") == 3


def test_without_what_draws_it_a_page_is_refused_and_words_are_not(
    champion: World, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pipelines.reports.model_card_html", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    folder = champion.calibrated.bundle.save(tmp_path / "bundle")
    assert command("inspect", folder).code == 0
    answer = command("inspect", folder, "--html", tmp_path / "card.html")
    assert (answer.code, answer.out) == (1, "")
    assert "pip install 'anomaly-vae[train]'" in answer.err


def test_a_card_begins_in_plain_words(champion: World) -> None:
    bundle = champion.calibrated.bundle
    card = card_of(champion.source)
    assert card.sections[0].title == "In plain words"
    learned, threshold, figures, *_ = card.sections[0].text
    rows = bundle.manifest["data"]["splits"]["train"]
    assert learned.startswith(f"The model learned from {rows:,} rows what is normal.")
    assert "about 50 of 1,000 normal rows" in threshold
    assert figures == in_words(bundle.manifest["evaluation"])
    assert "normal rows are flagged a day" in figures
    assert str(champion.calibrated.report.period) in figures
    for word in ("nats", "AUROC", "p-value", "ELBO", "exchangeable"):
        assert word not in " ".join(card.sections[0].text)


def test_doubts_about_the_figures_are_among_the_plain_words(champion: World) -> None:
    evaluation = {**champion.calibrated.bundle.manifest["evaluation"], "ks_p_value": 1e-9}
    evaluation["warnings"] = ["column 'x' alone separates anomalies"]
    text = card_of(retold(champion.calibrated.bundle, evaluation=evaluation)).sections[0].text
    assert "were not like those that the threshold was set on" in text[-2]
    assert text[-1] == "These figures may be too good: column 'x' alone separates anomalies."


def test_what_was_never_evaluated_says_so(champion: World) -> None:
    text = card_of(LoadedModel(champion.trained.fitted.bundle)).sections[0].text
    assert "has no threshold yet" in text[1]
    unseen = retold(champion.calibrated.bundle, evaluation=None)
    assert "never evaluated" in card_of(unseen).sections[0].text[1]


def test_columns_have_their_usual_values(champion: World) -> None:
    card = card_of(champion.source)
    table = section(card, "Columns").table
    assert table
    usual = {name: values for name, _, values in table.rows}
    assert " to " in usual["TX_AMOUNT"]
    assert "chip" in usual["TX_CHANNEL"]
    assert usual["TX_AMOUNT"] in section(card, "Columns").text[0]


def test_values_that_are_no_levels_are_told(champion: World) -> None:
    bundle = champion.calibrated.bundle
    pooled = {"column": "shop", "values": 900, "kept": 64, "share": 0.25, "banded": True}
    training = {**bundle.manifest["training"], "pooled": [pooled]}
    usual, *text = section(card_of(retold(bundle, training=training)), "Columns").text
    assert usual.startswith("Usual values are")
    assert tuple(text) == (
        "Column 'shop': 64 of 900 values are kept as levels; the others, in 25.0% of the training "
        "rows, are told apart only by how often training saw them.",
    )
    assert section(card_of(retold(bundle)), "Columns").text == (usual,)
