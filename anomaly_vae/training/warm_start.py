"""A fit that starts from the weights of an earlier model, where they mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safetensors.torch import load as load_tensors

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config
from anomaly_vae.data.encoding import Categorical, EncodedColumn, TabularEncoding
from anomaly_vae.models.vae import VAE
from anomaly_vae.scoring.modality import Encoding

MEASURED = {"center", "offset", "scale", "shift"}
"""What an encoding measures of a column anew; the rest is what its numbers mean."""
AFTERWARDS = {"prior", "components"}
"""Of a model, what is decided when its networks are fitted."""


SETTLED = {"likelihood.variance_factor", "likelihood.variance_limit"}
"""Of its tensors, what is set when its networks are fitted."""


def aligned(encoding: Encoding, earlier: Encoding) -> Encoding:
    """The same encoding; columns with the same levels as earlier have them in that order.

    Levels are ordered by how often they occur, which changes with the rows and means nothing.
    """
    if not (isinstance(encoding, TabularEncoding) and isinstance(earlier, TabularEncoding)):
        return encoding
    known = {column.name: column for column in earlier.columns}
    columns = tuple(_ordered(column, known.get(column.name)) for column in encoding.columns)
    return replace(encoding, columns=columns)


def _ordered(column: EncodedColumn, earlier: EncodedColumn | None) -> EncodedColumn:
    if not (isinstance(column, Categorical) and isinstance(earlier, Categorical)):
        return column
    same = set(column.levels) == set(earlier.levels)
    return column.model_copy(update={"levels": earlier.levels}) if same else column


def incompatibility(bundle: Bundle, config: Config, encoding: Encoding) -> str | None:
    """Why this configuration, resolved, cannot start from the bundle's weights; None if it can."""
    used = bundle.manifest
    if used["kind"] != config.kind:
        return f"it is a model of kind {used['kind']}"
    for key, value in config.model.model_dump(mode="json", exclude=AFTERWARDS).items():
        if used["config"]["model"].get(key) != value:
            return f"its model.{key} is {used['config']['model'].get(key)}, this one's {value}"
    return _other_columns(used["encoding"], encoding.to_json())


def _other_columns(used: Any, planned: Any) -> str | None:
    if isinstance(planned, Mapping):  # that of images
        return None if used == planned else f"its images are encoded as {used}"
    names = [column["name"] for column in used], [column["name"] for column in planned]
    if names[0] != names[1]:
        return f"its columns are {', '.join(names[0])}"
    for before, now in zip(used, planned, strict=True):
        if _meaning(before) != _meaning(now):
            return f"its column '{now['name']}' has other levels or another scale"
    return None


def _meaning(column: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in column.items() if key not in MEASURED}
    return {**kept, "unit": column.get("unit") is None}


def start_from(model: VAE, bundle: Bundle) -> None:
    """Give a new model the weights of a bundle that fits."""
    tensors = load_tensors(bundle.weights)
    for name, value in model.state_dict().items():
        if name not in SETTLED:
            value.copy_(tensors[name].view_as(value))
