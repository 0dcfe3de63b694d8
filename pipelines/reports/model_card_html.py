"""Render a model card as one HTML file with embedded plots and no scripts or external files."""

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
"""Names of the runs' plots that the card shows; none of them shows single rows or images."""
DOTS_PER_INCH = 110


def render(card: Card, pictures: Mapping[str, bytes]) -> str:
    """Render the page with all text escaped; ``pictures`` contains the plots as PNGs, by name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spell": console.format_value, "numeric": _numeric}
    encoded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
    return environment.get_template("model_card.html").render(card=card, plots=encoded)


def page(source: LoadedModel, logged: Mapping[str, bytes] | None = None) -> str:
    """Render a model's card with the plots of its bundle and those that its runs logged."""
    return render(card_of(source), {**bundle_plots(source.bundle), **(logged or {})})


def bundle_plots(bundle: Bundle) -> dict[str, bytes]:
    """Draw the plots whose data the bundle holds, as PNGs by name."""
    if bundle.calibration is None:
        return {}
    scores = bundle.calibration.scores
    figures = {
        "calibration": plots.score_histogram(bundle.detector, scores, np.zeros(len(scores), bool))
    }
    if bundle.manifest["evaluation"] is not None:
        figures |= plots.report_figures(EvaluationReport.from_json(bundle.manifest["evaluation"]))
    return {name: _png(figure) for name, figure in figures.items()}


def logged_plots(source: LoadedModel, client: Registry) -> dict[str, bytes]:
    """Download the plots that the runs of a registered version logged, if they still exist."""
    about = source.to_json()
    version = client.version(about["name"], about["version"])
    from anomaly_vae.lifecycle.registry import TRAINED_RUN_TAG

    runs = filter(None, (version.tags.get(TRAINED_RUN_TAG), version.run_id))
    return {name: png for run in runs for name, png in _plots_of(client, run)}


def _plots_of(client: Registry, run_id: str) -> Iterator[tuple[str, bytes]]:
    try:
        folder = Path(client.download(f"runs:/{run_id}/plots"))
    except RegistryError:  # the artifacts were deleted: the card does without them
        return
    yield from ((png.stem, png.read_bytes()) for png in folder.glob("*.png") if png.stem in LOGGED)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def _numeric(table: Table) -> list[bool]:
    """Return whether each column is numeric: it has a number, and only numbers or None."""
    return [
        any(isinstance(cell, int | float) for cell in column)
        and all(cell is None or isinstance(cell, int | float) for cell in column)
        for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.header)
