"""Read configurations from YAML files and ``--set`` overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from anomaly_vae.config.base import Section
from anomaly_vae.config.detector import (
    KINDS,
    Config,
    ImageConfig,
    TabularConfig,
    merged,
)
from anomaly_vae.config.faults import explain_fault, group_faults, yaml_reason
from anomaly_vae.errors import ConfigError
from anomaly_vae.messages import shown


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from a YAML file.

    Args:
        path: the file.
        overrides: ``key=value`` with a dotted key and a YAML value; later ones win.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or a value does not fit.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "fraud.yaml"
    ...     _ = path.write_text("{name: fraud, data: {path: rows.csv}}")
    ...     config = load_config(path, ["calibration.alpha=0.005"])
    >>> config.kind, config.calibration.alpha
    ('tabular', 0.005)
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration '{path}': {reason}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise ConfigError(f"'{path}' is not YAML: {yaml_reason(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' must hold keys such as name, data, model, calibration")
    for override in overrides:
        content = merged(content, _parse_override(override))
    return validate_config(content)


def validate_config(content: Mapping[str, Any]) -> Config:
    """Check plain keys and values, and return them as a configuration.

    Raises:
        ConfigError: a key is unknown or missing, or a value does not fit; the message names each
            such key with the remedy.

    >>> config = validate_config({"name": "fraud", "data": {"path": "rows.csv"}})
    >>> config.calibration.method
    'conformal'
    >>> validate_config({"name": "fraud", "data": {"path": "rows.csv", "lable": "is_fraud"}})
    Traceback (most recent call last):
    anomaly_vae.errors.ConfigError: unknown key data.lable, did you mean label
    """
    kind = _kind(content.get("kind", "tabular"))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = group_faults(content, error.errors(include_url=False))
        clauses = [explain_fault(kind, key, alternatives) for key, alternatives in faults.items()]
        raise ConfigError("; ".join(clauses), key=next(iter(faults))) from None


def _kind(kind: Any) -> type[TabularConfig] | type[ImageConfig]:
    if not isinstance(kind, str) or kind not in KINDS:
        expected = " or ".join(map(repr, KINDS))
        raise ConfigError(f"kind: expected {expected}, got {shown(kind)}", key="kind")
    return KINDS[kind]


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of a section, dotted, with its description on one line."""
    for name, info in section.model_fields.items():
        yield f"{prefix}{name}", " ".join((info.description or "").split())
        kinds = get_args(info.annotation)
        for kind in kinds if NoneType in kinds else (info.annotation,):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from fields(kind, f"{prefix}{name}.")


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set '{override}': expected key=value, such as training.epochs=20")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set '{override}': {yaml_reason(error)}", key=key) from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
