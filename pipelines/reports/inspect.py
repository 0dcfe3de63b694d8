"""Print a model's card on the terminal, or write it as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomaly_vae.errors import ConfigError
from anomaly_vae.files import atomic_path
from pipelines import console
from pipelines.registry.model_uri import LoadedModel, open_registry
from pipelines.reports import model_card


def describe(source: LoadedModel, html: Path | None = None) -> dict[str, Any]:
    """Print the card and return the command's JSON object: the manifest without its encoding.

    Args:
        source: the model.
        html: the file to write the card to as an HTML page; None for no page.

    Raises:
        ConfigError: the libraries that draw the page are not installed.
    """
    model_card.show(model_card.card_of(source))
    written = {"card": str(_write(source, html))} if html else {}
    content = {k: v for k, v in source.bundle.manifest.items() if k != "encoding"}
    return {"model": source.to_json(), **written, **content}


def _write(source: LoadedModel, html: Path) -> Path:
    try:
        from pipelines.reports.model_card_html import logged_plots, page
    except ImportError as error:
        needed = "the page needs: pip install 'anomaly-vae[train]'"
        raise ConfigError(f"{error}; {needed} (inspect without --html does not)") from None
    content = page(source, logged_plots(source, open_registry()) if source.version else {})
    with atomic_path(html) as whole:
        whole.write_text(content, encoding="utf-8")
    console.info(f"Card: {html}")
    return html
