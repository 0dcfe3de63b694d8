"""A model card as one HTML file: its plots inside, nothing from elsewhere, no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from anomaly_vae import plots
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import RegistryError
from anomaly_vae.evaluation.report import EvaluationReport
from pipelines import console
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.model_card import Card, Table, card_of

if TYPE_CHECKING:
    from anomaly_vae.lifecycle.registry import Registry

LOGGED = ("loss", "scores", "ranking")
"""Plots of the runs that are shown: none that shows single rows or images."""
DOTS = 110
"""Per inch."""


def render(card: Card, pictures: Mapping[str, bytes]) -> str:
    """The page, all that is said in it escaped; ``pictures`` are PNGs by the name of the plot."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spell": console.spell, "numeric": _numeric}
    encoded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
    return environment.get_template("model_card.html").render(card=card, plots=encoded)


def page(source: LoadedModel, logged: Mapping[str, bytes] | None = None) -> str:
    """The card of a model, with the plots that its bundle gives and those that were logged."""
    return render(card_of(source), {**drawn(source.bundle), **(logged or {})})


def drawn(bundle: Bundle) -> dict[str, bytes]:
    """What a bundle has enough in it to draw."""
    if bundle.calibration is None:
        return {}
    scores = bundle.calibration.scores
    figures = {
        "calibration": plots.score_histogram(bundle.detector, scores, np.zeros(len(scores), bool))
    }
    if bundle.manifest["evaluation"] is not None:
        figures |= plots.report_figures(EvaluationReport.from_json(bundle.manifest["evaluation"]))
    return {name: _png(figure) for name, figure in figures.items()}


def logged(source: LoadedModel, client: Registry) -> dict[str, bytes]:
    """The plots that the runs of a registered version logged, where they still are."""
    about = source.to_json()
    version = client.version(about["name"], about["version"])
    from anomaly_vae.lifecycle.registry import TRAINED_RUN_TAG

    runs = filter(None, (version.tags.get(TRAINED_RUN_TAG), version.run_id))
    return {name: png for run in runs for name, png in _plots_of(client, run)}


def _plots_of(client: Registry, run_id: str) -> Iterator[tuple[str, bytes]]:
    try:
        place = Path(client.download(f"runs:/{run_id}/plots"))
    except RegistryError:  # somebody cleaned up: the card does without
        return
    yield from ((png.stem, png.read_bytes()) for png in place.glob("*.png") if png.stem in LOGGED)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS)
    return stream.getvalue()


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers, in every row that they hold anything in."""
    return [
        any(isinstance(cell, int | float) for cell in column)
        and all(cell is None or isinstance(cell, int | float) for cell in column)
        for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.header)
